"""Runs that cannot be resumed, damaged checkpoints, full disks, and the commands."""

import errno
import hashlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from fedkd import files
from fedkd.errors import ConfigError, DataError
from server import Observer, checkpoint_files, results, resume, simulate
from server.cli import main
from server.comparison import training
from server.comparison.plan import plan
from server.interrupted_run import open_interrupted
from server.simulation import run
from tests.test_comparison_runner import Quiet
from tests.test_comparison_runner import recipe as small_recipe
from tests.test_resume import outcome

CHEAP = {"num_rounds": 3, "objective": {"name": "supervised"},
         "strategy": {"name": "fedavgm", "server_momentum": 0.9}}  # fmt: skip


class Stop(Observer):
    """Ctrl-C after a round."""

    def __init__(self, after):
        self.after = after

    def round_finished(self, board):
        if len(board.rounds) == self.after:
            raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch):
    monkeypatch.setattr(results, "plot_curves", lambda *_: None)


@pytest.fixture(scope="module")
def originals(make_recipe, hospitals, tmp_path_factory):
    """The directories of a whole run, and of one that was interrupted in round 3."""
    folder, patch = tmp_path_factory.mktemp("originals"), pytest.MonkeyPatch()
    patch.setattr(results, "plot_curves", lambda *_: None)
    whole = simulate(make_recipe(**CHEAP), **hospitals, output=folder / "whole")
    with pytest.raises(KeyboardInterrupt):
        simulate(make_recipe(**CHEAP), **hospitals, output=folder / "cut", observers=[Stop(3)])
    patch.undo()
    return whole.path, next((folder / "cut").glob("run/*"))


@pytest.fixture
def expected(originals):
    return outcome(originals[0])


@pytest.fixture
def path(originals, tmp_path):
    """A copy of the interrupted run, which a test may spoil."""
    return Path(shutil.copytree(originals[1], tmp_path / originals[1].name))


def change(path, **values):
    told = json.loads((path / "summary.json").read_text())
    (path / "summary.json").write_text(json.dumps({**told, **values}))


def refusal(path, *arguments, error=ConfigError, **given):
    with pytest.raises(error) as caught:
        resume(path, *arguments, **given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_an_interrupted_run_keeps(path):
    names = sorted(file.name for file in (path / "checkpoint").glob("*.*"))
    assert names[1:] == ["round-1.json", "round-1.safetensors", "round-2.json",
                         "round-2.safetensors", "rows.jsonl"]  # fmt: skip
    assert json.loads((path / "summary.json").read_text())["status"] == "interrupted"


DAMAGE = {
    "cut short": lambda file: file.write_bytes(file.read_bytes()[:-7]),
    "one bit": lambda file: file.write_bytes(
        bytes([*(data := file.read_bytes())[:300], data[300] ^ 1, *data[301:]])
    ),
    "gone": lambda file: file.unlink(),
}


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("round-2.json", "cut short"),
        ("round-2.json", "one bit"),
        ("round-2.safetensors", "one bit"),
        ("round-2.safetensors", "gone"),
        ("clients/1/round-2.safetensors", "cut short"),
        ("clients/1/round-2.safetensors", "gone"),
    ],
)
def test_a_damaged_checkpoint_is_said_and_the_one_before_is_used(
    path, name, damage, hospitals, expected, caplog
):
    DAMAGE[damage](path / "checkpoint" / name)
    with caplog.at_level(logging.INFO):
        resumed = resume(path, **hospitals)
    assert "the checkpoint after round 2 is damaged" in caplog.text
    assert "the one after round 1 is used" in caplog.text
    assert resumed.summary["resumed_after"] == [1]
    assert outcome(path) == expected


def test_with_all_checkpoints_damaged_the_run_is_refused_and_left_alone(path, hospitals):
    for file in (path / "checkpoint").glob("round-*.safetensors"):
        file.write_bytes(b"")
    before = sorted(file.name for file in path.rglob("*"))
    text = refusal(path, **hospitals)
    assert "no checkpoint in" in text
    assert "round-2.safetensors is cut short or damaged" in text
    assert f"start the run anew: fedkd run {path / 'config.toml'}" in text
    assert sorted(file.name for file in path.rglob("*")) == before


def deep(_):
    return '{"sha256": "", "manifest": ' + "[" * 100_000


def elsewhere(told):
    told["files"]["../../elsewhere.safetensors"] = "0" * 64


MADE_UP = {
    "a file elsewhere": elsewhere,
    "deep": deep,
    "a list for files": lambda told: told.update(files=[1]),
    "no names": lambda told: told.pop("names"),
    "a name that is none": lambda told: told["names"].update(arrays=["x"]),
    "a tensor less": lambda told: told["names"]["arrays"].pop(),
    "a text for seconds": lambda told: told.update(seconds="x"),
    "scores of nothing": lambda told: told["best"].update(val={}),
    "a text for a score": lambda told: told["best"]["val"].update(mcc="x"),
    "a client elsewhere": lambda told: told["clients"].update({"../1": 2}),
    "a best round to come": lambda told: told["best"].update(round=9),
}


