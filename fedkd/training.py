"""The local training loop: batches in a seeded order, a step each, sums of what it saw."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from fedkd.config import Section
from fedkd.data.images import Integers


class TrainingConfig(Section):
    """Local training of one client in one round."""

    local_epochs: int = Field(default=1, ge=1)
    """Passes over the client's images per round."""
    batch_size: int = Field(default=32, ge=2)
    """Images per step; at least 2, as BatchNorm needs a variance."""
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    """Optimiser; its state stays with the client."""
    keep_optimizer_state: bool = True
    """Continue with the client's optimiser state in its next round, though its student is replaced;
    false starts afresh in every round."""
    learning_rate: float = Field(default=3e-4, gt=0)
    """Initial step size of the optimiser; see [schedule]."""
    weight_decay: float = Field(default=0.0, ge=0)
    """L2 penalty (sgd, adam) or decoupled decay (adamw), on every parameter."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of sgd, with Nesterov's correction when above 0; the other optimisers ignore it."""
    clip_norm: float | None = Field(default=None, ge=0)
    """Largest norm of the whole gradient; 0 means no clipping. Not given, the objective's own
    default holds (5.0 for moon, ekd and fopro, none for the others)."""
    sampling: Literal["uniform", "balanced"] = "uniform"
    """uniform: every image once per epoch. balanced: as many images, drawn with replacement and
    with probabilities inverse to the size of their class, so that all classes are as frequent."""
    shuffle: bool = True
    """Draw a new order of the images for every epoch; false keeps the order of the data set."""
    drop_last: bool = False
    """Leave out a last batch that is not full. Otherwise it is used, and a single last image joins
    the batch before it."""
    dtype: Literal["float32", "float64"] = "float32"
    """Floating-point type of students, teacher and losses."""

    @model_validator(mode="after")
    def _no_order_of_draws(self) -> "TrainingConfig":
        if self.sampling == "balanced" and not self.shuffle:
            raise ValueError(
                "training.sampling is 'balanced' with training.shuffle = false, but drawn images "
                "have no order to keep; set one of the two otherwise"
            )
        return self


class Losses(NamedTuple):
    """What an objective returns for one batch.

    Attributes:
        total: Scalar to minimise.
        per_example: Loss per example, float (batch,), of which class scores are made.
        terms: Scalars to log, means over the batch.
    """

    total: Tensor
    per_example: Tensor
    terms: dict[str, Tensor]


class EpochSums(NamedTuple):
    """Sums over all examples of a local training; ratios are left to the server.

    Attributes:
        num_seen: Examples seen, those of repeated epochs counted each time.
        terms: Sum over examples of each loss term.
        class_losses: Sum of the loss per example for each class, float64 (num_classes,).
        class_seen: Examples seen of each class, int64 (num_classes,).
    """

    num_seen: int
    terms: dict[str, float]
    class_losses: Tensor
    class_seen: Tensor


@dataclass
class Running:
    """How far a local training is.

    Attributes:
        num_steps: That are done.
        terms: Sum over examples of each loss term, float64 scalars on the device.
        losses: Per example, float (any,) on the device; of one step or several together.
        labels: Of these examples, int64.
    """

    num_steps: int = 0
    terms: dict[str, Tensor] = field(default_factory=dict)
    losses: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)


LoadBatches = Callable[[list[Integers]], Generator[tuple[Tensor, Tensor], None, None]]
"""Positions of a client's images in each batch to come -> (pixels (batch, 3, h, w), labels
(batch,)) of one batch after the other."""


def batches(order: Integers, batch_size: int, drop_last: bool) -> list[Integers]:
    """Cut an order into batches.

    A last batch of one example joins the one before: BatchNorm has no variance for it.
    """
    num_full = len(order) // batch_size
    if drop_last:
        return [order[i * batch_size : (i + 1) * batch_size] for i in range(num_full)]
    cuts = list(range(batch_size, len(order), batch_size))
    if cuts and len(order) - cuts[-1] == 1:
        cuts.pop()
    return list(np.split(order, cuts))


def num_examples_per_epoch(num_images: int, config: TrainingConfig) -> int:
    """Images that one epoch sees: all, or those in full batches with ``drop_last``."""
    return num_images - num_images % config.batch_size if config.drop_last else num_images


def epoch_order(labels: Integers, config: TrainingConfig, rng: np.random.Generator) -> Integers:
    """Positions of a client's images in the order in which one epoch uses them.

    Args:
        labels: Classes of the client's images, int64 (n,).
        config: Sampling and shuffling.
        rng: Of this client and epoch.

    Returns:
        int64 (n,): a permutation, or n draws with replacement in which all classes that the
        client has are equally likely.
    """
    if config.sampling == "balanced":
        probabilities = 1.0 / np.bincount(labels)[labels]
        return rng.choice(len(labels), len(labels), p=probabilities / probabilities.sum())
    return rng.permutation(len(labels)) if config.shuffle else np.arange(len(labels))


