"""What a round costs, and how much memory a run takes, with 1,000 clients and with 10.

    python benchmarks/scale.py [--few 10] [--many 1000] [--student resnet8] [--pairs 3]

Both sides have one store with the same images and a cohort of 10 clients in each round, and every
client has as many images as any other, so that both train the same; besides the clients only
``strategy.fraction_train`` differs. With few clients the images are theirs alone. With many they
are dealt out again and again in another order, so that clients share images: an idle client is
nothing but its indices and, once it has trained, its state. Real hospitals share none; this is for
equal work in a round and an equal store.

Each run is a process of its own; sides of a pair alternate. The time of a round is the median over
all rounds but the first, from training to written tables, as a user waits for it. CPU is the
process' own time for it, which other processes disturb less. Peak RSS is of the whole process, of
which the imports alone are more than half; "above imports" is what the run added. States of clients
beyond ``--max-state-mb`` go to files, on both sides; a limit near ten states keeps memory flat.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from overhead import make_experiment

from fedkd import seeding
from fedkd.experiment import Experiment
from fedkd.partition import Partition
from server.scoreboard import Observer
from server.simulation import run

COHORT = 10
Figures = dict[str, float]


class Clock(Observer):
    """Notes wall and CPU time when each round is over and its tables are written."""

    def __init__(self) -> None:
        self.times = [(time.perf_counter(), time.process_time())]

    def round_finished(self, board: object) -> None:
        """The run directory has been told before."""
        self.times.append((time.perf_counter(), time.process_time()))


def divide_again(experiment: Experiment, clients: int) -> Experiment:
    """The same images and work in a round for another number of clients."""
    total = len(experiment.splits.train)
    each, rng = total // COHORT, seeding.rng(0, "benchmark", clients)
    dealt = [rng.permutation(total) for _ in range(-(-clients * each // total))]
    rows = np.split(np.concatenate(dealt)[: clients * each], clients)
    names = tuple(f"client-{number}" for number in range(clients))
    # Images of several clients are none of an experiment that is opened: they come afterwards.
    strategy = experiment.recipe.strategy.model_copy(update={"fraction_train": COHORT / clients})
    recipe = experiment.recipe.model_copy(update={"num_clients": clients, "strategy": strategy})
    return replace(experiment, recipe=recipe, partition=Partition(tuple(rows), names))


def peak_mb() -> float:
    """Peak RSS of this process in MB (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6


def measure(options: argparse.Namespace) -> Figures:
    """One run in this process."""
    imported, started = peak_mb(), time.perf_counter()
    engine = {"num_threads": 1, "max_state_mb": options.max_state_mb, "device": "cpu"}
    shape = (options.images, options.student, options.size, options.rounds)
    recipe = {"engine": engine, "training": {"batch_size": 32}}
    experiment = divide_again(make_experiment(COHORT, *shape, recipe), options.clients)
    opened, clock = time.perf_counter() - started, Clock()
    with tempfile.TemporaryDirectory() as output:
        run(experiment, output=output, observers=[clock])
    wall, cpu = np.diff(clock.times, axis=0)[1:].T
    return {
        "open s": opened,
        "round s": float(np.median(wall)),
        "round CPU s": float(np.median(cpu)),
        "peak RSS MB": peak_mb(),
        "above imports MB": peak_mb() - imported,
    }


def measure_apart(clients: int) -> Figures:
    """The same in a new process, as memory is counted for a whole one."""
    command = [sys.executable, __file__, "--clients", str(clients), *sys.argv[1:]]
    found = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    values: Figures = json.loads(found.splitlines()[-1])
    return values


def main() -> None:
    """Print a row for each run, and the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--few", type=int, default=10, help="clients of the one side")
    parser.add_argument("--many", type=int, default=1000, help="clients of the other")
    parser.add_argument("--images", type=int, default=192, help="training images of each client")
    parser.add_argument("--size", type=int, default=32, help="side of the images in px")
    parser.add_argument("--student", default="resnet8")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--max-state-mb", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--clients", type=int, help="measure one run of so many in this process")
    options = parser.parse_args()
    if min(options.few, options.many) < COHORT:
        parser.error(f"a cohort has {COHORT} clients: --few and --many must be at least that")
    if options.clients:
        print(json.dumps(measure(options)))
        return
    print(
        f"{platform.platform()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the "
        f"beginning\n{options.student}, {options.images} images of {options.size} px per client, "
        f"{COHORT} clients in each of {options.rounds} rounds, one thread, max_state_mb "
        f"{options.max_state_mb}"
    )
    pairs: list[dict[int, Figures]] = []
    for number in range(options.pairs):
        sizes = [options.few, options.many]
        found = {n: measure_apart(n) for n in (sizes if number % 2 == 0 else sizes[::-1])}
        if not pairs:
            print("pair  clients  " + "  ".join(found[options.few]))
        pairs.append(found)
        for size in sizes:
            cells = [f"{value:{len(key)}.2f}" for key, value in found[size].items()]
            print(f"{number + 1:4}  {size:7}  " + "  ".join(cells), flush=True)
    for key, target in (
        ("round s", " (target <= 1.10)"),
        ("round CPU s", ""),
        ("peak RSS MB", " (target <= 1.15)"),
        ("above imports MB", ""),
    ):
        values = [one[options.many][key] / one[options.few][key] for one in pairs]
        print(
            f"{key}, {options.many} over {options.few} clients{target}: "
            f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"
        )


if __name__ == "__main__":
    main()
