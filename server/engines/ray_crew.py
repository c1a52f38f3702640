"""The workers of a run on Ray: how many, starting them, replacing them, ending them."""

import logging
import os
import signal
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import ray
from ray.exceptions import RayError

from fedkd.engine import EngineConfig
from fedkd.errors import ConfigError, FedkdError
from fedkd.teachers.sharing import places, share
from server.engines.clients import Clients
from server.engines.packing import pack
from server.engines.ray_worker import Settings, Worker

logger = logging.getLogger(__name__)

_SILENCE_S = 9.0
_ROOM_S = 10.0
"""How long resources may be taken by actors that are just ending."""


@dataclass(frozen=True)
class Plan:
    """What workers are given.

    Attributes:
        num_workers: Processes.
        num_threads: CPU threads of torch in each.
        num_cpus: Cores that each reserves with Ray.
        num_gpus: GPUs, or the part of one, that each reserves with Ray.
    """

    num_workers: int
    num_threads: int
    num_cpus: float
    num_gpus: float


def make_plan(
    engine: EngineConfig, cores: float, gpus: float, cohort: int, *, on_gpu: bool, ours: bool
) -> Plan:
    """How many workers, and what each gets.

    Args:
        engine: What the recipe asks for.
        cores: That Ray has.
        gpus: That Ray has.
        cohort: Clients of a round; more workers are started only if they are asked for.
        on_gpu: The clients train on GPUs.
        ours: Ray was started for this run: then workers may share cores.

    Raises:
        ConfigError: Ray has not enough for what is asked.
    """
    share = engine.gpus_per_worker
    if on_gpu:
        if not gpus:
            raise ConfigError(
                f"engine.device is {engine.device!r} and this process has a GPU, but Ray has none; "
                "set engine.device = 'cpu', or engine.address to a cluster with GPUs"
            )
        if share == 0:
            raise ConfigError(
                "engine.gpus_per_worker is 0, but clients train on a GPU; leave it out, give each "
                "worker a part (0.25 puts four on a GPU), or set engine.device = 'cpu'"
            )
    elif share:
        raise ConfigError(
            f"engine.gpus_per_worker is {share:g}, but clients train on the CPU "
            f"(engine.device is {engine.device!r}); leave it out, or train on a GPU"
        )
    if share and share > 1 and share != int(share):
        raise ConfigError(
            f"engine.gpus_per_worker is {share:g}; it must be a part of one GPU, at most 1, or a "
            "whole number of GPUs"
        )
    room = max(1, int(cores // (engine.num_threads or 1)))
    if on_gpu:
        room = _fitting(gpus, share) if share else int(gpus)
    num_workers = engine.num_workers or max(1, min(room, cohort))
    if share and on_gpu and num_workers > _fitting(gpus, share):
        raise ConfigError(
            f"{num_workers} workers with engine.gpus_per_worker = {share:g} need more than the "
            f"{gpus:g} GPUs that Ray has, where {_fitting(gpus, share)} fit; lower "
            "engine.num_workers or engine.gpus_per_worker"
        )
    if on_gpu and not share:
        per_gpu = -(-num_workers // int(gpus))
        share = int(10_000 / per_gpu) / 10_000  # Ray counts in ten-thousandths
    num_threads = engine.num_threads or max(1, int(cores // num_workers))
    if num_workers * num_threads > cores:
        if not ours:
            raise ConfigError(
                f"{num_workers} workers of {num_threads} CPU threads need "
                f"{num_workers * num_threads} CPUs, but Ray has {cores:g}; lower "
                "engine.num_workers or engine.num_threads, or add machines to the cluster"
            )
        logger.warning(
            "%d Ray workers of %d CPU threads share %g cores, which makes them slower; lower "
            "engine.num_workers",
            num_workers,
            num_threads,
            cores,
        )
    num_cpus = min(float(num_threads), int(10_000 * cores / num_workers) / 10_000)
    return Plan(num_workers, num_threads, num_cpus, float(share or 0))


def _fitting(gpus: float, share: float) -> int:
    """Workers that fit on so many GPUs, none of them on parts of two."""
    return int(gpus // share) if share >= 1 else int(gpus) * int(1 / share + 1e-9)


class Member:
    """A worker: an actor that is starting, idle or at work.

    Attributes:
        actor: Its handle.
        waits_for: What it is doing; None while it is idle.
        step: ``"introduce"``, ``"open"`` or ``"work"``.
        process: Process id and machine, as soon as they are known.
    """

    def __init__(self, actor: Any, introduction: "ray.ObjectRef[Any]") -> None:
        self.actor = actor
        self.waits_for: ray.ObjectRef[Any] | None = introduction
        self.step = "introduce"
        self.process: tuple[int, str] | None = None
        self.news: ray.ObjectRef[Any] | None = None

    @property
    def is_idle(self) -> bool:
        """Whether it can be given something to do."""
        return self.step == "work" and self.waits_for is None

    def __str__(self) -> str:
        return "process {} on {}".format(*self.process) if self.process else "still starting"


class Crew:
    """All workers of a run, each with the experiment.

    The experiment is put into the object store once. Whatever is a mapped file there, images,
    kept features and the recipe's teachers, workers that see the file map by themselves; for those
    that do not, all bytes are put into the store, when the first one says so.

    Args:
        clients: The run's.
        plan: What workers are given.
        environment: Environment variables that workers do not have from Ray itself.
    """

    def __init__(self, clients: Clients, plan: Plan, environment: Mapping[str, str]) -> None:
        self._experiment = experiment = clients.experiment
        _ = experiment.kept_features  # computed or read here, not by each worker
        where: dict[int, tuple[Path, int]] = {}
        if not experiment.teacher_given:
            teachers = [*experiment.teachers, *filter(None, [experiment.first_teacher])]
            for teacher in {id(one): one for one in teachers}.values():
                if path := share(teacher):
                    found = places(teacher).items()
                    where.update({pointer: (path, offset) for pointer, offset in found})
        package = pack(experiment, where, by_path=True)
        self._files = package.files
        self._mapped = ray.put(package.pieces)
        self._whole: ray.ObjectRef[Any] | None = None
        self.num_bytes = sum(piece.nbytes for piece in package.pieces)
        folders = (clients.prompts_folder, clients.students_folder)
        self._settings = Settings(
            experiment.num_clients,
            plan.num_threads,
            Path.cwd(),
            *(folder and folder.absolute() for folder in folders),
        )
        decorate = ray.remote(concurrency_groups={"news": 1})  # type: ignore[call-overload]
        self._actor = decorate(Worker).options(
            num_cpus=plan.num_cpus,
            num_gpus=plan.num_gpus,
            max_restarts=0,
            **({"runtime_env": {"env_vars": dict(environment)}} if environment else {}),
        )
        self.members: list[Member] = [self._start() for _ in range(plan.num_workers)]
        self._processes: list[tuple[int, str]] = []

    def wait(self) -> None:
        """Until all workers are at work for the first time.

        Raises:
            FedkdError: One of them cannot be.
        """
        started = spoke = time.monotonic()
        while starting := {m.waits_for: m for m in self.members if m.step != "work"}:
            ready, _ = ray.wait(list(starting), timeout=1.0)
            for reference in ready:
                self.proceed(starting[reference])
            if time.monotonic() - spoke > _SILENCE_S:
                spoke = time.monotonic()
                logger.info(
                    "%d of %d Ray workers are ready after %.0f s ...",
                    len(self.members) - len(starting),
                    len(self.members),
                    spoke - started,
                )

    def proceed(self, member: Member) -> None:
        """Take a worker that is starting one step on; what it was waiting for is there.

        Raises:
            FedkdError: It cannot start.
        """
        try:
            result = ray.get(cast(Any, member.waits_for))
        except RayError as error:
            raise FedkdError(
                f"a Ray worker ({member}) could not start; lower engine.num_workers if memory is "
                f"short, otherwise mend this:\n{cause_of(error)}"
            ) from error
        if member.step == "open":
            member.step, member.waits_for = "work", None
            return
        pid, machine, sees_files = result
        member.process = (pid, machine)
        self._processes.append(member.process)
        if not sees_files and self._whole is None:
            logger.info("a worker on %s has not the files of this one: sending them", machine)
            self._whole = ray.put(pack(self._experiment).pieces)
        pieces = self._mapped if sees_files else self._whole
        member.step, member.waits_for = "open", member.actor.open.remote(pieces)

    def replace(self, member: Member) -> Member:
        """End a worker, if it lives, and start another in its place."""
        ray.kill(member.actor)
        new = self._start()
        self.members[self.members.index(member)] = new
        return new

    def end(self) -> None:
        """End all workers at once."""
        for member in self.members:
            ray.kill(member.actor)

    def make_sure(self) -> None:
        """Kill workers on this machine that are still there a few seconds after Ray's end."""
        here = socket.gethostname()
        left = {pid for pid, machine in self._processes if machine == here}
        deadline = time.monotonic() + _ROOM_S
        while left := {pid for pid in left if _is_worker(pid)}:
            if time.monotonic() > deadline:
                for pid in left:
                    with suppress(OSError):
                        os.kill(pid, signal.SIGKILL)
                return
            time.sleep(0.05)

    def _start(self) -> Member:
        actor = self._actor.remote(self._settings)
        return Member(actor, actor.introduce.remote(self._files))


def cause_of(error: Exception) -> str:
    """What Ray says of an error, without its lines about itself."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return "\n".join(lines[:20])


def _is_worker(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::")
    except OSError:
        return False
