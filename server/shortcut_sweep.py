"""Does a federation learn a scanner's mark: training over degradations and folds, and scoring.

Each degradation and fold is a recipe of its own (sections ``[shortcut]`` and ``name`` differ) and
leaves a run directory of its own. What its student is worth stands in ``shortcut.json`` there, so
that a sweep goes on where it was interrupted.
"""

import json
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor

from fedkd import files
from fedkd.data.images import LabelledImages
from fedkd.data.loading import Loader, in_order
from fedkd.errors import ClientFailure, ConfigError, FedkdError, UpdateRefused
from fedkd.experiment import Experiment, open_experiment
from fedkd.fourier.priority import band_share, gradient_psd, input_gradients, priority
from fedkd.models.student import Student
from fedkd.prediction import Probabilities, predict
from fedkd.recipe import Recipe
from fedkd.shortcuts.artefact import alignment, artefact_profile
from fedkd.shortcuts.marks import moved, unmarked
from server.opened_run import finished_run, open_run
from server.scoreboard import Observer
from server.simulation import run

logger = logging.getLogger(__name__)

SCORES = "shortcut.json"
VERSIONS = ("iid", "ood", "clean")
"""Of the test images: marked by the rule of training, mark on the other class, no mark."""
MEASURES = (*(f"auc_{name}" for name in VERSIONS), "band_share", "alignment", "alignment_excess")
Watch = Callable[[Experiment], AbstractContextManager[Observer]]
Scores = dict[str, Any]


@dataclass(frozen=True)
class Sweep:
    """What a sweep gives.

    Attributes:
        rows: A row per degradation and fold that ended well, see :func:`tables`.
        sites: A row per degradation, fold and hospital; empty with one hospital.
        summary: A row per degradation: n, and mean and sd over the folds of each measure.
        priorities: Mean over folds of the students' learning priority, by degradation, (K,) each.
        failures: What went wrong, by the name of the run.
    """

    rows: pd.DataFrame
    sites: pd.DataFrame
    summary: pd.DataFrame
    priorities: dict[float, npt.NDArray[np.float64]]
    failures: dict[str, str]


def cells(recipe: Recipe, degradations: Sequence[float], num_folds: int) -> list[Recipe]:
    """The recipe of each degradation and fold, fold by fold.

    Seeds stay, so that students of one fold start from the same weights and see the same images,
    and differ by the marks alone.
    """
    return [
        recipe.model_copy(
            update={
                "name": f"d{degradation:g}-fold{fold}",
                "shortcut": recipe.shortcut.model_copy(
                    update={"degradation": degradation, "num_folds": num_folds, "fold": fold}
                ),
            }
        )
        for fold in range(num_folds)
        for degradation in degradations
    ]


def sweep(
    recipe: Recipe,
    degradations: Sequence[float],
    num_folds: int,
    output: Path,
    watch: Watch,
) -> Sweep:
    """Train and score all that is not in the folder yet.

    Args:
        recipe: Names the class; its degradation and fold are set anew.
        degradations: Each in [0, 1], no two alike.
        num_folds: At least 2.
        output: Folder of the run directories.
        watch: Gives the observer of a run.

    Raises:
        ConfigError: A recipe, degradations or folds that cannot be swept.
        DataError: Images that cannot be divided so.
        FedkdError: The last failure, if no run ended well. Failures of some are logged.
    """
    _check(recipe, degradations, num_folds)
    runs = cells(recipe, degradations, num_folds)
    scored: dict[int, Scores] = {}
    failures: dict[str, str] = {}
    for number, cell in enumerate(runs):
        logger.info("run %d of %d: %s", number + 1, len(runs), cell.name)
        try:
            scored[number] = _one(cell, output, watch)
        except FedkdError as error:
            # What is wrong with recipe or images would be so in every run.
            theirs = isinstance(error, ClientFailure | UpdateRefused)
            if not scored and (number == len(runs) - 1 or not (failures or theirs)):
                raise
            failures[cell.name] = str(error)
            logger.error("%s failed, the others go on: %s", cell.name, error)
    return tables([(runs[number], scores) for number, scores in scored.items()], failures)


