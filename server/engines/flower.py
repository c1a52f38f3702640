"""The engine ``flower``: Flower's simulation runtime, with its clients in Ray actors.

Flower means ``flwr run`` to be the way into this runtime: it bundles the repository, starts a
SuperLink and runs the server elsewhere. It works on this repository, too; see docs/deployment.md.
Here ``flwr.simulation.run_simulation`` is called instead, deprecated as it is within the range of
versions that setup.cfg allows: the server stays in this process, with the experiment as it is open,
with its progress bar and its run directory, and there is no bundle to install. This module is the
only place that calls it.

The server talks to its Grid in the caller's thread, where Ctrl-C, debuggers and observers belong;
it is the runtime that gets a thread of its own.
"""

import logging
import os
import queue
import tempfile
import threading
import time
import warnings
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.server.superlink.fleet.vce.backend import BackendConfig
from flwr.serverapp import Grid
from flwr.simulation import run_simulation
from ray import cloudpickle

from clients.app import ContextMemory, make_app
from clients.node import Node
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment, open_experiment
from server.app import make_app as make_server_app
from server.engines import messages as flower
from server.engines.clients import Clients, Main
from server.engines.watched_grid import WatchedGrid
from server.engines.worker_plan import plan_for
from server.signals import PATIENCE_S, keep_sigterm

logger = logging.getLogger(__name__)

_LOST = "its worker process died, of lack of memory mostly; Flower's runtime starts another one"
_POLL_S = 0.1
_BUSY = threading.Lock()
"""Held while a client of this process answers."""


def run(main: Main, clients: Clients) -> None:
    """Lend ``main`` the Grid of a simulation runtime that lives as long as it; see :class:`Engine`.

    Raises:
        ConfigError: The workers that the config asks for do not fit on this machine.
    """
    with tempfile.TemporaryDirectory(prefix="fedkd-flower-", ignore_cleanup_errors=True) as folder:
        runtime = _Runtime(clients, Path(folder))
        try:
            make_server_app(main)(runtime.start(), flower.server_context())
        except BaseException:
            runtime.end(at_once=True)
            raise
        runtime.end()


class _ShippedApp(ClientApp):
    """The ClientApp that travels with every message: no more than where the clients' data are.

    Args:
        file: What :func:`_ship` wrote; a worker ends as soon as it is gone.
    """

    def __init__(self, file: str) -> None:
        super().__init__()
        self._file = file

    def __call__(self, message: Message, context: Context) -> Message:
        """The reply of a client; an error reply with the full reason if it raises."""
        with _BUSY:
            return flower.answer(_app(self._file), message, context)


def _ship(clients: Clients, num_threads: int, folder: Path) -> Path:
    """Write once what each worker opens once: the recipe, or what the caller gave instead."""
    experiment = clients.experiment
    what = experiment if experiment.given else experiment.recipe
    file = folder / "clients.pickle"
    with file.open("wb") as out:
        # Unlike pickle it takes along what was defined in a script or a notebook.
        cloudpickle.dump(  # type: ignore[no-untyped-call]
            (what, num_threads, clients.folders.absolute()), out
        )
    return file


@cache
def _app(file: str) -> ClientApp:
    """The ClientApp of this worker, with one node for all clients that it will ever train."""
    path = Path(file)
    threading.Thread(target=_leave_without, args=(path,), daemon=True).start()
    # Ray lends the received arrays read-only, which torch says to everybody; nodes copy them.
    warnings.filterwarnings("ignore", "The given NumPy array is not writable")

    def stop_without(*step: object) -> None:
        if not path.exists():
            raise KeyboardInterrupt

    @cache
    def node() -> Node:
        what, threads, folders = cloudpickle.loads(path.read_bytes())
        torch.set_num_threads(threads)
        experiment = what if isinstance(what, Experiment) else open_experiment(what)
        return Node(experiment, stop_without, folders)

    return make_app(lambda _: node(), ContextMemory())


def _leave_without(file: Path) -> None:
    """End this worker when the run has ended: Flower waits for a client that trains, we do not.

    But for its step, after which it notes how far it is.
    """
    while file.exists():
        time.sleep(_POLL_S)
    _BUSY.acquire(timeout=PATIENCE_S)
    os._exit(0)


class _Runtime:
    """Flower's simulation runtime in a thread.

    Args:
        clients: Whose they are.
        folder: For what its workers read.
    """

    def __init__(self, clients: Clients, folder: Path) -> None:
        self._clients = clients
        gpus = torch.cuda.device_count() if clients.experiment.device.type == "cuda" else 0
        plan = plan_for(clients.experiment, len(os.sched_getaffinity(0)), gpus)
        self._workers = plan.num_workers
        self._file = _ship(clients, plan.num_threads, folder)
        self._config: BackendConfig = {
            # Never the cluster that RAY_ADDRESS may name: Flower's workers belong to this run.
            "init_args": {
                "address": "local",
                "num_cpus": self._workers,
                "logging_level": "ERROR",
                "log_to_driver": True,
                "include_dashboard": False,
            },
            # Flower hands these to the actors' options as they are. Without max_restarts a worker
            # that dies stays in its pool, dead, and is given every second message.
            "client_resources": {"num_cpus": 1, "num_gpus": plan.num_gpus, "max_restarts": -1},
        }
        self._lent: queue.Queue[Grid] = queue.Queue()
        self._returned = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="flower", daemon=True)

    def start(self) -> Grid:
        """Start it; its Grid may be used until :meth:`end`."""
        logger.info(
            "starting Flower's simulation runtime with %d workers, which takes 10 to 25 s",
            self._workers,
        )
        flower.silence_telemetry()
        self._level = logging.getLogger("flwr").level
        logging.getLogger("flwr").setLevel(logging.CRITICAL)
        logging.getLogger("ray").setLevel(logging.ERROR)
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns of it
        self._thread.start()
        while True:
            with suppress(queue.Empty):
                grid = self._lent.get(timeout=_POLL_S)
                stop = self._clients.experiment.recipe.failures.policy == "stop"
                return WatchedGrid(
                    grid,
                    self.check,
                    _LOST,
                    self._clients.progress,
                    stop_at_failure=stop,
                    reply_came=self._clients.reply_came,
                )
            self.check()

    def check(self) -> None:
        """Raise if it has ended, which it never should before :meth:`end`.

        Raises:
            FedkdError: It has; says why.
        """
        if self._thread.is_alive():
            keep_sigterm()
            return
        error = self._error
        while error is not None and error.__cause__ is not None:
            error = error.__cause__
        raise FedkdError(f"Flower's simulation runtime ended: {error!r}") from self._error

    def end(self, at_once: bool = False) -> None:
        """Let it end all its workers, and wait until it has.

        Args:
            at_once: Clients that train stop in the middle; nobody wants their replies any more.
        """
        self._returned.set()
        if at_once:
            self._file.unlink(missing_ok=True)
        self._thread.join()
        logging.getLogger("flwr").setLevel(self._level)

    def _run(self) -> None:
        try:
            run_simulation(
                make_server_app(self._lend),
                _ShippedApp(str(self._file)),
                self._clients.experiment.num_clients,
                backend_config=self._config,
            )
        except BaseException as error:
            self._error = error

    def _lend(self, grid: Grid, _: Context) -> None:
        self._lent.put(grid)
        self._returned.wait()
