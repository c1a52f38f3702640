"""Trouble that is simulated as part of an experiment: settings."""

import math
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from fedkd.config import Section


class FaultsConfig(Section):
    """Trouble that is simulated, seeded like all else; by default there is none.

    Hospitals are named as in the partition table, or by their number, from 0.
    """

    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability that a client does not answer in a round: it is sent nothing and counts as
    failed. Needs failures.policy = continue."""
    stragglers: float = Field(default=0.0, ge=0, le=1)
    """Probability that a client is slow in a round."""
    delay: Literal["exponential", "lognormal", "uniform"] = "exponential"
    """Distribution of how much longer a slow client takes, in units of the time it usually takes,
    with the mean delay_mean; lognormal has sigma 1, uniform begins at 0."""
    delay_mean: float = Field(default=1.0, gt=0)
    """Mean of that delay: 1 means that a slow client needs twice its usual time on average."""
    partial_work: bool = True
    """A slow client stops when others have done all their local steps, and sends what it has:
    1 / (1 + delay) of its steps, rounded down, at least one; it weighs as ever. Otherwise it does
    all, and the round waits. No time is slept either way."""
    joins: dict[str, int] = {}
    """Round in which a hospital takes part first."""
    leaves: dict[str, int] = {}
    """Round from which on a hospital takes no part any more."""
    label_noise: dict[str, float] = {}
    """Probability, at a hospital, that a training image's label is another class, drawn at
    random."""
    byzantine: tuple[str, ...] = ()
    """Hospitals that send a wrong update."""
    attack: Literal["sign_flip", "noise", "scale", "nan"] = "sign_flip"
    """What they send instead of their update u, the trained minus the received parameters:
    sign_flip -attack_scale u, noise u plus Gaussian noise of attack_scale times the standard
    deviation of u's entries, scale attack_scale u; buffers and integers as they are. nan: no
    floating-point value is a number."""
    attack_scale: float = Field(default=1.0, gt=0)
    """See attack."""

    @field_validator("byzantine", mode="before")
    @classmethod
    def _numbers_are_names(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            return value
        return [str(v) if isinstance(v, int) and not isinstance(v, bool) else v for v in value]

    @field_validator("attack", mode="before")
    @classmethod
    def _nan_is_a_name(cls, value: Any) -> Any:
        # attack=nan of the command line is a number in TOML.
        return "nan" if isinstance(value, float) and math.isnan(value) else value

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        table: tuple[tuple[str, Mapping[str, float], str, float, float], ...] = (
            ("joins", self.joins, "a round, 1 or later", 1, math.inf),
            ("leaves", self.leaves, "a round, 2 or later", 2, math.inf),
            ("label_noise", self.label_noise, "a probability, 0 to 1", 0, 1),
        )
        wrong = [
            f"faults.{key}.{name} is {value}; it must be {allowed}"
            for key, values, allowed, low, high in table
            for name, value in values.items()
            if not low <= value <= high
        ]
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    @property
    def is_given(self) -> bool:
        """Whether anything is simulated; how a delay or an attack would be is nothing yet."""
        return bool(self.in_words())

    def in_words(self) -> str:
        """What is simulated, in one line; empty if nothing is."""

        def listed(values: Mapping[str, float], what: str) -> str:
            return ", ".join(f"client {name} {what} {value:g}" for name, value in values.items())

        words = []
        if self.dropout:
            words.append(f"a client drops out of a round with probability {self.dropout:g}")
        if self.stragglers:
            ending = "sends what it has" if self.partial_work else "is waited for"
            words.append(
                f"a client is slow with probability {self.stragglers:g} ({self.delay} delay, mean "
                f"{self.delay_mean:g} times its usual time) and {ending}"
            )
        if self.joins:
            words.append(listed(self.joins, "joins in round"))
        if self.leaves:
            words.append(listed(self.leaves, "leaves in round"))
        if self.label_noise:
            words.append(listed(self.label_noise, "has other labels with probability"))
        if self.byzantine:
            scale = "" if self.attack == "nan" else f" x {self.attack_scale:g}"
            who = ", ".join(f"client {name}" for name in self.byzantine)
            words.append(f"{who} sends wrong updates ({self.attack}{scale})")
        return "; ".join(words)