@pytest.mark.parametrize("name", MADE_UP)
def test_a_manifest_that_was_made_up_with_its_hash_is_refused_in_a_line(path, name, hospitals):
    for file in (path / "checkpoint").glob("round-*.json"):
        told = json.loads(file.read_bytes())["manifest"]
        text = MADE_UP[name](told)
        if isinstance(text, str):
            file.write_text(text)
        else:
            checkpoint_files.write_manifest(file, told)
    assert "no checkpoint in" in refusal(path, **hospitals)


@pytest.mark.parametrize(
    "line",
    [
        [[], [], []],
        [1, 2, 3],
        [[{"round": "1"}, {"round": 2}], [], []],
        [[{"round": 1}, {"round": 2}], [{"round": 1, "partition_id": "../x"}], []],
        [[{"round": 1}, {"round": 2}], [], [{"reason": 1}]],
    ],
)
def test_rows_that_were_made_up_with_their_hash_are_refused_in_a_line(path, line, hospitals):
    data = json.dumps(line).encode() + b"\n"
    (path / "checkpoint" / "rows.jsonl").write_bytes(data)
    for file in (path / "checkpoint").glob("round-*.json"):
        told = json.loads(file.read_bytes())["manifest"]
        told["rows"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        checkpoint_files.write_manifest(file, told)
    assert "no checkpoint in" in refusal(path, **hospitals)


@pytest.mark.parametrize(
    "name", ["round-2.json", "round-2.safetensors", "clients/1/round-2.safetensors"]
)
def test_a_pipe_in_a_checkpoint_is_not_read(path, name, hospitals):
    (path / "checkpoint" / name).unlink()
    os.mkfifo(path / "checkpoint" / name)
    # The checkpoint before is spoilt as well, so that nothing is trained here.
    (path / "checkpoint" / "round-1.safetensors").unlink()
    assert "no checkpoint in" in refusal(path, **hospitals)


def test_rows_that_are_damaged_in_their_good_part_spoil_all_checkpoints(path, hospitals):
    rows = path / "checkpoint" / "rows.jsonl"
    rows.write_bytes(b"x" + rows.read_bytes()[1:])
    assert "rows.jsonl is cut short or damaged" in refusal(path, **hospitals)


def test_a_run_that_nothing_can_be_resumed_of_says_why(path, originals, tmp_path, hospitals):
    assert "is no run directory" in refusal(tmp_path / "none")
    assert "has finished: there is nothing to resume" in refusal(originals[0], **hospitals)
    for key, text in (("at_hospitals", "was a run at hospitals"),):
        change(path, **{key: True})
        assert text in refusal(path, **hospitals)
        change(path, **{key: False})
    shutil.move(path / "checkpoint", tmp_path / "away")
    assert "has no checkpoints: checkpoint.every was 0" in refusal(path, **hospitals)


def test_what_was_given_in_python_must_be_given_again(path, hospitals, teacher):
    assert f"server.resume('{path}', sites=..., val=..., test=...)" in refusal(path)
    text = refusal(path, **hospitals, initial_student={})
    assert "was not given its own initial student when it began; leave it out" in text


def test_other_images_another_student_and_another_recipe_are_refused(path, hospitals):
    fewer = {**hospitals, "sites": [hospitals["sites"][0].subset([0, 1, 2, 3]),
                                    *hospitals["sites"][1:]]}  # fmt: skip
    text = refusal(path, error=DataError, **fewer)
    assert "are divided otherwise than when it began" in text
    flipped = replace(hospitals["val"], images=hospitals["val"].images[..., ::-1])
    text = refusal(path, **{**hospitals, "val": flipped})
    assert "the images given to" in text
    assert "differ from what it was given when it began" in text
    change(path, initial_student_sha256="0" * 64)
    assert "is another than when it began" in refusal(path, **hospitals)
    file = path / "config.toml"
    file.write_text(file.read_text().replace("seed = 0", "seed = 1", 1))
    assert "is not the recipe that the run began with" in refusal(path, **hospitals)


def test_another_format_of_checkpoints_is_refused(path, hospitals, monkeypatch):
    monkeypatch.setattr("server.checkpoint.FORMAT", 2)
    assert "has format 1, but this run has 2" in refusal(path, **hospitals)


def test_another_torch_is_a_warning(path, hospitals, expected, caplog):
    versions = json.loads((path / "summary.json").read_text())["versions"]
    change(path, versions={**versions, "torch": "1.0"})
    resume(path, **hospitals)
    assert "was begun with torch 1.0, and this is" in caplog.text
    assert outcome(path) == expected


def test_other_threads_are_a_warning(path, hospitals, caplog):
    torch.set_num_threads(2)
    try:
        resume(path, **hospitals)
    finally:
        torch.set_num_threads(1)
    told = "the run was on cpu, threads of torch: 1, and goes on on cpu, threads of torch: 2"
    assert told in caplog.text


def test_a_run_that_still_runs_is_refused_with_its_process(path, hospitals):
    change(path, pid=17, host="there")
    held = FileLock(path / "checkpoint" / "lock")
    with held:
        assert "is still running, in process 17 on there; wait for it" in refusal(path, **hospitals)


@pytest.mark.parametrize("text", ["seed=1", "num_rounds=5", "engine.num_threads=3", "engine=1"])
def test_what_may_change_a_number_cannot_be_overridden(path, hospitals, text):
    told = refusal(path, **hospitals, overrides=[text])
    assert f"override {text!r} is refused: `fedkd resume` takes what changes no number" in told
    assert "engine.name" in told


def test_a_run_goes_on_elsewhere_with_the_same_bits(path, hospitals, expected):
    where = ["engine.num_workers=2", "checkpoint.every=0", "engine.max_state_mb=0"]
    resumed = resume(path, **hospitals, overrides=where)
    assert resumed.board.experiment.recipe.engine.num_workers == 2
    assert "num_workers = 2" in (path / "config.toml").read_text()
    assert outcome(path) == expected


def test_interrupted_twice_seconds_add_up_and_the_numbers_stay(
    path, originals, hospitals, expected
):
    manifest = json.loads((path / "checkpoint" / "round-2.json").read_text())["manifest"]
    with pytest.raises(KeyboardInterrupt):
        resume(path, **hospitals, observers=[Stop(3)])
    resumed = resume(path, **hospitals)
    assert resumed.summary["resumed_after"] == [2, 2]
    assert resumed.summary["seconds"] > manifest["seconds"]
    assert outcome(path) == expected


def test_kept_rounds_of_clients_that_have_trained_leave_checkpoints_whole(
    make_recipe, hospitals, tmp_path
):
    # Client 0 drops out in round 3: what the others reply is not used, but remembered. No student
    # after the first is better, so that nothing needs what clients remembered after round 2.
    trouble = {"failures": {"policy": "continue", "max_fraction": 0.3}, "faults": {"dropout": 0.2},
               "training": {"learning_rate": 1e-12}, "checkpoint": {"keep": 1}}  # fmt: skip
    recipe = make_recipe(**{**CHEAP, **trouble, "num_rounds": 4, "seed": 65})
    whole = simulate(recipe, **hospitals, output=tmp_path / "whole")
    assert whole.board.kept_rounds == [3]
    assert whole.board.best_round == 1
    with pytest.raises(KeyboardInterrupt):
        simulate(recipe, **hospitals, output=tmp_path / "cut", observers=[Stop(4)])
    (path,) = (tmp_path / "cut").glob("run/*")
    again = Path(shutil.copytree(path, tmp_path / "again"))
    resumed = resume(path, **hospitals)
    assert resumed.summary["resumed_after"] == [3]
    assert outcome(path) == outcome(whole.path)
    assert (path / "failures.csv").read_text() == (whole.path / "failures.csv").read_text()
    # No row tells of the file that is gone here; an earlier one does not stand in for it.
    (again / "checkpoint/clients/1/round-3.safetensors").unlink()
    assert "what clients [1] remember is missing or damaged" in refusal(again, **hospitals)


def test_an_interrupt_while_checkpoints_are_removed_leaves_a_finished_run(
    make_recipe, hospitals, tmp_path, monkeypatch
):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", interrupt)
    with pytest.raises(KeyboardInterrupt):
        simulate(make_recipe(**{**CHEAP, "num_rounds": 1}), **hospitals, output=tmp_path)
    (path,) = tmp_path.glob("run/*")
    assert json.loads((path / "summary.json").read_text())["status"] == "finished"


def test_a_run_that_another_process_has_finished_meanwhile_is_left_alone(path, hospitals):
    waiting = open_interrupted(path)
    experiment = waiting.experiment(**hospitals)
    resume(path, **hospitals)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with pytest.raises(ConfigError, match="was finished by another process meanwhile"):
        run(experiment, interrupted=waiting)
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before
    assert not (path / "checkpoint").exists()


def no_room(monkeypatch, refused):
    """Writes of files with these beginnings fail as on a full disk."""
    replacing = files.replacing

    def full(path, flush=True):
        if path.name.startswith(refused):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return replacing(path, flush)

    monkeypatch.setattr(files, "replacing", full)


def test_a_checkpoint_that_cannot_be_written_is_said_and_the_run_goes_on(
    make_recipe, hospitals, tmp_path, monkeypatch, caplog, expected
):
    with monkeypatch.context() as patch:
        no_room(patch, ("round-1.json", "round-2.json"))
        result = simulate(make_recipe(**CHEAP), **hospitals, output=tmp_path)
    assert caplog.text.count("no checkpoint after round") == 2
    assert "No space left on device" in caplog.text
    assert result.summary["checkpoints_missed"] == [1, 2]
    assert outcome(result.path) == expected


def test_tables_that_cannot_be_written_end_the_run_and_what_was_there_stays(
    make_recipe, hospitals, tmp_path, monkeypatch, expected
):
    replacing, written = files.replacing, []

    def full(path, flush=True):
        written.append(path.name)
        if written.count("rounds.csv") == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return replacing(path, flush)

    with monkeypatch.context() as patch:
        patch.setattr(files, "replacing", full)
        with pytest.raises(ConfigError, match="cannot write into the run directory") as caught:
            simulate(make_recipe(**CHEAP), **hospitals, output=tmp_path)
    (path,) = tmp_path.glob("run/*")
    assert f"`fedkd resume {path}`" in str(caught.value)
    assert len((path / "rounds.csv").read_text().splitlines()) == 3
    resume(path, **hospitals)
    assert outcome(path) == expected


def test_a_curve_has_each_round_once(path, hospitals):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with pytest.raises(KeyboardInterrupt):
        resume(path, **hospitals, overrides=['tracking=["tensorboard"]'], observers=[Stop(3)])
    resume(path, **hospitals)
    events = accumulator.EventAccumulator(str(path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("val/balanced_accuracy")] == [3]


COMMAND = [
    "objective.name=supervised", "num_rounds=3", "engine.device=cpu", "engine.num_threads=1",
    "data.size=16", "data.num_train=48", "data.num_val_per_class=2", "data.num_test_per_class=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def commanded(tmp_path_factory):
    """A command without its output, and the run directory that it made."""
    folder = tmp_path_factory.mktemp("with spaces")
    config = folder / "small.toml"
    config.write_text('name = "small"\n')
    command = ["run", str(config), *COMMAND]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "plot_curves", lambda *_: None)
        assert main([*command, f"output={folder}"]) == 0
    (whole,) = folder.glob("small/*")
    return command, whole


def test_the_commands_go_on_say_from_where_and_never_touch_another_run(
    commanded, monkeypatch, capsys
):
    command, whole = commanded
    command = [*command, f"output={whole.parent.parent}"]
    before = {file: file.read_bytes() for file in whole.rglob("*") if file.is_file()}
    with monkeypatch.context() as patch:
        no_room(patch, ("best-", "predictions_test"))
        assert main(command) == 2
    cut = max(whole.parent.iterdir(), key=lambda p: (len(p.name), p.name))
    capsys.readouterr()
    assert main(["run", str(cut)]) == 2
    assert f"go on with it: fedkd resume {cut}" in capsys.readouterr().err
    assert main([*command, "--resume", "engine.num_workers=2"]) == 0
    told = capsys.readouterr()
    assert f"going on with {cut}" in told.err
    assert f"run directory {cut}" in told.out
    assert outcome(cut) == outcome(whole)
    assert main(["resume", str(cut)]) == 2
    assert "has finished" in capsys.readouterr().err
    assert main([*command, "--resume", "num_rounds=1"]) == 0
    assert "no unfinished run of this recipe" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in before} == before


def test_an_interrupted_cell_of_a_comparison_goes_on_in_its_directory(tmp_path):
    given = small_recipe(num_rounds=2)
    cell = plan(given).cells[0]

    class Once(Quiet):
        def round_finished(self, cell, number):
            super().round_finished(cell, number)
            raise KeyboardInterrupt

    # Both times before the round's checkpoint: it begins with round 1 again.
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            training.train(cell, tmp_path, Once())
    watch = Quiet()
    training.train(cell, tmp_path, watch)
    assert [entry[0] for entry in watch.heard] == ["started", "round", "round", "ended"]
    assert len(list(tmp_path.glob("*/*/summary.json"))) == 1


PROGRAM = "import sys; from server.cli import main; sys.exit(main())"


def test_a_process_killed_by_the_system_is_resumed_to_the_same_bits(commanded, tmp_path):
    command, whole = commanded
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *command, f"output={tmp_path}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        ends = time.monotonic() + 120
        while not list(tmp_path.glob("small/*/checkpoint/round-1.json")):
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < ends
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    (cut,) = tmp_path.glob("small/*")
    assert json.loads((cut / "summary.json").read_text())["status"] == "running"
    assert main(["resume", str(cut)]) == 0
    assert outcome(cut) == outcome(whole)
