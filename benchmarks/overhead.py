"""What the federation costs over the same training in a bare PyTorch loop.

    python benchmarks/overhead.py [--clients 6] [--images 128] [--pairs 5]

Both sides train the same students on the same batches, with the same threads: (a) a loop that
loads, steps and averages state dicts by hand, (b) ``simulate`` through Flower's types. Loading data
and the final test are left out of both; evaluation is reduced to a few images. Pairs alternate.
"""

import argparse
import statistics
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from fedkd import seeding
from fedkd.data.images import LabelledImages
from fedkd.experiment import Experiment, open_experiment
from fedkd.recipe import Recipe
from fedkd.training import batches
from server.simulation import run

ROUNDS = 2


def make_experiment(
    num_clients: int,
    num_images: int,
    student: str,
    size: int,
    num_rounds: int = ROUNDS,
    more: Mapping[str, Mapping[str, Any]] | None = None,
) -> Experiment:
    """Random images: only the time matters.

    Args:
        num_clients: Hospitals.
        num_images: Training images of each.
        student: Its name.
        size: Side of the images in px.
        num_rounds: Rounds.
        more: Further keys of the recipe, by section.
    """
    rng = seeding.rng(0, "benchmark")

    def images(num: int) -> LabelledImages:
        pixels = rng.integers(0, 256, (num, 3, size, size), dtype=np.uint8)
        return LabelledImages(pixels, np.arange(num) % 8, tuple("abcdefgh"))

    training = {"optimizer": "sgd", "learning_rate": 0.01, "batch_size": 32}
    values: dict[str, Any] = {
        "num_rounds": num_rounds,
        "student": {"name": student},
        "objective": {"name": "supervised", "loss": "ce"},
        "augmentation": {"name": "none"},
        **(more or {}),
    }
    values["training"] = {**training, **values.get("training", {})}
    recipe = Recipe.model_validate(values)
    sites = [images(num_images) for _ in range(num_clients)]
    return open_experiment(recipe, sites=sites, val=images(8), test=images(8))


def bare_loop(experiment: Experiment) -> float:
    """Seconds of the same work without fedkd's and Flower's machinery."""
    recipe = experiment.recipe
    train = experiment.splits.train
    student = experiment.build_student()
    state = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    momenta: list[dict | None] = [None] * experiment.num_clients
    started = time.perf_counter()
    for number in range(1, ROUNDS + 1):
        replies = []
        for client, rows in enumerate(experiment.partition.indices):
            student.load_state_dict(state)
            student.train()
            optimizer = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9, nesterov=True)
            if momenta[client] is not None:
                optimizer.load_state_dict(momenta[client])
            order = seeding.rng(recipe.seed, "order", number, client, 0).permutation(len(rows))
            for positions in batches(order, 32, drop_last=False):
                pixels = torch.from_numpy(train.images[rows[positions]]).float() / 255
                labels = torch.from_numpy(train.labels[rows[positions]])
                loss = F.cross_entropy(student(pixels).logits, labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            momenta[client] = optimizer.state_dict()
            replies.append({name: t.clone() for name, t in student.state_dict().items()})
        state = {
            name: sum(reply[name].double() for reply in replies).div(len(replies)).to(t.dtype)
            for name, t in state.items()
        }
    return time.perf_counter() - started


def federation(experiment: Experiment) -> float:
    """Seconds of the rounds of ``simulate``."""
    started = time.perf_counter()
    run(experiment)
    return time.perf_counter() - started


def main() -> None:
    """Print images per second of both sides, and the ratio of each pair."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--images", type=int, default=128, help="training images of each client")
    parser.add_argument("--student", default="resnet18")
    parser.add_argument("--size", type=int, default=64, help="side of the images in px")
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    experiment = make_experiment(options.clients, options.images, options.student, options.size)
    seen = options.clients * options.images * ROUNDS
    print(
        f"{options.clients} clients x {options.images} images, {options.student} at "
        f"{options.size} px, {ROUNDS} rounds, {torch.get_num_threads()} threads"
    )
    bare_loop(experiment)  # the first pass is slower on either side
    ratios = []
    for pair in range(options.pairs):
        sides = [bare_loop, federation] if pair % 2 == 0 else [federation, bare_loop]
        seconds = {side.__name__: side(experiment) for side in sides}
        ratios.append(seconds["federation"] / seconds["bare_loop"])
        print(
            f"pair {pair + 1}: loop {seen / seconds['bare_loop']:.1f} images/s, "
            f"federation {seen / seconds['federation']:.1f} images/s, ratio {ratios[-1]:.3f}",
            flush=True,
        )
    print(
        f"time of the federation over the loop: median {statistics.median(ratios):.3f} "
        f"(min {min(ratios):.3f}, max {max(ratios):.3f})"
    )


if __name__ == "__main__":
    main()