def _check(recipe: Recipe, degradations: Sequence[float], num_folds: int) -> None:
    if not recipe.shortcut.is_given:
        raise ConfigError(
            "shortcut.class is not given; name the class whose images get the mark, such as "
            "shortcut.class=nv"
        )
    bad = [d for d in degradations if not 0 <= d <= 1]
    if bad or not degradations or len(set(degradations)) < len(degradations):
        raise ConfigError(
            f"--degradations is {','.join(f'{d:g}' for d in degradations)}; it must be numbers "
            "from 0 to 1, each once, such as 0,0.5,1"
        )
    if num_folds < 2:
        raise ConfigError(f"--folds is {num_folds}; it must be 2 or more")
    if recipe.objective.name == "moco":
        raise ConfigError(
            "objective.name is 'moco', which trains no classifier, so that there is no AUC; use "
            "supervised, ekd or fopro"
        )
    if recipe.strategy.exchange != "all":
        raise ConfigError(
            f"strategy.exchange is {recipe.strategy.exchange!r}; one student is scored here, "
            "which takes strategy.exchange = 'all'"
        )


def _one(cell: Recipe, output: Path, watch: Watch) -> Scores:
    """The scores of one run, trained and scored only as far as it has not been."""
    path = finished_run(cell, "federated", output)
    if path is not None and (path / SCORES).is_file():
        logger.info("%s is there already: %s", cell.name, path)
        scores: Scores = json.loads((path / SCORES).read_text(encoding="utf-8"))
        return scores
    experiment = open_experiment(cell)
    if path is None:
        with watch(experiment) as observer:
            path = run(experiment, output=output, observers=[observer]).path
        assert path is not None
    logger.info("%s: scoring three versions of the test images, and the learning priority", path)
    opened = open_run(path)
    scores = {
        **score(experiment, opened.student(experiment)),
        "best_round": opened.summary["best_round"],
        "val_balanced_accuracy": opened.summary["val"]["balanced_accuracy"],
        "run": path.relative_to(output).as_posix(),
    }
    with files.replacing(path / SCORES) as part:
        part.write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
    return scores


def score(experiment: Experiment, student: Student) -> Scores:
    """AUC on three versions of the test images, and the student's learning priority on clean ones.

    AUC is that of the marked class against the other (or all others), on images of these alone, by
    p_class / (p_class + p_other). It is computed from log p_class - log p_other, which ranks images
    alike and does not round to 1; None where one side has no image. The score behind the priority
    is the cross-entropy of the true label.

    Args:
        experiment: Opened with marks.
        student: In eval mode.
    """
    config, test = experiment.recipe.shortcut, experiment.splits.test
    names = test.class_names
    ours = names.index(config.marked_class)
    others = [n for n, name in enumerate(names) if n != ours and config.other in ("", name)]
    rows = np.flatnonzero(np.isin(test.labels, [ours, *others]))
    versions = {"iid": test, "ood": moved(config, test, "test"), "clean": unmarked(test)}
    versions = {name: images.subset(rows) for name, images in versions.items()}
    test = versions["clean"]
    positive = test.labels == ours
    auc: dict[str, float | None] = {}
    by_site: dict[str, dict[str, Any]] = {
        name: {"num_images": int(num)}
        for site, name in enumerate(test.site_names)
        if (num := (test.sites == site).sum()) and len(test.site_names) > 1
    }
    for version, images in versions.items():
        loader = Loader(images, np.arange(len(rows)), experiment.device, experiment.dtype)
        probabilities = predict(student, loader, experiment.recipe.evaluation.batch_size)
        margin = _log(probabilities[:, [ours]]) - _log(probabilities[:, others])
        auc[version] = _auc(positive, margin)
        for name, values in by_site.items():
            here = test.sites == test.site_names.index(name)
            values[f"auc_{version}"] = _auc(positive[here], margin[here])
    shares = learning_priority(experiment, student, test)
    size = (int(test.images.shape[-2]), int(test.images.shape[-1]))
    return {
        "num_images": len(test),
        **{f"auc_{version}": value for version, value in auc.items()},
        "band_share": _finite(band_share(shares, *size, config.band)),
        "alignment": _finite(alignment(shares, artefact_profile(*size, config.band))),
        "sites": by_site,
        "priority": [_finite(value) for value in shares],
    }


