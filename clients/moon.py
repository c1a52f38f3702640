"""MOON: supervised training, contrasted with the received and the client's previous student."""

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from clients.objective import OnStep
from clients.supervised import Supervised
from fedkd.data.loading import Loader
from fedkd.losses.factory import SupervisedLoss
from fedkd.models.student import Student
from fedkd.training import Losses


class Moon(Supervised):
    """L = S + mu * CE((cos(z, z_received), cos(z, z_previous)) / temperature, 0).

    z is the projection of the student in training, the others those of the frozen students. The
    previous student is the client's own after its last local training; in its first round it is
    the received one, and the term is the constant mu log 2.

    Args:
        loss: The supervised loss S.
        mu: Weight of the contrastive term, >= 0; 0 leaves S.
        temperature: Divides the cosines, > 0.
        frozen_mode: Mode of the received and the previous student.

    Source: Li et al., "Model-Contrastive Federated Learning", CVPR 2021 (eq. 3).
    """

    clip_norm: float | None = 5.0

    def __init__(
        self,
        loss: SupervisedLoss,
        mu: float,
        temperature: float,
        frozen_mode: Literal["eval", "train"],
    ) -> None:
        super().__init__(loss)
        self.mu = mu
        self.temperature = temperature
        self.frozen_mode = frozen_mode
        self._student: Student | None = None
        self._received: Student | None = None
        self._previous: Student | None = None
        self._state: Mapping[str, Tensor] = {}

    def state(self) -> dict[str, Tensor]:
        """The student as it is now: after the round it is the previous one of the next round."""
        assert self._student is not None, "start_round() comes first"
        return {name: t.detach().clone() for name, t in self._student.state_dict().items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from :meth:`state`."""
        self._state = state

    def start_round(
        self, student: Student, loader: Loader, round_number: int, on_step: OnStep | None = None
    ) -> dict[str, float]:
        """Freeze copies of the received and of the previous student."""
        self._student = student
        self._received = self._freeze(student)
        self._previous = self._freeze(student)
        if self._state:
            self._previous.load_state_dict(self._state)
        return {}

    def loss(self, student: Student, pixels: Tensor, labels: Tensor) -> Losses:
        """Loss of a batch."""
        if not self.mu:
            return super().loss(student, pixels, labels)
        out = student(pixels)
        per_example = self._loss.per_example(out.logits, labels)
        supervised = self._loss.mean(per_example, labels)
        assert self._received is not None, "start_round() comes first"
        assert self._previous is not None, "start_round() comes first"
        with torch.no_grad():
            others = [net.project(pixels) for net in (self._received, self._previous)]
        cosines = torch.stack(
            [F.cosine_similarity(out.projection, other, dim=1) for other in others], dim=1
        )
        contrastive = F.cross_entropy(cosines / self.temperature, torch.zeros_like(labels))
        total = supervised + self.mu * contrastive
        terms = {"loss": total, "loss_supervised": supervised, "loss_contrastive": contrastive}
        return Losses(total, per_example, terms)

    def _freeze(self, student: Student) -> Student:
        return student.frozen_copy().train(self.frozen_mode == "train")
