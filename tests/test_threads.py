"""Clients on threads: the same bits, in order, and stopped together."""

import os
import signal
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedkd import seeding
from fedkd.teachers.moments import record
from server.engines.inprocess import InProcessGrid
from server.engines.threads import Threads
from server.scoreboard import Observer
from server.signals import gently, interruptible

AKD = {"gamma": 0.3, "warm_up_steps": 1, "steps_per_round": 2}


class Witness(Observer):
    """Notes in which thread it is told of which client."""

    def __init__(self):
        self.threads, self.clients = set(), set()

    def client_progress(self, partition_id, what, done, total):
        self.threads.add(threading.get_ident())
        self.clients.add(partition_id)


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": {"name": "supervised"}, "strategy": {"name": "fedavg"}},
        {"explore": AKD, "prompts": {"form": "mix"}, "strategy": {"name": "mas"}},
        {"explore": AKD, "evaluation": {"personalised": True}},
    ],
    ids=["supervised", "fopro-scored", "fopro-personalised"],
)
def test_any_number_of_threads_gives_the_same_student_and_rows(run, changes):
    runs = [
        run(engine={"num_workers": number, "num_threads": 1}, **changes) for number in (None, 2, 4)
    ]
    assert len({one.summary["student_sha256"] for one in runs}) == 1
    first, *others = (one.clients.drop(columns="seconds") for one in runs)
    for other in others:
        assert other.equals(first)


def test_progress_is_told_in_the_thread_that_runs(run):
    witness = Witness()
    run(engine={"num_workers": 2, "num_threads": 1}, observers=[witness])
    assert witness.threads == {threading.get_ident()}
    assert witness.clients == {0, 1, 2}


def test_a_client_that_raises_on_a_thread_ends_the_run_with_its_own_text(run):
    with pytest.raises(Exception, match=r"client \d failed(.|\n)*is not finite"):
        run(
            engine={"num_workers": 2, "num_threads": 1},
            explore={"learning_rate": 1e30, "warm_up_steps": 9},
        )


class FakeNode:
    def __init__(self):
        self.progress = None

    def twin(self):
        return FakeNode()


def fake_clients(progress=None, num_threads=1):
    engine = SimpleNamespace(num_threads=num_threads)
    experiment = SimpleNamespace(recipe=SimpleNamespace(engine=engine))
    return SimpleNamespace(
        progress=progress,
        node=FakeNode(),
        experiment=experiment,
        reply_came=lambda reply: None,
    )


