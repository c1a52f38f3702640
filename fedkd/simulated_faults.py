"""Trouble that is simulated, for the hospitals of a partition: who has which, and when.

Nothing is remembered: every draw is of a stream named by the round and the client, so that engines,
the order of clients and a resumed run change nothing.
"""

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fedkd import seeding, wire
from fedkd.data.images import Integers, LabelledImages
from fedkd.errors import ConfigError, first_of
from fedkd.faults import FaultsConfig
from fedkd.partition import Partition


class SimulatedFaults:
    """Section ``faults`` of a recipe, by partition id.

    Attributes:
        joins: First round of hospitals that are not there from the start.
        leaves: Round from which on a hospital is gone.

    Args:
        config: What is simulated.
        names: Of the clients, in the order of their partition ids.
        seed: Of the recipe.

    Raises:
        ConfigError: Hospitals that the partition does not have, all at once; one that is named
            twice under one key; one that leaves before it joins.
    """

    def __init__(self, config: FaultsConfig, names: Sequence[str], seed: int) -> None:
        self._config, self._seed = config, seed
        problems: list[str] = []

        def numbers(key: str, given: Iterable[str]) -> list[int]:
            return _numbers(key, list(given), names, problems)

        self.joins = dict(zip(numbers("joins", config.joins), config.joins.values(), strict=True))
        self.leaves = dict(
            zip(numbers("leaves", config.leaves), config.leaves.values(), strict=True)
        )
        self._label_noise = dict(
            zip(
                numbers("label_noise", config.label_noise),
                config.label_noise.values(),
                strict=True,
            )
        )
        self._byzantine = frozenset(numbers("byzantine", config.byzantine))
        problems += [
            f"{names[number]} leaves in round {self.leaves[number]} (faults.leaves) but joins in "
            f"round {first} (faults.joins); it must leave later than it joins"
            for number, first in self.joins.items()
            if number in self.leaves and number >= 0 and self.leaves[number] <= first
        ]
        if problems:
            raise ConfigError("\n".join(problems))

    def check_rounds(self, num_clients: int, num_rounds: int) -> None:
        """Refuse rounds in which no hospital is present (ConfigError)."""
        for number in sorted({1, *self.joins.values(), *self.leaves.values()}):
            if number > num_rounds:
                continue
            if not len(present(number, num_clients, self.joins, self.leaves)):
                raise ConfigError(
                    f"in round {number} no hospital is present: all have left or have not joined "
                    "yet; change faults.joins or faults.leaves, or lower num_rounds"
                )

    def drops_out(self, round_number: int, partition_id: int) -> bool:
        """Whether a client does not answer in a round."""
        rng = seeding.rng(self._seed, "dropping-out", round_number, partition_id)
        return bool(rng.random() < self._config.dropout)

    def delay(self, round_number: int, partition_id: int) -> float:
        """How much longer a client takes in a round, in units of its usual time; 0 if not slow."""
        config, mean = self._config, self._config.delay_mean
        rng = seeding.rng(self._seed, "straggling", round_number, partition_id)
        if rng.random() >= config.stragglers:
            return 0.0
        if config.delay == "exponential":
            return float(rng.exponential(mean))
        if config.delay == "uniform":
            return float(rng.uniform(0, 2 * mean))
        # exp(m + sigma^2 / 2) is the mean of a log-normal number.
        return float(rng.lognormal(math.log(mean) - 0.5, 1.0))

    def num_steps(self, planned: int, delay: float) -> int:
        """Steps that a client with this delay does of those planned; at least one."""
        if not self._config.partial_work:
            return planned
        return max(1, int(planned / (1 + delay))) if delay else planned

    def straggling(
        self, round_number: int, partition_id: int, planned: int
    ) -> tuple[int, dict[str, float]]:
        """How many steps a client does in a round, and what it tells of that.

        Returns:
            The number of steps, and metrics; none where no stragglers are simulated.
        """
        if not self._config.stragglers:
            return planned, {}
        delay = self.delay(round_number, partition_id)
        done = self.num_steps(planned, delay)
        return done, {wire.WORK: done / planned, wire.DELAY: delay}

    def with_label_noise(self, train: LabelledImages, divided: Partition) -> LabelledImages:
        """The training images with the labels of noisy hospitals changed; pixels are shared.

        Raises:
            ConfigError: There is no other class.
        """
        if not self._label_noise:
            return train
        if train.num_classes < 2:
            raise ConfigError(
                f"faults.label_noise is given, but the data have one class "
                f"({train.class_names[0]}); there is no other one for a label to be: leave it out"
            )
        labels = train.labels.copy()
        for number, probability in self._label_noise.items():
            rows = divided.indices[number]
            rng = seeding.rng(self._seed, "label-noise", number)
            wrong = rng.random(len(rows)) < probability
            # 1 to num_classes - 1 classes further, in a circle: each other class is as likely.
            further = rng.integers(1, train.num_classes, len(rows))
            labels[rows] = (labels[rows] + wrong * further) % train.num_classes
        return replace(train, labels=labels)

    def sent(
        self,
        trained: dict[str, Tensor],
        received: Mapping[str, Tensor],
        buffers: Iterable[str],
        round_number: int,
        partition_id: int,
    ) -> dict[str, Tensor]:
        """What a client sends of what it has trained: that, unless it is byzantine.

        Buffers (BatchNorm's means and variances) are measurements: with sign_flip, noise and scale
        they stay, as a negative variance would break the student by itself, whatever the attack.
        Integers always stay. Shared prompts are parameters.

        Args:
            trained: Student and shared tensors after training, on the CPU.
            received: The same as they were received; others may be among them.
            buffers: Names of the student's tensors that are no parameters.
            round_number: From 1.
            partition_id: Which client.
        """
        if partition_id not in self._byzantine:
            return trained
        attack, scale = self._config.attack, self._config.attack_scale
        floats = {n for n, tensor in trained.items() if tensor.is_floating_point()}
        if attack == "nan":
            return {
                n: torch.full_like(t, math.nan) if n in floats else t for n, t in trained.items()
            }
        attacked = floats - set(buffers)
        before = {n: received[n].to(t) for n, t in trained.items() if n in attacked}
        updates = {n: trained[n] - tensor for n, tensor in before.items()}
        if attack == "noise":
            rng = seeding.rng(self._seed, "byzantine", round_number, partition_id)
            spread = scale * _deviation(updates.values())
            for name, update in updates.items():
                noise = torch.from_numpy(spread * rng.standard_normal(tuple(update.shape)))
                updates[name] = update + noise.to(update)
        else:
            factor = -scale if attack == "sign_flip" else scale
            updates = {name: factor * update for name, update in updates.items()}
        return {n: before[n] + updates[n] if n in attacked else t for n, t in trained.items()}


