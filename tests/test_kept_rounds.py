"""Rounds with too few survivors: the student stays, the run goes on, and everybody is told."""

import io
import json
import logging
import math
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console

from fedkd.errors import ConfigError, DataError, UpdateRefused
from server import write_report
from server.cli import main
from server.failures import describe, in_one_line, listed
from server.progress import TerminalProgress
from server.scoreboard import Scoreboard
from server.tracking.scalars import scalars
from strategies import base
from strategies.fedavg import FedAvg
from tests.failing_clients import CONTINUE, PLAIN, broken
from tests.failing_clients import failing as failing
from tests.test_cli import recipe as recipe

MOMENTUM = {"strategy": {"name": "fedavgm"}}


def lost(*rounds):
    """Two of three clients fail, which is more than a half."""
    return {(number, client): [broken()] for number in rounds for client in (0, 2)}


@pytest.fixture
def kept(run, failing, tmp_path, opened, caplog):
    """A run whose rounds 2 and 3 of 4 have too few survivors, and what the terminal showed."""
    failing(lost(2, 3))
    text = io.StringIO()
    changes = {**PLAIN, **CONTINUE, **MOMENTUM, "num_rounds": 4, "keep_students_every": 1}
    with (
        TerminalProgress(Console(file=text, width=200), opened(**changes)) as display,
        caplog.at_level(logging.WARNING),
    ):
        result = run(**changes, output=tmp_path, observers=[display])
    said = [record.getMessage() for record in caplog.records]
    return result, text.getvalue().splitlines(), said


def test_a_round_with_too_few_survivors_is_recorded_shown_and_survived(kept):
    result, lines, said = kept
    rounds = pd.read_csv(result.path / "rounds.csv")
    assert rounds["round"].tolist() == [1, 2, 3, 4]
    assert rounds["num_clients"].tolist() == [3, 0, 0, 3]
    assert rounds["num_failed"].tolist() == [0, 2, 2, 0]
    assert rounds["num_seen"].tolist()[1:3] == rounds["bytes_up"].tolist()[1:3] == [0, 0]
    assert rounds["train_loss"].isna().tolist() == [False, True, True, False]
    val = [name for name in rounds if name.startswith("val_")]
    assert rounds.loc[0, val].equals(rounds.loc[1, val].rename(0)), "it is the same student"
    assert sorted(set(result.clients["round"])) == [1, 4]
    folder = result.path / "students"
    files = [(folder / f"round-000{n}.safetensors").read_bytes() for n in (1, 2, 3, 4)]
    assert files[0] == files[1] == files[2] != files[3]
    told = json.loads((result.path / "summary.json").read_text())
    assert told["status"] == "finished"
    assert told["failures"]["kept_rounds"] == [2, 3]
    assert told["failures"]["num_failed"] == 4
    assert (
        "round 2 keeps the student that it began with: 2 of 3 clients failed (client 0 (north), "
        "client 2 (west)), a fraction of 0.67, and failures.max_fraction is 0.5; the run goes on, "
        "and will end with exit code 1"
    ) in said
    assert "round 2/4  STUDENT KEPT  val:" in lines[1]
    assert lines[1].endswith(" s  2 failed")
    assert (result.path / "curves.png").exists()
    page = ElementTree.fromstring(write_report(result.path).read_text(encoding="utf-8"))
    texts = (" ".join("".join(one.itertext()).split()) for one in page.iter())
    (alarm,) = {text for text in texts if text.startswith("Too few clients")}
    assert "kept the student as it was in rounds 2 to 3, 2 of 4 rounds" in alarm


def test_the_servers_momentum_is_not_touched_by_a_round_that_keeps_the_student(run, failing):
    """Oracle: fedavgm by hand, v <- beta v + (received - average), over the rounds that count."""
    failing(lost(2))
    seen = []

    class Students:
        def __getattr__(self, name):
            return lambda *_: None

        def round_finished(self, board):
            seen.append(board.latest["fc.bias"].clone())

    changes = {**PLAIN, **CONTINUE, "strategy": {"name": "fedavgm", "server_momentum": 0.5}}
    averages = []
    aggregate = base.SeededStrategy._aggregate

    def spy(self, number, answers, checked):
        weights = [one.metrics["num-examples"] for one in checked]
        updates = [one.update["fc.bias"].numpy() for one in checked]
        averages.append((self._received["fc.bias"].copy(), np.average(updates, 0, weights)))
        return aggregate(self, number, answers, checked)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base.SeededStrategy, "_aggregate", spy)
        run(**changes, num_rounds=3, observers=[Students()])
    (first, one), (second, three) = averages
    velocity = first - one
    expected = [first - velocity]
    velocity = 0.5 * velocity + (second - three)
    expected += [expected[0], second - velocity]
    for found, wanted in zip(seen, expected, strict=True):
        assert found.numpy() == pytest.approx(wanted, abs=1e-6)


