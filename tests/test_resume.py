"""Exact resume: a run that was cut off anywhere ends with the bits and rows of one that was not."""

import io
import json
import shutil

import pandas as pd
import pytest

from fedkd import files
from fedkd.errors import ConfigError
from server import results, resume, simulate

HASHES = ("student_sha256", "best_student_sha256", "best_round", "num_rounds", "val", "test",
          "stopped_early")  # fmt: skip
TABLES = ("per_class.csv", "predictions_test.csv", "partition.csv")


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch):
    """Drawing takes longer than such a run."""
    monkeypatch.setattr(results, "plot_curves", lambda *_: None)


def table(path):
    """Of a CSV all but seconds, as text."""
    return pd.read_csv(io.StringIO(path.read_text()), dtype=str).drop(columns="seconds").to_csv()


def outcome(path):
    """All of a finished run directory that may not depend on whether it was cut off."""
    summary = json.loads((path / "summary.json").read_text())
    assert summary["status"] == "finished"
    tables = {name: (path / name).read_text() for name in TABLES}
    own = path / "predictions_clients.csv"
    return {
        **{key: summary.get(key) for key in HASHES},
        **{name: table(path / name) for name in ("rounds.csv", "clients.csv")},
        **tables,
        "own": own.read_text() if own.exists() else None,
        "names": sorted(str(file.relative_to(path)) for file in path.rglob("*")),
    }


def watched(monkeypatch, run, folder, wanted=None):
    """Copies of a run directory as ``kill -9`` would leave it, one for each file that is written.

    Each is made in the middle of the write: of a replaced file the temporary one is there,
    unfinished; of the rows, to which is appended, one half of what is new.

    Args:
        monkeypatch: Undone by the caller.
        run: Gives the run directory; called at each write.
        folder: Of the copies, ``folder/0`` and so on.
        wanted: Of writes of files with these names alone; None of all.

    Returns:
        The names of the files, as they are written.
    """
    replacing, append, names = files.replacing, files.append, []

    def copy(path):
        number = len(names)
        names.append(path.name)
        if wanted is not None and path.name not in wanted:
            return None
        shutil.copytree(run(), folder / str(number))
        return folder / str(number) / path.relative_to(run())

    def seen(path, flush=True):
        if path.is_relative_to(run()) and (place := copy(path)):
            place.with_name(f".{path.name}.99.part{path.suffix}").write_bytes(b"half")
        return replacing(path, flush)

    def half(path, data, length):
        if place := copy(path):
            append(place, data[: len(data) // 2], length)
        append(path, data, length)

    monkeypatch.setattr(files, "replacing", seen)
    monkeypatch.setattr(files, "append", half)
    return names


def cut(recipe, given, tmp_path, wanted=None, **how):
    """A run that was not cut off, its copies that were, and the names of the files it wrote."""
    with pytest.MonkeyPatch.context() as patch:
        output, copies = tmp_path / "whole", tmp_path / "cut"
        names = watched(patch, lambda: next(output.glob("*/*")), copies, wanted)
        whole = simulate(recipe, **given, output=output, **how)
    return whole, copies, names


CHEAP = {
    "num_rounds": 2,
    "checkpoint": {"keep": 1},
    "objective": {"name": "supervised"},
    "strategy": {"name": "fedadam", "server_learning_rate": 0.01},
    "training": {"keep_optimizer_state": True, "optimizer": "adamw"},
}


def test_a_run_killed_while_any_of_its_files_is_written_ends_with_the_same_bits(
    make_recipe, hospitals, tmp_path
):
    whole, copies, names = cut(make_recipe(**CHEAP), hospitals, tmp_path)
    begun = names.index("summary.json") + 1
    # Of each name the first write and the last: of what is written once per client not all.
    first, last = names[begun:], names[::-1]
    wanted = {begun + first.index(name) for name in first}
    wanted |= {len(names) - 1 - last.index(name) for name in first}
    assert len(wanted) > 15
    expected = outcome(whole.path)
    for number in sorted(wanted):
        resumed = resume(copies / str(number), **hospitals)
        assert resumed.path == copies / str(number)
        assert outcome(resumed.path) == expected, f"killed at {names[number]}, write {number}"
    for number in range(begun):
        with pytest.raises(ConfigError, match=r"is no run directory|has no checkpoints"):
            resume(copies / str(number), **hospitals)


KINDS = {
    "fopro, momentum": {"strategy": {"name": "fedavgm", "server_momentum": 0.9}},
    "few clients": {"strategy": {"fraction_train": 0.4}, "objective": {"name": "moon"}},
    "own layers": {"strategy": {"exchange": "backbone"}, "objective": {"name": "ekd"}},
    "nothing travels": {"strategy": {"exchange": "nothing"}, "objective": {"name": "supervised"}},
    "patience": {"num_rounds": 9, "evaluation": {"patience": 1},
                 "objective": {"name": "supervised"}},
    "moco": {"objective": {"name": "moco"}, "moco": {"queue_size": 3}},
    "privacy": {"privacy": {"name": "adaptive", "noise_multiplier": 0.1},
                "objective": {"name": "supervised"}, "keep_students_every": 1},
    "every second round": {"checkpoint": {"every": 2}, "objective": {"name": "supervised"}},
    "centralized": {"objective": {"name": "supervised"},
                    "training": {"keep_optimizer_state": True}},
}  # fmt: skip


@pytest.mark.parametrize("kind", list(KINDS))
def test_whatever_a_run_remembers_is_there_again(
    kind, make_recipe, hospitals, tiny_teacher, tmp_path
):
    changes = {"num_rounds": 3, **KINDS[kind]}
    recipe, given = make_recipe(**changes), {**hospitals, "teacher": tiny_teacher}
    if changes.get("objective", {}).get("name") in ("supervised", "moon", "moco"):
        given = hospitals
    how = {"centralized": kind == "centralized"}
    whole, copies, names = cut(recipe, given, tmp_path, ("clients.csv", "per_class.csv"), **how)
    # While the last round is written down, and while the final test's files are.
    for number in (len(names) - 1 - names[::-1].index("clients.csv"), names.index("per_class.csv")):
        assert outcome(resume(copies / str(number), **given).path) == outcome(whole.path)
