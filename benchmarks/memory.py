"""Memory of a first and a second client, and of a second worker process, on one image store.

    python benchmarks/memory.py configs/ham10000_sites.toml [key=value ...]

Each worker is a process that opens the data of the recipe and reads all training images of its
clients through a :class:`fedkd.data.loading.Loader`, batch by batch. RSS counts the pages of a
process that are in memory, PSS each shared page in equal parts for those that share it, own those
that are no part of a file, so that a copy of the images shows there (Linux: ``smaps_rollup``).
Try ``data.store=memory`` and ``data.store=stream`` as well; FEDKD_CACHE says where the store goes.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from fedkd import config
from fedkd.data.loading import Loader, in_order
from fedkd.experiment import open_data
from fedkd.recipe import Recipe

MB = 1e6


def memory(process: int) -> dict[str, float]:
    """RSS, PSS and anonymous memory of a process in MB."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    rows = [line.split() for line in lines]
    sizes = {row[0].rstrip(":"): int(row[1]) * 1024 / MB for row in rows}
    return {
        "RSS": sizes["Rss"],
        "PSS": sizes["Pss"],
        "own": sizes["Anonymous"],
    }


def say(what: str, process: int | None = None) -> None:
    """One line of the table; of this process unless another is named."""
    sizes = memory(process or os.getpid())
    values = "  ".join(f"{name} {value:7.0f} MB" for name, value in sizes.items())
    print(f"{what:<36} {values}", flush=True)


def work(recipe: Recipe, worker: str) -> list[Loader]:
    """Open the data and read the images of two clients, then all others; the loaders keep it."""
    torch.set_num_threads(1)
    say(f"{worker}, before the data")
    splits, divided = open_data(recipe)
    say(f"{worker}, data opened")
    first, second = divided.indices[:2]
    rest = np.setdiff1d(np.arange(len(splits.train)), np.concatenate([first, second]))
    own = {
        "client 1": first,
        "client 2": second,
        "all other images": rest,
        "client 2 again": second,
    }
    loaders = []
    for name, rows in own.items():
        loader = Loader(splits.train, rows, torch.device("cpu"), torch.float32)
        for pixels, _ in loader.batches(in_order(len(loader), 32)):
            pixels.sum()
        size = len(rows) * np.prod(splits.train.images.shape[1:]) / MB
        say(f"{worker}, {name} ({size:.0f} MB)")
        loaders.append(loader)
    return loaders


def main() -> None:
    """Run a first worker, and from it, while it still has its data, a second one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--worker", type=int, default=1, help=argparse.SUPPRESS)
    args = parser.parse_intermixed_args()
    recipe = config.load(Recipe, Path(args.recipe), args.overrides)
    kept = work(recipe, f"worker {args.worker}")
    if args.worker == 1:
        again = [sys.executable, __file__, args.recipe, *args.overrides, "--worker", "2"]
        subprocess.run(again, check=True)
    else:
        say("worker 1 beside it", os.getppid())
    del kept


if __name__ == "__main__":
    main()
