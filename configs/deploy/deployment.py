"""A SuperLink and one SuperNode per hospital on loopback, with TLS and keys, and a run on them."""

import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from certificates import make_certificates, make_key_pair
from processes import Started, end

from fedkd import config
from fedkd.errors import FedkdError
from fedkd.recipe import Recipe

ROOT = Path(__file__).resolve().parents[2]
CONNECTION = "loopback"
_PARTS = ("clients", "fedkd", "server", "strategies", "README.md", "LICENSE", "pyproject.toml")
_BIN = Path(sys.executable).parent
_START_S = 120.0
_SAY_S = 10.0
_CONNECTED = "SuperNode ID:"
_FLOWERS_OWN = re.compile(r"^(INFO|DEBUG|WARNING)\b|\[uvicorn\.")

logger = logging.getLogger("fedkd.rehearsal")


class Deployment:
    """A SuperLink, its hospitals and the researcher who submits a run to it.

    Args:
        recipe: What is run.
        sites: Folder of each hospital, by partition id; None where all open the whole recipe.
        server: Folder of the server's own images; None if it opens the whole recipe.
        folder: For certificates, keys, logs and the app.
        output: Folder for the run directory.
    """

    def __init__(
        self,
        recipe: Recipe,
        sites: Sequence[Path | None],
        server: Path | None,
        folder: Path,
        output: Path,
    ) -> None:
        self.recipe, self.sites, self.server = recipe, sites, server
        self.folder, self.output = folder, output
        self.started: list[Started] = []
        self.nodes: dict[str, int] = {}
        self._position = 0
        self._failed = False
        self._lost: set[str] = set()

    def start(self) -> None:
        """Start the SuperLink, register the hospitals' keys and start their SuperNodes."""
        make_certificates(self.folder)
        port = _free_port()
        address = f"127.0.0.1:{port}"
        authority = str(self.folder / "ca.crt")
        link = self._start(
            "superlink",
            *["flower-superlink", "--host", "127.0.0.1", "--port", str(port)],
            *["--ssl-ca-certfile", authority],
            *["--ssl-certfile", str(self.folder / "server.crt")],
            *["--ssl-keyfile", str(self.folder / "server.key")],
            *["--enable-supernode-auth", "--disable-runtime-dependency-installation"],
        )
        self._await("the SuperLink", link, lambda: _listens(port))
        home = self.folder / "researcher"
        home.mkdir(exist_ok=True)
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n'
            f'address = "{address}"\nroot-certificates = "{authority}"\n'
        )
        for number, site in enumerate(self.sites):
            name = f"hospital-{number}"
            key = self.folder / f"{name}.key"
            answer = self._flwr("supernode", "register", str(make_key_pair(key)))
            self.nodes[name] = int(answer["node-id"])
            node_config = f"partition-id={number} num-partitions={len(self.sites)}"
            self._start(
                name,
                *["flower-supernode", "--superlink", address, "--root-certificates", authority],
                *["--auth-supernode-private-key", str(key)],
                *["--host", "127.0.0.1", "--port", str(_free_port())],
                *["--node-config", node_config + (f' data-path="{site}"' if site else "")],
            )
        pids = ", ".join(f"{s.name} {s.process.pid}" for s in self.started)
        logger.info("processes: %s; logs in %s", pids, self.folder)
        for s in self.started[1:]:
            self._await(f"the SuperNode of {s.name}", s, lambda s=s: _CONNECTED in s.said())

    def submit(self) -> str:
        """Submit the run; returns its id."""
        app = self.folder / "fedkd"
        app.mkdir()
        for part in _PARTS:
            copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
            copy(ROOT / part, app / part)
        (app / "configs").mkdir()
        # In the app as at real sites, and resolved: what it extends need not travel.
        (app / "configs" / "rehearsed.toml").write_text(config.dump(self.recipe))
        run_config = f'config="configs/rehearsed.toml" output="{self.output}"'
        if self.server:
            run_config += f' server-data="{self.server}"'
        run_id = str(self._flwr("run", str(app), CONNECTION, "--run-config", run_config)["run-id"])
        logger.info("run %s is submitted to %d hospitals", run_id, len(self.sites))
        return run_id

    def follow(self, run_id: str) -> bool:
        """Show what the server says until the run has ended; whether it completed."""
        log = self._start(
            "server", "flwr", "log", run_id, CONNECTION, "--stream", home="researcher"
        )
        spoke = time.monotonic()
        while log.fate() is None:  # the stream ends with the run
            time.sleep(0.2)
            now = time.monotonic()
            if self._show(log) or self._look_after():
                spoke = now
            elif now - spoke > _SAY_S:
                spoke = now
                logger.info("the hospitals and the server are at work ...")
        self._show(log)
        [run] = self._flwr("list", "--run-id", run_id)["runs"]
        completed = bool(run["status"] == "finished:completed")
        if not completed:
            logger.info("%s\nthe server's log: %s", run["status-details"], log.log)
        logger.info("run %s: %s", run_id, run["status"])
        made = re.findall(r"^run directory (.+)$", log.said(), re.MULTILINE)
        if completed and made:
            summary = json.loads((Path(made[-1]) / "summary.json").read_text())
            print(f"student sha256 {summary['student_sha256']}\nrun directory {made[-1]}")
        return completed

    def end(self) -> None:
        """End all processes: hospitals sign off before the SuperLink goes."""
        end(self.started[1:])
        end(self.started[:1])

    def _look_after(self) -> bool:
        """Say at once who has gone, and tell the SuperLink, which itself waits for up to 60 s."""
        gone = [s for s in self.started if s.name not in self._lost and s.fate()]
        for s in gone:
            if s.name == "superlink":
                raise FedkdError(f"the SuperLink {s.fate()}; see {s.log}")
            if s.name in self.nodes:
                self._lost.add(s.name)
                logger.info(
                    "%s: its SuperNode %s; see %s. The server is told now", s.name, s.fate(), s.log
                )
                self._flwr("supernode", "unregister", str(self.nodes[s.name]))
        return bool(gone)

    def _start(self, name: str, *command: str, home: str | None = None) -> Started:
        environment = {**self._environment(), "FLWR_HOME": str(self.folder / (home or name))}
        try:
            started = Started(name, command, self.folder / f"{name}.log", environment)
        except FileNotFoundError:
            raise _no_flower(command[0]) from None
        self.started.append(started)
        return started

    def _await(self, what: str, started: Started, is_there: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _START_S
        while not (fate := started.fate()):
            if is_there():
                return
            if time.monotonic() > deadline:
                fate = f"is not ready after {_START_S:g} s"
                break
            time.sleep(0.1)
        last = ([line.strip() for line in started.said().splitlines() if line.strip()] or [""])[-1]
        raise FedkdError(f"{what} {fate}; see {started.log}, which ends with: {last}")

    def _flwr(self, *arguments: str) -> dict[str, Any]:
        environment = {**self._environment(), "FLWR_HOME": str(self.folder / "researcher")}
        try:
            done = subprocess.run(
                [shutil.which("flwr", path=environment["PATH"]) or "flwr", *arguments]
                + ["--format", "json"],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
        except FileNotFoundError:
            raise _no_flower("flwr") from None
        answer = done.stdout[done.stdout.find("{") :]
        try:
            values: dict[str, Any] = json.loads(answer)
        except ValueError:
            values = {"error-message": done.stdout + done.stderr}
        if done.returncode or not values.get("success"):
            told = values.get("error-message", answer)
            raise FedkdError(f"flwr {' '.join(arguments[:2])} failed: {told}")
        return values

    def _environment(self) -> dict[str, str]:
        return {
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
            **os.environ,
            "PATH": f"{_BIN}{os.pathsep}{os.environ.get('PATH', '')}",
            "PYTHONUNBUFFERED": "1",
        }

    def _show(self, log: Started) -> bool:
        """Print what the server has said since, whole lines of its own alone; whether it has."""
        new, spoke = log.said()[self._position :], False
        for line in new[: new.rfind("\n") + 1].splitlines(keepends=True):
            self._position += len(line)
            text = line.rstrip()
            # Of an error there is a traceback here, and the text alone in the run's status.
            self._failed |= text.startswith("ERROR")
            if text and not self._failed and not _FLOWERS_OWN.search(text):
                logger.info("%s", text)
                spoke = True
        return spoke


def _no_flower(command: str) -> FedkdError:
    return FedkdError(
        f"the command {command} is neither in {_BIN} nor in PATH; start this script with the "
        "python of the environment in which fedkd is installed"
    )


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
