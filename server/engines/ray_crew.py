"""The workers of a run on Ray: starting them, replacing them, ending them."""

import logging
import os
import signal
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import ray
from ray.exceptions import RayError

from fedkd.errors import FedkdError
from fedkd.teachers.sharing import places, share
from server.engines.clients import Clients
from server.engines.packing import pack
from server.engines.ray_worker import Settings, Worker
from server.engines.worker_plan import Plan

logger = logging.getLogger(__name__)

_SILENCE_S = 9.0
_ROOM_S = 10.0
"""How long resources may be taken by actors that are just ending."""


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

    Attributes:
        members: Those that there are; fewer than planned if one could not be replaced.
        loss: Why the last one that was to replace another could not start.
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
        self._settings = Settings(
            experiment.num_clients,
            plan.num_threads,
            Path.cwd(),
            clients.folders.absolute(),
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
        self._has_begun = False
        self.loss = ""

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
        self._has_begun = True

    def proceed(self, member: Member) -> None:
        """Take a worker that is starting one step on; what it was waiting for is there.

        One that was to replace another and cannot start is given up: the others go on.

        Raises:
            FedkdError: It cannot start, and the run has not begun.
        """
        try:
            result = ray.get(cast(Any, member.waits_for))
        except RayError as error:
            text = (
                f"a Ray worker ({member}) could not start; lower engine.num_workers if memory is "
                f"short, otherwise mend this:\n{cause_of(error)}"
            )
            if not self._has_begun:
                raise FedkdError(text) from error
            self.loss = text
            self.members.remove(member)
            logger.warning("%d Ray workers are left: %s", len(self.members), text)
            return
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

    def refill(self) -> None:
        """Start a worker if none is left: what kept the last one from starting may be over."""
        if not self.members:
            self.members.append(self._start())

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