def test_a_first_round_without_survivors_gives_the_initial_student(run, failing):
    failing({(1, number): [DataError("no disk")] for number in range(3)})
    result = run(**PLAIN, **CONTINUE)
    first, second = result.board.rounds
    assert math.isnan(first["train_loss"])
    assert second["train_loss"] > 0
    assert result.board.kept_rounds == [1]
    assert "train/loss" in scalars(result.board)
    del result.board.rounds[1]
    assert "train/loss" not in scalars(result.board), "what is not finite is shown nowhere"


def test_where_every_round_fails_the_run_reaches_its_end_with_the_initial_student(run, failing):
    """A mistake in the recipe is every client's."""
    error = ConfigError("use a lower explore.learning_rate")
    asked = failing({(n, client): [error] for n in (1, 2) for client in range(3)})
    result = run(**PLAIN, **CONTINUE)
    assert len(asked) == 6
    assert result.board.kept_rounds == [1, 2]
    initial = result.board.experiment.build_student().state_dict()
    assert all(torch.equal(initial[n], t) for n, t in result.student.state_dict().items())
    assert result.summary["student_sha256"] == result.summary["best_student_sha256"]
    assert {f.reason.splitlines()[0] for f in result.board.failures} == {str(error)}


def test_rounds_that_keep_the_student_do_not_wear_patience_out(opened):
    """Round 1 is the best; with patience 1, the next round that aggregates without being better."""
    board = Scoreboard(opened(**PLAIN, evaluation={"patience": 1}), best_round=1)
    board.rounds = [{"round": n, "num_clients": k} for n, k in enumerate([3, 0, 0], 1)]
    assert not board.is_exhausted
    board.rounds.append({"round": 4, "num_clients": 3})
    assert board.is_exhausted
    assert board.kept_rounds == [2, 3]


@pytest.mark.parametrize("policy", ["continue", "stop"])
def test_too_few_for_the_strategy_is_a_round_that_keeps_the_student(run, monkeypatch, policy):
    def too_few(self, metrics, server_round):
        if server_round == 1:
            raise UpdateRefused("2 clients of the round have trained; krum needs 5")
        return weigh(self, metrics, server_round)

    weigh = FedAvg.weigh
    monkeypatch.setattr(FedAvg, "weigh", too_few)
    changes = {**PLAIN, "failures": {"policy": policy}}
    if policy == "stop":
        with pytest.raises(UpdateRefused, match="krum needs 5"):
            run(**changes)
        return
    result = run(**changes)
    assert result.board.kept_rounds == [1]
    assert result.summary["failures"] == {
        "policy": "continue", "num_failed": 0, "clients": {}, "kept_rounds": [1]
    }  # fmt: skip


def test_the_command_prints_the_results_and_ends_with_1(recipe, failing, capsys):
    failing({(2, number): [broken()] for number in range(2)})
    assert main(["run", recipe, "failures.policy=continue"]) == 1
    out, err = capsys.readouterr()
    assert "student sha256 " in out
    assert "report " in out
    assert err.splitlines()[-1] == (
        "fedkd: the failure policy was broken in round 2: too few clients were left, and the "
        "student stayed as it was (failures.policy = 'continue'); failures.csv and the log say why"
    )


def test_a_run_that_keeps_the_student_in_every_round_is_reported_without_warnings(
    run, failing, tmp_path, recwarn, opened
):
    failing(lost(1))
    text = io.StringIO()
    changes = {**PLAIN, **CONTINUE, "num_rounds": 1}
    with TerminalProgress(Console(file=text, width=200), opened(**changes)) as display:
        result = run(**changes, output=tmp_path, observers=[display])
    assert text.getvalue().splitlines()[-1].endswith(" s  2 failed"), "and one did not"
    assert "kept the student as it was in round 1" in write_report(result.path).read_text()
    assert not [one.message for one in recwarn if "legend" in str(one.message)]


# Texts


def test_rounds_in_words():
    assert listed([3]) == "round 3"
    assert listed([1, 2]) == "rounds 1 to 2"
    assert listed([1, 3, 4, 5, 9]) == "rounds 1, 3 to 5, 9"


def test_a_summary_of_a_run_without_trouble_says_nothing():
    assert describe("continue", []) == {}


def test_a_line_of_a_failure_is_short_and_can_be_printed_whatever_a_client_sends():
    line = in_one_line("\x1b[2J" + "x" * 5000 + "\nmore")
    assert len(line) == 300
    assert line.isprintable()
    assert line.endswith("x ...")
