"""The run directory: everything that a run leaves behind, each file written whole."""

import json
import logging
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import pandas as pd
from safetensors import SafetensorError
from safetensors.torch import save_file

from fedkd import config, files
from fedkd.accounting import privacy_spent
from fedkd.data.longtail import realised_imbalance
from fedkd.errors import ConfigError
from fedkd.experiment import Experiment
from fedkd.models import states
from fedkd.partitions import manifest
from server.evaluation import Arrays
from server.failures import describe
from server.growing_table import GrowingTable
from server.kept_students import STUDENTS, kept_student
from server.made_teacher import TEACHER, write_teacher
from server.opened_run import OpenedRun
from server.pictures.curves import plot_curves
from server.run_lock import holder
from server.run_tables import (
    own_predictions_table,
    partition_table,
    per_class_table,
    predictions_table,
)
from server.scoreboard import Observer, Scoreboard, student_arrays

logger = logging.getLogger(__name__)

Mode = Literal["federated", "centralized"]
FAILURES = "failures"
"""Folder of the run directory with what clients that failed said, tracebacks as a rule."""
VERSIONS = ("fedkd", "torch", "torchvision", "flwr", "numpy", "pandas")


class RunDirectory(Observer):
    """``<output>/<name>/<time>-<short hash>/``, an observer that writes as the run goes.

    As a context manager it notes in ``summary.json`` how the run ended: ``finished``, ``failed``
    or ``interrupted``.

    Attributes:
        path: The directory; a new one, or that of the run that goes on.
        notes: What ``summary.json`` says besides: how the run was resumed, what was missed.
    """

    def __init__(self, path: Path, experiment: Experiment, mode: Mode) -> None:
        self.path = path
        self.notes: dict[str, Any] = {}
        self._experiment = experiment
        self._mode = mode
        self._begun: dict[str, Any] = {}
        self._failed: dict[str, Any] = {}
        self._started = time.perf_counter()
        self._rounds = GrowingTable(path / "rounds.csv")
        self._clients = GrowingTable(path / "clients.csv")

    @classmethod
    def create(
        cls, experiment: Experiment, mode: Mode, output: Path | None = None
    ) -> "RunDirectory":
        """Make the directory and write what is known before training.

        Raises:
            ConfigError: The folder cannot be written.
        """
        recipe = experiment.recipe
        folder = Path(recipe.output) if output is None else output
        stamp = time.strftime("%Y%m%d-%H%M%S")
        base = folder / recipe.name / f"{stamp}-{recipe.hash()[:8]}"
        path, number = base, 1
        while True:
            try:
                path.mkdir(parents=True)
                break
            except FileExistsError:
                number += 1
                path = base.with_name(f"{base.name}-{number}")
            except OSError as error:
                raise ConfigError(
                    f"cannot make the run directory {path}: {error}; choose another output=<folder>"
                ) from None
        directory = cls(path, experiment, mode)
        initial = experiment.build_student().state_dict()
        directory._begun["initial_student_sha256"] = states.sha256(initial)
        if given := experiment.given_sha256():
            directory._begun["given_sha256"] = given
        with directory._writing():
            directory._write_text("config.toml", config.dump(recipe))
            directory._write_partition()
            directory._write_summary({"status": "running", **holder()})
            if recipe.keep_students_every:
                directory._keep_student(0, initial)
        return directory

    @classmethod
    def reopen(cls, run: OpenedRun, experiment: Experiment) -> "RunDirectory":
        """That of an interrupted run, which goes on as ``experiment`` in the same directory."""
        directory = cls(run.path, experiment, run.summary["mode"])
        begun = ("initial_student_sha256", "given_sha256")
        directory._begun = {key: run.summary[key] for key in begun if key in run.summary}
        kept = ("resumed_after", "checkpoints_missed")
        directory.notes = {key: run.summary[key] for key in kept if key in run.summary}
        return directory

    def __enter__(self) -> "RunDirectory":
        """Begin."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Note how the run ended, if not well."""
        if error is not None:
            try:
                self._write_summary({**how_it_ended(error), **self._failed})
            except OSError as why:
                logger.warning("summary.json cannot say how the run ended: %s", why)

    def run_resumed(self, board: Scoreboard) -> None:
        """Bring the tables to where the run goes on."""
        self._started = time.perf_counter() - board.seconds
        with self._writing():
            self._write_text("config.toml", config.dump(self._experiment.recipe))
            self._write_summary({"status": "running", **holder()})
            for table, rows in ((self._rounds, board.rounds), (self._clients, board.clients)):
                if rows:
                    table.write(rows)
            if board.failures:
                self._note_failures(board)
            else:
                (self.path / "failures.csv").unlink(missing_ok=True)

    def client_failed(self, board: Scoreboard) -> None:
        """Write the table of failures anew, and what the client said if that is more than a line.

        That is a traceback, as a rule.
        """
        with self._writing():
            self._note_failures(board)
            self._write_traceback(board)

    def _note_failures(self, board: Scoreboard) -> None:
        policy = self._experiment.recipe.failures.policy
        self._failed = describe(policy, board.failures, board.kept_rounds)
        self._write_table("failures.csv", pd.DataFrame(one.row() for one in board.failures))

    def _write_traceback(self, board: Scoreboard) -> None:
        last = board.failures[-1]
        if last.has_more:
            (self.path / FAILURES).mkdir(exist_ok=True)
            place = (last.round, last.partition_id)
            texts = [
                f"{one.name} was to {one.doing}, attempt {one.attempt}\n{one.reason.strip()}\n"
                for one in board.failures
                if (one.round, one.partition_id) == place and one.has_more
            ]
            name = f"{FAILURES}/round-{last.round}-client-{last.partition_id}.txt"
            self._write_text(name, "\n".join(texts))

    def round_finished(self, board: Scoreboard) -> None:
        """Write the tables with the new rows, and the student if it is to be kept."""
        number, every = board.rounds[-1]["round"], self._experiment.recipe.keep_students_every
        with self._writing():
            self._rounds.write(board.rounds)
            self._clients.write(board.clients)
            if every and number % every == 0:
                self._keep_student(number, board.latest)

    def finish(self, board: Scoreboard, arrays: Arrays) -> dict[str, Any]:
        """Write predictions, students, picture and summary; returns the summary."""
        with self._writing():
            return self._finish(board, arrays)

    def _finish(self, board: Scoreboard, arrays: Arrays) -> dict[str, Any]:
        self._write_table("per_class.csv", per_class_table(board))
        test = board.experiment.splits.test
        assert board.test_probabilities is not None, "the run is not finished"
        self._write_table("predictions_test.csv", predictions_table(test, board.test_probabilities))
        if board.best_own:
            self._write_table("predictions_clients.csv", own_predictions_table(board))
        for name, tensors in (
            ("student.safetensors", student_arrays(arrays)),
            ("best_student.safetensors", board.best_arrays),
        ):
            self._write_student(name, tensors)
        if self._experiment.scored_by_neighbours:
            write_teacher(board, self.path / TEACHER, self._mode)
        title = self._experiment.recipe.name
        rounds = pd.DataFrame(board.rounds)
        plot_curves(rounds, self.path / "curves.png", title, board.best_round)
        return self._write_summary(summarise(board, arrays, self._mode))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """What cannot be written ends the run with one line."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            raise ConfigError(
                f"cannot write into the run directory {self.path}: {error}; what was written "
                "before is kept: make room or set permissions there, then go on with "
                f"`fedkd resume {self.path}`"
            ) from error

    def _write_partition(self) -> None:
        train, recipe = self._experiment.splits.train, self._experiment.recipe
        divided = self._experiment.partition
        self._write_table("partition.csv", partition_table(train, divided))
        if self._experiment.is_at_hospitals:
            logger.info("no partition.json: which images they have, only the hospitals know")
            return
        settings = recipe.partition.model_dump(mode="json")
        data_set = None if self._experiment.images_given else recipe.data_set()
        # With the labels that the data set has, so that other recipes can follow the manifest.
        train = self._experiment.clean_splits.train
        described = manifest.describe(divided, train, settings, recipe.seed, data_set)
        self._write_text("partition.json", manifest.to_json(described))

    def _keep_student(self, round_number: int, tensors: Arrays) -> None:
        (self.path / STUDENTS).mkdir(exist_ok=True)
        self._write_student(kept_student(round_number), tensors)

    def _write_student(self, name: str, tensors: Arrays) -> None:
        with files.replacing(self.path / name) as part:
            save_file({key: t.contiguous() for key, t in tensors.items()}, part)

    def _write_summary(self, values: dict[str, Any]) -> dict[str, Any]:
        known = {**identity(self._experiment, self._mode), **self._begun}
        summary = {**known, **values, **self.notes}
        summary.setdefault("seconds", time.perf_counter() - self._started)
        self._write_text("summary.json", json.dumps(summary, indent=2) + "\n")
        return summary

    def _write_text(self, name: str, text: str) -> None:
        with files.replacing(self.path / name) as part:
            part.write_text(text, encoding="utf-8")

    def _write_table(self, name: str, table: pd.DataFrame) -> None:
        with files.replacing(self.path / name) as part:
            table.to_csv(part, index=False)


def how_it_ended(error: BaseException) -> dict[str, str]:
    """Status and reason of a run that did not end well."""
    status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
    return {"status": status, "error": f"{type(error).__name__}: {error}"}


def identity(experiment: Experiment, mode: Mode) -> dict[str, Any]:
    """What tells a run from others: config, training images, partition, versions."""
    recipe, train = experiment.recipe, experiment.splits.train
    counts = train.class_counts()
    return {
        "name": recipe.name,
        "mode": mode,
        # A centralized run is a plain loop in the calling process, whatever the recipe says.
        "engine": recipe.engine.name if mode == "federated" else "none",
        "seed": recipe.seed,
        "config_hash": recipe.hash(),
        "given": list(experiment.given),
        **({"faults": recipe.faults.in_words()} if recipe.faults.is_given else {}),
        **({"at_hospitals": True} if experiment.is_at_hospitals else {}),
        "partition_hash": experiment.partition.hash,
        "clients": list(experiment.partition.client_names),
        "train_counts": dict(zip(train.class_names, counts.tolist(), strict=True)),
        "train_imbalance": realised_imbalance(counts),
        "platform": platform.platform(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in VERSIONS},
        },
    }


def summarise(board: Scoreboard, arrays: Arrays, mode: Mode) -> dict[str, Any]:
    """The summary of a finished run, ready for JSON."""
    assert board.best_val is not None, "the run is not finished"
    assert board.test is not None, "the run is not finished"
    recipe, private = board.experiment.recipe, {}
    if recipe.privacy.name != "none":
        spent = privacy_spent(recipe.privacy, recipe.strategy.name, recipe.num_rounds)
        private = {"privacy": spent}
    return {
        "status": "finished",
        **identity(board.experiment, mode),
        "student_sha256": states.sha256(student_arrays(arrays)),
        "best_student_sha256": states.sha256(board.best_arrays),
        "num_rounds": len(board.rounds),
        "stopped_early": len(board.rounds) < recipe.num_rounds,
        "best_round": board.best_round,
        "scored_by": "neighbours" if board.experiment.scored_by_neighbours else "classifier",
        "val": board.best_val.to_dict(),
        "test": board.test.to_dict(),
        **private,
        **describe(recipe.failures.policy, board.failures, board.kept_rounds),
        "seconds": board.seconds,
    }
