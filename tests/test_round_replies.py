"""Replies of the round under way outlive the process, and stand for their clients bit for bit."""

import errno
import json
import logging

import pandas as pd
import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from torch import tensor

from fedkd.checkpointing import CheckpointConfig
from fedkd.errors import ClientFailure
from server import resume, round_replies, simulate, simulation
from server.engines import messages as flower
from server.round_replies import RoundReplies, digest
from server.scoreboard import Observer
from strategies.arrays import hold

SMALL = {
    "objective": {"name": "supervised"},
    "training": {"keep_optimizer_state": True},
    # Class scores and predictions: metrics that are lists of floats.
    "strategy": {"name": "mas"},
    "evaluation": {"personalised": True},
}


class Stop(Observer):
    """Ctrl-C, or an error, at the first step of a client in a round; notes who was asked."""

    def __init__(self, client=None):
        self.client, self.asked, self.round = client, set(), 0

    def round_started(self, round_number):
        self.round = round_number

    def client_progress(self, partition_id, what, done, total):
        self.asked.add((self.round, partition_id))
        if partition_id == self.client:
            raise KeyboardInterrupt


def replies_of(output):
    (run,) = (output / "run").iterdir()
    return run / "checkpoint" / "replies"


def rows(result):
    return result.rounds.drop(columns="seconds"), result.clients.drop(columns="seconds")


@pytest.mark.parametrize("policy", ["continue", "retry"])
def test_a_run_that_goes_on_asks_only_who_had_not_replied_and_ends_with_the_same_bits(
    make_recipe, hospitals, tmp_path, policy
):
    recipe = make_recipe(**{**SMALL, "failures": {"policy": policy}})
    whole = simulate(recipe, **hospitals)
    path, names = interrupted(recipe, hospitals, tmp_path)
    seconds = written(replies_of(tmp_path) / names[0])["metrics"]["seconds"]
    watch = Stop()
    threads = ["engine.num_workers=2"] if policy == "retry" else []
    result = resume(path, **hospitals, overrides=threads, observers=[watch])
    assert {client for number, client in watch.asked if number == 1} == {2}
    assert {client for number, client in watch.asked if number == 2} == {0, 1, 2}
    assert_same(result, whole)
    assert result.clients["seconds"][0] == seconds


@pytest.mark.parametrize("data", [None, b""])
def test_a_reply_does_not_serve_without_what_its_client_remembered(
    make_recipe, hospitals, tmp_path, caplog, data
):
    recipe = make_recipe(**SMALL)
    whole = simulate(recipe, **hospitals)
    path, names = interrupted(recipe, hospitals, tmp_path)
    state = path / "checkpoint/clients/1/round-1.safetensors"
    state.unlink()
    if data is not None:  # as a client leaves it that has no room for more
        state.write_bytes(data)
    watch = Stop()
    result = resume(path, **hospitals, observers=[watch])
    assert (
        f"{names[1]} cannot be used, its client is asked again: what it remembered" in caplog.text
    )
    assert {client for number, client in watch.asked if number == 1} == {1, 2}
    assert_same(result, whole)


def test_refused_replies_are_noted_in_the_same_order(make_recipe, hospitals, tmp_path):
    refusing = {"policy": "continue", "max_update_norm": 1e-9}
    recipe = make_recipe(**{**SMALL, "failures": refusing, "num_rounds": 1})
    whole = simulate(recipe, **hospitals)
    assert len(whole.board.failures) == 3
    path, names = interrupted(recipe, hospitals, tmp_path)
    (replies_of(tmp_path) / names[0]).unlink()
    assert resume(path, **hospitals).board.failures == whole.board.failures


def interrupted(recipe, hospitals, tmp_path):
    """A run directory whose round 1 has replies of two clients, and the names of their files."""
    with pytest.raises(KeyboardInterrupt):
        simulate(recipe, **hospitals, output=tmp_path, observers=[Stop(2)])
    folder = replies_of(tmp_path)
    names = [f"round-1-client-{number}.safetensors" for number in (0, 1)]
    assert sorted(path.name for path in folder.iterdir()) == names
    return folder.parent.parent, names