def learning_priority(experiment: Experiment, student: Student, images: LabelledImages) -> Tensor:
    """Share of each ring in the mean PSD of the gradient of the loss, float64 (K,)."""
    loader = Loader(images, np.arange(len(images)), experiment.device, experiment.dtype)
    height, width = images.images.shape[-2:]
    total = torch.zeros(height, width, dtype=torch.float64)
    for rows in in_order(len(images), experiment.recipe.evaluation.batch_size):
        pixels, labels = loader.batch(rows)

        def loss(inputs: Tensor, labels: Tensor = labels) -> Tensor:
            # Widened: the gradient of a very sure image would round to 0.
            return F.cross_entropy(student(inputs).logits.double(), labels, reduction="none")

        total += gradient_psd(input_gradients(loss, pixels)).sum(0).cpu()
    return priority(total)


def _log(probabilities: Probabilities) -> Probabilities:
    logs: Probabilities = np.log(np.maximum(probabilities.sum(1), np.finfo(np.float64).tiny))
    return logs


def _auc(positive: npt.NDArray[np.bool_], margin: Probabilities) -> float | None:
    if positive.all() or not positive.any():
        return None
    return float(roc_auc_score(positive, margin))


def _finite(value: Tensor) -> float | None:
    return float(value) if bool(value.isfinite()) else None


def tables(scored: Sequence[tuple[Recipe, Scores]], failures: dict[str, str]) -> Sweep:
    """The rows, their summary and the priorities of runs that were scored.

    ``alignment_excess`` is a student's alignment minus that of the student of the same fold that
    saw no mark (d = 0); nan where there is none. sd is that over folds (n - 1), nan for one fold.
    """
    rows = pd.DataFrame([_row(recipe, scores) for recipe, scores in scored])
    rows = rows.sort_values(["degradation", "fold"], ignore_index=True)
    base = rows[rows["degradation"] == 0].set_index("fold")["alignment"]
    excess = rows["alignment"] - rows["fold"].map(base).astype(float)
    rows.insert(list(rows).index("alignment") + 1, "alignment_excess", excess)
    grouped = rows.groupby("degradation")
    parts: dict[str, Any] = {"n": grouped.size()}
    for measure in MEASURES:
        parts[f"{measure}_mean"] = grouped[measure].mean()
        parts[f"{measure}_sd"] = grouped[measure].std()
    sites = pd.DataFrame(
        [
            {"degradation": recipe.shortcut.degradation, "fold": recipe.shortcut.fold,
             "site": name, **values}
            for recipe, scores in scored
            for name, values in scores["sites"].items()
        ]
    )  # fmt: skip
    shares: dict[float, list[list[float]]] = {}
    for recipe, scores in scored:
        values = [np.nan if value is None else value for value in scores["priority"]]
        shares.setdefault(recipe.shortcut.degradation, []).append(values)
    return Sweep(
        rows,
        sites,
        pd.DataFrame(parts).reset_index(),
        {d: np.array(shares[d]).mean(0) for d in sorted(shares)},
        failures,
    )


def _row(recipe: Recipe, scores: Scores) -> dict[str, Any]:
    plain = {
        key: np.nan if value is None else value
        for key, value in scores.items()
        if key not in ("sites", "priority")
    }
    return {"degradation": recipe.shortcut.degradation, "fold": recipe.shortcut.fold, **plain}
