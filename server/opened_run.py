"""A run directory that is opened again: its recipe, its summary, its students and its images."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from fedkd import config
from fedkd.errors import ConfigError, DataError
from fedkd.experiment import Experiment, open_experiment
from fedkd.models.exchange import local_names
from fedkd.models.student import Student
from fedkd.recipe import Recipe
from server.kept_students import STUDENTS, kept_rounds, kept_student
from server.run_summary import RunSummary

BEST_STUDENT = "best_student.safetensors"
LAST_STUDENT = "student.safetensors"
PROMPTS = "prompts"
"""Folder of the clients' prompts in a run directory."""


@dataclass(frozen=True)
class OpenedRun:
    """What a run directory holds.

    Attributes:
        path: The directory.
        recipe: Its resolved config.
        summary: What its ``summary.json`` holds.
    """

    path: Path
    recipe: Recipe
    summary: dict[str, Any]

    def require_named(self, what: str) -> None:
        """Refuse (ConfigError) what the caller of ``simulate`` gave: the config names another.

        Args:
            what: One of the names in :attr:`fedkd.experiment.Experiment.given`.
        """
        if what == "images" and self.summary.get("at_hospitals"):
            raise ConfigError(
                f"{self.path} was trained on images that stayed at the hospitals, which its "
                "config.toml does not name; what needs images can only be done where they are"
            )
        if what in self.summary.get("given", ()):
            raise ConfigError(
                f"{self.path} was given its own {what.replace('_', ' ')} in Python (simulate), "
                "which its config.toml does not name; it can only be looked at there"
            )

    def experiment(self) -> Experiment:
        """The experiment, opened as the run had it, but for a teacher or initial student given.

        Raises:
            ConfigError: Its images were given in Python.
            DataError: Its images or their division are not those of the run any more.
            FedkdError: What :func:`fedkd.experiment.open_experiment` raises.
        """
        self.require_named("images")
        experiment = open_experiment(self.recipe)
        if experiment.partition.hash != self.summary["partition_hash"]:
            raise DataError(
                f"the images that {self.path / 'config.toml'} names are divided otherwise than in "
                f"the run (partition hash {experiment.partition.hash[:12]}, in its summary.json "
                f"{str(self.summary['partition_hash'])[:12]}); give it the images that it had"
            )
        return experiment

    def student(self, experiment: Experiment, name: str = BEST_STUDENT) -> Student:
        """A stored student, in eval mode; what did not travel has its initial values.

        Args:
            experiment: As :meth:`experiment` gives it.
            name: Of the file in the directory.

        Raises:
            DataError: No such file, or a damaged one, or one without tensors, as nothing travelled.
        """
        try:
            tensors = load_file(self.path / name)
        except (OSError, SafetensorError) as error:
            raise DataError(
                f"cannot read the student {self.path / name}: {error}; the run's status is "
                f"{self.summary.get('status')!r}"
            ) from None
        if not tensors:
            raise DataError(
                f"{self.path / name} holds no student: with strategy.exchange = 'nothing' every "
                "hospital trained its own, and none is global; each is in "
                f"{self.path / STUDENTS}/client-<number>.safetensors, as it was tested"
            )
        student = experiment.build_student()
        stay = local_names(student, self.recipe.strategy.exchange)
        if lacking := [n for n in student.state_dict() if n not in tensors and n not in stay]:
            raise DataError(
                f"{self.path / name} is no student of {self.path / 'config.toml'}: it lacks "
                f"{len(lacking)} tensors, the first {lacking[0]}"
            )
        try:
            student.load_state_dict({**student.state_dict(), **tensors})
        except RuntimeError as error:
            first = str(error).splitlines()[1:2] or [str(error)]
            raise DataError(
                f"{self.path / name} is no student of {self.path / 'config.toml'}: "
                f"{first[0].strip()}"
            ) from None
        return student.eval()

    def student_file(self, which: str) -> Path:
        """The file of a student by the name that a command line gives it.

        Args:
            which: ``best`` (chosen on val, the one tested), ``last``, ``round:N``
                (keep_students_every) or the path of a file of such a student.

        Raises:
            ConfigError: There is no such student.
        """
        if which in (names := {"best": BEST_STUDENT, "last": LAST_STUDENT}):
            return self.path / names[which]
        if match := re.fullmatch(r"round:(\d+)", which, re.ASCII):
            number, kept = int(match[1]), kept_rounds(self.path)
            if number not in kept:
                found = f"those of rounds {', '.join(map(str, kept))}" if kept else "none"
                raise ConfigError(
                    f"--student is {which!r}, but of the students by round {self.path} has {found};"
                    " a run keeps them with keep_students_every=1"
                )
            return self.path / kept_student(number)
        if not Path(which).is_file():
            raise ConfigError(
                f"--student is {which!r}; it must be best, last, round:N or a file of a student "
                "of this run's kind (.safetensors)"
            )
        return Path(which)


def open_run(path: Path) -> OpenedRun:
    """Read the config and the summary of a run directory.

    Args:
        path: The directory, of a run that has ended in any way, or goes on still.

    Raises:
        ConfigError: It is none, or it is damaged.
    """
    for name in ("config.toml", "summary.json"):
        if not (path / name).is_file():
            raise ConfigError(
                f"{path} is no run directory, as it has no {name}; `fedkd run` prints the path of "
                "the one that it writes, as its last line"
            )
    try:
        summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"cannot read {path / 'summary.json'}: {error}") from None
    if not isinstance(summary, dict) or "partition_hash" not in summary:
        raise ConfigError(
            f"{path / 'summary.json'} is damaged: it has no partition_hash, which every run notes "
            "as it starts"
        )
    try:
        config.build(RunSummary, summary, str(path / "summary.json"))
    except ConfigError as error:
        raise ConfigError(
            "\n".join(f"{line}; the run directory is damaged" for line in str(error).splitlines())
        ) from None
    return OpenedRun(path, config.load(Recipe, path / "config.toml"), summary)


def finished_run(recipe: Recipe, mode: str, output: Path) -> Path | None:
    """The run directory of this very recipe in a folder, if there is one that is finished.

    Args:
        recipe: Whose name and hash are looked for.
        mode: federated or centralized.
        output: The folder in which runs make their directories.
    """
    wanted = ("finished", mode, recipe.hash())
    for path in sorted(output.glob(f"{recipe.name}/*-{recipe.hash()[:8]}*/summary.json")):
        try:
            summary = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if not isinstance(summary, dict):
            continue
        if (summary.get("status"), summary.get("mode"), summary.get("config_hash")) == wanted:
            return path.parent
    return None
