"""Supervised local training, without a teacher."""

import torch
from torch import Tensor

from clients.objective import Stateless
from fedkd.losses.factory import LOSSES, LossName
from fedkd.models.student import Student
from fedkd.training import Losses


class Supervised(Stateless):
    """The mean supervised loss of the classifier.

    Args:
        loss_name: Which loss.
        class_counts: The client's training images per class, float (num_classes,).
    """

    clip_norm: float | None = None

    def __init__(self, loss_name: LossName, class_counts: Tensor) -> None:
        self._loss = LOSSES[loss_name].compute
        self._counts = class_counts

    def loss(self, student: Student, pixels: Tensor, labels: Tensor) -> Losses:
        """Loss of a batch."""
        per_example = self._loss(student(pixels).logits, labels, self._counts)
        total = per_example.mean()
        return Losses(total, per_example, {"loss": total, "loss_supervised": total})

    @torch.no_grad()
    def scores(self, student: Student, pixels: Tensor, labels: Tensor) -> Tensor:
        """Supervised loss per example."""
        return self._loss(student(pixels).logits, labels, self._counts)
