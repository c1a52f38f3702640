"""Evaluation of the global student on the held-out splits: select on val, report on test, once."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from fedkd import wire
from fedkd.data.images import Integers, LabelledImages
from fedkd.data.loading import Loader
from fedkd.experiment import Experiment, HeldOut
from fedkd.metrics import Evaluation, confusion_matrix, evaluate
from fedkd.models.student import Student
from fedkd.prediction import Probabilities, predict, predict_by_neighbours
from server.signals import safe_place

Arrays = dict[str, Tensor]
Predict = Callable[[HeldOut, Arrays, int], Probabilities]
"""(split, tensors of the global student, the round they are from) -> probabilities of the split."""


def validate(
    experiment: Experiment, predict: Predict, student: Arrays, round_number: int
) -> Evaluation:
    """Scores on the val split, by which rounds are compared."""
    return score(experiment, "val", predict("val", student, round_number))


def report_test(
    experiment: Experiment, predict: Predict, student: Arrays, round_number: int
) -> tuple[Evaluation, Probabilities]:
    """Scores and probabilities on the test split; called once, for the student chosen on val."""
    probabilities = predict("test", student, round_number)
    return score(experiment, "test", probabilities), probabilities


def on_the_server(experiment: Experiment) -> Predict:
    """Predict whole splits with the global student.

    Tensors that stay with the clients have their initial values; predictions do not read them.
    """
    network = experiment.build_student()

    def predict_split(split: HeldOut, student: Arrays, round_number: int) -> Probabilities:
        network.load_state_dict({**network.state_dict(), **student})
        return predict_images(experiment, network, experiment.held_out_loader(split))

    return predict_split


def predict_images(experiment: Experiment, student: Student, loader: Loader) -> Probabilities:
    """Class probabilities of any images of the experiment's classes by one student.

    Where no classifier is trained, the labelled val images are the neighbours that predict others,
    and val by leaving out those of the same lesion or patient: no training label is read.
    """
    batch_size = experiment.recipe.evaluation.batch_size
    if not experiment.scored_by_neighbours:
        return predict(student, loader, batch_size, safe_place)
    is_val = loader.data is experiment.splits.val
    bank = None if is_val else experiment.held_out_loader("val")
    return predict_by_neighbours(student, loader, batch_size, bank)


def score(experiment: Experiment, split: HeldOut, probabilities: Probabilities) -> Evaluation:
    """All metrics of the predictions of a whole split."""
    images = experiment.splits.val if split == "val" else experiment.splits.test
    return score_images(experiment, images, probabilities)


def score_images(
    experiment: Experiment, images: LabelledImages, probabilities: Probabilities
) -> Evaluation:
    """All metrics of the predictions of any images of the experiment's classes."""
    return evaluate(
        images.labels,
        probabilities,
        images.sites,
        images.class_names,
        images.site_names,
        {name: classes.tolist() for name, classes in experiment.groups().items()},
    )


def own_probabilities(metrics: Mapping[str, Any], num_classes: int) -> Probabilities:
    """What a client predicted on its own part of a split, float64 (any, num_classes)."""
    values = np.asarray(metrics[wire.PROBABILITIES], np.float64)
    return values.reshape(-1, num_classes)


def assemble(
    experiment: Experiment, split: HeldOut, replies: Mapping[int, Mapping[str, Any]]
) -> Probabilities:
    """The predictions of a whole split, (num_images, num_classes), from the replies of all clients.

    Args:
        experiment: Whose clients have disjoint parts of the split that cover it.
        split: Which one.
        replies: Metrics of each client, by its partition id.
    """
    rows = experiment.held_out_rows[split]
    whole = np.full((sum(map(len, rows)), experiment.num_classes), np.nan)
    for number, metrics in replies.items():
        whole[rows[number]] = own_probabilities(metrics, experiment.num_classes)
    return whole


def own_confusion(experiment: Experiment, number: int, probabilities: Probabilities) -> Integers:
    """Confusion matrix of a client's own student on its own part of val."""
    labels = experiment.splits.val.labels[experiment.held_out_rows["val"][number]]
    return confusion_matrix(labels, probabilities.argmax(axis=1), experiment.num_classes)
