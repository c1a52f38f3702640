"""The engine ``flower``: Flower's simulation runtime, called from this process."""

import os
import signal
import time

import pytest
from flwr.app import Message, MetricRecord, RecordDict

from fedkd.errors import ClientFailure
from server.engines import flower, messages
from server.engines.watched_grid import WatchedGrid
from server.round_replies import RoundReplies
from server.scoreboard import Observer
from tests.processes import descendants, still_there

ON_FLOWER = {"name": "flower", "num_threads": 1, "num_workers": 2}


class Listener(Observer):
    def __init__(self):
        self.heard = []

    def client_progress(self, partition_id, what, done, total):
        self.heard.append((partition_id, what, done, total))


@pytest.mark.ray
def test_flower_gives_the_same_student_as_inprocess_with_images_and_teacher_of_the_caller(
    run, tmp_path, monkeypatch
):
    kept = []
    monkeypatch.setattr(RoundReplies, "replied", lambda self, reply: kept.append(reply))
    changes = {"num_rounds": 3, "objective": {"name": "fopro"}}
    here = run(**changes, engine={"num_threads": 1})
    listener = Listener()
    there = run(**changes, engine=ON_FLOWER, observers=[listener], output=tmp_path)
    assert there.summary["student_sha256"] == here.summary["student_sha256"]
    assert there.summary["test"] == here.summary["test"]
    trained = {(0, "trained", 11, 11), (1, "trained", 9, 9), (2, "trained", 6, 6)}
    assert len(listener.heard) == 9
    assert sorted(reply.metadata.group_id for reply in kept) == [*"111222333"]
    assert set(listener.heard) == trained


class Killer(Observer):
    """Kills the worker as soon as the first round is over."""

    def round_finished(self, board):
        self.all = descendants(os.getpid())
        self.killed = [pid for pid, line in self.all.items() if line.startswith("ray::ClientApp")]
        for pid in self.killed:
            os.kill(pid, signal.SIGKILL)
        self.when = time.monotonic()


@pytest.mark.ray
def test_a_killed_worker_ends_the_run_within_seconds_and_leaves_no_process(run):
    killer = Killer()
    with pytest.raises(ClientFailure, match="failed: its worker process died") as failure:
        run(num_rounds=3, engine={**ON_FLOWER, "num_workers": 1}, observers=[killer])
    assert time.monotonic() - killer.when < 30
    assert len(killer.killed) == 1
    assert "Flower's runtime starts another one" in str(failure.value)
    assert still_there(set(killer.all), 20) == []


def test_a_message_to_a_node_that_is_gone_for_good_fails_at_once_and_others_are_awaited():
    messages.introduce_process()
    sent = [Message(RecordDict(), node, "train") for node in (7, 8)]

    class Link:
        is_slow = False

        def push_messages(self, pushed):
            assert list(pushed) == sent
            for name, message in zip(["", "b"], pushed, strict=True):
                message.metadata.__dict__["_message_id"] = name
            return ["", "b"]

        def pull_messages(self, names):
            assert list(names) == ["b"]
            if self.is_slow:
                return []
            content = RecordDict({"metrics": MetricRecord({"num-seen": 3})})
            return [Message(content, reply_to=sent[1])]

    grid = WatchedGrid(Link(), lambda: None, "it has gone")
    lost, answer = grid.send_and_receive(sent)
    assert (lost.metadata.src_node_id, lost.error.reason) == (7, "it has gone")
    assert answer.metadata.src_node_id == 8
    assert not answer.has_error()
    Link.is_slow = True
    grid = WatchedGrid(Link(), lambda: None, "it has gone", stop_at_failure=True)
    [only] = grid.send_and_receive(sent)
    assert only.metadata.src_node_id == 7


def test_what_flower_says_when_it_ends_alone_is_told(opened, tmp_path, monkeypatch):
    def breaks(*_, **__):
        raise RuntimeError("crashed") from ValueError("ActorPool is empty")

    monkeypatch.setattr(flower, "run_simulation", breaks)
    with pytest.raises(flower.FedkdError) as error:
        flower.run(lambda grid, context: None, flower.Clients(opened(engine=ON_FLOWER)))
    assert str(error.value) == (
        "Flower's simulation runtime ended: ValueError('ActorPool is empty')"
    )
