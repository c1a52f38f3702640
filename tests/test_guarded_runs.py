"""Replies that may not be used, in a run: left out and counted, or the end, by the policy."""

import logging
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from flwr.app import Message, MetricRecord, RecordDict
from ray.exceptions import RayActorError

from clients import node
from clients.node import Reply
from fedkd import wire
from fedkd.errors import FedkdError, UpdateRefused
from server.engines import ray_crew, ray_grid
from server.engines.inprocess import InProcessGrid
from tests.failing_clients import CONTINUE, PLAIN

MAS = {"strategy": {"name": "mas"}}


@pytest.fixture
def spoil(monkeypatch):
    """Change what client 1 sends in round 1."""

    def install(change):
        train = node.Node.train

        def spoilt(self, partition_id, arrays, state, round_number, *rest, **options):
            reply, new = train(self, partition_id, arrays, state, round_number, *rest, **options)
            if (round_number, partition_id) != (1, 1):
                return reply, new
            values, metrics = dict(reply.arrays), dict(reply.metrics)
            change(values, metrics)
            return Reply(values, metrics), new

        monkeypatch.setattr(node.Node, "train", spoilt)

    return install


def nan_scores(values, metrics):
    metrics[wire.CLASS_SCORES] = [math.nan] * len(metrics[wire.CLASS_SCORES])


def test_a_client_whose_scores_alone_are_nan_is_left_out_of_mas(run, spoil, tmp_path):
    spoil(nan_scores)
    result = run(**MAS, **CONTINUE, output=tmp_path)
    assert result.rounds[["num_clients", "num_failed"]].values.tolist() == [[2, 1], [3, 0]]
    weights = result.clients[result.clients["round"] == 1].set_index("client")["weight"]
    assert set(weights.index) == {"north", "west"}
    assert weights.sum() == pytest.approx(1)
    (row,) = pd.read_csv(result.path / "failures.csv").to_dict("records")
    assert row["reason"] == "client 1 sent 'class-scores' that is not finite"


def test_with_stop_and_retry_it_ends_the_run_in_one_line(run, spoil):
    spoil(nan_scores)
    for policy in ("stop", "retry"):
        with pytest.raises(UpdateRefused) as caught:
            run(**MAS, failures={"policy": policy})
        assert str(caught.value) == "client 1 sent 'class-scores' that is not finite"


def test_an_update_that_is_too_long_is_left_out(run, spoil):
    def far(values, metrics):
        values["fc.bias"] = values["fc.bias"] + 1000

    spoil(far)
    failures = {"policy": "continue", "max_update_norm": 100.0}
    result = run(**PLAIN, failures=failures, num_rounds=1)
    assert result.rounds["num_failed"].tolist() == [1]
    (failure,) = result.board.failures
    assert failure.reason.startswith("client 1 sent an update of norm 2000")
    assert "; failures.max_update_norm is 100: raise it" in failure.reason


def test_who_speaks_for_another_is_left_out(run, spoil):
    spoil(lambda values, metrics: metrics.update({wire.PARTITION_ID: 0}))
    result = run(**PLAIN, **CONTINUE, num_rounds=1)
    assert result.clients["client"].tolist() == ["north", "west"]
    assert result.board.failures[0].partition_id == 1


def test_probabilities_of_other_images_than_its_own_are_refused(run, spoil):
    def fewer(values, metrics):
        metrics[wire.PROBABILITIES] = metrics[wire.PROBABILITIES][:-4]

    spoil(fewer)
    result = run(**PLAIN, **CONTINUE, num_rounds=1)
    (failure,) = result.board.failures
    assert "its part of val has" in failure.reason


def test_a_bad_prediction_ends_the_run_in_words(run, monkeypatch):
    evaluate = node.Node.evaluate

    def wrong(self, *arguments, **options):
        return evaluate(self, *arguments, **options) * np.nan

    monkeypatch.setattr(node.Node, "evaluate", wrong)
    with pytest.raises(UpdateRefused, match="^client 0 sent 'probabilities' that is not finite$"):
        run(**PLAIN, strategy={"exchange": "without_batchnorm"})


def test_that_all_must_evaluate_is_said_before_training(run, caplog):
    with caplog.at_level(logging.WARNING):
        run(**PLAIN, **CONTINUE, strategy={"exchange": "without_batchnorm"}, num_rounds=1)
    assert caplog.records[0].getMessage() == (
        "failures.policy is 'continue', but with strategy.exchange = 'without_batchnorm' nobody "
        "else can predict a client's part of val and test: the run ends where one fails to evaluate"
    )


def test_second_replies_and_those_in_anothers_place_are_not_used(run, monkeypatch, caplog):
    ask = InProcessGrid.send_and_receive

    def tamper(self, messages, *, timeout=None):
        replies = list(ask(self, messages, timeout=timeout))
        if replies[0].metadata.message_type != "train":
            return replies
        replies[1].metadata.__dict__["_src_node_id"] = 4711
        return [*replies, replies[0]]

    monkeypatch.setattr(InProcessGrid, "send_and_receive", tamper)
    with caplog.at_level(logging.WARNING):
        result = run(**PLAIN, **CONTINUE, num_rounds=1)
    assert result.clients["client"].tolist() == ["north", "west"]
    (failure,) = result.board.failures
    assert (failure.client, failure.reason) == (
        "south", "another node, 4711, answered in its place"
    )  # fmt: skip
    said = [record.getMessage() for record in caplog.records]
    assert "a reply of node 100 that nobody waits for is not used" in said


# Workers of Ray that cannot be replaced; Ray itself is not started


def test_a_worker_that_cannot_be_replaced_is_given_up_once_the_run_has_begun(monkeypatch, caplog):
    def fail(reference):
        raise RayActorError()

    monkeypatch.setattr(ray_crew.ray, "get", fail)
    crew = ray_crew.Crew.__new__(ray_crew.Crew)
    lost = ray_crew.Member(None, None)
    crew.members, crew._has_begun, crew.loss = [lost], False, ""
    with pytest.raises(FedkdError, match="^a Ray worker .still starting. could not start; lower "):
        crew.proceed(lost)
    crew._has_begun = True
    crew.proceed(lost)
    assert crew.members == []
    assert crew.loss.startswith("a Ray worker (still starting) could not start; ")
    assert caplog.records[-1].getMessage().startswith("0 Ray workers are left: a Ray worker (still")
    monkeypatch.setattr(crew, "_start", lambda: "new", raising=False)
    crew.refill()
    assert crew.members == ["new"]


@pytest.mark.parametrize("stops", [True, False])
def test_without_any_worker_every_client_fails_with_the_reason(monkeypatch, stops):
    monkeypatch.setattr(ray_grid.ray, "put", lambda content: content)
    crew = SimpleNamespace(members=[], loss="short of memory", refill=lambda: None)
    grid = ray_grid.RayGrid(crew, [3, 4], None, stop_at_failure=stops)
    content = RecordDict({wire.METRICS: MetricRecord({"a": 1})})
    messages = [
        Message(content=content, message_type="train", dst_node_id=node_id)
        for node_id in grid.get_node_ids()
    ]
    replies = list(grid.send_and_receive(messages))
    assert [reply.error.reason for reply in replies] == ["no worker is left: short of memory"] * 2
