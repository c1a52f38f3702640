"""The cases of `benchmarks/fuzz.py`: what is spoiled, how, and which command then reads it."""

from pathlib import Path

from fuzz_checkpoints import checkpoint
from fuzz_images import images
from fuzz_materials import ROOT, Case, make_materials
from fuzz_recipes import recipe
from fuzz_tables import table

__all__ = ["ROOT", "Case", "make", "make_materials"]


def make(kind: str, number: int, seed: int, materials: Path, folder: Path) -> Case:
    """The case of this number, its files written into ``folder``, which is new."""
    from fedkd import seeding

    rng = seeding.rng(seed, f"fuzz/{kind}", number)
    folder.mkdir(parents=True)
    makers = {
        "recipes": recipe,
        "tables": table,
        "images": images,
        "checkpoints": checkpoint,
    }
    case = makers[kind](rng, materials, folder)
    case.output = folder / "out"
    case.may_change.append(case.output)
    return case
