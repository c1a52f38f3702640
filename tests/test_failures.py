"""Clients that fail: a round that goes on without them or ends, its texts, and the record."""

import json
import logging

import numpy as np
import pandas as pd
import pytest

from clients import node
from fedkd import config
from fedkd.errors import ClientFailure, ConfigError, DataError, UpdateRefused
from fedkd.recipe import Recipe
from server.failures import in_one_line
from tests.failing_clients import CONTINUE, PLAIN, RETRY, broken
from tests.failing_clients import failing as failing
from tests.hand_made_replies import Federation, update

# continue


def test_a_round_goes_on_without_a_client_and_its_survivors_weigh_1_together(run, failing):
    asked = failing({(1, 1): [broken()]})
    result = run(**PLAIN, **CONTINUE)
    assert asked == [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]
    rows = result.clients.set_index(["round", "client"])["weight"]
    assert rows[1].to_dict() == {"north": pytest.approx(11 / 17), "west": pytest.approx(6 / 17)}
    assert rows[2].sum() == pytest.approx(1)
    assert list(result.rounds)[:3] == ["round", "num_clients", "num_failed"]
    assert result.rounds[["num_clients", "num_failed"]].values.tolist() == [[2, 1], [3, 0]]


def test_fedavg_over_the_survivors_is_their_mean_by_images():
    """Clients 0 and 2 have 1 and 3 images and send 2 and 6: (1 x 2 + 3 x 6) / 4 = 5."""
    updates = [update(0, 2.0, 1), update(1, 100.0, 50), update(2, 6.0, 3)]
    federation = Federation("fedavg", updates)
    replies = federation.replies()
    del replies[1]
    arrays, _ = federation.strategy.aggregate_train(1, replies[::-1])
    assert arrays["w"].numpy().tolist() == [5.0] * 3
    reports = federation.strategy.reports
    assert [(r.partition_id, r.weight) for r in reports] == [(0, 0.25), (2, 0.75)]


def test_a_fraction_that_is_just_allowed_goes_on(run, failing):
    failing({(1, 0): [broken()], (1, 2): [broken()]})
    result = run(**PLAIN, failures={"policy": "continue", "max_fraction": 2 / 3}, num_rounds=1)
    assert result.clients["client"].tolist() == ["south"]


@pytest.mark.parametrize("policy", ["stop", "retry", "continue"])
def test_an_update_that_is_not_finite_is_left_out_under_continue_alone(
    run, monkeypatch, policy, tmp_path
):
    train = node.Node.train
    asked = []

    def diverge(self, partition_id, arrays, state, round_number, *rest, **options):
        asked.append(partition_id)
        reply, new = train(self, partition_id, arrays, state, round_number, *rest, **options)
        if (round_number, partition_id) == (1, 2):
            reply.arrays["fc.bias"][0] = np.nan
            new[node.OPTIMIZER] = {"spoilt": reply.arrays["fc.bias"]}
        return reply, new

    monkeypatch.setattr(node.Node, "train", diverge)
    text = "client 2 sent 1 values of fc.bias that are not finite; its training diverged"
    if policy != "continue":
        with pytest.raises(UpdateRefused, match=text):
            run(**PLAIN, failures={"policy": policy})
        assert asked == [0, 1, 2], "it would do the same again"
        return
    result = run(**PLAIN, **CONTINUE, output=tmp_path)
    assert result.rounds["num_failed"].tolist() == [1, 0], "its spoilt optimiser is forgotten"
    (row,) = pd.read_csv(result.path / "failures.csv").to_dict("records")
    assert (row["client"], row["doing"], row["attempt"]) == ("west", "train", 1)
    assert row["reason"].startswith(text)
    assert not (result.path / "failures").exists(), "there is no traceback"


def test_evaluation_cannot_go_on_without_a_client_and_says_why(run, monkeypatch):
    def fail(self, partition_id, *rest, **options):
        if partition_id == 1:
            raise broken()
        return evaluate(self, partition_id, *rest, **options)

    evaluate = node.Node.evaluate
    monkeypatch.setattr(node.Node, "evaluate", fail)
    with pytest.raises(ClientFailure) as caught:
        run(**PLAIN, **CONTINUE, strategy={"exchange": "without_batchnorm"})
    text = str(caught.value)
    assert text.startswith(
        "client 1 (south) did not evaluate after round 1: a round can be aggregated without a "
        "client (failures.policy = 'continue'), but with this strategy.exchange nobody else can "
        "predict its part of val and test; set failures.policy = 'retry', or mend what it says:\n"
        "client 1 failed: Traceback"
    )
    assert "disk on fire" in text


def test_noise_that_reckons_with_all_clients_is_refused():
    with pytest.raises(ConfigError) as caught:
        config.build(Recipe, {"privacy": {"name": "fixed"}, **CONTINUE})
    assert (
        "failures.policy is 'continue' with privacy.name = 'fixed', but noise that reckons with "
        "all clients of a round hides less where one is missing; choose 'retry' or 'stop', or set "
        "privacy.name = 'none'"
    ) in str(caught.value)
    config.build(Recipe, {"privacy": {"name": "fixed"}, **RETRY})


