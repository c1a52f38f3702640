"""Students: a backbone with a classifier and, for distillation, a projector with its own head."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedkd.errors import StudentError
from fedkd.models.states import mismatches


class StudentOutput(NamedTuple):
    """What one forward pass gives.

    Attributes:
        features: Backbone features, float (batch, d).
        logits: Of the classifier ``fc``, float (batch, num_classes); the prediction is its argmax.
        projection: In the teacher's feature space, float (batch, D); None without a projector.
        projected_logits: Of ``fc_free``, float (batch, num_classes); trained, never predicted with.
    """

    features: Tensor
    logits: Tensor
    projection: Tensor | None
    projected_logits: Tensor | None


class Student(nn.Module):
    """The network that a hospital trains and the server aggregates.

    Names follow Fed-MAS: ``fc`` is the classifier, ``p_free`` the projector (Linear, BatchNorm,
    ReLU, Linear) into the teacher's feature space, ``fc_free`` a classifier on the projection.

    Args:
        backbone: Maps normalised images (batch, 3, height, width) to features (batch, d).
        num_features: d.
        num_classes: Classes, absent ones included.
        num_teacher_features: D; None builds neither projector nor second classifier.
        mean: Subtracted from each channel of the pixels; empty means pixels are used as they are.
        std: Divides each channel afterwards.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        num_features: int,
        num_classes: int,
        num_teacher_features: int | None = None,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.fc = nn.Linear(num_features, num_classes)
        self.p_free: nn.Module | None = None
        self.fc_free: nn.Module | None = None
        if num_teacher_features is not None:
            self.p_free = nn.Sequential(
                nn.Linear(num_features, num_features),
                nn.BatchNorm1d(num_features),
                nn.ReLU(),
                nn.Linear(num_features, num_teacher_features),
            )
            self.fc_free = nn.Linear(num_teacher_features, num_classes)
        # Not part of the state: normalisation is a constant, and only learnt things travel.
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> StudentOutput:
        """Run backbone and heads on pixels, float (batch, 3, height, width)."""
        if self.mean.numel():
            pixels = (pixels - self.mean) / self.std
        features = self.backbone(pixels)
        logits = self.fc(features)
        if self.p_free is None or self.fc_free is None:
            return StudentOutput(features, logits, None, None)
        projection = self.p_free(features)
        return StudentOutput(features, logits, projection, self.fc_free(projection))

    def project(self, pixels: Tensor) -> Tensor:
        """The projection alone, float (batch, D)."""
        projection: Tensor | None = self(pixels).projection
        assert projection is not None, "project() needs a student with a projector"
        return projection


def load_initial(student: Student, state: Mapping[str, Tensor]) -> None:
    """Load given initial weights, all of them and nothing else.

    Backbone tensors may carry their plain torchvision names (``conv1.weight``) instead of
    ``backbone.conv1.weight``.

    Raises:
        StudentError: Names or shapes differ; the first ten are listed.
    """
    own = student.state_dict()
    named = {
        f"backbone.{name}" if name not in own and f"backbone.{name}" in own else name: tensor
        for name, tensor in state.items()
    }
    if problems := mismatches(own, named):
        raise StudentError(f"the initial student does not fit: {problems}")
    student.load_state_dict(named)
