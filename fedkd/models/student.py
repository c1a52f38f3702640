"""Students: a backbone with a classifier and, for distillation, a projector with its own head."""

import copy
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedkd.errors import StudentError
from fedkd.models.dropout import seed_dropout
from fedkd.models.small_resnet import num_deepest
from fedkd.models.states import mismatches
from fedkd.precision import Precision, run_backbone


class StudentOutput(NamedTuple):
    """What one forward pass gives.

    Attributes:
        features: Backbone features, float (batch, d).
        logits: Of the classifier ``fc``, float (batch, num_classes); the prediction is its argmax.
        projection: What is compared with the teacher's features (EKD, float (batch, D)) or with the
            projections of other students (MOON) or of other views (MoCo); None without a
            projector.
        projected_logits: Of ``fc_free``, float (batch, num_classes); trained, never predicted with.
    """

    features: Tensor
    logits: Tensor
    projection: Tensor | None
    projected_logits: Tensor | None


MOON_PROJECTION = 256
MOCO_PROJECTION = 128


class CosineClassifier(nn.Module):
    """Cosines of the features with one learnt direction per class, float (batch, num_classes).

    Args:
        num_features: Width of the features.
        num_classes: Number of directions.

    Source: Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss",
    NeurIPS 2019.
    """

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Linear(num_features, num_classes, bias=False).weight

    def forward(self, features: Tensor) -> Tensor:
        """Cosines of features (batch, num_features)."""
        return F.linear(F.normalize(features), F.normalize(self.weight))


class Student(nn.Module):
    """The network that a hospital trains and the server aggregates.

    Names follow Fed-MAS: ``fc`` is the classifier, ``p_free`` the projector (Linear, BatchNorm,
    ReLU, Linear) into the teacher's feature space, ``fc_free`` a classifier on the projection. In a
    student for MOON ``fc`` reads the projection ``p2(relu(p1(features)))``. In one for MoCo
    ``p_free`` is the contrastive head (Linear, ReLU, Linear) on the features of the last stage
    alone, as in ``fedkd pretrain``, and ``fc`` stays untrained.

    Args:
        backbone: Maps normalised images (batch, 3, height, width) to features (batch, d). Its
            dropout is replaced by one that draws from :attr:`draws`.
        num_features: d.
        num_classes: Classes, absent ones included.
        num_teacher_features: D; None builds neither projector nor second classifier.
        contrastive: Build MOON's projector; not together with ``num_teacher_features``.
        momentum_contrast: Build MoCo's head, not together with either.
        cosine: Build cosine classifiers instead of linear ones, for LDAM.
        mean: Subtracted from each channel of the pixels; empty means pixels are used as they are.
        std: Divides each channel afterwards.

    Attributes:
        precision: Of the backbone, see :func:`fedkd.precision.run_backbone`; heads compute in the
            type of the weights, so that what a loss reads is not rounded. No part of the state.
        draws: Generator of the backbone's dropout, if it has any; whoever trains seeds it. No part
            of the state.
    """

    precision: Precision
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
        *,
        contrastive: bool = False,
        momentum_contrast: bool = False,
        cosine: bool = False,
    ) -> None:
        super().__init__()
        projectors = (contrastive, momentum_contrast, num_teacher_features is not None)
        assert sum(projectors) <= 1, "a student has one projector"
        classifier = CosineClassifier if cosine else nn.Linear
        self.draws = torch.Generator()
        seed_dropout(backbone, self.draws)
        self.backbone = backbone
        self.precision = "full"
        self.p1: nn.Module | None = None
        self.p2: nn.Module | None = None
        if contrastive:
            self.p1 = nn.Linear(num_features, num_features)
            self.p2 = nn.Linear(num_features, MOON_PROJECTION)
        self.fc = classifier(MOON_PROJECTION if contrastive else num_features, num_classes)
        self.p_free: nn.Module | None = None
        self.fc_free: nn.Module | None = None
        if num_teacher_features is not None:
            self.p_free = nn.Sequential(
                nn.Linear(num_features, num_features),
                nn.BatchNorm1d(num_features),
                nn.ReLU(),
                nn.Linear(num_features, num_teacher_features),
            )
            self.fc_free = classifier(num_teacher_features, num_classes)
        self._num_projected = num_features
        if momentum_contrast:
            self._num_projected = width = num_deepest(backbone, num_features)
            self.p_free = nn.Sequential(
                nn.Linear(width, width), nn.ReLU(), nn.Linear(width, MOCO_PROJECTION)
            )
        # Not part of the state: normalisation is a constant, and only learnt things travel.
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> StudentOutput:
        """Run backbone and heads on pixels, float (batch, 3, height, width)."""
        if self.mean.numel():
            pixels = (pixels - self.mean) / self.std
        features = run_backbone(self.backbone, pixels, self.precision)
        if self.p1 is not None and self.p2 is not None:
            projection = self.p2(F.relu(self.p1(features)))
            return StudentOutput(features, self.fc(projection), projection, None)
        logits = self.fc(features)
        if self.p_free is None:
            return StudentOutput(features, logits, None, None)
        projection = self.p_free(features[:, -self._num_projected :])
        projected_logits = self.fc_free(projection) if self.fc_free is not None else None
        return StudentOutput(features, logits, projection, projected_logits)

    def frozen_copy(self) -> "Student":
        """A copy that does not learn; it and this one never drop the same: they draw in turn."""
        return copy.deepcopy(self, {id(self.draws): self.draws}).requires_grad_(False)

    def project(self, pixels: Tensor) -> Tensor:
        """The projection alone, float (batch, D)."""
        projection: Tensor | None = self(pixels).projection
        assert projection is not None, "project() needs a student with a projector"
        return projection


def load_initial(student: Student, state: Mapping[str, Tensor]) -> None:
    """Load given initial weights, all of them and nothing else.

    Backbone tensors may carry their plain torchvision names (``conv1.weight``) instead of
    ``backbone.conv1.weight``, and cosine classifiers Fed-MAS's ``fc.ldam.weight``, which has the
    shape (features, classes).

    Raises:
        StudentError: Names or shapes differ; the first ten are listed.
    """
    own = student.state_dict()
    named: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name not in own and f"backbone.{name}" in own:
            named[f"backbone.{name}"] = tensor
        elif name.endswith(".ldam.weight") and name.replace(".ldam", "") in own:
            named[name.replace(".ldam", "")] = tensor.T
        else:
            named[name] = tensor
    if problems := mismatches(own, named):
        raise StudentError(f"the initial student does not fit: {problems}")
    student.load_state_dict(named)
