"""The cells of benchmarks/ablation.py: their names, recipes and results."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedkd import config
from fedkd.recipe import Recipe

Values = Mapping[str, Any]

NUM_ROUNDS = 12
PILOT_SEED = 100

COUNTS = {"nv": 400, "mel": 208, "bkl": 109, "bcc": 57, "akiec": 29, "vasc": 15, "df": 8}
SETTINGS: dict[str, Values] = {
    "single": {"num_clients": 1, "explore": {"warm_up_steps": 60, "steps_per_round": 2}},
    "sites": {
        "partition": {"name": "by_site"},
        "explore": {"warm_up_steps": 20, "steps_per_round": 1},
    },
}
FOPRO = {"objective": {"name": "fopro"}}
METHODS: dict[str, Values] = {
    "ce": {"objective": {"name": "supervised", "loss": "ce"}},
    "bsm": {"objective": {"name": "supervised", "loss": "bsm"}},
    "ekd": {"objective": {"name": "ekd"}, "teacher": {"views": "dihedral"}},
    "jitter": {**FOPRO, "prompts": {"generator": "jitter"}},
    "jitter_keep_dc": {**FOPRO, "prompts": {"generator": "jitter", "keep_dc": True}},
    "amplitude_mix": {**FOPRO, "prompts": {"generator": "amplitude_mix"}},
    "fpg": FOPRO,
    "akd": {**FOPRO, "explore": {"gamma": 0.3}},
}
TEACHERS = ("mobilenet_v2", "default")


@dataclass(frozen=True)
class Scale:
    """What a larger machine may change."""

    size: int = 32
    device: str = "cpu"
    init: str = "random"
    student: str = "resnet8"
    num_rounds: int = NUM_ROUNDS


@dataclass(frozen=True)
class Cell:
    """One run of the experiment; without a recipe it waits for its pilot."""

    setting: str
    method: str
    teacher: str
    seed: int
    recipe: Recipe | None

    @property
    def name(self) -> str:
        """For people and files."""
        return f"{self.setting}.{self.method}.{self.teacher}.{self.seed}"

    def path(self, folder: Path) -> Path:
        """Of the result: another recipe has another file."""
        assert self.recipe is not None
        return folder / "cells" / f"{self.name}-{self.recipe.hash()[:12]}.json"

    def result(self, folder: Path) -> dict[str, Any] | None:
        """What was found, or the error; None if it has not been run."""
        if self.recipe is None or not self.path(folder).exists():
            return None
        found: dict[str, Any] = json.loads(self.path(folder).read_text(encoding="utf-8"))
        return found


def merge(parts: Iterable[Values]) -> dict[str, Any]:
    """Sections of recipes on top of each other."""
    merged: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            merged[key] = {**merged.get(key, {}), **value} if isinstance(value, dict) else value
    return merged


def make_recipe(
    setting: str, method: str, teacher: str, seed: int, scale: Scale, magnitude: float | None = None
) -> Recipe:
    """The recipe of a cell, as the protocol says."""
    parts: list[Values] = [
        {
            "name": "ablation",
            "seed": seed,
            "num_rounds": scale.num_rounds,
            "data": {"name": "ham10000", "split_column": "split", "size": scale.size},
            "long_tail": {"counts": COUNTS, "seed": seed},
            "augmentation": {"name": "dihedral"},
            "student": {"name": scale.student, "init": scale.init},
            "prompts": {"per": "batch"},
            "training": {"learning_rate": 0.001},
            "evaluation": {"personalised": False},
            "engine": {"device": scale.device, "num_threads": 1},
        },
        SETTINGS[setting],
        METHODS[method],
    ]
    if teacher == "mobilenet_v2":
        section = {
            "name": "torchvision:mobilenet_v2",
            "checkpoint": "${FEDKD_DATA}/teachers/mobilenet_v2_imagenet.pth",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "input_size": max(65, scale.size // 32 * 32 + 1),
        }
        parts.append({"teacher": section})
    if magnitude is not None:
        parts.append({"prompts": {"magnitude": magnitude}})
    return config.build(Recipe, merge(parts))


def plan_pilots(scale: Scale) -> list[Cell]:
    """One per setting and teacher."""
    return [
        Cell(setting, "pilot", teacher, PILOT_SEED,
             make_recipe(setting, "fpg", teacher, PILOT_SEED, scale))
        for setting in SETTINGS
        for teacher in TEACHERS
    ]  # fmt: skip


def plan(scale: Scale, num_seeds: int, folder: Path) -> list[Cell]:
    """All other cells, seed by seed, so that what is there of an unfinished run is balanced."""
    magnitudes = {
        (pilot.setting, pilot.teacher): (pilot.result(folder) or {}).get("magnitude")
        for pilot in plan_pilots(scale)
    }
    cells = []
    for seed in range(num_seeds):
        for teacher in TEACHERS:
            images = make_recipe("single", "ekd", teacher, seed, scale)
            cells.append(Cell("single", "probe", teacher, seed, images))
        for setting in SETTINGS:
            for method in METHODS:
                for teacher in ("none",) if method in ("ce", "bsm") else TEACHERS:
                    key = (setting, method, teacher, seed, scale)
                    magnitude = magnitudes.get((setting, teacher))
                    recipe: Recipe | None = None
                    if not method.startswith("jitter"):
                        recipe = make_recipe(*key)
                    elif magnitude is not None:
                        recipe = make_recipe(*key, magnitude)
                    cells.append(Cell(setting, method, teacher, seed, recipe))
    return cells
