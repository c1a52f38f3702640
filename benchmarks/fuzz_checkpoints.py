"""Spoiled teachers and checkpoints, and the commands that read them."""

import contextlib
import json
import shutil
from pathlib import Path

import numpy as np
from fuzz_materials import Case, write
from fuzz_runs import spoiled_run
from fuzz_spoiling import spoil_any, spoil_bytes, spoil_json, spoil_pth, spoil_tensors


def checkpoint(rng: np.random.Generator, materials: Path, folder: Path) -> Case:
    """A spoiled teacher, run directory or checkpoint."""
    kind = rng.choice(
        ["teacher", "card", "pth", "student", "run", "resume", "pretrain"],
        p=[0.18, 0.05, 0.17, 0.2, 0.2, 0.15, 0.05],
    )
    if kind in ("teacher", "card", "pth"):
        shutil.copytree(materials / "teachers", folder, dirs_exist_ok=True)
    if kind == "teacher":
        spoil_tensors(rng, folder / "default.safetensors")
        return Case(folder, ["teachers", str(rng.choice(["check", "card"])), "default.safetensors"])
    if kind == "card":
        spoil_json(rng, folder / "default.json")
        return Case(folder, ["teachers", str(rng.choice(["check", "card"])), "default.safetensors"])
    if kind == "pth":
        path = folder / "weights.pth"
        spoil_pth(rng, path)
        name = "torchvision:shufflenet_v2_x0_5"
        return Case(folder, ["teachers", "check", name, "checkpoint=weights.pth"])
    if kind == "student":
        return spoiled_run(rng, materials, folder, ["*.safetensors"])
    if kind == "run":
        return spoiled_run(rng, materials, folder, ["summary.json", "config.toml"])
    if kind == "pretrain":
        return _spoiled_pretraining(rng, folder)
    shutil.copytree(materials / "interrupted", folder / "run")
    shutil.copytree(materials / "data", folder, dirs_exist_ok=True)
    # Where the run's recipe names its images: relative to the working directory.
    there = sorted(p for p in (folder / "run").rglob("*") if p.is_file())
    within = [p for p in there if "checkpoint" in p.relative_to(folder / "run").parts]
    chosen = within if within and rng.random() < 0.8 else there
    path = chosen[int(rng.integers(0, len(chosen)))]
    spoil_any(rng, path)
    if path.name.startswith("round-") and path.suffix == ".json" and rng.random() < 0.7:
        _mend_hash(path)
    return Case(folder, ["resume", "run"], [folder / "run"])


def _mend_hash(path: Path) -> None:
    """As somebody does who spoils a manifest on purpose; what is no JSON stays."""
    from server.checkpoint_files import write_manifest

    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        write_manifest(path, json.loads(path.read_bytes())["manifest"])


_PRETRAIN = """
name = "made"
steps = 4
warm_up_steps = 1
batch_size = 8
[images]
count = 64
"""


def _spoiled_pretraining(rng: np.random.Generator, folder: Path) -> Case:
    write(folder / "pretrain.toml", _PRETRAIN)
    (folder / "out").mkdir()
    path = folder / "out" / "made.checkpoint.pt"
    import torch

    torch.save({"step": 1, "learner": {"x": torch.zeros(3)}}, path)
    path.write_bytes(spoil_bytes(rng, path.read_bytes(), int(rng.integers(0, 3))))
    return Case(folder, ["pretrain", "pretrain.toml", "--output", "out"])
