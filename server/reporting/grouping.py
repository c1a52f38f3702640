"""Runs of one recipe belong together, seeds being repetitions; recipes are told apart by keys."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from fedkd.config import Section
from server.reporting.record import Record

LEFT_OUT = (
    "name",
    "seed",
    "output",
    "keep_students_every",
    "tracking",
    "compare",
    "engine",
    "failures",
)
"""Keys by which runs are not told apart: they change no number, or make a repetition."""
ROUNDED = "engine.mixed_precision"
"""The one key of these sections that changes more than last bits."""
_MAX_LABEL = 60


@dataclass(frozen=True)
class Group:
    """Runs of one recipe, one per seed.

    Attributes:
        label: Tells the recipe from the others.
        records: In the order of their seeds; at least one.
        doubled: Runs that are left out, as a run of the same seed is in ``records``.
    """

    label: str
    records: tuple[Record, ...]
    doubled: tuple[Record, ...] = ()

    @property
    def finished(self) -> list[Record]:
        """Those with test scores."""
        return [record for record in self.records if record.is_finished]

    @property
    def unfinished(self) -> list[Record]:
        """The others."""
        return [record for record in self.records if not record.is_finished]


def flatten(config: Section) -> dict[str, Any]:
    """All keys, dotted, with their values as JSON has them."""
    values = config.model_dump(mode="json")
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else key, inner)
        else:
            flat[prefix] = value

    walk("", values)
    return flat


def shown_value(value: Any) -> str:
    """A config value as a table shows it."""
    if value is None:
        return "not given"
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def group_runs(records: Sequence[Record]) -> tuple[list[Group], pd.DataFrame]:
    """Put repetitions together.

    Of two runs of one recipe and seed the last finished one counts, or else the last: they are no
    two draws.

    Args:
        records: At least one.

    Returns:
        The groups, in the order of their first runs, and the keys in which they differ: a row per
        group, a column per key.
    """
    keyed: dict[str, list[Record]] = {}
    values: dict[str, dict[str, Any]] = {}
    for record in records:
        flat = {"mode": record.summary["mode"], **_told_apart(record)}
        key = json.dumps(flat, sort_keys=True)
        keyed.setdefault(key, []).append(record)
        values[key] = flat
    names = list(dict.fromkeys(name for flat in values.values() for name in flat))
    missing = object()
    differing = [
        name
        for name in names
        if len({json.dumps(f[name]) if name in f else missing for f in values.values()}) > 1
    ]
    labels = _labels([values[key] for key in keyed], differing, records[0].recipe.name)
    groups = [_group(label, runs) for label, runs in zip(labels, keyed.values(), strict=True)]
    table = pd.DataFrame({"recipe": labels})
    for name in differing:
        table[name] = [
            shown_value(flat[name]) if name in flat else "does not apply"
            for flat in values.values()
        ]
    return groups, table


def _told_apart(record: Record) -> dict[str, Any]:
    return {
        key: value
        for key, value in flatten(record.recipe).items()
        if key.partition(".")[0] not in LEFT_OUT or key == ROUNDED
    }


def _labels(recipes: list[dict[str, Any]], differing: list[str], name: str) -> list[str]:
    """The differing values; the bare value where its key is a section's name."""
    labels = []
    for flat in recipes:
        parts = [
            shown_value(flat[key])
            if key.endswith(".name") or key == "mode"
            else f"{key}={shown_value(flat[key])}"
            for key in differing
            if flat.get(key) is not None and flat[key] != "federated"
        ]
        text = ", ".join(parts) or name
        labels.append(text if len(text) <= _MAX_LABEL else f"{text[: _MAX_LABEL - 1]}…")
    return [
        label if labels.count(label) == 1 else f"{label} ({labels[: number + 1].count(label)})"
        for number, label in enumerate(labels)
    ]


def _group(label: str, records: Sequence[Record]) -> Group:
    by_seed: dict[int, list[Record]] = {}
    for record in records:
        by_seed.setdefault(record.seed, []).append(record)
    kept, doubled = [], []
    for seed in sorted(by_seed):
        *others, last = sorted(by_seed[seed], key=lambda one: (one.is_finished, one.path.name))
        kept.append(last)
        doubled += others
    return Group(label, tuple(kept), tuple(doubled))
