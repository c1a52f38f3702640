"""Clients that are asked again, and clients that are late."""

import pytest
from flwr.app import Error, Message, MetricRecord, RecordDict

from clients import node
from fedkd import wire
from fedkd.errors import ClientFailure, DataError
from server.engines import inprocess
from server.engines.inprocess import InProcessGrid
from tests.failing_clients import PLAIN, RETRY, broken
from tests.failing_clients import failing as failing


def sha(run):
    return run.summary["student_sha256"]


def once(monkeypatch, client, round_number, step):
    """A client's objective raises at one step of one round, the first time that it gets there."""
    make, raised = node.make_objective, []

    def make_one(experiment, partition_id, number):
        objective = make(experiment, partition_id, number)
        if (partition_id, number) == (client, round_number) and not raised:
            loss, steps = objective.loss, []

            def fail(*arguments):
                steps.append(None)
                if len(steps) == step:
                    raised.append(None)
                    raise broken()
                return loss(*arguments)

            objective.loss = fail
        return objective

    monkeypatch.setattr(node, "make_objective", make_one)
    return raised


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": {"name": "fopro"}, "strategy": {"name": "mas"}},
        {"objective": {"name": "fopro"}, "prompts": {"kept_views": 2},
         "teacher": {"views": "dihedral"}},
        {"objective": {"name": "moon"}, "strategy": {"exchange": "without_batchnorm"}},
        {"objective": {"name": "moco"}, "moco": {"queue_size": 4}},
    ],
    ids=["fopro", "bank", "moon", "moco"],
)  # fmt: skip
def test_a_client_that_fails_in_its_second_epoch_once_leaves_the_same_bits(
    run, monkeypatch, changes
):
    """South has 9 images: steps 1 and 2 (4 + 5) are of its first epoch, step 4 of its second."""
    changes = {"num_rounds": 3, "training": {"local_epochs": 2, "optimizer": "adam"}, **changes}
    expected = run(**changes, **RETRY)
    raised = once(monkeypatch, client=1, round_number=2, step=4)
    result = run(**changes, **RETRY)
    assert raised, "it must have failed"
    assert sha(result) == sha(expected)
    assert result.summary["test"] == expected.summary["test"]
    assert result.rounds["num_failed"].tolist() == [0, 0, 0]
    failed = {"policy": "retry", "num_failed": 1, "clients": {"south": 1}}
    assert result.summary["failures"] == failed
    assert "failures" not in expected.summary


def test_only_failed_clients_are_asked_again_and_the_others_train_on(run, failing):
    asked = failing({(1, 0): [broken()], (1, 2): [broken(), broken()]})
    result = run(**PLAIN, **RETRY, num_rounds=1)
    assert asked == [(1, 0), (1, 1), (1, 2), (1, 0), (1, 2), (1, 2)]
    assert result.clients["partition_id"].tolist() == [0, 1, 2]


def test_a_client_that_fails_each_time_ends_the_run_and_the_text_says_how_often(run, failing):
    asked = failing({(2, 1): [broken(), broken(), DataError("no x.jpg; put it back")]})
    with pytest.raises(ClientFailure) as caught:
        run(**PLAIN, **RETRY)
    assert str(caught.value) == (
        "client 1 (south) was asked 3 times to train in round 2 and failed each time "
        "(failures.retries is 2); the last time: no x.jpg; put it back\n"
        "while client 1 (south) trained in round 2"
    )
    assert asked[3:] == [(2, 0), (2, 1), (2, 2), (2, 1), (2, 1)]


def test_a_client_that_fails_to_evaluate_is_asked_again(run, monkeypatch):
    changes = {**PLAIN, **RETRY, "strategy": {"exchange": "without_batchnorm"}}
    expected = run(**changes)
    errors, evaluate = [broken()], node.Node.evaluate

    def fail_once(self, partition_id, *rest, **options):
        if partition_id == 1 and errors:
            raise errors.pop()
        return evaluate(self, partition_id, *rest, **options)

    monkeypatch.setattr(node.Node, "evaluate", fail_once)
    result = run(**changes)
    assert not errors
    assert result.summary["test"] == expected.summary["test"]
    (failure,) = result.board.failures
    assert (failure.doing, failure.round, failure.partition_id) == ("evaluate", 1, 1)


# Late and lost answers


class Late(InProcessGrid):
    """Client 1 is too late in round 1: at first an error reply says so, then nothing comes."""

    num_late, says_so, timeouts = 1, True, []

    def send_and_receive(self, messages, *, timeout=None):
        kept, num_late = [], type(self).num_late
        type(self).timeouts = [*self.timeouts, timeout]
        for reply in super().send_and_receive(messages, timeout=timeout):
            late = wire.ARRAYS in reply.content and reply.metadata.src_node_id == 101
            if late and num_late:
                type(self).num_late -= 1
                if not self.says_so:
                    continue
                reply.metadata.__dict__["_src_node_id"] = 1  # as of Flower's SuperLink
                reply = Message(Error(5, "the site has gone"), reply_to=self._asked(reply))
            kept.append(reply)
        return kept

    def _asked(self, reply):
        asked = Message(RecordDict({"m": MetricRecord()}), 101, "train")
        asked.metadata.__dict__["_message_id"] = reply.metadata.reply_to_message_id
        asked.metadata.__dict__["_dst_node_id"] = 1
        return asked


@pytest.fixture
def late(monkeypatch):
    """Install :class:`Late` with changes."""

    def install(**changes):
        made = type("Late", (Late,), {"timeouts": [], **changes})
        monkeypatch.setattr(inprocess, "InProcessGrid", made)
        monkeypatch.setattr(inprocess, "_check_timeout", lambda timeout_s: None)
        return made

    return install


def test_an_error_reply_of_the_superlink_counts_for_the_client_that_was_asked(run, late):
    late()
    with pytest.raises(ClientFailure) as caught:
        run(**PLAIN)
    assert str(caught.value) == "client 1 failed: the site has gone"


@pytest.mark.parametrize(
    ("timeout", "text"),
    [(2.5, "it did not answer within 2.5 s (failures.timeout_s)"), (None, "it did not answer")],
)
def test_a_client_that_does_not_answer_at_all_fails(run, late, timeout, text):
    grid = late(says_so=False)
    with pytest.raises(ClientFailure) as caught:
        run(**PLAIN, failures={"timeout_s": timeout})
    assert str(caught.value) == f"client 1 failed: {text}"
    assert grid.timeouts[-1] == timeout, "engines are told"
    late(says_so=False)
    result = run(**PLAIN, failures={"policy": "continue", "timeout_s": timeout})
    assert result.rounds["num_failed"].tolist() == [1, 0]
    assert result.board.failures[0].reason == text


def test_a_late_client_is_asked_again_with_a_new_message(run, late):
    grid = late(says_so=False)
    result = run(**PLAIN, **RETRY)
    assert grid.num_late == 0
    assert result.rounds["num_clients"].tolist() == [3, 3]
