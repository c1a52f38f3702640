"""Ctrl-C and SIGTERM at the command line, with real processes."""

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from server import Observer, cli, signals, simulate
from server.commands.table import COMMANDS
from server.interrupts import held_back
from server.signals import (
    SIGNALS,
    Terminated,
    gently,
    interruptible,
    keep_sigterm,
    safe_place,
)

FINISHING = "finishing the current step; a second Ctrl-C stops at once"
ROOT = Path(__file__).parents[1]
COMMAND = "import sys; from server.cli import main; sys.exit(main(sys.argv[1:]))"
SLOW_END = """
import sys, time, types
from server import cli

def wait(options):
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("ending", flush=True)
        time.sleep(60)

# In the place of the real commands, which take long to import.
sys.modules["server.commands.table"] = types.SimpleNamespace(COMMANDS={"list": wait})
sys.exit(cli.main(["list"]))
"""
SLOW_STEP = """
import sys, time, types
from server import cli, signals

def step(options):
    signals.PATIENCE_S = float(sys.argv[1])
    with signals.gently():
        print("ready", flush=True)
        until = time.monotonic() + 60
        while time.monotonic() < until:
            time.sleep(0.01)
        signals.safe_place()

sys.modules["server.commands.table"] = types.SimpleNamespace(COMMANDS={"list": step})
sys.exit(cli.main(["list"]))
"""
TINY = """
num_rounds = 1000
[data]
name = "lesions"
size = 16
num_train = 40
num_sites = 2
num_val_per_class = 1
num_test_per_class = 1
[objective]
name = "supervised"
[training]
batch_size = 4
"""


@pytest.fixture
def start(tmp_path):
    """A function that starts Python in a folder of its own; what is still there at the end dies."""
    started = []

    def popen(code, *arguments, ignored=False):
        def signals_as_a_terminal_has_them():  # the background jobs of a script ignore Ctrl-C
            signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.SIG_DFL)

        process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            preexec_fn=signals_as_a_terminal_has_them,
        )
        started.append(process)
        return process

    yield popen
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_for(found, process, seconds=300):
    deadline = time.monotonic() + seconds
    while not (result := found()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.05)
    return result


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "how", "command"),
    [
        (signal.SIGTERM, 143, "terminated", ("run", "engine.num_workers=2")),
        (signal.SIGINT, 130, "interrupted", ("centralized", "checkpoint.every=0")),
    ],
    ids=["run", "centralized"],
)
def test_a_run_that_is_told_to_end_finishes_its_step_and_says_how_to_go_on(
    start, tmp_path, number, code, how, command
):
    (tmp_path / "tiny.toml").write_text(TINY)
    process = start(COMMAND, command[0], "tiny.toml", *command[1:])
    (rounds,) = wait_for(lambda: list(tmp_path.glob("runs/*/*/rounds.csv")), process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    *lines, last = errors.splitlines()
    assert lines.count(f"fedkd: {how}: {FINISHING}") == 1
    where, _, advice = last.partition("; ")
    assert re.fullmatch(rf"fedkd: {how} in round \d+", where)
    run = rounds.parent.relative_to(tmp_path)
    assert advice == ("" if "checkpoint.every=0" in command else f"go on with: fedkd resume {run}")
    assert "Traceback" not in errors
    assert json.loads((rounds.parent / "summary.json").read_text())["status"] == "interrupted"
    assert not list(rounds.parent.rglob(".*")), "temporary files are left"


@pytest.mark.slow
def test_a_comparison_that_is_told_to_end_leaves_no_worker(start, tmp_path):
    compare = "[compare]\nworkers = 2\nseeds = [0, 1]\nstrategies = ['fedavg']\nbaselines = []\n"
    (tmp_path / "tiny.toml").write_text(TINY + compare)
    process = start(COMMAND, "compare", "tiny.toml")
    wait_for(lambda: len(list(tmp_path.glob("runs/*/cells/*/*/rounds.csv"))) == 2, process)
    children = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc")))
                if parent_of(pid) == process.pid]  # fmt: skip
    assert len(children) >= 2
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "0 of 2 cells are done" in errors
    assert errors.endswith("fedkd: terminated\n")
    deadline = time.monotonic() + 10  # Python's own tracker of resources goes after its parent
    while left := [pid for pid in children if parent_of(pid) is not None]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    for summary in tmp_path.glob("runs/*/cells/*/*/summary.json"):
        assert json.loads(summary.read_text())["status"] == "interrupted"


