"""One hospital's part of one round, in plain PyTorch: receive a student, train it, reply.

A node keeps nothing itself. What a client must remember goes in and out as tensors, so that the
same function serves a Flower ClientApp, wherever it runs, and the centralized loop.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clients.factory import make_objective
from clients.objective import Objective, OnStep
from fedkd import seeding, wire
from fedkd.data.augment import augment
from fedkd.data.images import Integers
from fedkd.data.loading import Loader
from fedkd.experiment import Experiment
from fedkd.models.student import Student
from fedkd.training import (
    load_optimizer_state,
    make_optimizer,
    num_examples_per_epoch,
    optimizer_state,
    train_epochs,
)

Progress = Callable[[int, str, int, int], None]
"""Called with partition id, what is being done, images done and images in all."""

State = dict[str, dict[str, Tensor]]
"""What a client remembers: a name for each part, and its tensors. Empty before its first round."""

OPTIMIZER = "optimizer"
OBJECTIVE = "objective"


@dataclass(frozen=True)
class Reply:
    """What a client sends after a round.

    Attributes:
        arrays: The trained student, and what the objective shares, by name.
        metrics: Counts and sums, by the keys of :mod:`fedkd.wire`.
    """

    arrays: dict[str, Tensor]
    metrics: dict[str, int | float | list[int] | list[float]]


class Node:
    """Trains the students of the clients that live in this process, one at a time.

    Args:
        experiment: Data, partition and teacher, shared by all clients.
        progress: Told after every step; None stays silent.
    """

    def __init__(self, experiment: Experiment, progress: Progress | None = None) -> None:
        self.experiment = experiment
        self.progress = progress
        # One network for all clients of the process: each loads the student it receives into it.
        self._student = experiment.build_student()
        self._initial = True

    def initial_arrays(self) -> dict[str, Tensor]:
        """Initial student, and the initial shared tensors of the objective; before any training."""
        assert self._initial, "a client has trained already"
        return _arrays(self._student, make_objective(self.experiment, 0))

    def train(
        self,
        partition_id: int,
        arrays: Mapping[str, Tensor],
        state: State,
        round_number: int,
        score_classes: bool = False,
    ) -> tuple[Reply, State]:
        """One round of one client.

        Args:
            partition_id: Which client.
            arrays: The global student, and the average of what objectives share.
            state: What this client returned last time; empty at first.
            round_number: From 1.
            score_classes: Also send the loss per class of the received student.

        Returns:
            The reply and the client's new state.
        """
        started = time.perf_counter()
        recipe = self.experiment.recipe
        loader = self.experiment.loader(partition_id)
        objective = make_objective(self.experiment, partition_id)
        student, self._initial = self._student, False
        if state:
            objective.load_state(state[OBJECTIVE])
        # After the state: what clients share replaces what this one remembers of it.
        load_arrays(student, objective, arrays)
        metrics: dict[str, int | float | list[int] | list[float]] = {}
        if score_classes:
            on_step = self._announcer(partition_id, "scoring")
            metrics[wire.CLASS_SCORES] = self._score(objective, loader, student, on_step).tolist()
        on_step = self._announcer(partition_id, "exploring")
        values = objective.start_round(student, loader, round_number, on_step)
        metrics.update({wire.MEAN + name: value for name, value in values.items()})

        optimizer = make_optimizer(recipe.training, student.parameters())
        load_optimizer_state(optimizer, state.get(OPTIMIZER, {}))
        keys = (round_number, partition_id)
        draws = seeding.generator(recipe.seed, "augment", *keys)
        clip = recipe.training.clip_norm
        sums = train_epochs(
            student,
            optimizer,
            recipe.training,
            load_batch=loader.batch,
            loss=lambda pixels, labels: objective.loss(student, pixels, labels),
            orders=self._orders(len(loader), round_number, partition_id),
            num_classes=self.experiment.num_classes,
            clip_norm=objective.clip_norm if clip is None else clip,
            augment=lambda pixels: augment(pixels, recipe.augmentation, draws),
            on_batch=self._announcer(partition_id, "training"),
        )
        metrics.update({wire.SUM + name: value for name, value in sums.terms.items()})
        metrics[wire.PARTITION_ID] = partition_id
        metrics[wire.NUM_EXAMPLES] = num_examples_per_epoch(len(loader), recipe.training)
        metrics[wire.NUM_SEEN] = sums.num_seen
        metrics[wire.CLASS_COUNTS] = loader.class_counts().tolist()
        metrics[wire.CLASS_LOSSES] = sums.class_losses.tolist()
        metrics[wire.SECONDS] = time.perf_counter() - started
        new_state = {OPTIMIZER: optimizer_state(optimizer), OBJECTIVE: objective.state()}
        return Reply(_arrays(student, objective), metrics), new_state

    def _orders(self, num_images: int, round_number: int, partition_id: int) -> list[Integers]:
        config, seed = self.experiment.recipe.training, self.experiment.recipe.seed
        if not config.shuffle:
            return [np.arange(num_images)] * config.local_epochs
        return [
            seeding.rng(seed, "order", round_number, partition_id, epoch).permutation(num_images)
            for epoch in range(config.local_epochs)
        ]

    def _score(
        self, objective: Objective, loader: Loader, student: Student, on_step: OnStep | None
    ) -> Tensor:
        """Sum of the received student's loss per example for each class, float64 (num_classes,).

        A pass of its own: the losses of the first epoch are those of a student that changes from
        step to step, and of augmented images.
        """
        config = self.experiment.recipe.training
        num_images = num_examples_per_epoch(len(loader), config)
        student.eval()
        sums = torch.zeros(self.experiment.num_classes, dtype=torch.float64, device=loader.device)
        for start in range(0, num_images, config.batch_size):
            rows = np.arange(start, min(start + config.batch_size, num_images))
            pixels, labels = loader.batch(rows)
            sums.index_add_(0, labels, objective.scores(student, pixels, labels).double())
            if on_step:
                on_step(start + len(rows), num_images)
        return sums.cpu()

    def _announcer(self, partition_id: int, what: str) -> OnStep | None:
        progress = self.progress
        if progress is None:
            return None
        return lambda done, total: progress(partition_id, what, done, total)


def load_arrays(student: Student, objective: Objective, arrays: Mapping[str, Tensor]) -> None:
    """Take over a received student and what the objective shares."""
    shared = {
        name.removeprefix(wire.PROMPTS): tensor
        for name, tensor in arrays.items()
        if name.startswith(wire.PROMPTS)
    }
    student.load_state_dict(
        {name: tensor for name, tensor in arrays.items() if not name.startswith(wire.PROMPTS)}
    )
    if shared:
        objective.load_shared(shared)


def _arrays(student: Student, objective: Objective) -> dict[str, Tensor]:
    """Copies of all tensors that travel."""
    tensors = dict(student.state_dict())
    tensors.update({wire.PROMPTS + name: t for name, t in objective.shared().items()})
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
