"""What is known after each round: rows to report, the best student so far, the final test."""

import logging
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fedkd import wire
from fedkd.data.images import Integers
from fedkd.experiment import Experiment
from fedkd.metrics import Evaluation
from fedkd.models.student import Student
from fedkd.prediction import Probabilities
from server.evaluation import (
    Arrays,
    Predict,
    on_the_server,
    own_confusion,
    own_probabilities,
    report_test,
    validate,
)
from server.failures import Failure
from server.round_rows import Row, means, own_scores, pooled, traffic

logger = logging.getLogger(__name__)


class Observer:
    """Somebody who is told how a run goes: a progress bar, a tracker. No method does anything here.

    In this order: ``run_started`` once; ``run_resumed`` if the run goes on; in each round
    ``round_started``, ``client_progress`` and ``client_failed`` any number of times and
    ``round_finished``; ``run_ended`` once, if ``run_started`` did not raise. All in the thread and
    process that run the federation. See :mod:`server.tracking.everybody` for what happens if one
    raises.
    """

    def run_started(self, experiment: Experiment, path: Path | None) -> None:
        """All is opened and checked, nothing is trained; ``path`` is the run directory, if any."""

    def round_started(self, round_number: int) -> None:
        """A round begins; rounds count from 1."""

    def client_progress(self, partition_id: int, what: str, done: int, total: int) -> None:
        """A client has done so many of its images or steps."""

    def round_finished(self, board: "Scoreboard") -> None:
        """A round is aggregated and evaluated; ``board.rounds[-1]`` is its row.

        Its clients' rows are those of ``board.clients`` with the same ``round``.
        """

    def client_failed(self, board: "Scoreboard") -> None:
        """A message to a client failed; ``board.failures[-1]`` says which and why.

        The run goes on or ends as ``failures`` of the recipe says; in the round before
        ``round_finished``, or where clients predict, as the student is evaluated.
        """

    def run_resumed(self, board: "Scoreboard") -> None:
        """An interrupted run goes on, after ``run_started``; ``board`` is as it was after a round.

        Rounds after that one that were heard of before the interruption come once more, with the
        same numbers. With no round in the board the run begins anew.
        """

    def run_ended(self, board: "Scoreboard | None", summary: Mapping[str, Any]) -> None:
        """The run is over.

        Args:
            board: With ``board.test``; None if the run failed or was interrupted.
            summary: What ``summary.json`` holds; ``status`` is finished, failed or interrupted, and
                ``error`` says why in the last two.
        """


