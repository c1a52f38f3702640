"""How near a client's training comes to the pure compute of its networks, with each GPU option.

    python benchmarks/gpu.py [--device cuda|cpu] [--students resnet18 resnet50] [--size 224]

``pure`` is a bare loop on tensors that are on the device already: the student's forward, backward
and optimiser's step, for ekd and fopro also the teacher's forward, with the same losses, types and
layout. ``fedkd`` is ``Node.train``: reading, sending, augmenting, exploring (fopro), all that a
client does in a round but scoring and predicting. Images are random; medians of repeats, after one
that is not counted. Each line is printed as it is done.

It needs neither flwr nor ray, nor the packages named in ``UNUSED``, which fedkd imports for other
things; of the others pydantic, safetensors, filelock, tomli_w and pillow beside torch, torchvision
and numpy.
"""

import argparse
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from unittest.mock import MagicMock

import numpy as np
import torch
import torch.nn.functional as F
import torchvision

UNUSED = ("pandas", "sklearn", "scipy")
OPTIONS = {
    "none": {"channels_last": False, "prefetch": 0},
    "channels_last": {"prefetch": 0},
    "prefetch": {},  # channels_last and prefetch are what fedkd does unasked
    "bfloat16": {"mixed_precision": "bfloat16"},
    "compile": {"compile": True},
    "bfloat16+compile": {"mixed_precision": "bfloat16", "compile": True},
}


class StandIns:
    """Finds and makes modules that nothing here uses, where they are not installed."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> object:
        """A module for the names that are missing."""
        if name.split(".")[0] not in self.missing:
            return None
        return importlib.util.spec_from_loader(name, self, is_package=True)

    def __init__(self) -> None:
        self.missing = {name for name in UNUSED if importlib.util.find_spec(name) is None}

    def create_module(self, spec: object) -> object:
        """One that has every name."""
        return MagicMock(__path__=[])

    def exec_module(self, module: object) -> None:
        """Nothing."""


sys.meta_path.append(StandIns())

from clients.node import Node  # noqa: E402
from fedkd.compiling import compile_student  # noqa: E402
from fedkd.data.images import LabelledImages  # noqa: E402
from fedkd.experiment import Experiment, open_experiment  # noqa: E402
from fedkd.recipe import Recipe  # noqa: E402
from fedkd.seeding import rng  # noqa: E402
from fedkd.training import make_optimizer  # noqa: E402

NUM_CLASSES = 8


def make_experiment(options: argparse.Namespace, student: str, objective: str, engine: dict):
    """One client with random images, and a teacher with random weights: only the time matters."""
    draws = rng(0, "benchmark")

    def images(num: int) -> LabelledImages:
        pixels = draws.integers(0, 256, (num, 3, options.size, options.size), dtype=np.uint8)
        return LabelledImages(pixels, np.arange(num) % NUM_CLASSES, tuple("abcdefgh"))

    teacher = torchvision.models.get_model(options.teacher, weights=None)
    teacher.fc = torch.nn.Identity()
    recipe = Recipe.model_validate(
        {
            "num_rounds": 100,
            "student": {"name": student},
            "objective": {"name": objective, "loss": "ce"},
            "training": {"batch_size": options.batch, "clip_norm": 5.0},
            "explore": {"batch_size": options.batch, "warm_up_steps": 2},
            "evaluation": {"personalised": False},
            "engine": {"device": options.device, **engine},
        }
    )
    return open_experiment(
        recipe, sites=[images(options.images)], val=images(8), test=images(8), teacher=teacher
    )


def synchronise(device: torch.device) -> None:
    """Wait until the GPU has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def images_per_second(work: Callable[[], int], device: torch.device, repeats: int) -> float:
    """Median over repeats; the first run, which warms up, does not count."""
    work()
    rates = []
    for _ in range(repeats):
        synchronise(device)
        started = time.perf_counter()
        num_images = work()
        synchronise(device)
        rates.append(num_images / (time.perf_counter() - started))
    return statistics.median(rates)


def pure(experiment: Experiment, options: argparse.Namespace) -> Callable[[], int]:
    """The bare loop: as many batches as a client's round has, always the same one."""
    recipe = experiment.recipe
    loader, student = experiment.loader(0), experiment.build_student()
    pixels, labels = loader.batch(np.arange(options.batch))
    if recipe.engine.compile:
        compile_student(student, pixels[:1])
    optimizer = make_optimizer(recipe.training, student.parameters(), 1e-4)
    teacher = experiment.teachers[0] if experiment.teachers else None
    student.train()

    def work() -> int:
        steps = options.images // options.batch
        for _ in range(steps):
            out = student(pixels)
            loss = F.cross_entropy(out.logits, labels)
            if teacher is not None:
                target = F.normalize(teacher.features(pixels), dim=1)
                cosines = (F.normalize(out.projection, dim=1) * target).sum(1)
                loss = loss + F.cross_entropy(out.projected_logits, labels)
                loss = loss + 3 * (2 - 2 * cosines).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 5.0)
            optimizer.step()
        return steps * options.batch

    return work


def federated(experiment: Experiment) -> Callable[[], int]:
    """Rounds of the one client, each going on from the one before."""
    node = Node(experiment)
    arrays, state, number = node.initial_arrays(), {}, 0

    def work() -> int:
        nonlocal arrays, state, number
        number += 1
        reply, state = node.train(0, arrays, state, number)
        arrays = reply.arrays
        return int(reply.metrics["num-seen"])

    return work


def main() -> None:
    """Print a line for each student, objective and option."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--students", nargs="+", default=["resnet18", "resnet50"])
    parser.add_argument("--objectives", nargs="+", default=["supervised", "ekd", "fopro"])
    parser.add_argument("--options", nargs="+", default=list(OPTIONS), choices=list(OPTIONS))
    parser.add_argument("--teacher", default="resnet50", help="a ResNet of torchvision")
    parser.add_argument("--size", type=int, default=224, help="side of the images in px")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--images", type=int, default=2048, help="of a round")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    if options.images % options.batch:
        parser.error("--images must be a multiple of --batch, as both sides do the same steps")
    on_gpu = options.device.startswith("cuda")
    name = torch.cuda.get_device_name(options.device) if on_gpu else "CPU"
    print(
        f"{name}, torch {torch.__version__}, {torch.get_num_threads()} threads; teacher "
        f"{options.teacher}, {options.size} px, batches of {options.batch}, {options.images} "
        f"images a round, median of {options.repeats}"
    )
    print("| student | objective | options | pure, images/s | fedkd, images/s | share | peak, GB |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for student in options.students:
        for objective in options.objectives:
            for option in options.options:
                experiment = make_experiment(options, student, objective, OPTIONS[option])
                device = experiment.device
                bare = images_per_second(pure(experiment, options), device, options.repeats)
                if on_gpu:
                    torch.cuda.empty_cache()
                    torch.cuda.reset_peak_memory_stats(device)
                own = images_per_second(federated(experiment), device, options.repeats)
                peak = f"{torch.cuda.max_memory_allocated(device) / 1e9:.2f}" if on_gpu else "-"
                print(
                    f"| {student} | {objective} | {option} | {bare:.1f} | {own:.1f} | "
                    f"{own / bare:.0%} | {peak} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
