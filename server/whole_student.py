"""A run's student from the run directory alone: neither images nor teacher need to be there.

So it works where the run directory was handed on: architecture and sizes are in ``config.toml``,
class names in ``summary.json``, and the projector, which only training uses, is left out.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from fedkd.errors import ConfigError, DataError, first_of
from fedkd.models.factory import build_student
from fedkd.models.states import mismatches, sha256
from fedkd.models.student import Student
from server.made_teacher import TEACHER
from server.opened_run import OpenedRun

# Tensors that training alone reads.
_UNREAD = ("p_free.", "fc_free.")


@dataclass(frozen=True)
class WholeStudent:
    """A student that predicts without anything else.

    Attributes:
        network: In eval mode, on the CPU, of the run's floating-point type, without projector and
            without mixed precision.
        path: The file that it was read from.
        sha256: Of all tensors in that file, as ``summary.json`` reckons it.
        class_names: In the order of its outputs.
        size: Width and height of its images in pixels.
    """

    network: Student
    path: Path
    sha256: str
    class_names: tuple[str, ...]
    size: int


def open_whole_student(run: OpenedRun, which: str = "best") -> WholeStudent:
    """The student that a command names, complete, as the server tested it.

    Args:
        run: Whose recipe says what it is.
        which: ``best`` (chosen on val), ``last``, ``round:N``, or a file of the same architecture.

    Raises:
        ConfigError: Images given in Python, which no file can be made like; no such student; an
            objective that trains no classifier.
        DataError: A file that cannot be read, is not of this run, or lacks what stayed with the
            hospitals.
    """
    # Those at hospitals are files like any others.
    if not run.summary.get("at_hospitals"):
        run.require_named("images")
    recipe = run.recipe
    if recipe.objective.name == "moco":
        raise ConfigError(
            f"{run.path} has objective.name = 'moco', which trains no classifier but makes the "
            f"teacher {TEACHER}; distil from it, and use the run that does"
        )
    path = run.student_file(which)
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"cannot read the student {path}: {error}; the run's status is "
            f"{run.summary.get('status')!r}"
        ) from None
    class_names = tuple(run.summary["train_counts"])
    network = build_student(
        # All weights come from the file, so nothing is downloaded or asked of a teacher.
        recipe.student.model_copy(update={"init": "random"}),
        num_classes=len(class_names),
        num_teacher_features=None,
        seed=recipe.seed,
        contrastive=recipe.objective.name == "moon",
        cosine=recipe.objective.loss == "ldam",
    ).to(torch.float64 if recipe.training.dtype == "float64" else torch.float32)
    own = network.state_dict()
    used = {name: value for name, value in tensors.items() if not name.startswith(_UNREAD)}
    missing = [name for name in own if name not in used]
    if missing and recipe.strategy.exchange != "all":
        raise DataError(
            f"{path} is no whole student: with strategy.exchange = {recipe.strategy.exchange!r} "
            f"{len(missing)} of its {len(own)} tensors stayed with each hospital "
            f"({first_of(missing)}); use a run whose classifier and backbone travel"
        )
    if problems := mismatches(own, used):
        raise DataError(f"{path} is no student of {run.path / 'config.toml'}: {problems}")
    network.load_state_dict(used)
    return WholeStudent(network.eval(), path, sha256(tensors), class_names, recipe.data.size)
