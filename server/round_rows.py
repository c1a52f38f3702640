"""Numbers of a table's row, from what clients sent in a round."""

from collections.abc import Iterable, Mapping
from typing import Any

from fedkd import wire
from fedkd.data.images import Integers
from fedkd.metrics import balanced_accuracy, mcc

Row = dict[str, Any]


def own_scores(confusion: Integers) -> Row:
    """Scores of clients' own students on val, from int64 (num_classes, num_classes)."""
    return {
        "own_val_balanced_accuracy": balanced_accuracy(confusion),
        "own_val_mcc": mcc(confusion),
    }


def pooled(reports: list[Mapping[str, Any]]) -> Row:
    """Loss terms over all images of all clients; a client's own values as means over clients."""
    num_seen = sum(metrics[wire.NUM_SEEN] for metrics in reports)
    sums: dict[str, float] = {}
    for metrics in reports:
        for key, value in metrics.items():
            if key.startswith(wire.SUM):
                sums[key] = sums.get(key, 0.0) + value
    own: dict[str, list[float]] = {}
    for metrics in reports:
        for key, value in metrics.items():
            if key.startswith(wire.MEAN):
                own.setdefault(key.removeprefix(wire.MEAN), []).append(value)
    terms = {f"train_{name}": value for name, value in means(sums, num_seen).items()}
    # A client that does all of its work is as late as it is slow; nobody is earlier than usual.
    times = [m[wire.WORK] * (1 + m[wire.DELAY]) for m in reports if wire.DELAY in m]
    return {
        "num_seen": num_seen,
        **traffic(reports),
        **terms,
        **{name: sum(values) / len(values) for name, values in own.items()},
        **({"simulated_duration": max(1.0, *times)} if times else {}),
    }


def traffic(reports: Iterable[Mapping[str, Any]]) -> Row:
    """Bytes that went down to the clients and up from them; 0 where nothing travels."""
    rows = list(reports)
    return {
        "bytes_down": sum(metrics.get(wire.BYTES_DOWN, 0) for metrics in rows),
        "bytes_up": sum(metrics.get(wire.BYTES_UP, 0) for metrics in rows),
    }


def means(sums: Mapping[str, Any], num_seen: int) -> Row:
    """Sums over images, divided by their number; 0 images leave 0."""
    return {
        key.removeprefix(wire.SUM): value / max(num_seen, 1)
        for key, value in sums.items()
        if key.startswith(wire.SUM)
    }