def app_of(do):
    """A ClientApp that replies with what ``do(partition_id)`` returns."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        number = context.node_config["partition-id"]
        metrics = MetricRecord({"number": number, "value": do(number) or 0})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def ask(grid):
    content = RecordDict({"config": ConfigRecord()})
    nodes = grid.get_node_ids()
    messages = [grid.create_message(content, "train", node, "1") for node in nodes]
    return list(grid.send_and_receive(messages))


def values(replies, name="number"):
    return [reply.content.metric_records["metrics"][name] for reply in replies]


def test_as_many_clients_train_at_once_as_there_are_threads():
    together = threading.Barrier(3, timeout=20)
    with Threads(fake_clients(), 3) as threads:
        replies = ask(InProcessGrid(app_of(lambda _: together.wait()), 6, threads.answer))
    assert not any(reply.has_error() for reply in replies)


def test_no_two_threads_have_one_node():
    seen, together = {}, threading.Barrier(2, timeout=20)
    with Threads(fake_clients(), 2) as threads:

        def note(number):
            together.wait()
            seen.setdefault(threading.get_ident(), set()).add(id(threads.node))

        ask(InProcessGrid(app_of(note), 4, threads.answer))
    assert [len(nodes) for nodes in seen.values()] == [1, 1]
    assert len(set.union(*seen.values())) == 2


def test_replies_have_the_order_of_the_messages_whoever_is_first():
    second_is_done = threading.Event()

    def work(number):
        assert second_is_done.wait(20) if number == 0 else second_is_done.set() is None

    with Threads(fake_clients(), 2) as threads:
        grid = InProcessGrid(app_of(work), 4, threads.answer)
        for _ in range(2):
            assert values(ask(grid)) == [0, 1, 2, 3]


def steps(threads, began, stepping):
    """Steps for half a minute unless it is stopped; counts them."""
    began.set()
    until = time.monotonic() + 30
    while time.monotonic() < until:
        stepping.append(1)
        threads.node.progress(1, "training", 1, 2)
        time.sleep(0.001)


def test_the_first_failure_stops_the_others_at_their_next_step():
    began, stepping, called = threading.Event(), [], []

    def work(number):
        called.append(number)
        if number:
            steps(threads, began, stepping)
        assert began.wait(20)
        raise ValueError("broken disk")

    started = time.monotonic()
    with Threads(fake_clients(), 2) as threads:
        (reply,) = ask(InProcessGrid(app_of(work), 5, threads.answer))
        assert reply.error.reason.rstrip().endswith("ValueError: broken disk")
        assert set(called) <= {0, 1, 2}  # one begins before the failure is heard of
        after = len(stepping)
        time.sleep(0.05)
        assert len(stepping) == after > 0
    assert time.monotonic() - started < 15


@pytest.mark.parametrize("tells", [True, False])
def test_ctrl_c_ends_all_threads_at_their_next_step(tells):
    together, stopped, told = threading.Barrier(2, timeout=20), [], []

    def work(number):
        together.wait()
        if number:
            os.kill(os.getpid(), signal.SIGINT)
        try:
            steps(threads, threading.Event(), [])
        except KeyboardInterrupt:  # where a client notes how far it is
            stopped.append(number)
            raise

    progress = (lambda *step: told.append(step)) if tells else None
    started, before = time.monotonic(), threading.active_count()
    with (
        pytest.raises(KeyboardInterrupt),
        interruptible(),
        gently(),
        Threads(fake_clients(progress), 2) as threads,
    ):
        ask(InProcessGrid(app_of(work), 4, threads.answer))
    assert time.monotonic() - started < 15
    assert threading.active_count() <= before
    assert sorted(stopped) == [0, 1]
    assert bool(told) == tells


def test_what_is_finished_while_the_round_breaks_off_is_not_lost():
    breaks, came = threading.Event(), []

    def work(number):
        if number:
            steps(threads, threading.Event(), [])
        breaks.wait(20)

    def progress(*step):
        breaks.set()
        raise KeyboardInterrupt

    clients = fake_clients(progress)
    clients.reply_came = came.append
    with pytest.raises(KeyboardInterrupt), Threads(clients, 2) as threads:
        ask(InProcessGrid(app_of(work), 2, threads.answer))
    assert values(came) == [0]


@pytest.mark.parametrize(("given", "expected"), [(1, 1), (3, 3), (None, 2)])
def test_each_thread_has_its_number_of_torch_threads_and_the_caller_keeps_its_own(given, expected):
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        with Threads(fake_clients(num_threads=given), 2) as threads:
            grid = InProcessGrid(app_of(lambda _: torch.get_num_threads()), 4, threads.answer)
            assert values(ask(grid), "value") == [expected] * 4
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


def test_a_teachers_twin_has_its_tensors_and_none_of_its_hooks(opened):
    teacher = opened().teachers[0]
    twin = teacher.twin()
    pixels = torch.rand(3, 3, 16, 16, generator=seeding.generator(0, "pixels"))
    assert [t.data_ptr() for t in twin.state_dict().values()] == [
        t.data_ptr() for t in teacher.state_dict().values()
    ]
    with record(teacher.backbone) as recording:
        features = twin.features(pixels)
    assert not recording.moments
    assert torch.equal(features, teacher.features(pixels))
    assert not any(parameter.requires_grad for parameter in twin.parameters())


def test_an_experiments_twin_shares_what_clients_share(opened):
    first = opened(objective={"name": "ekd"})
    kept, rows = first.kept_features, first.held_out_rows
    twin = first.twin()
    assert twin.kept_features is kept
    assert twin.held_out_rows is rows
    assert twin.splits is first.splits
    assert len(set(map(id, twin.teachers))) == 1
    assert twin.teachers[0] is not first.teachers[0]


def test_streams_of_two_threads_do_not_mix():
    def draw(_):
        with seeding.isolated(0, "weights"):
            return [torch.rand(1).item() for _ in range(300) if time.sleep(0) is None][-1]

    with Threads(fake_clients(), 4) as threads:
        drawn = values(ask(InProcessGrid(app_of(draw), 8, threads.answer)), "value")
    assert set(drawn) == {draw(0)}
