"""Trouble that is simulated as part of an experiment: settings."""

from typing import Literal

from pydantic import Field

from fedkd.config import Section


class FaultsConfig(Section):
    """Trouble that is simulated, seeded like all else; by default there is none.

    Hospitals are named as in the partition table, or by their number, from 0.
    """

    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability that a client does not answer in a round. Needs failures.policy = continue."""
    stragglers: float = Field(default=0.0, ge=0, le=1)
    """Probability that a client is slow in a round."""
    delay: Literal["exponential", "lognormal", "uniform"] = "exponential"
    """Distribution of how much longer a slow client takes, in units of the time it usually takes,
    with the mean delay_mean; lognormal has sigma 1, uniform begins at 0."""
    delay_mean: float = Field(default=1.0, gt=0)
    """Mean of that delay: 1 means that a slow client needs twice its usual time on average."""
    partial_work: bool = True
    """A slow client stops when others have done all their local steps, and sends what it has:
    1 / (1 + delay) of its steps, at least one. Otherwise it does all, and the round waits. No time
    is slept either way."""
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
    """What they send instead of their update u, the trained minus the received student: sign_flip
    -attack_scale u, noise u plus Gaussian noise of attack_scale times its standard deviation,
    scale attack_scale u, nan values that are not numbers."""
    attack_scale: float = Field(default=1.0, gt=0)
    """See attack."""

    @property
    def is_given(self) -> bool:
        """Whether anything is simulated."""
        return self != FaultsConfig()
