"""What a run has spent of its clients' privacy: (epsilon, delta) of Gaussian noise."""

import math
from typing import Any

from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr

from fedkd.aggregation import PrivacyConfig

NOT_COVERED = (
    "metrics, class counts and predictions on val travel without noise; the best round is chosen "
    "on the server's val split; who knows the seed can take the noise away"
)


def gaussian_delta(epsilon: float, mu: float) -> float:
    """Smallest delta at which one release with Gaussian noise is (epsilon, delta)-private.

    Phi(mu/2 - epsilon/mu) - e^epsilon Phi(-mu/2 - epsilon/mu)

    Args:
        epsilon: >= 0.
        mu: Sensitivity of what is released / standard deviation of the noise; > 0.

    Source: Balle and Wang, "Improving the Gaussian Mechanism for Differential Privacy: Analytical
    Calibration and Optimal Denoising", ICML 2018 (theorem 8).
    """
    # In logarithms, as e^epsilon overflows from 710 on while its product with Phi does not.
    second = math.exp(min(epsilon + float(log_ndtr(-mu / 2 - epsilon / mu)), 0.0))
    return max(float(ndtr(mu / 2 - epsilon / mu)) - second, 0.0)


def gaussian_epsilon(delta: float, mu: float) -> float:
    """The inverse of :func:`gaussian_delta`: 0 where delta is reached without any epsilon.

    Args:
        delta: In (0, 1).
        mu: > 0.
    """
    if gaussian_delta(0.0, mu) <= delta:
        return 0.0
    # The bound of zero-concentrated privacy (Bun and Steinke 2016) is above the exact value.
    bound = mu**2 / 2 + mu * math.sqrt(2 * math.log(1 / delta))
    return float(brentq(lambda epsilon: gaussian_delta(epsilon, mu) - delta, 0.0, bound))


def composed_mu(noise_multiplier: float, num_releases: int) -> float:
    """The mu of all releases together, each of sensitivity 1 and noise ``noise_multiplier``.

    Later releases may depend on earlier ones; that not all clients take part in a round is not
    counted in their favour.

    Source: Dong, Roth and Su, "Gaussian Differential Privacy", JRSS B 2022 (corollary 3.3).
    """
    return math.sqrt(num_releases) / noise_multiplier


def privacy_spent(config: PrivacyConfig, strategy: str, num_rounds: int) -> dict[str, Any]:
    """What the summary says of privacy, ready for JSON; epsilon is None where it is not known.

    Two runs are neighbours if one of them has a client whose update is replaced by none, its place
    among the clients of the round being kept: what ``uniform`` sums then differs by at most
    clipping_norm / clients, and the noise has noise_multiplier times that.

    Args:
        config: Section ``privacy``, not ``none``.
        strategy: ``strategy.name``.
        num_rounds: Rounds of the recipe. A run that stopped early is accounted for as if all had
            been run: when it stops hangs on what was released, and a shorter count is not proven.
    """
    epsilon, reason = None, ""
    if config.noise_multiplier == 0:
        reason = "no noise was added, so epsilon is infinite"
    elif config.name == "adaptive":
        reason = "Flower gives no accounting for adaptive clipping"
    elif strategy != "uniform":
        reason = (
            f"the accounting holds for strategy uniform; what one client changes with {strategy} "
            "is not bounded by clipping_norm / clients, as its data move the weights or the choice"
        )
    else:
        mu = composed_mu(config.noise_multiplier, num_rounds)
        epsilon = gaussian_epsilon(config.delta, mu)
    return {
        **config.model_dump(mode="json"),
        "epsilon": epsilon,
        "reason": reason,
        "rounds_accounted": num_rounds,
        "neighbours": "one client's update replaced by none",
        "not_covered": NOT_COVERED,
    }


def sentence(spent: dict[str, Any]) -> str:
    """The same in a line for the terminal."""
    delta = f"delta {spent['delta']:g}"
    if spent["epsilon"] is None:
        return f"privacy: epsilon is not known at {delta}: {spent['reason']}"
    return (
        f"privacy: epsilon {spent['epsilon']:.4g} at {delta} over {spent['rounds_accounted']} "
        "rounds, for the student's tensors alone"
    )
