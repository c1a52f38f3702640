"""Images per second of the input pipeline, against torchvision's ImageFolder and DataLoader.

    python benchmarks/input.py [--images 1024] [--pairs 5] [--sizes 64 224] [--as-stored]

The files are those of HAM10000 below FEDKD_DATA, written anew at 600 x 450 px, the size at which
ISIC publishes them (--as-stored: linked as they are there); without them, drawn ones. Both sides
read the same files and augment alike: fedkd decodes once and then augments batches of the store;
ImageFolder decodes and augments in every epoch, as the published code does, with transforms of
torchvision in worker processes. A step is the student's forward and backward pass, its loss and
its optimiser on a batch. The sides alternate.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from fedkd import seeding
from fedkd.data.augment import AugmentationConfig, augment_, draw
from fedkd.data.image_files import decode_files
from fedkd.data.images import LabelledImages
from fedkd.data.loading import Loader
from fedkd.models.factory import StudentConfig, build_student
from fedkd.training import batches

TORCHVISION: dict[str, Callable[[int], list[nn.Module]]] = {
    "none": lambda size: [v2.Resize((size, size))],
    "fedmas_isic": lambda size: [
        v2.RandomHorizontalFlip(),
        v2.RandomVerticalFlip(),
        v2.GaussianBlur((5, 9), (0.1, 5)),
        v2.RandomRotation(10),
        v2.Resize((size, size)),
    ],
    "fedmas_skin": lambda size: [
        v2.Resize((size, size)),
        v2.RandomChoice([
            v2.RandomAffine(0, scale=(0.95, 1.2)),
            v2.RandomAffine(0, translate=(0.05, 0)),
            v2.RandomRotation(45),
        ]),
        v2.ColorJitter(0.25, 0.25, 0.25, 0.01),
        v2.RandomHorizontalFlip(),
        v2.RandomVerticalFlip(),
    ],
}  # fmt: skip
"""What the published code does, by the names of fedkd's augmentations."""


def make_folder(folder: Path, num: int, as_stored: bool) -> list[Path]:
    """An ImageFolder of one class; returns its files."""
    (folder / "a").mkdir()
    data = os.environ.get("FEDKD_DATA")
    real = sorted(Path(data).glob("ham10000/images/*.jpg")) if data else []
    rng = seeding.rng(0, "benchmark")
    for number in range(num):
        path = folder / "a" / f"{number:05}.jpg"
        if real and as_stored:
            path.symlink_to(real[number % len(real)].resolve())
            continue
        if real:
            picture = Image.open(real[number % len(real)])
        else:
            # Smooth, as noise would make larger files than photographs.
            picture = Image.fromarray(rng.integers(0, 256, (15, 20, 3), dtype=np.uint8))
        picture.resize((600, 450), Image.Resampling.BICUBIC).save(path, quality=90)
    return sorted((folder / "a").iterdir())


def seconds(run: Callable[[], object]) -> float:
    """Wall-clock time of a call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def fedkd_epoch(loader: Loader, batch_size: int, augmentation: str) -> None:
    """Read, convert and augment every image once."""
    config = AugmentationConfig.model_validate({"name": augmentation})
    order = seeding.rng(0, "order").permutation(len(loader))
    draws = draw(order, seeding.rng(0, "augment"))
    for places in batches(np.arange(len(order)), batch_size, drop_last=False):
        augment_(loader.pixels(order[places]), draws[places], config)


def torchvision_loader(folder: Path, size: int, options: argparse.Namespace) -> DataLoader[object]:
    """The published pipeline."""
    to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    transform = v2.Compose([*TORCHVISION[options.augmentation](size), *to_tensor])
    return DataLoader(
        ImageFolder(folder, transform),
        options.batch_size,
        shuffle=True,
        num_workers=options.workers,
        persistent_workers=options.workers > 0,
    )


def make_step(name: str, batch: torch.Tensor) -> Callable[[], None]:
    """A training step of the student."""
    config = StudentConfig.model_validate({"name": name})
    student = build_student(
        config, num_classes=8, num_teacher_features=None, seed=0, normalize=True
    ).train()
    optimizer = torch.optim.Adam(student.parameters())
    labels = torch.arange(len(batch)) % 8

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(student(batch).logits, labels).backward()
        optimizer.step()

    return step


def show(what: str, rates: list[float], unit: str = "images/s") -> None:
    """One line: median, smallest and largest."""
    low, high = min(rates), max(rates)
    print(f"  {what:<56} {median(rates):9.1f} {unit} ({low:.1f} to {high:.1f})", flush=True)


def measure(folder: Path, files: list[Path], size: int, options: argparse.Namespace) -> None:
    """Print all figures at one size."""
    num = len(files)
    print(f"{size} px")
    images, _ = decode_files(files, size)
    store = LabelledImages(images, np.zeros(num, np.int64), ("a",))
    loader = Loader(store, np.arange(num), torch.device("cpu"), torch.float32)
    theirs = torchvision_loader(folder, size, options)
    batch = loader.pixels(np.arange(options.batch_size))
    step = make_step(options.student, batch.clone())
    augmentation = AugmentationConfig.model_validate({"name": options.augmentation})
    draws = draw(np.arange(len(batch)), seeding.rng(0, "augment"))
    sides: dict[str, tuple[int, Callable[[], object]]] = {
        "decode, once": (num, lambda: decode_files(files, size)),
        "cached epoch": (num, lambda: fedkd_epoch(loader, options.batch_size, "none")),
        "cached epoch, augmented": (
            num,
            lambda: fedkd_epoch(loader, options.batch_size, options.augmentation),
        ),
        "ImageFolder epoch, augmented": (num, lambda: [None for _ in theirs]),
        "augmentation alone": (
            10 * len(batch),
            lambda: [augment_(batch, draws, augmentation) for _ in range(10)],
        ),
        "student's step": (len(batch), step),
    }
    for _, run in sides.values():
        run()  # the first pass is slower, and starts the workers
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for pair in range(options.pairs):
        names = list(sides) if pair % 2 == 0 else list(reversed(sides))
        for name in names:
            count, run = sides[name]
            rates[name].append(count / seconds(run))
    for name, values in rates.items():
        show(name, values)
    for ours, other in (
        ("cached epoch, augmented", "ImageFolder epoch, augmented"),
        ("augmentation alone", "student's step"),
    ):
        pairs = zip(rates[ours], rates[other], strict=True)
        show(f"{ours} / {other}", [a / b for a, b in pairs], "times")


def main() -> None:
    """Print the figures of each size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 224], help="sides in px")
    parser.add_argument("--augmentation", choices=list(TORCHVISION), default="fedmas_isic")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2, help="processes of the DataLoader")
    parser.add_argument("--student", default="resnet18")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--as-stored", action="store_true", help="files of any size")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = make_folder(folder, options.images, options.as_stored)
        with Image.open(files[0]) as first:
            described = f"{len(files)} files of {first.width} x {first.height} px"
        print(
            f"{described}, {options.augmentation}, batches of {options.batch_size}, "
            f"{torch.get_num_threads()} threads, {options.workers} workers; medians (min to max) "
            f"of {options.pairs} pairs"
        )
        for size in options.sizes:
            measure(folder, files, size, options)


if __name__ == "__main__":
    main()
