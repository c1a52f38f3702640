"""What a hospital's prompt generator tells about its images: spectrum, colour, whose it is.

    python benchmarks/prompt_leakage.py [--config configs/quickstart.toml] [--seeds 5]
        [--csv FILE] [key=value ...]

Each client trains its generator with ``explore.warm_up_steps`` steps, from the weights that all
have, once for each seed. Its mean log-gain is averaged over rings, for each channel, without
frequency 0 (DC), and set against log(amplitude of the teacher's data / of the client's images):
what the generator would be if it did nothing but make up for the difference. The teacher's data
are taken to be dead leaves, as those of the shipped teacher.
"""

import argparse
import itertools
from collections.abc import Sequence
from contextlib import closing

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from clients.factory import make_objective
from clients.fopro import FoPro
from fedkd import config, seeding
from fedkd.data.dead_leaves import dead_leaves
from fedkd.data.loading import in_order
from fedkd.experiment import Experiment, open_experiment
from fedkd.fourier.rings import ring_means
from fedkd.fourier.spectrum import full_from_half, mean_amplitude
from fedkd.recipe import Recipe

Profiles = npt.NDArray[np.float64]
"""(clients, channels x (1 + rings)): of each channel DC, then the rings."""
NUM_LATENTS, NUM_DEAD_LEAVES = 256, 512


def profile(log_map: Tensor, width: int) -> npt.NDArray[np.float64]:
    """DC and ring means of a half-spectrum map (channels, height, width // 2 + 1), flat."""
    plane = full_from_half(log_map.double(), width)
    return torch.cat([plane[:, :1, 0], ring_means(plane)], 1).flatten().numpy()


def gaps(experiment: Experiment) -> Profiles:
    """Profile of log(teacher's data / client's images), a row for each client."""
    size = experiment.splits.train.images.shape[-1]
    leaves = torch.from_numpy(dead_leaves(NUM_DEAD_LEAVES, size, seed=0)) / 255
    natural = mean_amplitude(leaves.split(64)).log()
    rows = []
    for client in range(experiment.num_clients):
        loader = experiment.loader(client)
        with closing(loader.batches(in_order(len(loader), 256))) as loaded:
            own = mean_amplitude(pixels for pixels, _ in loaded).log()
        rows.append(profile(natural - own, size))
    return np.stack(rows)


def learned(experiment: Experiment) -> Profiles:
    """Profile of the mean log-gain of each client's generator."""
    student, rows = experiment.build_student(), []
    for client in range(experiment.num_clients):
        objective = make_objective(experiment, client, 1)
        assert isinstance(objective, FoPro), "only fopro has prompts"
        objective.start_round(student, experiment.loader(client), 1)
        prompter = objective.prompter
        assert prompter.generator is not None, "amplitude_mix has no generator"
        rng = seeding.generator(0, "latents")
        drawn = prompter.draw(NUM_LATENTS, rng, torch.empty(0), per="image")
        with torch.no_grad():
            mean = prompter.log_gains(drawn.latents).mean(0)
        rows.append(profile(mean, prompter.generator.width))
    return np.stack(rows)


def correlations(first: Profiles, second: Profiles) -> Profiles:
    """Pearson's r of each row of the first with each of the second."""
    return np.corrcoef(first, second)[: len(first), len(first) :]


def told_apart(first: Profiles, second: Profiles, *, centred: bool) -> int:
    """Clients whom the best one-to-one matching of rows by correlation finds; by chance 1."""
    if centred:  # what all clients have in common says nothing about who is who
        first, second = first - first.mean(0), second - second.mean(0)
    rows, columns = linear_sum_assignment(-correlations(first, second))
    return int((rows == columns).sum())


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/quickstart.toml")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--csv", help="also write all profiles there")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_args(arguments)
    found, tables = [], []
    for seed in range(options.seeds):
        recipe = config.load(Recipe, options.config, [*options.overrides, f"seed={seed}"])
        experiment = open_experiment(recipe)
        if not seed:
            names, gap = experiment.partition.client_names, gaps(experiment)
            tables.append(pd.DataFrame(gap).assign(client=names, what="gap"))
        found.append(learned(experiment))
        tables.append(pd.DataFrame(found[-1]).assign(client=names, what=f"seed {seed}"))
        if options.csv:
            pd.concat(tables).to_csv(options.csv, index=False)
        print(f"seed {seed} done", flush=True)
    report(np.stack(found), gap, names)


def report(found: Profiles, gap: Profiles, names: Sequence[str]) -> None:
    """Print all that is asked of profiles (seeds, clients, values) and of the gap."""
    num = len(names)
    dc = np.zeros(gap.shape[1], bool)
    dc[:: gap.shape[1] // 3] = True
    for what, bins in (("rings", ~dc), ("DC", dc)):
        own, wanted = found[..., bins], gap[:, bins]
        print(f"\n{what}: r of the mean log-gain (rows) with the gap of each client (columns)")
        mean = np.mean([correlations(one, wanted) for one in own], axis=0)
        print(pd.DataFrame(mean, names, names).round(2).to_string())
        for centred in (False, True):
            hits = [told_apart(one, wanted, centred=centred) for one in own]
            pairs = [told_apart(a, b, centred=centred) for a, b in itertools.permutations(own, 2)]
            how = "without what is common" if centred else "as they are"
            print(
                f"matched to their images, {how}: {np.mean(hits):.2f} of {num} {hits}; to "
                f"generators of other seeds: {np.mean(pairs or [np.nan]):.2f} of {num}; chance 1"
            )
    print("\nDC log-gain, mean over seeds (+- sd), and gap: red, green, blue")
    for client, name in enumerate(names):
        mean, sd = found[:, client, dc].mean(0), found[:, client, dc].std(0)
        print(f"{name}: {mean.round(2)} +- {sd.round(2)}, gap {gap[client, dc].round(2)}")
    flat = np.tile(gap[:, dc], (len(found), 1, 1)).ravel()
    r = np.corrcoef(found[..., dc].ravel(), flat)[0, 1]
    print(f"r over clients, channels and seeds {r:.2f}")


if __name__ == "__main__":
    main()
