"""Clients that failed: what is noted of each, and how it is told in one line."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Doing = Literal["train", "evaluate"]
TRACEBACK = "Traceback (most recent call last):"
LONGEST_LINE = 300
"""Characters of a reason in one line."""


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

    @property
    def has_more(self) -> bool:
        """Whether the reason says more than its line."""
        return self.reason.strip() != in_one_line(self.reason)

    def row(self) -> dict[str, Any]:
        """What ``failures.csv`` holds of it."""
        return {**vars(self), "reason": in_one_line(self.reason)}


def in_one_line(reason: str) -> str:
    """The exception at the end of a traceback, or the first line of another text, not too long.

    A client may send anything: what cannot be printed becomes a space.
    """
    lines = [line for line in reason.splitlines() if line.strip()]
    if TRACEBACK in lines:
        # Of exceptions that led to each other, the last; notes may follow it.
        start = len(lines) - lines[::-1].index(TRACEBACK)
        lines = [line for line in lines[start:] if not line.startswith(" ")]
    line = lines[0].strip() if lines else ""
    line = "".join(character if character.isprintable() else " " for character in line)
    return line if len(line) <= LONGEST_LINE else line[: LONGEST_LINE - 4] + " ..."


def describe(
    policy: str, failures: Sequence[Failure], kept_rounds: Sequence[int] = ()
) -> dict[str, Any]:
    """What ``summary.json`` holds of a run's failures: nothing if there were none.

    ``num_failed`` counts messages, so that a client that was asked three times in vain counts
    thrice; ``clients`` says how many of them each client had; ``kept_rounds``, if there are any,
    are those that kept the student that they began with.
    """
    if not failures and not kept_rounds:
        return {}
    names = {f.partition_id: f.client for f in sorted(failures, key=lambda f: f.partition_id)}
    clients = {
        name: sum(f.partition_id == number for f in failures) for number, name in names.items()
    }
    kept = {"kept_rounds": list(kept_rounds)} if kept_rounds else {}
    told = {"policy": policy, "num_failed": len(failures), "clients": clients, **kept}
    return {"failures": told}


def broken(kept_rounds: Sequence[int]) -> str:
    """Why a run that has reached its end did not end well."""
    return (
        f"the failure policy was broken in {listed(kept_rounds)}: too few clients were left, and "
        "the student stayed as it was (failures.policy = 'continue'); failures.csv and the log say "
        "why"
    )


def listed(rounds: Sequence[int]) -> str:
    """Rounds in words, ascending, neighbours joined: "rounds 2, 5 to 7"."""
    spans: list[list[int]] = []
    for number in rounds:
        if spans and number == spans[-1][-1] + 1:
            spans[-1] = [spans[-1][0], number]
        else:
            spans.append([number])
    words = ", ".join(" to ".join(map(str, span)) for span in spans)
    return f"round{'s' if len(rounds) > 1 else ''} {words}"


def reasons(failures: Iterable[Failure]) -> str:
    """Who failed and why, a paragraph each."""
    return "\n".join(f"client {f.partition_id} failed: {f.reason}" for f in failures)
