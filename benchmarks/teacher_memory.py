"""Memory of a teacher in several worker processes that share its weights.

    python benchmarks/teacher_memory.py [--workers 4] [--private] [--size 224] [teacher.KEY=VALUE]

Each worker opens the teacher as a run does and takes the features of two images; when all have,
each says what it holds. RSS, PSS and own memory are as in ``memory.py``, of the whole process, most
of it Python and torch. Of the weights: ``mapped`` is their file's part of the RSS, ``written``
those of its pages that the worker has a copy of, ``own`` the anonymous memory that opening and the
forward pass have added, without what malloc keeps for later. The last column is what a further
worker costs, written + own, in percent of the weights. ``--private`` opens without sharing.
For a model of timm, ``own`` includes 35 MB for importing timm (measured alone, timm 1.0).
"""

import argparse
import ctypes
import multiprocessing
import os
import tempfile
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from unittest.mock import patch

import torch
from memory import MB, memory

from fedkd import config
from fedkd.teachers import opening
from fedkd.teachers.config import TeacherConfig


def of_mapping() -> dict[str, float]:
    """RSS and private dirty memory in MB of this process's mappings of shared weights."""
    sizes, inside = {"Rss": 0.0, "Private_Dirty": 0.0}, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):
            inside = "teachers-shared" in line
        elif inside and first[:-1] in sizes:
            sizes[first[:-1]] += int(rest[0]) * 1024 / MB
    return sizes


def own_memory() -> float:
    """Anonymous memory of this process in MB, without freed pages that malloc keeps."""
    ctypes.CDLL(None).malloc_trim(0)
    return memory(os.getpid())["own"]


def work(number: int, teacher: TeacherConfig, size: int, private: bool, barrier: Barrier) -> None:
    """Open the teacher, use it, and say when all have it what it costs."""
    torch.set_num_threads(1)
    pixels = torch.zeros(2, 3, size, size)
    torch.nn.Conv2d(3, 8, 3)(pixels)  # torch's libraries are there before the teacher is
    before = own_memory()
    if number > 1:
        barrier.wait()
    started = time.perf_counter()
    with patch.object(opening, "share") if private else patch.dict({}):
        (opened,) = opening.open_teachers(teacher, None, ["client"], pixels, False)
    seconds = time.perf_counter() - started
    opened.features(pixels)
    if number == 1:
        barrier.wait()  # the others find the file
    barrier.wait()
    weights = sum(t.nbytes for t in (*opened.parameters(), *opened.buffers())) / MB
    whole = memory(os.getpid())
    barrier.wait()
    own, mapping = own_memory() - before, of_mapping()
    for turn in range(1, barrier.parties + 1):
        if turn == number:
            print(
                f"worker {number}: weights {weights:.1f} MB, opened in {seconds:.2f} s"
                + "".join(f"  {name} {value:.0f}" for name, value in whole.items())
                + f"  mapped {mapping['Rss']:.1f}  written {mapping['Private_Dirty']:.1f}"
                + f"  own {own:.1f}  cost {(mapping['Private_Dirty'] + own) / weights:.1%}",
                flush=True,
            )
        barrier.wait()


def main() -> None:
    """Run the workers, the first ahead of the others."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--private", action="store_true")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("overrides", nargs="*", metavar="teacher.key=value")
    options = parser.parse_args()
    values = dict(entry.removeprefix("teacher.").split("=", 1) for entry in options.overrides)
    teacher = config.build(TeacherConfig, values)
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(options.workers, timeout=600)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FEDKD_CACHE"] = folder
        workers = [
            context.Process(
                target=work, args=(number, teacher, options.size, options.private, barrier)
            )
            for number in range(1, options.workers + 1)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    if any(worker.exitcode for worker in workers):
        raise SystemExit("a worker failed")


if __name__ == "__main__":
    main()
