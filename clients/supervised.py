"""Supervised local training, without a teacher."""

import torch
from torch import Tensor

from clients.objective import Stateless
from fedkd.losses.factory import SupervisedLoss
from fedkd.models.student import Student
from fedkd.training import Losses


class Supervised(Stateless):
    """The mean supervised loss of the classifier.

    Args:
        loss: Which loss, with the class counts of this client.
    """

    clip_norm: float | None = None

    def __init__(self, loss: SupervisedLoss) -> None:
        self._loss = loss

    def loss(self, student: Student, pixels: Tensor, labels: Tensor) -> Losses:
        """Loss of a batch."""
        per_example = self._loss.per_example(student(pixels).logits, labels)
        total = self._loss.mean(per_example, labels)
        return Losses(total, per_example, {"loss": total, "loss_supervised": total})

    @torch.no_grad()
    def scores(
        self, student: Student, pixels: Tensor, labels: Tensor, target: Tensor | None
    ) -> Tensor:
        """Supervised loss per example."""
        return self._loss.per_example(student(pixels).logits, labels)
