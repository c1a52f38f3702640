"""One hospital's part of one round, in plain PyTorch: receive a student, train it, reply.

A node keeps nothing itself. What a client must remember goes in and out as tensors, so that the
same function serves a Flower ClientApp, wherever it runs, and the centralized loop.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from clients.factory import make_objective
from clients.objective import Objective, OnStep
from clients.proximal import add_proximal, parameters_of
from clients.snapshot import Snapshots, Training
from clients.state_file import TRAINED_IN
from clients.state_file import State as State
from clients.state_folder import snapshot_of
from fedkd import files, seeding, wire
from fedkd.compiling import compile_student
from fedkd.data.augment import Draws, augment_, draw
from fedkd.data.images import Integers
from fedkd.data.loading import Loader, in_order
from fedkd.experiment import Experiment, HeldOut
from fedkd.metrics import confusion_matrix
from fedkd.models import states
from fedkd.models.exchange import local_names
from fedkd.prediction import Probabilities, predict
from fedkd.training import (
    EpochSums,
    Running,
    batches,
    epoch_order,
    load_optimizer_state,
    make_optimizer,
    num_examples_per_epoch,
    optimizer_state,
    sum_by_class,
    train_epochs,
)

Progress = Callable[[int, str, int, int], None]
"""Called with partition id, what is being done, images done and images in all."""

OPTIMIZER = "optimizer"
OBJECTIVE = "objective"
LOCAL = "local"
"""The student's tensors that do not travel, after the client's last training."""
BEST_LOCAL = "best-local"
"""The same as they were after the server's best round, where that is earlier."""


