"""Class probabilities of a student."""

from contextlib import closing

import numpy as np
import numpy.typing as npt
import torch

from fedkd.data.loading import Loader, in_order
from fedkd.models.student import Student

Probabilities = npt.NDArray[np.float64]


@torch.no_grad()
def predict(student: Student, loader: Loader, batch_size: int) -> Probabilities:
    """Class probabilities of all images of a loader, float64 (num_images, num_classes).

    The student is put into eval mode. No image gives an array of no row.
    """
    student.eval()
    with closing(loader.batches(in_order(len(loader), batch_size))) as loaded:
        parts = [student(pixels).logits.double().softmax(1).cpu() for pixels, _ in loaded]
    if not parts:
        return np.zeros((0, loader.data.num_classes))
    return torch.cat(parts).numpy()
