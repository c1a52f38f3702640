"""Settings of aggregation: which clients train, how the server weighs them, what travels, noise."""

from typing import Literal, Self

from pydantic import Field, model_validator

from fedkd.config import Section
from fedkd.models.exchange import ExchangeName

StrategyName = Literal[
    "fedavg",
    "uniform",
    "class_balanced",
    "fednova",
    "fedprox",
    "fedavgm",
    "fedadagrad",
    "fedadam",
    "fedyogi",
    "qfedavg",
    "fedmedian",
    "fedtrimmedavg",
    "krum",
    "multikrum",
    "bulyan",
    "mas",
    "mas_inv",
    "mas_drw",
]
OPTIONS: dict[str, dict[str, float | int]] = {
    "fedavgm": {"server_learning_rate": 1.0, "server_momentum": 0.9},
    "fedadagrad": {"server_learning_rate": 0.01, "tau": 1e-3},
    "fedadam": {"server_learning_rate": 0.01, "beta_1": 0.9, "beta_2": 0.99, "tau": 1e-3},
    "fedyogi": {"server_learning_rate": 0.01, "beta_1": 0.9, "beta_2": 0.99, "tau": 1e-3},
    "qfedavg": {"q": 0.1, "client_learning_rate": 0.1},
    "fedtrimmedavg": {"trim": 0.2},
    "krum": {"num_malicious": 0},
    "multikrum": {"num_malicious": 0, "num_selected": 3},
    "bulyan": {"num_malicious": 0},
}
"""Which options a strategy takes, and their defaults; the other strategies take none."""
BY_CLASS = ("mas", "mas_inv", "mas_drw", "class_balanced")
"""Strategies that read the clients' classes."""
STEPS = ("fednova", "fedavgm", "fedadagrad", "fedadam", "fedyogi", "qfedavg")
"""Strategies whose server takes a step of its own instead of an average of the students."""
SELECTS = ("krum", "multikrum", "bulyan")
"""Strategies that leave clients of a round out."""


class StrategyConfig(Section):
    """How the server samples clients and weighs their students, and what of them travels."""

    name: StrategyName = "fedavg"
    """Aggregation strategy; see `fedkd list`."""
    fraction_train: float = Field(default=1.0, gt=0, le=1)
    """Fraction of the clients that train in a round, at least one."""
    exchange: ExchangeName = "all"
    """Tensors of the student that travel: all, backbone (no head), without_projector,
    without_classifier, without_batchnorm (FedBN), or nothing (every hospital alone). The others
    stay with each client. Where predictions need them, val and test images are predicted by the
    client that they belong to."""
    server_learning_rate: float | None = Field(default=None, gt=0)
    """Step size of the server's optimiser (fedavgm: 1.0; fedadagrad, fedadam, fedyogi: 0.01). Not
    given, here and below, means the strategy's own default, in brackets."""
    server_momentum: float | None = Field(default=None, ge=0, lt=1)
    """Momentum of fedavgm (0.9)."""
    beta_1: float | None = Field(default=None, ge=0, lt=1)
    """Decay of the mean of updates of fedadam and fedyogi (0.9)."""
    beta_2: float | None = Field(default=None, ge=0, lt=1)
    """Decay of the mean of squared updates of fedadam and fedyogi (0.99)."""
    tau: float | None = Field(default=None, gt=0)
    """Degree of adaptivity of fedadagrad, fedadam and fedyogi: added to the root of the squared
    updates (0.001)."""
    q: float | None = Field(default=None, ge=0)
    """How much qfedavg favours clients with a high loss (0.1); 0 weighs clients equally."""
    client_learning_rate: float | None = Field(default=None, gt=0)
    """Of qfedavg (0.1): 1/L, L being its guess of the loss's Lipschitz constant."""
    trim: float | None = Field(default=None, ge=0, lt=0.5)
    """Fraction of the clients that fedtrimmedavg cuts off at each end (0.2), rounded down."""
    num_malicious: int | None = Field(default=None, ge=0)
    """Clients that krum, multikrum and bulyan reckon may send anything (0)."""
    num_selected: int | None = Field(default=None, ge=1)
    """Clients that multikrum averages (3)."""

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> Self:
        taken = OPTIONS.get(self.name, {})
        known = dict.fromkeys(key for options in OPTIONS.values() for key in options)
        for key in known:
            if getattr(self, key) is not None and key not in taken:
                takers = ", ".join(name for name, options in OPTIONS.items() if key in options)
                raise ValueError(
                    f"{key} is {getattr(self, key)}, but strategy.name = {self.name!r} does not "
                    f"take it; leave it out, or choose one that does: {takers}"
                )
        return self

    def options(self) -> dict[str, float | int]:
        """The options of this strategy, as given or else by default."""
        defaults = OPTIONS.get(self.name, {})
        given = {key: getattr(self, key) for key in defaults}
        return {key: defaults[key] if value is None else value for key, value in given.items()}


class PrivacyConfig(Section):
    """Central differential privacy of what the server makes of the students, by client.

    It hides whether a client's images took part, from who sees the global students of all rounds.
    The server itself is trusted. It covers the student's floating-point tensors, BatchNorm
    statistics included, and nothing else: metrics, class counts and predictions on val travel as
    they are. Only with fixed and strategy uniform is an epsilon known. Noise is derived from the
    seed, and who knows the seed can take it away: a simulation shows what privacy costs; for real
    patients, the noise must come from a secret source.
    """

    name: Literal["none", "fixed", "adaptive"] = "none"
    """none; fixed: each client's update is clipped to clipping_norm and noise is added to the
    aggregate; adaptive: the norm, clipping_norm at first, follows a quantile of clients' norms."""
    noise_multiplier: float = Field(default=1.0, ge=0)
    """Standard deviation of the noise, in units of clipping_norm / clients of the round."""
    clipping_norm: float = Field(default=1.0, gt=0)
    """L2 norm over all tensors of a client's update that it is clipped to."""
    target_quantile: float = Field(default=0.5, ge=0, le=1)
    """Of adaptive: fraction of the clients whose update shall be clipped."""
    delta: float = Field(default=1e-5, gt=0, lt=1)
    """Probability for which epsilon is stated in the summary; well below 1 / clients."""