def make_optimizer(
    config: TrainingConfig, parameters: Iterator[nn.Parameter], learning_rate: float
) -> torch.optim.Optimizer:
    """The optimiser that the config names, without state."""
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.momentum > 0,
        )
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, lr=learning_rate, weight_decay=config.weight_decay)


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's tensors under flat names ``<parameter number>.<key>``."""
    return {
        f"{number}.{key}": value
        for number, entries in optimizer.state_dict()["state"].items()
        for key, value in entries.items()
        if isinstance(value, Tensor)
    }


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Tensor]) -> None:
    """Put back what :func:`optimizer_state` returned; an empty mapping leaves a fresh optimiser."""
    if not state:
        return
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    entries: dict[int, dict[str, Tensor]] = {}
    for name, value in state.items():
        number, key = name.split(".")
        parameter = parameters[int(number)]
        # A copy, as steps are counted in place; moments are laid out in memory like their
        # parameter, as the optimiser itself would have made them.
        same = value.shape == parameter.shape
        copied = torch.empty_like(parameter).copy_(value) if same else value.clone()
        entries.setdefault(int(number), {})[key] = copied
    optimizer.load_state_dict({**optimizer.state_dict(), "state": entries})


def sum_by_class(
    losses: Sequence[Tensor], labels: Sequence[Tensor], num_classes: int
) -> tuple[Tensor, Tensor]:
    """Sum of the losses of each class, float64 (num_classes,), and number of its images, int64.

    Added on the CPU in the given order: a GPU adds in any order, and no two runs would give the
    same bits.

    Args:
        losses: Of each batch, float (batch,), on any device; copied from it once, all together.
        labels: Of each batch, int64 (batch,).
        num_classes: Absent ones, which have 0, included.
    """
    sums = torch.zeros(num_classes, dtype=torch.float64)
    seen = torch.zeros(num_classes, dtype=torch.int64)
    if labels:
        classes = torch.cat(list(labels)).cpu()
        sums.index_add_(0, classes, torch.cat(list(losses)).cpu().double())
        seen.index_add_(0, classes, torch.ones_like(classes))
    return sums, seen


def train_epochs(
    student: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: TrainingConfig,
    *,
    load_batches: LoadBatches,
    loss: Callable[[Tensor, Tensor], Losses],
    orders: list[Integers],
    num_classes: int,
    clip_norm: float | None,
    augment: Callable[[Tensor], Tensor],
    on_batch: Callable[[int, int], None] | None = None,
    running: Running | None = None,
) -> EpochSums:
    """Train in place, one epoch per order.

    Args:
        student: Put into train mode.
        optimizer: Over the student's parameters.
        config: Batch size and ``drop_last``.
        load_batches: Reads images; closed at the end, or when an error stops the training.
        loss: The objective, called with augmented pixels and labels.
        orders: For each epoch the positions of the client's images in the order of their use.
        num_classes: Length of the class sums.
        clip_norm: Largest gradient norm; None or 0 does not clip.
        augment: Applied to the pixels of each batch, once and in the order of the steps.
        on_batch: Told the number of images done and the total, after each step.
        running: Goes on after its steps, and is kept up to date: when ``on_batch`` is called it is
            that of the step which has just been done. The caller has put student, optimiser and all
            that the loss remembers where they were.
    """
    student.train()
    plan = [
        rows for order in orders for rows in batches(order, config.batch_size, config.drop_last)
    ]
    total = sum(len(rows) for rows in plan)
    # Losses stay on the device until the end: a GPU is not made to wait. Sums are in float64: long
    # epochs do not lose digits.
    sums = Running() if running is None else running
    num_seen = sum(len(rows) for rows in plan[: sums.num_steps])
    plan = plan[sums.num_steps :]
    with closing(load_batches(plan)) as loaded:
        for rows, (pixels, labels) in zip(plan, loaded, strict=True):
            losses = loss(augment(pixels), labels)
            optimizer.zero_grad(set_to_none=True)
            losses.total.backward()  # type: ignore[no-untyped-call]
            if clip_norm:
                nn.utils.clip_grad_norm_(student.parameters(), clip_norm)
            optimizer.step()
            sums.losses.append(losses.per_example.detach())
            sums.labels.append(labels)
            for name, value in losses.terms.items():
                sums.terms[name] = sums.terms.get(name, 0) + value.detach().double() * len(rows)
            num_seen += len(rows)
            sums.num_steps += 1
            if on_batch:
                on_batch(num_seen, total)
    terms = {name: float(value) for name, value in sums.terms.items()}
    class_losses, class_seen = sum_by_class(sums.losses, sums.labels, num_classes)
    return EpochSums(num_seen, terms, class_losses, class_seen)
