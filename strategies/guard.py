"""The guard of the aggregate: what a client sent is used as it should be, or not at all.

A client may be broken, or lie. Whatever is in its reply, it is taken or refused with an
UpdateRefused that names the client; nothing of it reaches a sum before. What cannot be seen here
are lies within these limits: a student that is finite and wrong, or counts that are too large.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, Message

from fedkd import wire
from fedkd.errors import UpdateRefused
from strategies.arrays import HeldArray, view

Metrics = Mapping[str, Any]
"""A client's metrics by the keys of :mod:`fedkd.wire`."""

LARGEST = 1e30
"""Of a metric: beyond it sums of a few could leave the range of floats. Our choice."""
LARGEST_COUNT = 2**53
"""Of a count, and of an integer array's entries: floats are exact up to it."""
_TOLERANCE = 1e-3
"""By which probabilities may leave [0, 1], and their sums 1: float16 rounds by less."""
_BLOCK = 2**15
"""Values at a time, in float64 few enough for a processor's cache."""
_COUNTS = (wire.NUM_EXAMPLES, wire.NUM_SEEN, wire.NUM_STEPS)
_PER_CLASS = (wire.CLASS_COUNTS, wire.CLASS_SCORES, wire.CLASS_LOSSES)
_LISTS = (*_PER_CLASS, wire.PROBABILITIES, wire.CONFUSION)
_LOSS = wire.SUM + "loss"
_OWN_COLUMNS = {"round", "partition_id", "client", "weight", "seconds"}
"""Of the tables of results, which no value of a client's may replace."""
_OWN_PREFIXES = ("num_", "bytes_", "train_", "val_", "own_val_")


class Checked(NamedTuple):
    """A training reply that may be used."""

    metrics: Metrics
    update: ArrayRecord