# Strategies that count clients


def survivors(name, num, lost, **options):
    federation = Federation(name, [update(i, float(i)) for i in range(num)], options=options)
    federation.strategy.aggregate_train(1, federation.replies()[lost:])
    return federation.strategy


@pytest.mark.parametrize(("name", "needed"), [("krum", 5), ("multikrum", 5), ("bulyan", 7)])
def test_rules_against_liars_refuse_too_few_survivors(name, needed):
    options = {"num_malicious": 1}
    if name == "multikrum":
        options["num_selected"] = 2
    survivors(name, needed + 1, 1, **options)
    with pytest.raises(UpdateRefused) as caught:
        survivors(name, needed, 1, **options)
    assert str(caught.value).startswith(f"{needed - 1} clients of the round have trained on images")
    assert str(caught.value).endswith("where clients failed, set failures.policy = 'retry'")


def test_multikrum_never_averages_so_many_survivors_that_a_liar_is_among_them():
    survivors("multikrum", 6, 0, num_malicious=1, num_selected=5)
    with pytest.raises(UpdateRefused) as caught:
        survivors("multikrum", 6, 1, num_malicious=1, num_selected=5)
    assert str(caught.value) == (
        "5 clients of the round have trained on images; of these multikrum may average 4 with "
        "strategy.num_malicious = 1, but strategy.num_selected is 5; lower it, or where clients "
        "failed, set failures.policy = 'retry'"
    )


def test_a_trimmed_mean_that_cuts_nobody_off_any_more_warns(caplog):
    with caplog.at_level(logging.WARNING):
        survivors("fedtrimmedavg", 5, 0, trim=0.2)
        assert not caplog.records
        survivors("fedtrimmedavg", 5, 1, trim=0.2)
    assert [record.getMessage() for record in caplog.records] == [
        "round 1: strategy.trim = 0.2 of the 4 clients that are left cuts nobody off; the round is "
        "averaged like uniform"
    ]


# The record


def test_failures_are_logged_tabled_and_kept_with_their_tracebacks(run, failing, tmp_path, caplog):
    failing({(1, 1): [broken(), DataError("no x.jpg; put it back"), broken()]})
    with caplog.at_level(logging.WARNING):
        result = run(**PLAIN, failures={"policy": "retry", "retries": 3}, output=tmp_path)
    table = pd.read_csv(result.path / "failures.csv")
    assert list(table) == ["round", "partition_id", "client", "doing", "attempt", "reason"]
    reasons = ["RuntimeError: disk on fire", "no x.jpg; put it back", "RuntimeError: disk on fire"]
    assert table.to_dict("records") == [
        {"round": 1, "partition_id": 1, "client": "south", "doing": "train", "attempt": attempt,
         "reason": reason}
        for attempt, reason in enumerate(reasons, 1)
    ]  # fmt: skip
    assert [record.getMessage() for record in caplog.records] == [
        f"round 1: client 1 (south) failed to train, attempt {attempt}: {reason}"
        for attempt, reason in enumerate(reasons, 1)
    ]
    (kept,) = (result.path / "failures").iterdir()
    assert kept.name == "round-1-client-1.txt"
    text = kept.read_text()
    assert text.startswith("client 1 (south) was to train, attempt 1\nTraceback")
    assert text.count("RuntimeError: disk on fire") == 2
    assert "attempt 2\nno x.jpg; put it back\nwhile client 1 (south) trained" in text


@pytest.mark.parametrize("policy", ["stop", "continue"])
def test_the_summary_says_what_failed_however_the_run_ends(run, failing, tmp_path, policy):
    failing({(1, 2): [broken()]})
    try:
        run(**PLAIN, failures={"policy": policy}, output=tmp_path)
    except ClientFailure:
        assert policy == "stop"
    (folder,) = (tmp_path / "run").iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == {"stop": "failed", "continue": "finished"}[policy]
    assert summary["failures"] == {"policy": policy, "num_failed": 1, "clients": {"west": 1}}
    assert not list(folder.glob("**/.*")), "temporary files are left"


@pytest.mark.parametrize(
    ("reason", "line"),
    [
        ("Traceback (most recent call last):\n  File\n    x\nKeyError: 'a'\nwhile client 1",
         "KeyError: 'a'"),
        ("Traceback (most recent call last):\n  x\nE: 1\n\nDuring handling of the above exception, "
         "another exception occurred:\n\nTraceback (most recent call last):\n  y\nF: 2\n", "F: 2"),
        ("no x.jpg; put it back\nwhile client 1 trained", "no x.jpg; put it back"),
        ("", ""),
    ],
)  # fmt: skip
def test_a_reason_in_one_line_is_the_error_and_not_its_notes(reason, line):
    assert in_one_line(reason) == line
