"""Run directories with a spoiled file, and the commands that read them."""

import shutil
from pathlib import Path

import numpy as np
from fuzz_materials import Case
from fuzz_spoiling import spoil_any, spoil_table


def spoiled_run(
    rng: np.random.Generator, materials: Path, folder: Path, patterns: list[str]
) -> Case:
    """A run directory with one spoiled file, and a command that reads it."""
    run = folder / "run"
    shutil.copytree(materials / "run", run)
    shutil.copytree(materials / "data", folder, dirs_exist_ok=True)
    there = sorted(path for pattern in patterns for path in run.glob(pattern))
    path = there[int(rng.integers(0, len(there)))]
    if path.suffix == ".csv" and rng.random() < 0.7:
        spoil_table(rng, path)
    else:
        spoil_any(rng, path)
    if path.suffix == ".csv":
        return Case(folder, ["report", "run", "--output", "out"], uses_temporary=True)
    image = "images/im01.jpg"
    which = ["best", "last", "round:1", "round:99", str(path)][int(rng.integers(0, 5))]
    commands = [
        ["evaluate", "run", "--student", which, "--output", "out"],
        ["predict", "run", image, "--student", which],
        ["report", "run", "--output", "out"],
        ["export", "run", "--format", "safetensors", "--student", which, "--output", "out/x.st"],
        ["spectrum", "run", "--images", "4", "--output", "out"],
    ]
    chances = (
        [0.3, 0.3, 0.15, 0.15, 0.1] if path.suffix == ".safetensors" else [0.25] * 3 + [0.15, 0.1]
    )
    return Case(folder, commands[int(rng.choice(len(commands), p=chances))], uses_temporary=True)