@dataclass
class Scoreboard:
    """Follows a run round by round; the federation and the centralized loop both write to it.

    Attributes:
        experiment: What is run.
        rounds: A row per round.
        clients: A row per client and round.
        failures: What failed so far.
        latest: The global student after the last round.
        best_round: Round whose student scored best on val, the first one of equals; 0 before any.
        best_val: Its scores.
        best_arrays: That student.
        own: What each client's own student predicted last on its own part of val, by partition id.
        best_own: For each client that has trained by then, what its own student predicted on its
            own part of val, by partition id; empty unless ``evaluation.personalised``, and where
            hospitals keep their val images.
        test: Scores on test, after :meth:`finish`.
        test_probabilities: Class probabilities on test, after :meth:`finish`.
        predict: How a split is predicted; None means on the server.
    """

    experiment: Experiment
    predict: Predict | None = None
    rounds: list[Row] = field(default_factory=list)
    clients: list[Row] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    latest: Arrays = field(default_factory=dict)
    best_round: int = 0
    best_val: Evaluation | None = None
    best_arrays: Arrays = field(default_factory=dict)
    best_own: dict[int, Probabilities] = field(default_factory=dict)
    test: Evaluation | None = None
    test_probabilities: Probabilities | None = None

    def __post_init__(self) -> None:
        """Start the clock."""
        self._predict = self.predict or on_the_server(self.experiment)
        self.own: dict[int, Probabilities] = {}
        self._started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since the board was made, and those of a run that it goes on with."""
        return time.perf_counter() - self._started

    def go_on(self, seconds: float) -> None:
        """Count from so many seconds: those of the run before it was interrupted."""
        self._started = time.perf_counter() - seconds

    def record(
        self,
        round_number: int,
        arrays: Arrays,
        reports: Iterable[tuple[float, Mapping[str, Any]]],
        seconds: float,
        num_failed: int = 0,
    ) -> None:
        """Evaluate a round's student on val and append its rows.

        A round without reports kept the student that it began with: its row has that student's
        scores, ``num_clients`` 0, no images, no bytes and no losses (NaN). No client has a row.

        Args:
            round_number: From 1.
            arrays: The global student after aggregation, and what clients share.
            reports: For each client its weight and its metrics by the keys of wire.
            seconds: Duration of training and aggregation.
            num_failed: Clients that were asked besides, and left out.
        """
        reports = list(reports)
        student = self.latest = student_arrays(arrays)
        val = validate(self.experiment, self._predict, student, round_number)
        row: Row = {"round": round_number, "num_clients": len(reports), "num_failed": num_failed}
        row.update(pooled([metrics for _, metrics in reports]))
        if not reports:
            losses = {key: math.nan for key in self._last_row() if key.startswith("train_")}
            row.update({"train_loss": math.nan, **losses})
        row.update({f"val_{name}": value for name, value in val.scalars().items()})
        own = self._record_own([metrics for _, metrics in reports])
        confusion = sum(own.values(), start=np.zeros((self.experiment.num_classes,) * 2, np.int64))
        row.update(own_scores(confusion) if confusion.any() else {})
        row["seconds"] = seconds
        self.rounds.append(row)
        self.clients += [self._client_row(round_number, *report, own) for report in reports]
        if self._is_better(val):
            self.best_round, self.best_val, self.best_arrays = round_number, val, student
            self.best_own = dict(self.own)

    @property
    def is_exhausted(self) -> bool:
        """Whether the val score has not become better for ``evaluation.patience`` rounds.

        Rounds that kept the student do not count: they could not make it better.
        """
        patience = self.experiment.recipe.evaluation.patience
        since = [row for row in self.rounds[self.best_round :] if row["num_clients"]]
        return patience is not None and len(since) >= patience

    @property
    def kept_rounds(self) -> list[int]:
        """Rounds that kept the student that they began with, as too few clients were left."""
        return [row["round"] for row in self.rounds if not row["num_clients"]]

    def finish(self) -> None:
        """Test the student that was chosen on val."""
        assert self.best_val is not None, "finish() before any round"
        if self.is_exhausted and len(self.rounds) < self.experiment.recipe.num_rounds:
            logger.info(
                "stopped after round %d: the val score of round %d is still the best",
                len(self.rounds),
                self.best_round,
            )
        self.test, self.test_probabilities = report_test(
            self.experiment, self._predict, self.best_arrays, self.best_round
        )

    def final_student(self, arrays: Mapping[str, Tensor]) -> Student:
        """The global student as a module, in eval mode.

        Tensors that stay with the clients (``strategy.exchange``) have their initial values.
        """
        student = self.experiment.build_student()
        student.load_state_dict({**student.state_dict(), **student_arrays(arrays)})
        return student.eval()

    def _last_row(self) -> Row:
        return self.rounds[-1] if self.rounds else {}

    def _record_own(self, reports: Iterable[Mapping[str, Any]]) -> dict[int, Integers]:
        """Keep the predictions of the clients' own students; their confusion matrices on val."""
        confusions = {}
        for metrics in reports:
            if wire.CONFUSION in metrics:
                counts = np.array(metrics[wire.CONFUSION], np.int64)
                shape = (self.experiment.num_classes,) * 2
                confusions[int(metrics[wire.PARTITION_ID])] = counts.reshape(shape)
            if wire.PROBABILITIES in metrics:
                number = int(metrics[wire.PARTITION_ID])
                self.own[number] = own_probabilities(metrics, self.experiment.num_classes)
                confusions[number] = own_confusion(self.experiment, number, self.own[number])
        return confusions

    def _is_better(self, val: Evaluation) -> bool:
        if self.best_val is None:
            return True
        key = self.experiment.recipe.evaluation.select_on
        old, new = getattr(self.best_val, key), getattr(val, key)
        return bool(new > old or (math.isnan(old) and not math.isnan(new)))

    def _client_row(
        self,
        round_number: int,
        weight: float,
        metrics: Mapping[str, Any],
        own: Mapping[int, Integers],
    ) -> Row:
        number = int(metrics[wire.PARTITION_ID])
        return {
            "round": round_number,
            "partition_id": number,
            "client": self.experiment.partition.client_names[number],
            "num_examples": metrics[wire.NUM_EXAMPLES],
            "num_seen": metrics[wire.NUM_SEEN],
            **traffic([metrics]),
            "weight": weight,
            **means(metrics, metrics[wire.NUM_SEEN]),
            **{
                key.removeprefix(wire.MEAN): value
                for key, value in metrics.items()
                if key.startswith(wire.MEAN)
            },
            **(own_scores(own[number]) if number in own else {}),
            "seconds": metrics[wire.SECONDS],
        }


def student_arrays(arrays: Mapping[str, Tensor]) -> Arrays:
    """The student's tensors among all that travel."""
    return {name: t for name, t in arrays.items() if not name.startswith(wire.PROMPTS)}
