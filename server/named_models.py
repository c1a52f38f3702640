"""Networks that a command line names: students and teachers of runs, and teachers by themselves."""

import difflib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from fedkd.errors import ConfigError, DataError
from fedkd.experiment import Experiment
from fedkd.fourier.priority import Features
from fedkd.models.student import Student
from fedkd.teachers import zoo
from fedkd.teachers.config import OneTeacherConfig
from fedkd.teachers.frozen import Teacher
from fedkd.teachers.loading import open_teacher
from server.commands.probe import probed_recipe
from server.kept_students import kept_student
from server.opened_run import BEST_STUDENT, OpenedRun, open_run

logger = logging.getLogger(__name__)

Kind = Literal["best", "initial", "teacher", "kept", "named"]
_TEACHER, _INITIAL = ":teacher", ":initial"


@dataclass(frozen=True)
class Named:
    """What an argument names, before anything is opened.

    Attributes:
        text: The argument.
        kind: A run's best student, its initial one, its teacher, or one kept by round; or a teacher
            by name or file.
        run: Of which run; None for a teacher by itself.
        round_number: Of a kept student.
    """

    text: str
    kind: Kind
    run: OpenedRun | None = None
    round_number: int | None = None

    @property
    def has_classifier(self) -> bool:
        """Whether it is a student whose classifier was trained and stored."""
        if self.run is None or self.kind == "teacher":
            return False
        recipe = self.run.recipe
        travels = recipe.strategy.exchange in ("all", "without_batchnorm") or (
            recipe.strategy.exchange == "without_projector" and recipe.objective.name != "moon"
        )
        return recipe.objective.name != "moco" and travels


@dataclass(frozen=True)
class Network:
    """An opened network.

    Attributes:
        label: For tables and pictures.
        features: Maps pixels to its features.
        logits: Maps pixels to its logits; None without a classifier.
        class_names: Of a student's logits; empty for others.
        round_number: Of a student; None for a teacher.
    """

    label: str
    features: Features
    logits: Features | None
    class_names: tuple[str, ...] = ()
    round_number: int | None = None


def name_model(text: str) -> Named:
    """What ``RUN``, ``RUN:teacher``, ``RUN:initial`` or a teacher's name or file stands for.

    Raises:
        ConfigError: There is no such run or teacher.
    """
    if Path(text).is_dir():
        return Named(text, "best", open_run(Path(text)))
    if zoo.known(text) or Path(text).is_file() or text.endswith(".safetensors"):
        return Named(text, "named")
    for ending, kind in ((_TEACHER, "teacher"), (_INITIAL, "initial")):
        if text.endswith(ending):
            run = open_run(Path(text.removesuffix(ending)))
            return Named(text, "teacher" if kind == "teacher" else "initial", run)
    near = difflib.get_close_matches(text, zoo.CARDS, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ConfigError(
        f"{text} is no run directory and no teacher{hint or ';'} `fedkd run` prints the path of "
        "its run directory, `fedkd teachers list` the names of teachers"
    )


@dataclass
class Opener:
    """Opens networks, each run's images and teacher once.

    Attributes:
        device: Where they go, as float32 and in eval mode.
        dataset: Data set or recipe, which may hold settings of a teacher.
        overrides: ``key=value`` texts for teachers by name.
    """

    device: torch.device
    dataset: str
    overrides: Sequence[str]
    _experiments: dict[Path, Experiment] = field(default_factory=dict)

    def teacher_config(self, named: Named) -> OneTeacherConfig:
        """Settings of a teacher by name or file."""
        return probed_recipe(named.text, self.dataset, self.overrides).teacher

    def open(self, named: Named) -> Network:
        """The network that an argument names.

        Raises:
            FedkdError: A file is missing or damaged, or a run's images are not there any more.
        """
        if named.run is None:
            return self._teacher(open_teacher(self.teacher_config(named)), named.text)
        if named.kind == "teacher":
            named.run.require_named("teacher")
        elif named.kind == "initial":
            named.run.require_named("initial_student")
        run, experiment = named.run, self._experiment(named.run)
        if named.kind != "teacher":
            return self._student(named, run, experiment)
        if len(set(map(id, experiment.teachers))) != 1:
            number = len(set(map(id, experiment.teachers)))
            raise ConfigError(
                f"{named.text}: the clients of this run have {number or 'no'} teachers; "
                "name a teacher itself"
            )
        return self._teacher(experiment.teachers[0], run.recipe.teacher.name)

    def _experiment(self, run: OpenedRun) -> Experiment:
        if run.path not in self._experiments:
            self._experiments[run.path] = run.experiment()
        return self._experiments[run.path]

    def _teacher(self, teacher: Teacher, name: str) -> Network:
        teacher = teacher.to(self.device, torch.float32)
        head = teacher.head
        logits: Features | None = None
        if head is not None and teacher.head_kind == "supervised":
            logits = lambda pixels: head(teacher(pixels)[:, teacher.head_slice])  # noqa: E731
        label = Path(name).stem if name.endswith(".safetensors") else name
        return Network(f"teacher {label}", teacher, logits)

    def _student(self, named: Named, run: OpenedRun, experiment: Experiment) -> Network:
        if named.kind == "initial":
            student, number = experiment.build_student().eval(), 0
        elif named.round_number is not None:
            number = named.round_number
            student = run.student(experiment, kept_student(number))
        else:
            student = run.student(experiment, BEST_STUDENT)
            if "best_round" not in run.summary:
                raise DataError(
                    f"{run.path / 'summary.json'} does not say of which round {BEST_STUDENT} is: "
                    f"the run's status is {run.summary.get('status')!r}"
                )
            number = run.summary["best_round"]
        if experiment.predicts_locally and named.kind != "initial":
            logger.warning(
                "%s: tensors that stay with the clients (strategy.exchange = %r) have their "
                "initial values here",
                named.text,
                run.recipe.strategy.exchange,
            )
        what = "initial student" if number == 0 else f"student of round {number}"
        return _student_network(
            student.to(self.device, torch.float32),
            f"{run.recipe.name}, {what}",
            experiment.splits.train.class_names if named.has_classifier else (),
            number,
        )


def _student_network(
    student: Student, label: str, class_names: tuple[str, ...], number: int
) -> Network:
    return Network(
        label,
        lambda pixels: student(pixels).features,
        (lambda pixels: student(pixels).logits) if class_names else None,
        class_names,
        number,
    )
