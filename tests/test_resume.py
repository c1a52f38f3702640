"""Exact resume: a run that was cut off anywhere ends with the bits and rows of one that was not."""

import io
import json

import pandas as pd
import pytest
import torch

from fedkd import files
from server import resume, simulate

HASHES = ("student_sha256", "best_student_sha256", "best_round", "num_rounds", "val", "test",
          "stopped_early")  # fmt: skip
TABLES = ("per_class.csv", "predictions_test.csv", "partition.csv")


class Crash(BaseException):
    """The process is gone; nothing of fedkd catches it."""


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
        "names": sorted(str(p.relative_to(path)) for p in path.rglob("*")),
    }


def crash_at(monkeypatch, number):
    """Let the n-th file that is written, or appended to, be the last; returns what was written.

    Of a replaced file the temporary one is left, unfinished; of an appended one half of the data.
    """
    replacing, append, written = files.replacing, files.append, []

    def dying(path, flush=True):
        written.append(path.name)
        if number and len(written) >= number:
            path.with_name(f".{path.name}.99.part{path.suffix}").write_bytes(b"half")
            raise Crash(path.name)
        return replacing(path, flush)

    def half(path, data, length):
        written.append(path.name)
        if number and len(written) >= number:
            append(path, data[: len(data) // 2], length)
            raise Crash(path.name)
        append(path, data, length)

    monkeypatch.setattr(files, "replacing", dying)
    monkeypatch.setattr(files, "append", half)
    return written


@pytest.fixture
def federation(make_recipe, hospitals, tiny_teacher):
    """A function that gives a recipe and what is given with it."""

    def make(**changes):
        return make_recipe(**changes), {**hospitals, "teacher": tiny_teacher}

    return make


MOMENTUM = {"name": "run", "num_rounds": 3, "strategy": {"name": "fedadam", "server_learning_rate": 0.01}}


def test_basic(federation, tmp_path, monkeypatch):
    recipe, given = federation(**MOMENTUM)
    whole = simulate(recipe, **given, output=tmp_path / "whole")
    with monkeypatch.context() as patch:
        written = crash_at(patch, 0)
        simulate(recipe, **given, output=tmp_path / "x")
    print(len(written), written)
    with monkeypatch.context() as patch:
        crash_at(patch, 30)
        with pytest.raises(Crash):
            simulate(recipe, **given, output=tmp_path / "cut")
    (path,) = (tmp_path / "cut").glob("run/*")
    again = resume(path, **given)
    assert outcome(path) == outcome(whole.path)
