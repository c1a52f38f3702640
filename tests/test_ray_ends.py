"""However a run on Ray ends, nothing that it started is left; and addresses that are wrong."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from fedkd.errors import ConfigError, FedkdError
from server.engines import ray as engine
from server.signals import SIGNALS, Terminated, interruptible
from tests.processes import descendants, still_there

pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = """
import sys
from server import simulate
from server.scoreboard import Observer
from server.signals import interruptible
from tests.conftest import SITES, TINY, TinyTeacher, draw_images

class Watch(Observer):
    def client_progress(self, *progress):
        print("training", flush=True)

def main():
    sites = [draw_images(name, [0, 1, 2, 3] * 3, site_names=(name,)) for name in SITES]
    held_out = draw_images("val", [0, 1, 2, 3] * 3, [0, 1, 2] * 4, SITES)
    training = {"batch_size": 4, "local_epochs": 100000}
    recipe = {**TINY, "training": training, "engine": {"name": "ray", "num_workers": 1}}
    with interruptible():
        simulate(recipe, sites=sites, val=held_out, test=held_out, teacher=TinyTeacher(),
                 observers=[Watch()])

main()
"""


class Driver:
    """A run in a process group of its own, whose first client is training."""

    def __init__(self, folder):
        folder.mkdir()
        script = folder / "script.py"
        script.write_text(SCRIPT)
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "FEDKD_CACHE": str(folder),
            "OMP_NUM_THREADS": "1",
        }
        self.stderr = folder / "stderr.txt"
        with self.stderr.open("w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, str(script)],
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=environment,
                start_new_session=True,
                cwd=folder,
            )

    def wait(self):
        line = self.process.stdout.readline()
        assert line == "training\n", self.stderr.read_text()
        threading.Thread(target=self.process.stdout.read, daemon=True).start()
        self.children = descendants(self.process.pid)
        lines = self.children.values()
        assert any("raylet" in line for line in lines)
        assert any(line.startswith("ray::Worker") for line in lines)


def test_no_process_is_left_after_an_interrupt_a_termination_or_a_kill(tmp_path):
    """Ctrl-C goes to the whole process group, as a terminal sends it; the others to the driver."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
    drivers = [Driver(tmp_path / one.name) for one in signals]
    try:
        for driver, number in zip(drivers, signals, strict=True):
            driver.wait()
            if number == signal.SIGINT:
                os.killpg(driver.process.pid, number)
            else:
                driver.process.send_signal(number)
        for driver, number in zip(drivers, signals, strict=True):
            driver.process.wait(60)
            left = {pid: driver.children[pid] for pid in still_there(driver.children, 30)}
            assert left == {}, number.name
        said = [driver.stderr.read_text() for driver in drivers]
        for text, error in zip(said, ("\nKeyboardInterrupt", "Terminated: SIGTERM"), strict=False):
            assert text.count("finishing the current step; a second Ctrl-C stops at once") == 1
            assert error in text
            assert "stopping within it" not in text
    finally:
        for driver in drivers:
            for pid in (*descendants(driver.process.pid), driver.process.pid):
                if driver.process.poll() is None:
                    os.kill(pid, signal.SIGKILL)


def test_a_ray_that_does_not_come_up_is_told_in_a_line(monkeypatch):
    def fail(**options):
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(engine.ray, "init", fail)
    text = r"cannot be started on this machine \(The current node timed out .*'inprocess'"
    with pytest.raises(FedkdError, match=text), engine._connected(None):
        pass


@pytest.mark.parametrize(
    ("number", "expected"),
    [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)],
)
def test_a_signal_while_ray_starts_ends_the_run(monkeypatch, number, expected):
    """Ray has its own handler of SIGTERM, and must not be left half started by Ctrl-C."""
    before = [signal.getsignal(one) for one in SIGNALS]
    reached = []

    def init(**options):
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
        signal.raise_signal(number)
        reached.append("started")

    monkeypatch.setattr(engine.ray, "init", init)
    with pytest.raises(expected), interruptible(), engine._connected(None):
        pytest.fail("the run goes on")
    assert reached == ["started"] * (number == signal.SIGINT)
    assert [signal.getsignal(one) for one in SIGNALS] == before


def folders():
    return {*Path("/tmp").glob("fedkd-ray-*"), *Path(tempfile.gettempdir()).glob("fedkd-ray-*")}


def test_a_ray_of_the_runs_own_is_ended_with_its_folder_when_the_run_fails():
    handler, before = signal.getsignal(signal.SIGTERM), folders()
    seen = {}

    def fail():
        with engine._connected(None) as ours:
            seen.update(ours=ours, handler=signal.getsignal(signal.SIGTERM), new=folders() - before)
            seen["processes"] = descendants(os.getpid())
            raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        fail()
    assert seen["ours"]
    assert seen["handler"] is handler, "Ray would take SIGTERM over"
    assert any("raylet" in line for line in seen["processes"].values())
    assert still_there(seen["processes"], 20) == []
    own = [folder for folder in seen["new"] if owned(folder, seen)]
    assert len(own) == 1
    assert not own[0].exists()


def owned(folder, seen):
    """Whether Ray's processes named the folder: other runs of this machine have theirs."""
    return any(str(folder) in line for line in seen["processes"].values())


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nobody_answers_is_told_within_seconds(scheme):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"{scheme}127.0.0.1:{taken.getsockname()[1]}"
        started = time.monotonic()
        with (
            pytest.raises(ConfigError, match="but nobody answers there .*ray start --head"),
            engine._connected(address),
        ):
            pass
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("address", ["localhost", "ray://somewhere", "host:port", ":6379"])
def test_an_address_that_is_none_is_refused(address):
    with (
        pytest.raises(ConfigError, match="allowed are auto, ray://host:10001 and host:6379"),
        engine._connected(address),
    ):
        pass
