"""What a local objective is: the part of a client that differs between methods."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor

from fedkd.data.augment import Draws
from fedkd.data.images import Integers
from fedkd.data.loading import Loader
from fedkd.models.student import Student
from fedkd.training import Losses

OnStep = Callable[[int, int], None]
"""Called with what is done and what there is in all."""


class Objective(Protocol):
    """A local objective; one is made for each client and round, and its state outlives it."""

    clip_norm: float | None
    """Gradient norm at which this method clips unless the config says otherwise."""

    def state(self) -> dict[str, Tensor]:
        """Tensors that the client keeps between rounds; empty if there are none."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from :meth:`state`; never called before a client's first round."""

    def shared(self) -> dict[str, Tensor]:
        """Tensors that travel and are averaged with the student; empty if there are none."""

    def load_shared(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from the average of what the clients shared."""

    def start_round(
        self, student: Student, loader: Loader, round_number: int, on_step: OnStep | None = None
    ) -> dict[str, float]:
        """Do what comes before local training; returns values to log for this client.

        Args:
            student: As it was received.
            loader: The client's images.
            round_number: From 1.
            on_step: Told the steps done and all steps.
        """

    def save_prompts(self, folder: Path, round_number: int) -> None:
        """Write the client's Fourier prompts of this round into a folder on its own disk, if any.

        Args:
            folder: Of a run's prompts; need not be there.
            round_number: From 1.
        """

    def next_images(self, positions: Integers, draws: Draws | None) -> None:
        """Told before :meth:`loss` and :meth:`score_target` which images they will get.

        When a training goes on, also of the images of the steps that are done, in their order.

        Args:
            positions: Among the client's images, int64 (batch,).
            draws: By which they are augmented, (batch, NUM_DRAWS); None means they are not.
        """

    def loss(self, student: Student, pixels: Tensor, labels: Tensor) -> Losses:
        """Loss of a batch in training; pixels are augmented, float (batch, 3, height, width)."""

    def step_state(self) -> dict[str, Tensor]:
        """What the steps of the round so far have changed, beyond the student; empty if nothing.

        What :meth:`start_round` makes is left out: it is called again before a training goes on.
        """

    def load_step_state(self, state: Mapping[str, Tensor]) -> None:
        """Be where :meth:`step_state` was; :meth:`next_images` is then told of all those steps."""

    def score_target(self, pixels: Tensor) -> Tensor | None:
        """What scores of these images compare with besides their labels, a constant of the run.

        The node asks once and keeps the answer, as a teacher costs more than a student.
        """

    def scores(
        self, student: Student, pixels: Tensor, labels: Tensor, target: Tensor | None
    ) -> Tensor:
        """Loss per example of the received student, float (batch,), under no_grad.

        Args:
            student: As it was received, in eval mode.
            pixels: Not augmented, float (batch, 3, height, width).
            labels: Int64 (batch,).
            target: What :meth:`score_target` gave for these images.
        """


class Stateless:
    """The answers of an objective that keeps nothing, shares nothing and prepares nothing."""

    def state(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to continue."""

    def shared(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def load_shared(self, tensors: Mapping[str, Tensor]) -> None:
        """Nothing to continue."""

    def start_round(
        self, student: Student, loader: Loader, round_number: int, on_step: OnStep | None = None
    ) -> dict[str, float]:
        """Nothing to prepare."""
        return {}

    def save_prompts(self, folder: Path, round_number: int) -> None:
        """No prompts to write."""

    def next_images(self, positions: Integers, draws: Draws | None) -> None:
        """It is no matter which images they are."""

    def step_state(self) -> dict[str, Tensor]:
        """Steps change the student alone."""
        return {}

    def load_step_state(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to continue."""

    def score_target(self, pixels: Tensor) -> Tensor | None:
        """Nothing but the labels."""
        return None
