"""Evaluation of a student on the server's own splits: select on val, report on test, once."""

import numpy as np
import numpy.typing as npt
import torch

from fedkd.data.images import LabelledImages
from fedkd.data.loading import Loader
from fedkd.experiment import Experiment
from fedkd.metrics import Evaluation, evaluate
from fedkd.models.student import Student

Probabilities = npt.NDArray[np.float64]


def validate(student: Student, experiment: Experiment) -> Evaluation:
    """Scores on the val split, by which rounds are compared."""
    return score(
        experiment, experiment.splits.val, predict(student, experiment, experiment.splits.val)
    )


def report_test(student: Student, experiment: Experiment) -> tuple[Evaluation, Probabilities]:
    """Scores and probabilities on the test split; called once, for the student chosen on val."""
    probabilities = predict(student, experiment, experiment.splits.test)
    return score(experiment, experiment.splits.test, probabilities), probabilities


@torch.no_grad()
def predict(student: Student, experiment: Experiment, images: LabelledImages) -> Probabilities:
    """Class probabilities, float64 (num_images, num_classes), of the student in eval mode."""
    student.eval()
    batch_size = experiment.recipe.evaluation.batch_size
    rows = np.arange(len(images))
    loader = Loader(images, rows, experiment.device, experiment.dtype)
    parts = [
        student(loader.pixels(rows[start : start + batch_size])).logits.double().softmax(1).cpu()
        for start in range(0, len(rows), batch_size)
    ]
    return torch.cat(parts).numpy()


def score(
    experiment: Experiment, images: LabelledImages, probabilities: Probabilities
) -> Evaluation:
    """All metrics of these probabilities."""
    return evaluate(
        images.labels,
        probabilities,
        images.sites,
        images.class_names,
        images.site_names,
        {name: classes.tolist() for name, classes in experiment.groups().items()},
    )
