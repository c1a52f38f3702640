"""What the cases of `fuzz_cases.py` are, and the whole files that they start from."""

import io
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
NUM_IMAGES = 36
CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")


@dataclass
class Case:
    """A command and the files that it reads.

    Attributes:
        folder: All of them, and the working directory.
        arguments: Of the command line.
        may_change: Folders that the command may write to.
        output: Folder of its output.
        uses_temporary: Whether it may write to the system's folder of temporary files.
        call: Instead of a command: what no command reads.
    """

    folder: Path
    arguments: list[str]
    may_change: list[Path] = field(default_factory=list)
    output: Path = Path("nowhere")
    uses_temporary: bool = False
    call: Callable[[], None] | None = None


def make_materials(folder: Path) -> None:
    """Everything whole that cases start from: images and their tables, runs, teachers."""
    from PIL import Image

    from fedkd import seeding

    rng = seeding.rng(0, "fuzz/materials")
    images = folder / "data" / "images"
    images.mkdir(parents=True)
    rows, ham, lists = ["image_id,label,site,split,patient"], [], {}
    for n in range(NUM_IMAGES):
        name, label = f"im{n:02d}", n % 3
        pixels = rng.integers(0, 256, (20, 24, 3)) // 3 + 50 * label
        ending = ("png", "jpg")[n % 2]
        Image.fromarray(pixels.astype(np.uint8)).save(images / f"{name}.{ending}")
        Image.fromarray(pixels.astype(np.uint8)).save(images / f"isic{n:02d}.jpg")
        split = ("train", "train", "val", "test")[n // 3 % 4]
        rows.append(
            f"{name}.{ending},{'abc'[label]},{('north', 'south')[n // 12 % 2]},{split},p{n}"
        )
        ham.append(f"isic{n:02d},les{n},{CLASSES[n % 7]},{('x', 'y')[n // 14 % 2]}")
        lists.setdefault(split, ["image,finding_name,finding"]).append(f"isic{n:02d},0,{n % 8}")
    write(folder / "data" / "table.csv", "\n".join(rows) + "\n")
    write(folder / "data" / "ham.csv", "\n".join(["image_id,lesion_id,dx,dataset", *ham]) + "\n")
    for split, lines in lists.items():
        write(folder / "data" / f"{split}_skin1_0.01.csv", "\n".join(lines) + "\n")
    write(folder / "data" / "recipe.toml", _RECIPE)
    write(folder / "data" / "ham.toml", _HAM)
    write(folder / "data" / "lists.toml", _LISTS)
    _make_runs(folder)
    _make_teachers(folder)


_RECIPE = """
name = "tiny"
num_rounds = 1
[data]
name = "folder"
images = "images"
csv = "table.csv"
site_column = "site"
group_column = "patient"
size = 16
[partition]
name = "by_site"
[objective]
name = "supervised"
[training]
batch_size = 4
[augmentation]
name = "none"
"""
_HAM = """
[data]
name = "ham10000"
images = "images"
metadata = "ham.csv"
size = 16
"""
_LISTS = """
[data]
name = "isic2019_lt"
images = "images"
lists = "."
size = 16
"""


def write(path: Path, text: str) -> None:
    """Write a text, its folders as well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _make_runs(folder: Path) -> None:
    """A run, one that was killed, and the folders of its hospitals."""
    import contextlib
    import os

    from server.cli import main

    where = Path.cwd()
    os.chdir(folder / "data")
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            kept = "keep_students_every=1"
            done = [main(["run", "recipe.toml", f"output={folder / 'made'}", kept])]
            many = [f"output={folder / 'killed'}", "num_rounds=3", "checkpoint.every=1"]
            done.append(_stopped(lambda: main(["run", "recipe.toml", *many])))
            sites = ["--sites", str(folder / "sites"), "--output", str(folder / "divided")]
            done.append(main(["partition", "recipe.toml", *sites]))
    finally:
        os.chdir(where)
    assert done == [0, 0, 0], done
    shutil.move(next((folder / "made" / "tiny").iterdir()), folder / "run")
    shutil.move(next((folder / "killed" / "tiny").iterdir()), folder / "interrupted")


def _stopped(run: Callable[[], int]) -> int:
    """As a run that is killed after its second round leaves it: without a word about its end."""
    from server.results import RunDirectory

    class Killed(BaseException):
        pass

    def die(self: RunDirectory, board: Any) -> None:
        finished(self, board)
        if len(board.rounds) == 2:
            raise Killed

    finished, leave = RunDirectory.round_finished, RunDirectory.__exit__
    RunDirectory.round_finished = die  # type: ignore[method-assign]
    RunDirectory.__exit__ = lambda *_: None  # type: ignore[method-assign,assignment]
    try:
        run()
    except Killed:
        return 0
    finally:
        RunDirectory.round_finished = finished  # type: ignore[method-assign]
        RunDirectory.__exit__ = leave  # type: ignore[method-assign]
    return 1


def _make_teachers(folder: Path) -> None:
    import torch
    import torchvision

    from fedkd import seeding

    there = folder / "teachers"
    there.mkdir()
    for ending in ("safetensors", "json"):
        shutil.copy(ROOT / "fedkd" / "teachers" / "weights" / f"default.{ending}", there)
    with seeding.isolated(0, "fuzz/teacher"):
        network = torchvision.models.shufflenet_v2_x0_5(num_classes=4)
    torch.save(network.state_dict(), there / "weights.pth")


def copy_data(materials: Path, folder: Path) -> None:
    """The whole data set and its recipes."""
    shutil.copytree(materials / "data", folder, dirs_exist_ok=True)