@dataclass(frozen=True)
class Limits:
    """What a reply is measured by; what is not known is not checked.

    Attributes:
        num_classes: Length of what is per class.
        num_held_out: For val and test how many of its images each client predicts.
        max_update_norm: Largest Euclidean norm of trained minus received, over all parameters.
        buffers: Names of the student's tensors that are no parameters. They do not count for the
            norm: they are measurements on the scale of the activations, not of the steps.
    """

    num_classes: int | None = None
    num_held_out: Mapping[str, Sequence[int]] = field(default_factory=dict)
    max_update_norm: float | None = None
    buffers: frozenset[str] = frozenset()

    def check_training(
        self,
        reply: Message,
        number: int,
        received: Mapping[str, npt.NDArray[Any]],
        needed: Collection[str] = (),
    ) -> Checked:
        """Metrics and arrays of a reply to a training message, each read once.

        Args:
            reply: Of one client, no error.
            number: Its partition id.
            received: What it was sent, whose names, shapes and dtypes it must have.
            needed: Keys of metrics that the strategy reads, beside those that all must send.

        Raises:
            UpdateRefused: Something is wrong with it.
        """
        # Arrays first: where training diverged, they say it best.
        if wire.ARRAYS not in reply.content.array_records:
            raise UpdateRefused(f"client {number} sent no arrays")
        update = self._arrays(reply, number, received)
        metrics = self._metrics(reply, number, "val")
        for key in (*_COUNTS, wire.SECONDS, *needed):
            if key not in metrics:
                raise UpdateRefused(f"client {number} sent no metric {_shown(key)}")
        images, seen, steps = (metrics[key] for key in _COUNTS)
        if bool(seen) != bool(steps) or (seen and not images):
            raise UpdateRefused(
                f"client {number} sent {wire.NUM_EXAMPLES} {images}, {wire.NUM_SEEN} {seen} and "
                f"{wire.NUM_STEPS} {steps}, which contradict each other"
            )
        if metrics[wire.NUM_SEEN] and _LOSS not in metrics:
            raise UpdateRefused(f"client {number} sent no metric {_LOSS!r}")
        return Checked(metrics, update)

    def check_evaluation(self, reply: Message, number: int, split: str | None = None) -> Metrics:
        """Metrics of a reply to an evaluation message.

        Args:
            reply: Of one client, no error.
            number: Its partition id.
            split: What it was to predict; None where that is not known.

        Raises:
            UpdateRefused: Something is wrong with it.
        """
        metrics = self._metrics(reply, number, split)
        if wire.PROBABILITIES not in metrics:
            raise UpdateRefused(f"client {number} sent no metric {wire.PROBABILITIES!r}")
        return metrics

    def _metrics(self, reply: Message, number: int, split: str | None) -> Metrics:
        metrics = metrics_of(reply, f"client {number}")
        if (told := metrics[wire.PARTITION_ID]) != number:
            raise UpdateRefused(f"client {number} says that it is client {told}")
        for key, value in metrics.items():
            if isinstance(value, list) != (key in _LISTS):
                kind = "a list" if isinstance(value, list) else "no list"
                raise UpdateRefused(f"client {number} sent {_shown(key)} as {kind}")
            _check_numbers(number, key, value)
            own = key.removeprefix(wire.MEAN)
            if own != key and (own in _OWN_COLUMNS or own.startswith(_OWN_PREFIXES)):
                raise UpdateRefused(
                    f"client {number} sent {_shown(key)}, the name of a column of the server's"
                )
        if self.num_classes is not None:
            lengths = dict.fromkeys(_PER_CLASS, self.num_classes)
            lengths[wire.CONFUSION] = self.num_classes**2
            for key, expected in lengths.items():
                if key in metrics and len(metrics[key]) != expected:
                    raise UpdateRefused(
                        f"client {number} sent {len(metrics[key])} values of {key}; expected "
                        f"{expected}, as there are {self.num_classes} classes"
                    )
        if wire.PROBABILITIES in metrics:
            self._check_probabilities(metrics[wire.PROBABILITIES], number, split)
        return metrics

    def _check_probabilities(self, sent: Sequence[float], number: int, split: str | None) -> None:
        values, what = np.asarray(sent, np.float64), f"client {number} sent {wire.PROBABILITIES}"
        if values.size and (values.min() < -_TOLERANCE or values.max() > 1 + _TOLERANCE):
            raise UpdateRefused(f"{what} from {values.min():g} to {values.max():g}")
        if not self.num_classes:
            return
        if values.size % self.num_classes:
            raise UpdateRefused(
                f"{what}, {values.size} values, for {self.num_classes} classes: no whole rows"
            )
        rows = values.reshape(-1, self.num_classes)
        if split is not None and split in self.num_held_out:
            expected = self.num_held_out[split][number]
            if len(rows) != expected:
                raise UpdateRefused(
                    f"{what} of {len(rows)} images; its part of {split} has {expected}"
                )
        if rows.size and np.abs(rows.sum(axis=1) - 1).max() > _TOLERANCE:
            raise UpdateRefused(f"{what} of an image that do not sum to 1")

    def _arrays(
        self, reply: Message, number: int, received: Mapping[str, npt.NDArray[Any]]
    ) -> ArrayRecord:
        arrays = reply.content.array_records[wire.ARRAYS]
        if differing := sorted(set(arrays) ^ set(received)):
            raise UpdateRefused(
                f"client {number} sent other arrays than it received; the first: "
                f"{differing[0][:200]}"
            )
        checked, norms = ArrayRecord(), []
        # In the order of what was sent: Flower's distances and momenta go by position.
        for name, expected in received.items():
            values = _read(arrays[name], f"client {number} sent {name}")
            if values.shape != expected.shape or values.dtype != expected.dtype:
                raise UpdateRefused(
                    f"client {number} sent {name} as {values.dtype} {values.shape}; "
                    f"expected {expected.dtype} {expected.shape}"
                )
            self._check_values(number, name, values)
            checked[name] = HeldArray(values)
            if self.max_update_norm is not None and self._is_parameter(name, values):
                norms.append(distance(values, expected))
        if self.max_update_norm is not None and math.hypot(*norms) > self.max_update_norm:
            raise UpdateRefused(
                f"client {number} sent an update of norm {math.hypot(*norms):.4g}; "
                f"failures.max_update_norm is {self.max_update_norm:g}: raise it, or lower "
                "training.learning_rate"
            )
        return checked

    def _check_values(self, number: int, name: str, values: npt.NDArray[Any]) -> None:
        if not is_finite(values):
            bad = int((~np.isfinite(values)).sum())
            raise UpdateRefused(
                f"client {number} sent {bad} values of {name} that are not finite; its "
                "training diverged: lower training.learning_rate or set training.clip_norm"
            )
        if np.issubdtype(values.dtype, np.integer):
            if values.size and values.max() > LARGEST_COUNT:
                raise UpdateRefused(f"client {number} sent {name} beyond 2^53: {values.max()}")
        elif name in self.buffers and name.endswith("running_var") and (values < 0).any():
            raise UpdateRefused(f"client {number} sent a variance below 0 in {name}")

    def _is_parameter(self, name: str, values: npt.NDArray[Any]) -> bool:
        return name not in self.buffers and np.issubdtype(values.dtype, np.floating)


