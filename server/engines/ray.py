"""The engine ``ray``: clients on workers of this machine, or of a Ray cluster."""

import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import ray

from clients.app import make_app
from clients.process_memory import ProcessMemory
from fedkd.errors import ConfigError, FedkdError
from server.app import make_app as make_server_app
from server.engines import messages as flower
from server.engines.clients import Clients, Main
from server.engines.ray_crew import Crew
from server.engines.ray_grid import RayGrid
from server.engines.worker_plan import plan_for
from server.interrupts import held_back

logger = logging.getLogger(__name__)

_PATIENCE_S = 5.0
"""For the first sign of life of a cluster."""
# Of Ray itself: no statistics, no remarks, and agents that outlive a killed driver by 10 s, not 60.
_QUIET_RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
}
_ENDED = "Ray's processes are gone"
_CARRIED = ("FEDKD_CACHE", "FEDKD_DATA", "FEDKD_TEACHERS")


def run(main: Main, clients: Clients) -> None:
    """Give ``main`` a Grid on Ray workers; see :class:`server.engines.clients.Engine`.

    Where Ray is connected in this process already, it is used and left as it is. Otherwise it is
    connected, or started on this machine, for the run and no longer.

    Raises:
        ConfigError: The cluster does not answer or has not enough of what is asked for.
        FedkdError: A worker cannot start.
    """
    experiment = clients.experiment
    started = time.monotonic()
    with _connected(experiment.recipe.engine.address) as ours:
        resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
        cores, gpus = resources.get("CPU", 0), resources.get("GPU", 0)
        plan = plan_for(experiment, cores, gpus, ours=ours)
        logger.info(
            "Ray is there after %.1f s; starting workers: %d",
            time.monotonic() - started,
            plan.num_workers,
        )
        environment = {} if ours else _environment()
        crew = Crew(clients, plan, environment)
        try:
            crew.wait()
            logger.info(
                "%d Ray workers with %d CPU threads each%s are ready after %.1f s; they share %.1f "
                "MB, besides mapped files",
                plan.num_workers,
                plan.num_threads,
                f" and {plan.num_gpus:g} GPU" if plan.num_gpus else "",
                time.monotonic() - started,
                crew.num_bytes / 1e6,
            )
            grid = RayGrid(
                crew,
                [len(rows) for rows in experiment.partition.indices],
                # Roll calls need no node.
                make_app(lambda _: clients.node, ProcessMemory()),
                clients.progress,
                clients.reply_came,
                stop_at_failure=experiment.recipe.failures.policy == "stop",
            )
            try:
                make_server_app(main)(grid, flower.server_context())
            except KeyboardInterrupt:
                grid.stop()
                raise
            logger.info(
                "of %d trainings and evaluations %d were on another worker than the client's last",
                grid.num_sent,
                grid.num_moved,
            )
        finally:
            with held_back(_ENDED):
                crew.end()
                if ours:
                    ray.shutdown()
                    crew.make_sure()


@contextmanager
def _connected(address: str | None) -> Iterator[bool]:
    """Whether Ray was started here for this run; what was begun here is ended at the end."""
    if ray.is_initialized():
        logger.info("using the Ray that this process is connected to")
        yield False
        return
    folder = None
    try:
        if address is None:
            logger.info("starting Ray on this machine, which takes 5 to 20 s ...")
            # Of its own: it does not meet other Rays of this machine, and goes with the run.
            folder = Path(tempfile.mkdtemp(prefix="fedkd-ray-", dir=_short_folder()))
            _start(folder)
        else:
            logger.info("connecting to Ray at %s ...", address)
            _join(address)
        yield address is None
    finally:
        with held_back(_ENDED):
            ray.shutdown()
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)


def _short_folder() -> str | None:
    """Ray's sockets lie in the folder, and paths of sockets have at most 107 characters."""
    return "/tmp" if len(tempfile.gettempdir()) > 20 and Path("/tmp").is_dir() else None


def _start(folder: Path) -> None:
    """Start Ray on this machine.

    Raises:
        FedkdError: It does not come up.
    """
    try:
        with held_back(), _quiet(), _set(_environment() | _QUIET_RAY):
            ray.init(
                include_dashboard=False,
                log_to_driver=False,
                configure_logging=False,
                _temp_dir=str(folder),
            )
    except Exception as error:  # Ray raises just that when the machine is too busy
        raise FedkdError(
            f"Ray cannot be started on this machine ({error}); try again when it is less busy, or "
            "set engine.name = 'inprocess'"
        ) from error


def _join(address: str) -> None:
    """Connect to a cluster.

    Raises:
        ConfigError: It does not answer.
    """
    asked = f"engine.address is {address!r}"
    advice = (
        "start the cluster (ray start --head), correct the address, or leave engine.address out "
        "to start Ray on this machine for the run"
    )
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address != "auto":
        if not (host and port.isdigit() and int(port) < 2**16):
            raise ConfigError(
                f"{asked}; allowed are auto, ray://host:10001 and host:6379. Correct it, or leave "
                "it out to start Ray on this machine for the run"
            )
        # Ray itself tries for a minute, and may end the process then.
        try:
            socket.create_connection((host, int(port)), _PATIENCE_S).close()
        except OSError as error:
            raise ConfigError(f"{asked}, but nobody answers there ({error}); {advice}") from None
    try:
        with held_back(), _quiet():
            if address.startswith("ray://"):
                ray.init(address, log_to_driver=False)
            else:
                ray.init(address, log_to_driver=False, configure_logging=False)
    except (OSError, RuntimeError, ValueError) as error:
        why = str(error).splitlines()[0]
        raise ConfigError(f"{asked}, but Ray cannot use it ({why}); {advice}") from None


def _environment() -> dict[str, str]:
    """Variables that workers need: one thread, but where torch is told otherwise."""
    carried = {name: os.environ[name] for name in _CARRIED if name in os.environ}
    return {**carried, "OMP_NUM_THREADS": "1"}


@contextmanager
def _set(variables: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for the processes that are started in here."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _quiet() -> Iterator[None]:
    """Ray says nothing below a warning, and SIGTERM stays what it was: Ray takes it over."""
    terminated = False
    ray_logger = logging.getLogger("ray")
    level = ray_logger.level
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    ray_logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except SystemExit:
        if not in_main:
            raise
        terminated = True  # what Ray makes of SIGTERM meanwhile
    finally:
        ray_logger.setLevel(level)
        if in_main:
            signal.signal(signal.SIGTERM, handler)
        if terminated:
            signal.raise_signal(signal.SIGTERM)
