"""Effective Knowledge Distillation (EKD): the student learns labels and the teacher's features."""

import torch
from torch import Tensor

from clients.objective import Stateless
from fedkd.losses.distillation import feature_distillation
from fedkd.losses.factory import LOSSES, LossName
from fedkd.models.student import Student
from fedkd.teachers.frozen import Teacher
from fedkd.training import Losses


class EKD(Stateless):
    """L = S(fc) + S(fc_free) + lambda_f * mean(2 - 2 cos(projection, teacher features)).

    S is the supervised loss; the teacher's features are a constant. ``lambda_f = 0`` leaves the
    supervised loss of both classifiers; class scores are then the supervised loss of ``fc``.

    Args:
        loss_name: The supervised loss S.
        class_counts: The client's training images per class, float (num_classes,).
        teacher: The frozen teacher.
        lambda_f: Weight of the distillation term, >= 0.

    Source: Elbatel et al., DeCaF 2023, as the Fed-MAS code computes it (``free`` loss).
    """

    clip_norm: float | None = 5.0

    def __init__(
        self, loss_name: LossName, class_counts: Tensor, teacher: Teacher, lambda_f: float
    ) -> None:
        self._loss = LOSSES[loss_name].compute
        self._counts = class_counts
        self.teacher = teacher
        self.lambda_f = lambda_f

    def target(self, pixels: Tensor) -> Tensor:
        """What the projection of these images should be, float (batch, D), a constant."""
        return self.teacher.features(pixels)

    def loss(self, student: Student, pixels: Tensor, labels: Tensor) -> Losses:
        """Loss of a batch."""
        out = student(pixels)
        assert out.projection is not None, "no projector"
        assert out.projected_logits is not None, "no second classifier"
        supervised = self._loss(out.logits, labels, self._counts)
        projected = self._loss(out.projected_logits, labels, self._counts).mean()
        distillation = feature_distillation(out.projection, self.target(pixels))
        total = self.lambda_f * distillation.mean() + supervised.mean() + projected
        terms = {
            "loss": total,
            "loss_supervised": supervised.mean(),
            "loss_projected": projected,
            "loss_distillation": distillation.mean(),
        }
        return Losses(total, distillation if self.lambda_f else supervised, terms)

    @torch.no_grad()
    def scores(self, student: Student, pixels: Tensor, labels: Tensor) -> Tensor:
        """Distillation loss per example against the plain teacher, without a prompt."""
        out = student(pixels)
        if not self.lambda_f:
            return self._loss(out.logits, labels, self._counts)
        assert out.projection is not None, "no projector"
        return feature_distillation(out.projection, self.teacher.features(pixels))
