"""What is kept of each round, which student is chosen on val, and that test is seen once."""

import dataclasses
import math

import pytest
import torch

from fedkd import wire
from fedkd.models import states
from server import scoreboard
from server.evaluation import on_the_server, validate
from server.scoreboard import Scoreboard, student_arrays

NAN = math.nan


def metrics(number, num_seen, loss, **values):
    return {
        wire.PARTITION_ID: number,
        wire.NUM_EXAMPLES: num_seen // 2,
        wire.NUM_SEEN: num_seen,
        wire.SECONDS: 0.5,
        wire.SUM + "loss": loss,
        **{wire.MEAN + name: value for name, value in values.items()},
    }


@pytest.fixture
def board(opened, monkeypatch):
    """A function that records rounds with given val scores on a board with marked students."""

    def make(scores, key="balanced_accuracy"):
        experiment = opened(evaluation={"select_on": key})
        board = Scoreboard(experiment)
        initial = experiment.build_student().state_dict()
        plain = validate(experiment, on_the_server(experiment), initial, 0)
        coming = iter(scores)

        def fake(*_):
            return dataclasses.replace(plain, **{key: next(coming)})

        monkeypatch.setattr(scoreboard, "validate", fake)
        for number in range(1, len(scores) + 1):
            board.record(number, arrays_of(experiment, number), [(1.0, metrics(0, 4, 2.0))], 1.5)
        return board

    return make


def arrays_of(experiment, number):
    """A student whose classifier's bias says which round it is of, and something shared."""
    arrays = dict(experiment.build_student().state_dict())
    arrays["fc.bias"] = torch.full((4,), float(number))
    arrays[wire.PROMPTS + "x"] = torch.zeros(1)
    return arrays


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([0.1, 0.3, 0.2], 2),
        ([0.3, 0.3, 0.3], 1),
        ([0.1, 0.4, 0.4], 2),
        ([NAN, 0.0, NAN], 2),
        ([NAN, NAN], 1),
        ([-0.5, -0.1, -0.3], 2),
    ],
)
@pytest.mark.parametrize("key", ["balanced_accuracy", "macro_auroc"])
def test_the_first_of_the_best_rounds_is_chosen(board, scores, best, key):
    result = board(scores, key)
    assert result.best_round == best
    assert result.best_arrays["fc.bias"].tolist() == [best] * 4
    assert getattr(result.best_val, key) == pytest.approx(scores[best - 1], nan_ok=True)
    assert [row[f"val_{key}"] for row in result.rounds] == pytest.approx(scores, nan_ok=True)


def test_the_chosen_student_is_tested_and_not_the_last_one(board):
    result = board([0.1, 0.3, 0.2])
    assert result.test is None
    asked, predict = [], result._predict
    result._predict = lambda *what: asked.append(what) or predict(*what)
    result.finish()
    ((split, student, number),) = asked
    assert (split, student["fc.bias"].tolist(), number) == ("test", [2.0] * 4, 2)
    assert result.test.num_images == len(result.test_probabilities) == 14


def test_only_the_students_tensors_are_kept_of_what_travels(board):
    result = board([0.1])
    assert not any(name.startswith(wire.PROMPTS) for name in result.best_arrays)
    assert student_arrays({"a": 1, "prompts/b": 2}) == {"a": 1}


def test_finishing_before_any_round_is_our_own_mistake(opened):
    with pytest.raises(AssertionError, match="before any round"):
        Scoreboard(opened()).finish()


def test_loss_terms_are_pooled_over_images_and_the_clients_own_values_over_clients(opened):
    experiment = opened()
    board = Scoreboard(experiment)
    reports = [
        (0.75, metrics(0, 6, 12.0, prior=0.2)),
        (0.25, metrics(2, 2, 8.0, prior=0.6)),
    ]
    board.record(1, arrays_of(experiment, 1), reports, 3.5)
    (row,) = board.rounds
    assert row["train_loss"] == (12 + 8) / (6 + 2)
    assert row["prior"] == pytest.approx((0.2 + 0.6) / 2)
    assert (row["round"], row["num_clients"], row["num_seen"]) == (1, 2, 8)
    assert row["seconds"] == 3.5
    first, second = board.clients
    assert first == {
        "round": 1, "partition_id": 0, "client": "north", "num_examples": 3, "num_seen": 6,
        "bytes_down": 0, "bytes_up": 0, "weight": 0.75, "loss": 2.0, "prior": 0.2, "seconds": 0.5,
    }  # fmt: skip
    assert (second["client"], second["loss"], second["weight"]) == ("west", 4.0, 0.25)


def test_a_client_that_saw_no_image_has_loss_zero_and_no_say(opened):
    experiment = opened()
    board = Scoreboard(experiment)
    reports = [(1.0, metrics(0, 4, 8.0)), (0.0, metrics(1, 0, 0.0))]
    board.record(1, arrays_of(experiment, 1), reports, 1.0)
    assert board.rounds[0]["train_loss"] == 2
    assert board.clients[1]["loss"] == 0


def test_the_test_split_is_looked_at_once_with_the_student_chosen_on_val(run, monkeypatch):
    calls, seen = [], []
    report_test, validated = scoreboard.report_test, scoreboard.validate

    def count(experiment, predict, student, number):
        calls.append(states.sha256(student))
        return report_test(experiment, predict, student, number)

    def remember(experiment, predict, student, number):
        val = validated(experiment, predict, student, number)
        seen.append((states.sha256(student), val))
        return val

    monkeypatch.setattr(scoreboard, "report_test", count)
    monkeypatch.setattr(scoreboard, "validate", remember)
    result = run(num_rounds=4, objective={"name": "supervised"})
    scores = [val.balanced_accuracy for _, val in seen]
    best = scores.index(max(scores))
    assert len(seen) == 4
    assert len(set(scores)) > 1
    assert calls == [seen[best][0]] == [result.summary["best_student_sha256"]]
    assert result.summary["best_round"] == best + 1
    assert result.summary["val"] == seen[best][1].to_dict()


def test_the_final_student_is_the_last_one_whichever_is_best(run):
    result = run(num_rounds=3, objective={"name": "supervised"}, evaluation={"select_on": "mcc"})
    assert states.sha256(result.student.state_dict()) == result.summary["student_sha256"]
    assert states.sha256(result.board.best_arrays) == result.summary["best_student_sha256"]
    mccs = result.rounds["val_mcc"].tolist()
    assert result.summary["best_round"] == mccs.index(max(mccs)) + 1
