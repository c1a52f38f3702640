"""Class probabilities of a student: by its classifier, or by nearest neighbours."""

from collections.abc import Callable
from contextlib import closing

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedkd.data.loading import Loader, in_order
from fedkd.models.student import Student
from fedkd.probing.neighbours import knn_probabilities

Probabilities = npt.NDArray[np.float64]


@torch.no_grad()
def predict(
    student: Student,
    loader: Loader,
    batch_size: int,
    on_batch: Callable[[], None] | None = None,
) -> Probabilities:
    """Class probabilities of all images of a loader, float64 (num_images, num_classes).

    The student is put into eval mode. No image gives an array of no row. ``on_batch`` is called
    after each batch.
    """
    student.eval()
    parts = []
    with closing(loader.batches(in_order(len(loader), batch_size))) as loaded:
        for pixels, _ in loaded:
            parts.append(student(pixels).logits.double().softmax(1).cpu())
            if on_batch:
                on_batch()
    if not parts:
        return np.zeros((0, loader.data.num_classes))
    return torch.cat(parts).numpy()


@torch.no_grad()
def predict_by_neighbours(
    student: Student, loader: Loader, batch_size: int, bank: Loader | None = None
) -> Probabilities:
    """Class probabilities by the nearest labelled images, float64 (num_images, num_classes).

    For a student whose classifier is not trained: images are compared by the backbone's features.
    The student is put into eval mode.

    Args:
        student: Gives the features.
        loader: The images to predict, at least one.
        batch_size: Images per forward pass.
        bank: Images whose labels are known. None means those of ``loader``; those that show the
            same lesion or patient, at least two of which there are, do not predict each other.
    """
    known = bank or loader
    shown = np.array(loader.data.shown)[loader.indices]
    features = _features(student, loader, batch_size)
    return knn_probabilities(
        features if bank is None else _features(student, bank, batch_size),
        torch.from_numpy(known.labels),
        features,
        loader.data.num_classes,
        leave_out=np.unique(shown, return_inverse=True)[1] if bank is None else None,
    ).numpy()


def _features(student: Student, loader: Loader, batch_size: int) -> Tensor:
    student.eval()
    with closing(loader.batches(in_order(len(loader), batch_size))) as loaded:
        return torch.cat([student(pixels).features.cpu() for pixels, _ in loaded])