def present(
    round_number: int, num_clients: int, joins: Mapping[int, int], leaves: Mapping[int, int]
) -> Integers:
    """Partition ids of the hospitals that are there in a round, ascending: joins <= r < leaves."""
    return np.array(
        [
            number
            for number in range(num_clients)
            if joins.get(number, 1) <= round_number
            and (number not in leaves or round_number < leaves[number])
        ],
        np.int64,
    )


def _deviation(updates: Iterable[Tensor]) -> float:
    """Standard deviation of all entries of an update, in float64."""
    entries = torch.cat([update.double().ravel() for update in updates])
    return float(entries.std(correction=0))


def _numbers(key: str, given: list[str], names: Sequence[str], problems: list[str]) -> list[int]:
    """Partition id of each hospital that is given by its name or number; -1 and a problem else."""
    found = []
    for name in given:
        number = -1
        if name in names:
            number = names.index(name)
        elif name.isdecimal() and int(name) < len(names):
            number = int(name)
        else:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {first_of(names)}"
            pooled = ", with num_clients = 1," if len(names) == 1 else ""
            problems.append(
                f"faults.{key} names {name!r}, which is no hospital of the partition{pooled} and "
                f"no number from 0 to {len(names) - 1}; {hint}"
            )
        if number >= 0 and number in found:
            problems.append(f"faults.{key} names {names[number]} twice; name it once")
        found.append(number)
    return found
