"""Clients that failed: what is noted of each, and how it is told in one line."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Doing = Literal["train", "evaluate"]
TRACEBACK = "Traceback (most recent call last):"


@dataclass(frozen=True)
class Failure:
    """A message to a client that was not answered as it should have been.

    Attributes:
        round: In which it was sent; with ``evaluate``, after which.
        partition_id: Which client.
        client: Its name.
        doing: What it was asked to do.
        attempt: How often it had been asked by then, from 1.
        reason: Why, as the client or the engine tells it: a text for the user, or a traceback.
    """

    round: int
    partition_id: int
    client: str
    doing: Doing
    attempt: int
    reason: str

    @property
    def name(self) -> str:
        """Number and name, as texts show a client."""
        return f"client {self.partition_id} ({self.client})"

    def row(self) -> dict[str, Any]:
        """What ``failures.csv`` holds of it."""
        return {**vars(self), "reason": in_one_line(self.reason)}


def in_one_line(reason: str) -> str:
    """The exception at the end of a traceback, or the first line of another text."""
    lines = [line for line in reason.splitlines() if line.strip()]
    if TRACEBACK in lines:
        # Of exceptions that led to each other, the last; notes may follow it.
        start = len(lines) - lines[::-1].index(TRACEBACK)
        lines = [line for line in lines[start:] if not line.startswith(" ")]
    return lines[0].strip() if lines else ""


def describe(policy: str, failures: Sequence[Failure]) -> dict[str, Any]:
    """What ``summary.json`` holds of a run's failures: nothing if there were none.

    ``num_failed`` counts messages, so that a client that was asked three times in vain counts
    thrice; ``clients`` says how many of them each client had.
    """
    if not failures:
        return {}
    names = {f.partition_id: f.client for f in sorted(failures, key=lambda f: f.partition_id)}
    clients = {
        name: sum(f.partition_id == number for f in failures) for number, name in names.items()
    }
    return {"failures": {"policy": policy, "num_failed": len(failures), "clients": clients}}


def reasons(failures: Iterable[Failure]) -> str:
    """Who failed and why, a paragraph each."""
    return "\n".join(f"client {f.partition_id} failed: {f.reason}" for f in failures)
