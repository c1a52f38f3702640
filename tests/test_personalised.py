"""Each client's own student on its own part of val, and stopping early."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from clients.node import Node
from fedkd import wire
from fedkd.prediction import predict
from server import scoreboard, simulate
from tests.conftest import SITES, draw_images

SUPERVISED = {"objective": {"name": "supervised"}}


def test_a_client_predicts_its_own_val_images_with_the_student_that_it_trained(opened):
    experiment = opened(**SUPERVISED)
    node = Node(experiment)
    reply, _ = node.train(1, node.initial_arrays(), {}, 1)
    student = experiment.build_student()
    student.load_state_dict(reply.arrays)
    # South is site 1: every image of val whose site is 1, in order.
    rows = np.flatnonzero(experiment.splits.val.sites == 1)
    expected = predict(student, experiment.held_out_loader("val"), 256)[rows]
    sent = np.reshape(reply.metrics[wire.PROBABILITIES], (-1, 4))
    np.testing.assert_allclose(sent, expected, rtol=1e-5)


def test_own_scores_are_those_of_the_own_predictions(run, tmp_path):
    result = run(num_rounds=3, output=tmp_path, **SUPERVISED)
    table = pd.read_csv(result.path / "predictions_clients.csv", keep_default_na=False)
    assert table["client"].tolist() == ["north"] * 3 + ["south"] * 6 + ["west"] * 3
    assert (table["client"] == table["site"]).all()
    best = result.clients[result.clients["round"] == result.summary["best_round"]]
    right = table["label"] == table["prediction"]
    for _, row in best.iterrows():
        own = table["client"] == row["client"]
        recalls = right[own].groupby(table["label"][own]).mean()
        assert row["own_val_balanced_accuracy"] == pytest.approx(recalls.mean())
    # Pooled: one confusion matrix of all hospitals, not a mean of their scores.
    pooled = right.groupby(table["label"]).mean().mean()
    row = result.rounds.iloc[result.summary["best_round"] - 1]
    assert row["own_val_balanced_accuracy"] == pytest.approx(pooled)


def test_who_did_not_train_lately_keeps_its_last_predictions(run):
    strategy = {"fraction_train": 0.4}
    result = run(num_rounds=6, strategy=strategy, **SUPERVISED)
    trained = result.clients[result.clients["round"] <= result.summary["best_round"]]
    assert set(result.board.best_own) == set(trained["partition_id"])
    assert result.clients.groupby("round").size().tolist() == [1] * 6


def test_the_personalised_view_changes_no_student_and_can_be_left_out(run, tmp_path):
    seen = run(**SUPERVISED)
    blind = run(evaluation={"personalised": False}, output=tmp_path, **SUPERVISED)
    assert seen.summary["student_sha256"] == blind.summary["student_sha256"]
    assert "own_val_mcc" in seen.clients
    assert not [column for column in blind.clients if column.startswith("own_")]
    assert not (blind.path / "predictions_clients.csv").exists()


@pytest.mark.parametrize("centralized", [False, True])
def test_a_run_stops_after_rounds_without_a_better_val_score(run, monkeypatch, caplog, centralized):
    scores, validate = iter([0.2, 0.5, 0.4, 0.5, 0.9, 0.9]), scoreboard.validate

    def fake(*arguments):
        return dataclasses.replace(validate(*arguments), balanced_accuracy=next(scores))

    monkeypatch.setattr(scoreboard, "validate", fake)
    caplog.set_level("INFO")
    result = run(num_rounds=6, evaluation={"patience": 2}, centralized=centralized, **SUPERVISED)
    # Round 2 is the best; 3 and 4 are not better, equal is not better; 5 is never run.
    assert len(result.rounds) == result.summary["num_rounds"] == 4
    assert result.summary["best_round"] == 2
    assert result.summary["stopped_early"]
    assert "stopped after round 4: the val score of round 2 is still the best" in caplog.text


def test_without_patience_all_rounds_are_run(run):
    result = run(num_rounds=5, training={"learning_rate": 1e-9}, **SUPERVISED)
    assert len(result.rounds) == 5
    assert not result.summary["stopped_early"]


@pytest.mark.parametrize("exchange", ["all", "without_batchnorm"])
def test_a_client_without_val_images_has_no_score_and_stops_nothing(
    make_recipe, hospitals, exchange
):
    only_north = draw_images("north", [0, 1, 2, 3], [0] * 4, SITES)
    result = simulate(
        make_recipe(**SUPERVISED, strategy={"exchange": exchange}),
        **{**hospitals, "val": only_north},
    )
    scores = result.clients.groupby("client")["own_val_balanced_accuracy"].last()
    assert 0 <= scores["north"] <= 1
    assert np.isnan(scores["south"])
    assert np.isnan(scores["west"])
    assert result.board.best_own[1].shape == (0, 4)