def parent_of(pid):
    """Of a living process; None of one that has gone."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return None if state == "Z" else int(parent)


@pytest.mark.parametrize("second", SIGNALS)
def test_a_second_signal_ends_at_once_what_takes_long_to_end(start, second):
    process = start(SLOW_END)
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    assert process.stdout.readline() == "ending\n"
    process.send_signal(second)
    assert process.wait(timeout=20) == -second


@pytest.mark.parametrize("second", SIGNALS)
def test_a_second_signal_ends_a_step_at_once(start, second):
    process = start(SLOW_STEP, "60")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == f"fedkd: interrupted: {FINISHING}\n"
    process.send_signal(second)
    assert process.wait(timeout=20) == -second


def test_a_step_that_does_not_end_is_left_after_a_while(start):
    process = start(SLOW_STEP, "0.2")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.splitlines() == [
        f"fedkd: interrupted: {FINISHING}",
        "fedkd: the current step takes longer than 0.2 s: stopping within it",
        "fedkd: interrupted",
    ]


def test_a_background_job_that_ignores_ctrl_c_still_does(start):
    process = start(SLOW_END, ignored=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.5)
    process.terminate()
    assert process.stdout.readline() == "ending\n"


def handlers():
    return [signal.getsignal(number) for number in SIGNALS]


def test_handlers_are_put_back_whatever_the_command_does(monkeypatch, capsys):
    before, during = handlers(), []

    def end(number):
        during.append(handlers())
        os.kill(os.getpid(), number)
        time.sleep(5)

    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        monkeypatch.setitem(COMMANDS, "list", lambda _, number=number: end(number))
        assert cli.main(["list"]) == code
        assert handlers() == before
    assert all(found != before for found in during)
    assert capsys.readouterr().err == "fedkd: terminated\nfedkd: interrupted\n"


def test_sigterm_stays_sigterm_where_native_code_makes_a_ctrl_c_of_it(monkeypatch, capsys):
    def wait(_):
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            raise KeyboardInterrupt from None

    monkeypatch.setitem(COMMANDS, "list", wait)
    assert cli.main(["list"]) == 143
    assert capsys.readouterr().err == "fedkd: terminated\n"


def test_sigterm_that_native_code_has_taken_comes_back():
    reached = []

    def take():
        with interruptible():
            ctypes.pythonapi.PyOS_setsig(signal.SIGTERM, ctypes.c_void_p(int(signal.SIG_IGN)))
            signal.raise_signal(signal.SIGTERM)
            keep_sigterm()
            reached.append("ignored")
            signal.raise_signal(signal.SIGTERM)
            reached.append("went on")

    with pytest.raises(Terminated):
        take()
    assert reached == ["ignored"]


def test_ctrl_c_that_is_held_back_comes_at_the_end(caplog):
    before, done = signal.getsignal(signal.SIGINT), []

    def start():
        with held_back():
            signal.raise_signal(signal.SIGINT)
            done.append("started")
        done.append("went on")

    with pytest.raises(KeyboardInterrupt):
        start()
    assert done == ["started"]
    assert caplog.messages == ["interrupted; it ends as soon as what is being started is there"]
    assert signal.getsignal(signal.SIGINT) is before


class RaisesSignal:
    """What a handler raises while this is deleted, Python ignores."""

    def __del__(self):
        signal.raise_signal(signal.SIGINT)


def test_a_signal_waits_for_the_next_safe_place_also_from_a_finaliser(capfd):
    before, done = [*handlers(), signal.getsignal(signal.SIGALRM)], []

    def step():
        with interruptible(), gently():
            safe_place()
            thing = RaisesSignal()
            del thing
            done.append("the step is finished")
            safe_place()
            done.append("went on")

    with pytest.raises(KeyboardInterrupt):
        step()
    assert done == ["the step is finished"]
    assert capfd.readouterr().err == f"fedkd: interrupted: {FINISHING}\n"
    assert [*handlers(), signal.getsignal(signal.SIGALRM)] == before
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("then", [gently().__enter__, safe_place, lambda: None])
def test_a_signal_that_python_lost_is_raised_again(then):
    done = []

    def lose():
        with interruptible():
            thing = RaisesSignal()
            del thing
            done.append("lost")
            then()

    with pytest.raises(KeyboardInterrupt):
        lose()
    assert done == ["lost"]
    safe_place()  # and forgotten when the command has ended


def test_a_signal_before_a_failure_still_ends_the_command(caplog):
    def fail():
        with interruptible(), gently():
            signal.raise_signal(signal.SIGTERM)
            raise ValueError("broken disk")

    with pytest.raises(Terminated) as caught:
        fail()
    assert isinstance(caught.value.__cause__, ValueError)
    assert caplog.messages == ["before it was stopped, this went wrong: broken disk"]


def test_a_second_ctrl_c_is_not_held_back(monkeypatch):
    monkeypatch.setattr(signals, "PATIENCE_S", 60)
    found = []

    def end():
        with interruptible():
            try:
                signal.raise_signal(signal.SIGINT)
            finally:
                with held_back():
                    found.extend(handlers())

    with pytest.raises(KeyboardInterrupt):
        end()
    assert found == [signal.SIG_DFL, signal.SIG_DFL]


def test_the_library_sets_no_handler(make_recipe, hospitals):
    before, during = handlers(), []

    class Looker(Observer):
        def round_started(self, round_number):
            during.append(handlers())

    recipe = make_recipe(objective={"name": "supervised"}, num_rounds=1)
    simulate(recipe, **hospitals, observers=[Looker()])
    assert during == [before]


def test_outside_the_main_thread_nothing_is_set():
    before, during = handlers(), []

    def look():
        with interruptible():
            during.append(handlers())

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert during == [before]
