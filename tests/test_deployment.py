"""Real SuperLink and SuperNode processes on loopback, with TLS, keys and folders of their own."""

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedkd import config
from server import simulate
from tests.site_federation import recipe_with, write_folders

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "configs/deploy/loopback.py"
SITES = {
    "num_clients": 2,
    "data": {"num_sites": 2, "num_train": 60, "imbalance_factor": 5},
    "engine": {"device": "cpu"},
}


def start(arguments, log):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with log.open("w") as out:
        return subprocess.Popen(
            [sys.executable, str(SCRIPT), *map(str, arguments)],
            stdout=out,
            stderr=out,
            env=environment,
            cwd=log.parent,
            # Shells that run tests in the background have them ignore it, and their children too.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )


@pytest.fixture
def rehearse(tmp_path):
    """A function that starts the rehearsal of a recipe with folders of two hospitals."""
    started = []
    recipe = tmp_path / "rehearsal.toml"
    folders = tmp_path / "sites"

    def begin(**changes):
        opened = recipe_with(**{**SITES, **changes})
        write_folders(opened, folders)
        recipe.write_text(config.dump(opened))
        options = ["--sites", folders, "--output", tmp_path / "out", "--folder", tmp_path / "own"]
        log = tmp_path / "said.txt"
        started.append(start([recipe, *options], log))
        return started[0], log, recipe

    yield begin
    for process in started:
        if process.poll() is None:
            process.terminate()
            process.wait(60)


@pytest.fixture
def loopback(monkeypatch):
    """The script as a module; it takes SIGTERM over."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield importlib.import_module("loopback")
    for number, handler in handlers.items():
        signal.signal(number, handler)


def running(folder):
    """Processes that have Flower's home below a folder: who started them does not matter."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if f"FLWR_HOME={folder}" in (entry / "environ").read_text(errors="replace"):
                found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    return found


def flat(log):
    """What was said, on one line: logs are broken where the screen ends."""
    return " ".join(log.read_text().split())


def await_text(log, pattern, process, seconds=300):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if match := re.search(pattern, flat(log)):
            return match
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    raise AssertionError(log.read_text())


@pytest.mark.slow
def test_hospitals_with_tls_keys_and_folders_give_the_same_student_as_simulation(
    rehearse, tmp_path
):
    process, log, recipe = rehearse(objective={"name": "ekd"})
    await_text(log, "run directory", process)
    names = " ".join(running(tmp_path / "own").values())
    assert names.count("flower-supernode") == 2
    assert "--enable-supernode-auth" in names
    assert process.wait(400) == 0, log.read_text()
    assert running(tmp_path / "own") == {}
    [summary] = (tmp_path / "out" / "sites").glob("*/summary.json")
    there = json.loads(summary.read_text())
    here = simulate(recipe).summary
    assert there["student_sha256"] == here["student_sha256"]
    assert there["test"] == here["test"]
    said = log.read_text()
    assert "student of round" in said
    assert f"student sha256 {here['student_sha256']}\nrun directory {summary.parent}\n" in said
    assert "processes: superlink " in said


@pytest.mark.slow
def test_a_killed_supernode_is_told_at_once_and_ends_the_run(rehearse, tmp_path):
    process, log, _ = rehearse(num_rounds=500, training={"local_epochs": 100_000})
    pid = int(await_text(log, r"hospital-1 (\d+)", process)[1])
    await_text(log, "run directory", process)
    os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    await_text(log, "hospital-1: its SuperNode was killed by SIGKILL", process, seconds=30)
    await_text(
        log, r"\(hospital_1\) failed to train, attempt 1: its SuperNode has gone", process, 30
    )
    assert time.monotonic() - killed < 30
    assert process.wait(120) == 1
    said = flat(log)
    assert "ServerApp failed with exception: client 1 failed: its SuperNode has gone" in said
    assert "finished:failed" in said
    assert "Traceback" not in said
    assert running(tmp_path / "own") == {}
    [summary] = (tmp_path / "out" / "sites").glob("*/summary.json")
    assert json.loads(summary.read_text())["status"] == "failed"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_no_process_is_left_when_the_rehearsal_itself_is_ended(rehearse, tmp_path, number, code):
    process, log, _ = rehearse()
    await_text(log, r"hospital-1 \d+", process)
    names = " ".join(running(tmp_path / "own").values())
    assert "flower-superlink" in names
    assert "flower-supernode" in names
    process.send_signal(number)
    assert process.wait(60) == code
    deadline = time.monotonic() + 60
    while (left := running(tmp_path / "own")) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == {}


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            [],
            "--sites .*sites is no folder; write them with: fedkd partition CONFIG --sites FOLDER",
        ),
        (["0-a", "server"], "num_clients is 2, but --sites .* has folders of 1 hospitals; write"),
        (["0-a", "2-c", "server"], r"of the hospitals \[0, 2\]; expected all from 0 on"),
        (["0-a", "1-b"], "--sites .* has no server/site.json; write them with: fedkd partition"),
        (["0-a", "0-b", "server"], "--sites .* has two folders of hospital 0"),
    ],
)
def test_wrong_folders_of_sites_are_told_in_one_line(tmp_path, loopback, capsys, make, text):
    recipe = tmp_path / "rehearsal.toml"
    recipe.write_text(config.dump(recipe_with(**SITES)))
    for name in make:
        (tmp_path / "sites" / name).mkdir(parents=True)
        (tmp_path / "sites" / name / "site.json").write_text("{}")
    options = ["--sites", tmp_path / "sites", "--output", tmp_path / "out"]
    assert loopback.main([str(recipe), *map(str, options)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("loopback: ")
    assert re.search(text, line)
    assert not (tmp_path / "out").exists()


def test_a_superlink_that_does_not_start_is_told_with_its_last_words(
    tmp_path, loopback, capsys, monkeypatch
):
    """As when somebody else has taken the port in between, or there is no Flower."""
    recipe = tmp_path / "rehearsal.toml"
    opened = recipe_with(**SITES)
    recipe.write_text(config.dump(opened))
    write_folders(opened, tmp_path / "sites")
    options = [str(recipe), "--sites", str(tmp_path / "sites"), "--output", str(tmp_path / "out")]
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setattr(loopback.deployment, "_BIN", programs)
    monkeypatch.setenv("PATH", str(programs))
    assert loopback.main(options) == 2
    assert "loopback: the command flower-superlink is neither in" in capsys.readouterr().err
    link = programs / "flower-superlink"
    link.write_text("#!/bin/sh\necho address already in use\nexit 3\n")
    link.chmod(0o755)
    assert loopback.main([*options, "--folder", str(tmp_path / "own")]) == 2
    said = capsys.readouterr().err
    assert re.search(r"the SuperLink ended with code 3; see .*ends with: address already in", said)


def test_a_wrong_recipe_is_told_in_one_line(tmp_path, loopback, capsys):
    assert loopback.main([str(tmp_path / "none.toml")]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert re.search("loopback: .*none.toml", line)