def assert_same(result, whole):
    assert result.summary["student_sha256"] == whole.summary["student_sha256"]
    assert result.summary["test"] == whole.summary["test"]
    for mine, theirs in zip(rows(result), rows(whole), strict=True):
        pd.testing.assert_frame_equal(mine, theirs, check_exact=True)


def written(path):
    with round_replies.safe_open(path, framework="np") as file:
        return json.loads(file.metadata()["reply"])


def test_an_error_that_ends_the_run_leaves_the_replies_too(run, tmp_path, monkeypatch):
    train = simulation.Clients.node.func

    def breaking(clients):
        node = train(clients)
        do = node.train
        node.train = lambda number, *rest, **more: (
            do(number, *rest, **more) if number != 1 else 1 / 0
        )
        return node

    monkeypatch.setattr(simulation.Clients.node, "func", breaking)
    with pytest.raises(ClientFailure, match="ZeroDivisionError"):
        run(output=tmp_path, **SMALL)
    assert [path.name for path in replies_of(tmp_path).iterdir()] == [
        "round-1-client-0.safetensors"
    ]


METRICS = {
    "partition-id": 1,
    "tiny": 5e-324,
    "third": 1 / 3,
    "whole": 2.0,
    "counts": [1, 2],
    "losses": [0.1, float("inf")],
    "none": [],
}
SENT = {"w": tensor([1.0, 2.0]), "n": tensor(3)}


def message(round_number=1, sent=SENT, node=7):
    flower.introduce_process()
    content = RecordDict({"arrays": hold(sent), "config": ConfigRecord()})
    return Message(content, node, "train", group_id=str(round_number))


def reply_to(asked, value=0.5, number=1):
    metrics = MetricRecord({**METRICS, "partition-id": number})
    arrays = hold({"z": tensor([[value]]), "a": tensor(4), "b": tensor([True])})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=asked)


def keep(folder, value=0.5, round_number=1, **config):
    """What a process does that is interrupted in a round."""
    replies = RoundReplies(folder, CheckpointConfig(**config))
    asked = message(round_number)
    assert replies.begin(round_number, {1: asked}) == {}
    replies.replied(reply_to(asked, value))
    replies.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    return folder / f"round-{round_number}-client-1.safetensors"


def test_a_reply_comes_back_with_every_bit_name_and_order(tmp_path):
    path = keep(tmp_path)
    asked, other = message(node=9), message(node=8)
    found = RoundReplies(tmp_path, CheckpointConfig()).begin(1, {0: other, 1: asked})
    assert list(found) == [1]
    assert found[1].metadata.src_node_id == 9
    assert dict(found[1].content["metrics"]) == METRICS
    assert list(map(type, found[1].content["metrics"].values())) == list(
        map(type, METRICS.values())
    )
    arrays = {name: array.numpy() for name, array in found[1].content["arrays"].items()}
    expected = {n: a.numpy() for n, a in reply_to(asked).content["arrays"].items()}
    assert digest(arrays) == digest(expected)
    assert [path] == list(tmp_path.iterdir())


def test_a_later_round_of_a_process_takes_none(tmp_path):
    keep(tmp_path, round_number=2)
    replies = RoundReplies(tmp_path, CheckpointConfig())
    assert replies.begin(1, {1: message(1)}) == {}
    assert replies.begin(2, {1: message(2)}) == {}, "its clients' memories are of this process"


def test_who_is_not_asked_again_is_known_before(tmp_path):
    keep(tmp_path)
    replies = RoundReplies(tmp_path, CheckpointConfig())
    sent = {name: tensor.numpy() for name, tensor in SENT.items()}
    assert replies.clients(1, sent) == {1}
    assert replies.clients(2, sent) == set()
    assert replies.clients(1, {**sent, "n": sent["n"] + 1}) == set()