@dataclass(frozen=True)
class Folders:
    """Where clients write, on the disk of the machine where they run; what lies there stays there.

    Attributes:
        prompts: Fourier prompts of each client, after its training in a round.
        students: The whole student of each client whose predictions need tensors of its own, as it
            is tested.
        states: What each client remembers, and how far its training is, to resume from.
    """

    prompts: Path | None = None
    students: Path | None = None
    states: Path | None = None

    def absolute(self) -> "Folders":
        """The same for a process that works in another folder."""
        return Folders(**{name: path and path.absolute() for name, path in vars(self).items()})


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
        folders: Where clients write; by default they write nothing.
    """

    def __init__(
        self,
        experiment: Experiment,
        progress: Progress | None = None,
        folders: Folders = Folders(),
    ) -> None:
        self.experiment = experiment
        self.progress = progress
        self.folders = folders
        # One network for all clients of the process: each loads the student it receives into it.
        self._student = experiment.build_student()
        if experiment.recipe.engine.compile:
            compile_student(self._student, experiment.loader(0).pixels(np.arange(1)))
        self._local_names = local_names(self._student, experiment.recipe.strategy.exchange)
        self._buffers = frozenset(name for name, _ in self._student.named_buffers())
        self._initial_local = self._local_tensors()
        self._initial = True
        # Computed now, not in the middle of the first round.
        _ = experiment.kept_features
        # By client and first row of the batch; kept on the CPU.
        self._score_targets: dict[tuple[int, int], Tensor | None] = {}

    def twin(self) -> "Node":
        """A node that may train another client on another thread, at the same time."""
        other = Node(self.experiment.twin(), self.progress, self.folders)
        other._score_targets = self._score_targets
        return other

    def initial_arrays(self) -> dict[str, Tensor]:
        """Initial student, and the initial shared tensors of the objective; before any training."""
        assert self._initial, "a client has trained already"
        return self._arrays(make_objective(self.experiment, 0, 1))

    def train(
        self,
        partition_id: int,
        arrays: Mapping[str, Tensor],
        state: State,
        round_number: int,
        score_classes: bool = False,
        best_round: int = 0,
        proximal_mu: float = 0.0,
    ) -> tuple[Reply, State]:
        """One round of one client.

        Args:
            partition_id: Which client.
            arrays: The global student, and the average of what objectives share.
            state: What this client returned last time; empty at first.
            round_number: From 1.
            score_classes: Also send the loss per class of the received student.
            best_round: Round whose student is the best so far; 0 before any.
            proximal_mu: Weight of a proximal term that is added to the objective, whichever it is.

        Returns:
            The reply and the client's new state.
        """
        started = time.perf_counter()
        recipe = self.experiment.recipe
        loader = self.experiment.loader(partition_id)
        objective = make_objective(self.experiment, partition_id, round_number)
        student, self._initial = self._student, False
        keys = (round_number, partition_id)
        student.draws.manual_seed(seeding.torch_seed(recipe.seed, "dropout", *keys))
        if state:
            objective.load_state(state[OBJECTIVE])
        self._load_student(arrays, state.get(LOCAL, self._initial_local))
        received = parameters_of(student) if proximal_mu else []
        # After the state: what clients share replaces what this one remembers of it.
        if shared := _shared(arrays):
            objective.load_shared(shared)
        metrics: dict[str, int | float | list[int] | list[float]] = {}
        if score_classes:
            on_step = self._announcer(partition_id, "scoring")
            scores = self._score(partition_id, objective, loader, on_step)
            metrics[wire.CLASS_SCORES] = scores.tolist()
        on_step = self._announcer(partition_id, "exploring")
        values = objective.start_round(student, loader, round_number, on_step)
        metrics.update({wire.MEAN + name: value for name, value in values.items()})

        learning_rate = self.experiment.learning_rates[round_number - 1]
        metrics[wire.MEAN + "learning_rate"] = learning_rate
        optimizer = make_optimizer(recipe.training, student.parameters(), learning_rate)
        if recipe.training.keep_optimizer_state:
            load_optimizer_state(optimizer, state.get(OPTIMIZER, {}))
        orders = self._orders(loader.labels, round_number, partition_id)
        steps = self._steps(orders, round_number, partition_id)
        orders, straggling = self._as_far_as(orders, round_number, partition_id)
        metrics.update(straggling)

        def augment(pixels: Tensor) -> Tensor:
            positions, draws = next(steps)
            objective.next_images(positions, draws)
            return augment_(pixels, draws, recipe.augmentation)

        training = Training(student, optimizer, objective, Running())
        snapshots = self._snapshots(partition_id, arrays, state, round_number, proximal_mu)
        started -= snapshots.resume(training)
        for _ in range(training.running.num_steps):
            objective.next_images(*next(steps))
        clip = recipe.training.clip_norm
        sums = train_epochs(
            student,
            optimizer,
            recipe.training,
            load_batches=loader.batches,
            loss=lambda pixels, labels: add_proximal(
                objective.loss(student, pixels, labels), student, received, proximal_mu
            ),
            orders=orders,
            num_classes=self.experiment.num_classes,
            clip_norm=objective.clip_norm if clip is None else clip,
            augment=augment,
            on_batch=snapshots.watch(training, self._announcer(partition_id, "training")),
            running=training.running,
        )
        metrics.update({wire.SUM + name: value for name, value in sums.terms.items()})
        metrics[wire.PARTITION_ID] = partition_id
        metrics[wire.NUM_EXAMPLES] = num_examples_per_epoch(len(loader), recipe.training)
        metrics[wire.NUM_SEEN] = sums.num_seen
        metrics[wire.NUM_STEPS] = sum(
            len(batches(order, recipe.training.batch_size, recipe.training.drop_last))
            for order in orders
        )
        if not self.experiment.scored_by_neighbours:  # moco has no classifier, and reads no label.
            metrics[wire.CLASS_COUNTS] = loader.class_counts().tolist()
            metrics[wire.CLASS_LOSSES] = self._class_losses(sums, loader, metrics).tolist()
            if recipe.evaluation.personalised:
                metrics.update(self._evaluate_own(partition_id))
        # Last, as what may fail is done by now: the file and the state are of the same round.
        if self.folders.prompts is not None:
            objective.save_prompts(self.folders.prompts, round_number)
        metrics[wire.SECONDS] = time.perf_counter() - started
        new_state = {
            OPTIMIZER: optimizer_state(optimizer) if recipe.training.keep_optimizer_state else {},
            OBJECTIVE: objective.state(),
            LOCAL: self._local_tensors(),
            BEST_LOCAL: self._local_as_of(best_round, state),
            TRAINED_IN: {"round": torch.tensor(round_number)},
        }
        sent = self.experiment.faults.sent(
            self._arrays(objective), arrays, self._buffers, round_number, partition_id
        )
        return Reply(sent, metrics), new_state

    def evaluate(
        self,
        partition_id: int,
        arrays: Mapping[str, Tensor],
        state: State,
        as_of_round: int,
        split: HeldOut,
    ) -> Probabilities:
        """Predictions of a global student, completed by the client's own tensors.

        Args:
            partition_id: Which client.
            arrays: The global student after ``as_of_round``.
            state: What this client remembers.
            as_of_round: The last finished round, or the best one so far that the client was told of
                or has not trained after.
            split: ``"val"`` or ``"test"``.

        Returns:
            Class probabilities on the client's own part of the split, float64 (any, num_classes).
        """
        self._load_student(arrays, self._local_as_of(as_of_round, state))
        if split == "test" and self.folders.students is not None:
            self._save_student(self.folders.students / f"client-{partition_id}.safetensors")
        return self._predict(partition_id, split)

    def _save_student(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = {name: t.cpu().contiguous() for name, t in self._student.state_dict().items()}
        with files.replacing(path) as part:
            save_file(whole, part)

    def _evaluate_own(self, partition_id: int) -> dict[str, list[float] | list[int]]:
        """The client's own student on its own val images, as the server can use it."""
        probabilities, experiment = self._predict(partition_id, "val"), self.experiment
        if experiment.site is None:
            return {wire.PROBABILITIES: probabilities.ravel().tolist()}
        # The server does not have these images: what leaves the hospital is counts.
        labels = experiment.held_out_loader("val", partition_id).labels
        confusion = confusion_matrix(labels, probabilities.argmax(axis=1), experiment.num_classes)
        return {wire.CONFUSION: confusion.ravel().tolist()}

    def _predict(self, partition_id: int, split: HeldOut) -> Probabilities:
        experiment = self.experiment
        loader = experiment.held_out_loader(split, partition_id)
        return predict(self._student, loader, experiment.recipe.evaluation.batch_size)

    def _local_as_of(self, round_number: int, state: State) -> dict[str, Tensor]:
        """The client's own tensors after its last training in or before a round.

        Two versions are enough: a round that was not the best when the client trained next never
        becomes the best.
        """
        if not state:
            return self._initial_local
        return state[LOCAL if int(state[TRAINED_IN]["round"]) <= round_number else BEST_LOCAL]

    def _local_tensors(self) -> dict[str, Tensor]:
        own = self._student.state_dict()
        return {name: own[name].detach().clone() for name in sorted(self._local_names)}

    def _load_student(self, arrays: Mapping[str, Tensor], local: Mapping[str, Tensor]) -> None:
        received = {n: t for n, t in arrays.items() if not n.startswith(wire.PROMPTS)}
        self._student.load_state_dict({**received, **local})

    def _arrays(self, objective: Objective) -> dict[str, Tensor]:
        """Copies of all tensors that travel."""
        tensors = {
            name: tensor
            for name, tensor in self._student.state_dict().items()
            if name not in self._local_names
        }
        tensors.update({wire.PROMPTS + name: t for name, t in objective.shared().items()})
        return {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in tensors.items()
        }

    def _orders(self, labels: Integers, round_number: int, partition_id: int) -> list[Integers]:
        recipe = self.experiment.recipe
        keys = (round_number, partition_id)
        return [
            epoch_order(labels, recipe.training, seeding.rng(recipe.seed, "order", *keys, epoch))
            for epoch in range(recipe.training.local_epochs)
        ]

    def _as_far_as(
        self, orders: list[Integers], round_number: int, partition_id: int
    ) -> tuple[list[Integers], dict[str, float]]:
        """The part of the orders that a simulated straggler gets through, and what it tells."""
        training = self.experiment.recipe.training
        planned = [
            [len(rows) for rows in batches(order, training.batch_size, training.drop_last)]
            for order in orders
        ]
        left, told = self.experiment.faults.straggling(
            round_number, partition_id, sum(map(len, planned))
        )
        done = []
        for order, sizes in zip(orders, planned, strict=True):
            # Cut between two batches, so that those before are what they would have been.
            done.append(order if left >= len(sizes) else order[: sum(sizes[: max(left, 0)])])
            left -= len(sizes)
        return [order for order in done if len(order)], told

    def _steps(
        self, orders: list[Integers], round_number: int, partition_id: int
    ) -> Iterator[tuple[Integers, Draws]]:
        """Positions of the images of each step, and the numbers that augment them."""
        recipe, training = self.experiment.recipe, self.experiment.recipe.training
        for epoch, order in enumerate(orders):
            keys = (round_number, partition_id, epoch)
            table = draw(order, seeding.rng(recipe.seed, "augment", *keys))
            for rows in batches(np.arange(len(order)), training.batch_size, training.drop_last):
                yield order[rows], table[rows]

    def _snapshots(
        self,
        partition_id: int,
        arrays: Mapping[str, Tensor],
        state: State,
        round_number: int,
        proximal_mu: float,
    ) -> Snapshots:
        recipe, folder = self.experiment.recipe, self.folders.states

        def digest() -> str:
            given = [recipe.hash(), round_number, partition_id, proximal_mu, states.sha256(arrays)]
            remembered = {part: states.sha256(tensors) for part, tensors in state.items()}
            return hashlib.sha256(
                json.dumps([given, remembered], sort_keys=True).encode()
            ).hexdigest()

        every_s = recipe.checkpoint.every_s
        path = snapshot_of(folder, partition_id) if folder and every_s else None
        return Snapshots(path, every_s, round_number, digest)

    def _class_losses(
        self, sums: EpochSums, loader: Loader, metrics: Mapping[str, object]
    ) -> Tensor:
        """Sums per class that stay means per image, whatever was drawn; see wire.CLASS_LOSSES."""
        whole = metrics.get(wire.WORK, 1) == 1
        if whole and self.experiment.recipe.training.sampling == "uniform":
            return sums.class_losses
        counts = torch.from_numpy(loader.class_counts())
        return sums.class_losses * counts / sums.class_seen.clamp(min=1)

    def _score(
        self, partition_id: int, objective: Objective, loader: Loader, on_step: OnStep | None
    ) -> Tensor:
        """Sum of the received student's loss per example for each class, float64 (num_classes,).

        A pass of its own: the losses of the first epoch are those of a student that changes from
        step to step, in train mode, and of augmented images. The teacher's part of it is the same
        in every round and is done once per process. Images that ``drop_last`` leaves out of every
        epoch, because their order never changes, are left out here too.
        """
        config = self.experiment.recipe.training
        num_images = len(loader) if config.shuffle else num_examples_per_epoch(len(loader), config)
        student = self._student.eval()
        losses: list[Tensor] = []
        seen: list[Tensor] = []
        plan = in_order(num_images, config.batch_size)
        with closing(loader.batches(plan)) as loaded:
            for rows, (pixels, labels) in zip(plan, loaded, strict=True):
                key = (partition_id, int(rows[0]))
                if key not in self._score_targets:
                    objective.next_images(rows, None)
                    target = objective.score_target(pixels)
                    self._score_targets[key] = None if target is None else target.cpu()
                target = self._score_targets[key]
                if target is not None:
                    target = target.to(loader.device, non_blocking=True)
                losses.append(objective.scores(student, pixels, labels, target))
                seen.append(labels)
                if on_step:
                    on_step(int(rows[-1]) + 1, num_images)
        return sum_by_class(losses, seen, self.experiment.num_classes)[0]

    def _announcer(self, partition_id: int, what: str) -> OnStep | None:
        progress = self.progress
        if progress is None:
            return None
        return lambda done, total: progress(partition_id, what, done, total)


def _shared(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What objectives share, by the objective's own names."""
    return {
        name.removeprefix(wire.PROMPTS): tensor
        for name, tensor in arrays.items()
        if name.startswith(wire.PROMPTS)
    }
