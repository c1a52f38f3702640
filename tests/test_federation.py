"""Rounds over a Grid: the order of clients does not matter, and a failing one stops the run."""

import json

import pandas as pd
import pytest

from clients.node import Node
from fedkd.errors import ClientFailure, DataError, UpdateRefused
from server.engines.inprocess import InProcessGrid


def sha(run):
    return run.summary["student_sha256"]


class Backwards(InProcessGrid):
    """Trains the last client first, and hands over the replies in yet another order."""

    def push_messages(self, messages):
        return super().push_messages(list(messages)[::-1])

    def pull_messages(self, message_ids):
        replies = list(super().pull_messages(message_ids))
        return replies[1:] + replies[:1]


@pytest.mark.parametrize("strategy", ["fedavg", "mas"])
def test_the_order_in_which_clients_train_and_answer_changes_no_bit(run, monkeypatch, strategy):
    first = run(strategy={"name": strategy})
    monkeypatch.setattr("server.engines.inprocess.InProcessGrid", Backwards)
    second = run(strategy={"name": strategy})
    assert sha(first) == sha(second)
    assert first.clients["partition_id"].tolist() == second.clients["partition_id"].tolist()


@pytest.fixture
def breaking(monkeypatch):
    """Make client 1 raise in round 2; returns who trained, as (round, client)."""

    def install(error):
        trained = []
        train = Node.train

        def maybe(self, partition_id, arrays, state, round_number, *rest, **options):
            trained.append((round_number, partition_id))
            if (round_number, partition_id) == (2, 1):
                raise error
            return train(self, partition_id, arrays, state, round_number, *rest, **options)

        monkeypatch.setattr(Node, "train", maybe)
        return trained

    return install


def test_a_client_that_raises_stops_the_run_with_its_name_round_and_traceback(
    run, breaking, tmp_path
):
    trained = breaking(RuntimeError("disk on fire"))
    with pytest.raises(ClientFailure) as caught:
        run(num_rounds=3, output=tmp_path)
    text = str(caught.value)
    assert "client 1 failed" in text
    assert "client 1 (south) trained in round 2" in text
    assert "Traceback" in text
    assert "in maybe" in text
    assert "RuntimeError: disk on fire" in text
    assert trained == [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1)], "client 2 trained for nothing"
    (folder,) = (tmp_path / "run").iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert "south" in summary["error"]
    assert "disk on fire" in summary["error"]
    assert pd.read_csv(folder / "rounds.csv")["round"].tolist() == [1]
    assert not (folder / "student.safetensors").exists()
    assert not list(folder.glob(".*")), "temporary files are left"


def test_a_client_that_meets_what_the_user_can_mend_says_that_without_traceback(run, breaking):
    breaking(DataError("x.jpg cannot be read any more; put it back"))
    with pytest.raises(ClientFailure) as caught:
        run(num_rounds=2)
    assert str(caught.value) == (
        "client 1 failed: x.jpg cannot be read any more; put it back\n"
        "while client 1 (south) trained in round 2"
    )


def test_ctrl_c_inside_a_client_is_an_interruption_and_no_failure(run, breaking, tmp_path):
    breaking(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run(output=tmp_path)
    (folder,) = (tmp_path / "run").iterdir()
    assert json.loads((folder / "summary.json").read_text())["status"] == "interrupted"


def test_a_student_that_diverges_is_refused_by_client_and_tensor(run):
    with pytest.raises(UpdateRefused, match=r"client 0 sent \d+ values of \S+ that are not finite"):
        run(
            objective={"name": "supervised"},
            training={"optimizer": "sgd", "learning_rate": 1e30, "clip_norm": 0.0},
        )
