"""Federations on Ray workers: the same bits, what travels, and what happens when a worker dies."""

import os
import signal
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import ray
from flwr.app import ArrayRecord, ConfigRecord

from clients.app import make_app
from clients.process_memory import ProcessMemory
from clients.state_file import read_state
from fedkd.errors import ClientFailure, ConfigError
from fedkd.models import states
from server import simulate
from server.checkpoint import FOLDER, STATES, Checkpoints
from server.engines import ray as engine
from server.engines import ray_grid
from server.engines.clients import Clients
from server.engines.ray_crew import Crew
from server.engines.ray_grid import RayGrid
from server.engines.worker_plan import make_plan
from server.federation import run_federation
from server.scoreboard import Observer
from strategies.base import Setup
from strategies.factory import make_strategy
from tests.processes import still_there, workers_of

pytestmark = pytest.mark.ray

# All that a client can remember: Adam, the generator with its optimiser, a bank of views.
FOPRO = {
    "num_rounds": 3,
    "strategy": {"name": "mas"},
    "explore": {"gamma": 1.0},
    "augmentation": {"name": "none"},
    "prompts": {"kept_views": 2, "renew_every": 2, "shared": "by_strategy"},
}


def on(name, **keys):
    return {"name": name, "num_threads": 1, **keys}


@pytest.fixture(scope="module")
def cluster():
    """Ray in this process, which the engine uses and leaves as it is."""
    with engine._connected(None) as ours:
        assert ours
        yield
        assert ray.is_initialized()


@pytest.fixture(scope="module")
def expected(make_recipe, hospitals, tiny_teacher):
    """The student of the in-process engine."""
    result = simulate(make_recipe(**FOPRO), **hospitals, teacher=tiny_teacher)
    return result.summary["student_sha256"]


class Watch(Observer):
    """Calls a function at each progress."""

    def __init__(self, call):
        self.client_progress = call


# Two workers: with their deaths, in the next test.
@pytest.mark.parametrize("num_workers", [1, 4])
def test_any_number_of_workers_gives_the_bits_of_inprocess(
    cluster, expected, run, monkeypatch, num_workers
):
    # Four workers on fewer cores are refused on a Ray that is not the run's own.
    monkeypatch.setattr(
        engine.ray, "cluster_resources", lambda: {**ray_resources(), "CPU": float(num_workers)}
    )
    monkeypatch.setattr(engine, "Crew", lambda c, plan, env: Crew(c, half(plan), env))
    heard = set()
    observer = Watch(lambda number, what, done, total: heard.add((number, what)))
    workers = on("ray", num_workers=num_workers)
    result = run(**FOPRO, engine=workers, observers=[observer])
    assert result.summary["student_sha256"] == expected
    assert {number for number, _ in heard} == {0, 1, 2}
    assert {what for _, what in heard} <= {"scoring", "exploring", "training"}
    assert ray.is_initialized(), "a Ray that was there stays"
    assert still_there(workers_of(os.getpid()), 10) == []


def test_ctrl_c_lets_clients_on_workers_finish_their_step(cluster, run, monkeypatch):
    replies = []
    monkeypatch.setattr(RayGrid, "_reply", lambda self, task, reply: replies.append(reply))

    def interrupt(number, what, done, total):
        if what == "training":
            raise KeyboardInterrupt

    training = {"local_epochs": 100000}
    with pytest.raises(KeyboardInterrupt):
        run(training=training, engine=on("ray", num_workers=1), observers=[Watch(interrupt)])
    assert [reply.error.reason for reply in replies] == ["it was stopped between two steps"]
    assert still_there(workers_of(os.getpid()), 10) == []


ray_resources = ray.cluster_resources


def half(plan):
    """The same plan, for a machine of two cores."""
    return replace(plan, num_cpus=0.25)


def test_a_killed_workers_clients_go_on_with_their_state_elsewhere(
    cluster, expected, opened, monkeypatch, caplog
):
    """Round 2 loses a worker before and one in the middle; asking again gives the same bits."""
    experiment = opened(**FOPRO)
    plan = make_plan(
        SimpleNamespace(num_workers=2, num_threads=1, gpus_per_worker=None, device="cpu"),
        2, 0, 3, on_gpu=False, ours=True,
    )  # fmt: skip
    puts = []
    monkeypatch.setattr(
        ray_grid,
        "ray",
        SimpleNamespace(
            put=lambda x: (puts.append(x), ray.put(x))[1], get=ray.get, wait=ray.wait
        ),  # fmt: skip
    )
    clients = Clients(experiment)
    crew = Crew(clients, plan, {})
    failures = []

    class AskingAgain(RayGrid):
        """Kills both workers at the start of round 2, and asks those that failed again."""

        def push_messages(self, messages):
            names = super().push_messages(messages)
            if self.num_sent and self.round == 2 and not failures:
                self.killed = time.monotonic()
                for pid in workers_of(os.getpid()):
                    os.kill(pid, signal.SIGKILL)
            return names

        def _fail(self, task, code, reason):
            failures.append((reason, time.monotonic() - self.killed))
            super()._fail(task, code, reason)

        def send_and_receive(self, messages, *, timeout=None):
            messages = list(messages)
            self.round = int(messages[0].metadata.group_id or 0)
            replies = list(super().send_and_receive(messages, timeout=timeout))
            failed = [reply for reply in replies if reply.has_error()]
            again = {reply.metadata.src_node_id for reply in failed}
            if again:
                messages = [m for m in messages if m.metadata.dst_node_id in again]
                replies = [r for r in replies if not r.has_error()]
                replies += super().send_and_receive(messages)
            return replies

    try:
        crew.wait()
        images = [len(rows) for rows in experiment.partition.indices]
        app = make_app(lambda _: clients.node, ProcessMemory())
        grid = AskingAgain(crew, images, app, stop_at_failure=False)
        _, arrays = run_federation(grid, experiment, clients.node.initial_arrays())
        processes = [pid for pid, _ in crew._processes]
    finally:
        crew.end()
    student = {name: t for name, t in arrays.items() if not name.startswith("prompts/")}
    assert len(failures) in (1, 2), "the third client waited, and was not lost"
    for reason, seconds in failures:
        assert "its Ray worker (process " in reason
        assert "died: killed from outside, by the system for lack of memory" in reason
        assert "lower engine.num_workers" in reason
        assert seconds < 30
    assert len(processes) == 4, "two, and two that took their places"
    # One for each round, and one for the messages that were sent again.
    assert len(puts) == FOPRO["num_rounds"] + 1
    assert grid.num_moved <= 3
    assert states.sha256(student) == expected


