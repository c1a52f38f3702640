"""Effective Knowledge Distillation (EKD): the student learns labels and the teacher's features."""

import torch
from torch import Tensor

from clients.objective import Stateless
from fedkd.data.augment import Draws
from fedkd.data.images import Integers
from fedkd.losses.distillation import feature_distillation
from fedkd.losses.factory import SupervisedLoss
from fedkd.models.student import Student
from fedkd.teachers.features import KeptFeatures
from fedkd.teachers.frozen import Teacher
from fedkd.training import Losses


class EKD(Stateless):
    """L = S(fc) + S(fc_free) + lambda_f * mean(v_y (2 - 2 cos(projection, teacher features))).

    S is the supervised loss; the teacher's features are a constant. ``lambda_f = 0`` leaves the
    supervised loss of both classifiers; class scores and class losses are then the supervised loss
    of ``fc``.

    Args:
        loss: The supervised loss S.
        teacher: The frozen teacher.
        lambda_f: Weight of the distillation term in this round, >= 0.
        class_weights: v, float (num_classes,), for class-balanced EKD; None means 1. They enter
            the class losses, but not the class scores.
        kept: The teacher's features of this client's images, where they were computed beforehand;
            None asks the teacher every time.

    Source: Elbatel et al., DeCaF 2023, as the Fed-MAS code computes it (``free`` loss).
    """

    clip_norm: float | None = 5.0

    def __init__(
        self,
        loss: SupervisedLoss,
        teacher: Teacher,
        lambda_f: float,
        class_weights: Tensor | None = None,
        kept: KeptFeatures | None = None,
    ) -> None:
        self._loss = loss
        self.teacher = teacher
        self.lambda_f = lambda_f
        self._class_weights = class_weights
        self._kept = kept
        self._next = torch.empty(0)

    def next_images(self, positions: Integers, draws: Draws | None) -> None:
        """Look up their kept features."""
        if self._kept is not None:
            self._next = self._kept.of(positions, draws)

    def target(self, pixels: Tensor) -> Tensor:
        """What the projection of these images should be, float (batch, D), a constant."""
        return self._features(pixels)

    def _features(self, pixels: Tensor) -> Tensor:
        if self._kept is None:
            return self.teacher.features(pixels)
        return self._next.to(pixels, non_blocking=True)

    def loss(self, student: Student, pixels: Tensor, labels: Tensor) -> Losses:
        """Loss of a batch."""
        out = student(pixels)
        assert out.projection is not None, "no projector"
        assert out.projected_logits is not None, "no second classifier"
        per_example = self._loss.per_example(out.logits, labels)
        supervised = self._loss.mean(per_example, labels)
        projected = self._loss.mean(self._loss.per_example(out.projected_logits, labels), labels)
        total = supervised + projected
        terms = {"loss_supervised": supervised, "loss_projected": projected}
        if self.lambda_f:
            per_example = feature_distillation(out.projection, self.target(pixels))
            if self._class_weights is not None:
                per_example = per_example * self._class_weights[labels]
            terms["loss_distillation"] = per_example.mean()
            total = self.lambda_f * terms["loss_distillation"] + total
        return Losses(total, per_example, {"loss": total, **terms})

    def score_target(self, pixels: Tensor) -> Tensor | None:
        """Features of the plain images, without a prompt; None without distillation."""
        return self._features(pixels) if self.lambda_f else None

    @torch.no_grad()
    def scores(
        self, student: Student, pixels: Tensor, labels: Tensor, target: Tensor | None
    ) -> Tensor:
        """Distillation loss per example, not weighted; the supervised loss without a target."""
        out = student(pixels)
        if target is None:
            return self._loss.per_example(out.logits, labels)
        assert out.projection is not None, "no projector"
        return feature_distillation(out.projection, target)