def metrics_of(reply: Message, sender: str) -> dict[str, Any]:
    """All metrics of a reply, which has some and says who sent it.

    Raises:
        UpdateRefused: It has none, or no partition id.
    """
    if wire.METRICS not in reply.content.metric_records:
        raise UpdateRefused(f"{sender} sent no metrics")
    metrics = dict(reply.content.metric_records[wire.METRICS])
    if not isinstance(metrics.get(wire.PARTITION_ID), int):
        raise UpdateRefused(f"{sender} does not say which client it is")
    return metrics


def distance(values: npt.NDArray[Any], others: npt.NDArray[Any]) -> float:
    """Euclidean norm of the difference in float64; inf only where it is beyond all floats."""
    values, others, square = values.ravel(), others.ravel(), 0.0
    with np.errstate(over="ignore"):
        for start in range(0, values.size, _BLOCK):
            part = slice(start, start + _BLOCK)
            difference = np.subtract(values[part], others[part], dtype=np.float64)
            square += float(difference @ difference)
        if 1e-280 < square < math.inf:
            return math.sqrt(square)
        difference = np.subtract(values, others, dtype=np.float64)
    largest = float(np.abs(difference).max(initial=0.0))
    if largest in (0.0, math.inf):
        return largest
    return largest * float(np.linalg.norm(difference / largest))


def is_finite(values: npt.NDArray[Any]) -> bool:
    """Whether all values of an array are finite."""
    if values.dtype in (np.float32, np.float64) and values.flags.c_contiguous:
        # A sum of squares reads each value once and writes none; one that is not finite, or too
        # many that are large, sends it the long way.
        flat = values.reshape(-1)
        with np.errstate(over="ignore", invalid="ignore"):
            if math.isfinite(flat @ flat):
                return True
    return bool(np.isfinite(values).all())


def _read(array: Array, what: str) -> npt.NDArray[Any]:
    try:
        return view(array)
    except Exception as error:  # of bytes that a stranger made, which may raise anything
        told = " ".join(str(error).split())[:200]
        raise UpdateRefused(f"{what} in a form that cannot be read: {told}") from None


def _check_numbers(number: int, key: str, value: float | Sequence[float]) -> None:
    counts = key in (*_COUNTS, wire.CLASS_COUNTS, wire.CONFUSION)
    try:
        found = np.asarray(value)
        if not found.size:
            return
        whole = np.issubdtype(found.dtype, np.integer)
        smallest, largest = float(found.min()), float(found.max())
    except (TypeError, ValueError, OverflowError):
        raise UpdateRefused(f"client {number} sent {_shown(key)} that are no numbers") from None
    if not (math.isfinite(smallest) and math.isfinite(largest)):
        raise UpdateRefused(f"client {number} sent {_shown(key)} that is not finite")
    if counts and not (whole and smallest >= 0 and largest <= LARGEST_COUNT):
        raise UpdateRefused(
            f"client {number} sent {_shown(key)} with the value "
            f"{smallest if smallest < 0 else largest:g}; it must be whole, from 0 to 2^53"
        )
    if key == wire.SECONDS and smallest < 0:
        raise UpdateRefused(f"client {number} sent {key} {smallest:g}; it must be >= 0")
    if max(-smallest, largest) > LARGEST:
        raise UpdateRefused(
            f"client {number} sent {_shown(key)} beyond {LARGEST:g} in size; its training diverged"
        )


def _shown(key: str) -> str:
    return repr(key[:80])