def test_under_stop_a_killed_worker_ends_the_run_within_seconds_and_says_why(cluster, run):
    killed = []

    def kill(number, what, done, total):
        if not killed:
            killed.extend(workers_of(os.getpid()))
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
            killed.append(time.monotonic())

    with pytest.raises(ClientFailure, match=r"client \d failed: its Ray worker \(process \d+ on "):
        run(
            training={"local_epochs": 3000},
            engine=on("ray", num_workers=1),
            observers=[Watch(kill)],
        )
    assert killed, "no progress came before the end"
    assert time.monotonic() - killed[-1] < 30
    assert still_there(workers_of(os.getpid()), 10) == []


def test_a_client_that_raises_names_itself_with_its_traceback(cluster, run, hospitals, teacher):
    class Broken(type(teacher)):
        def forward(self, x):
            if self.training or len(x) == 4:
                raise RuntimeError("a broken layer")
            return super().forward(x)

    teacher.__class__ = Broken
    with pytest.raises(ClientFailure) as caught:
        run(engine=on("ray", num_workers=1), objective={"name": "ekd"})
    assert "RuntimeError: a broken layer" in str(caught.value)
    assert "Traceback" in str(caught.value)
    assert "while client" in str(caught.value)


def test_a_client_that_is_too_late_is_answered_for_and_its_worker_replaced(cluster, opened):
    experiment = opened(training={"local_epochs": 100_000}, objective={"name": "supervised"})
    clients = Clients(experiment)
    crew = Crew(
        clients,
        make_plan(experiment.recipe.engine.model_copy(update={"num_workers": 1}), 1, 0, 3,
                  on_gpu=False, ours=True),
        {},
    )  # fmt: skip
    try:
        crew.wait()
        app = make_app(lambda _: clients.node, ProcessMemory())
        grid = RayGrid(crew, [11, 9, 6], app, stop_at_failure=False)
        strategy = make_strategy(experiment.recipe.strategy, Setup(3, 2, 0))
        arrays = ArrayRecord(clients.node.initial_arrays())
        config = ConfigRecord({"best-round": 0})
        messages = strategy.configure_train(1, arrays, config, grid)
        replies = list(grid.send_and_receive(messages, timeout=3))
        reasons = [reply.error.reason for reply in replies]
        processes = [pid for pid, _ in crew._processes]
        assert still_there(processes[:1], 10) == []
        again = list(grid.send_and_receive(messages[:1], timeout=3))
        assert again[0].error.reason.startswith("no answer within 3 s"), "a start counted as late"
    finally:
        crew.end()
    assert reasons[0].startswith("no answer within 3 s; its Ray worker (process ")
    assert all(reason.startswith("it waited 3 s for a free Ray worker") for reason in reasons[1:])


def test_more_threads_than_a_foreign_ray_has_are_refused(cluster, run):
    with pytest.raises(ConfigError, match=r"1 workers of 1024 CPU threads need 1024 CPUs, but Ray"):
        run(engine={"name": "ray", "num_workers": 1, "num_threads": 1024})


def test_simulated_trouble_is_the_same_on_ray(cluster, run):
    trouble = {
        "num_rounds": 2,
        "objective": {"name": "supervised"},
        "failures": {"policy": "continue", "max_fraction": 0.9},
        "faults": {
            "dropout": 0.2, "stragglers": 0.6, "leaves": {"south": 2}, "byzantine": ["west"],
            "label_noise": {"north": 0.5}, "attack": "noise",
        },
    }  # fmt: skip
    here = run(**trouble, engine=on("inprocess"))
    there = run(**trouble, engine=on("ray", num_workers=1))
    assert there.summary["student_sha256"] == here.summary["student_sha256"]
    assert there.rounds["num_failed"].tolist() == here.rounds["num_failed"].tolist()
    columns = ["round", "client", "weight", "work", "delay"]
    assert there.clients[columns].equals(here.clients[columns])


def test_ray_workers_write_the_states_of_the_engine_inprocess(cluster, run, tmp_path, monkeypatch):
    # As a run leaves them that is interrupted at its very end.
    monkeypatch.setattr(Checkpoints, "_remove", lambda _: None)
    runs = [
        run(**FOPRO, output=tmp_path / name, engine=on(name, num_workers=1))
        for name in ("inprocess", "ray")
    ]
    here, there = (sorted((one.path / FOLDER / STATES).rglob("*.safetensors")) for one in runs)
    assert [path.name for path in there] == [path.name for path in here]
    assert len(here) == 6
    for one, other in zip(here, there, strict=True):
        first, second = read_state(one), read_state(other)
        assert {part: states.sha256(tensors) for part, tensors in first.items()} == {
            part: states.sha256(tensors) for part, tensors in second.items()
        }