def test_another_student_is_not_answered(tmp_path, caplog):
    path = keep(tmp_path)
    other = message(sent={**SENT, "n": tensor(4)})
    assert RoundReplies(tmp_path, CheckpointConfig()).begin(1, {1: other}) == {}
    assert caplog.messages == [f"{path} answers another student; its client is asked again"]


@pytest.mark.parametrize("position", range(5))
def test_a_damaged_file_is_ignored_with_a_line(tmp_path, caplog, position):
    path = keep(tmp_path)
    data = bytearray(path.read_bytes())
    if position == 4:
        data = data[:-3]
    else:  # the length, the metadata, the tensors
        data[(0, data.index(b"0.333"), data.index(b"partition_id"), -2)[position]] ^= 1
    path.write_bytes(data)
    assert RoundReplies(tmp_path, CheckpointConfig()).begin(1, {1: message()}) == {}
    (line,) = caplog.messages
    assert line.startswith(f"{path} cannot be used, its client is asked again: ")


@pytest.mark.parametrize(
    "change",
    [
        {"partition_id": "1"},
        {"partition_id": 2},
        {"metrics": [1]},
        {"metrics": {"partition-id": 2}},
        {"metrics": {"partition-id": 1, "x": {"y": 1}}},
        {"names": 3},
        [],
        "[" * 100_000,
    ],
)
def test_what_was_made_up_with_its_checksum_is_ignored_with_a_line(tmp_path, caplog, change):
    path = keep(tmp_path)
    about = written(path)
    with round_replies.safe_open(path, framework="np") as file:
        arrays = {name: file.get_tensor(name) for name in about["names"]}
    text = change if isinstance(change, str) else json.dumps(change)
    if isinstance(change, dict):
        about |= change
        text = json.dumps({**about, "sha256": round_replies._checksum(arrays, about)})
    round_replies.save_file(arrays, path, {"reply": text})
    assert RoundReplies(tmp_path, CheckpointConfig()).begin(1, {1: message()}) == {}
    (line,) = caplog.messages
    assert line.startswith(f"{path} cannot be used, its client is asked again: ")


def test_replies_are_written_when_it_is_time(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(round_replies.time, "monotonic", lambda: clock[0])
    replies = RoundReplies(tmp_path / "some", CheckpointConfig(every_s=10))
    never = RoundReplies(tmp_path / "none", CheckpointConfig(every_s=0))
    asked = message()
    for one in (replies, never):
        one.begin(1, {1: asked})
        one.replied(reply_to(asked))
    clock[0] = 9.0
    replies.tick()
    assert not (tmp_path / "some").exists()
    clock[0] = 10.0
    for one in (replies, never):
        one.tick()
    assert len(list((tmp_path / "some").iterdir())) == 1
    assert not (tmp_path / "none").exists()
    replies.replied(reply_to(asked, number=2))
    assert len(list((tmp_path / "some").iterdir())) == 1
    (tmp_path / "some" / ".round-1-client-3.part").touch()
    replies.clear()
    assert list((tmp_path / "some").iterdir()) == []


def test_nothing_is_kept_of_a_round_that_no_run_resumes_at_or_of_a_reply_that_is_refused(tmp_path):
    assert not keep(tmp_path, round_number=2, every=2).exists()
    assert not keep(tmp_path, value=float("nan")).exists()
    assert keep(tmp_path, round_number=3, every=2).exists()


def test_a_full_disk_is_told_once_and_a_later_write_succeeds(tmp_path, monkeypatch, caplog):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(round_replies, "save_file", full)
    replies, asked = RoundReplies(tmp_path, CheckpointConfig()), message()
    replies.begin(1, {1: asked})
    with caplog.at_level(logging.WARNING):
        for number in (1, 2):
            replies.replied(reply_to(asked, number=number))
            replies.write()
    assert caplog.messages == [
        f"replies of round 1 cannot be kept in {tmp_path} ([Errno 28] No space left on device); a "
        "resumed run asks these clients again, unless there is room by then"
    ]
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    replies.write()
    assert len(list(tmp_path.iterdir())) == 2
