"""Krum: the student of the one client that is nearest to the others."""

from strategies.base import Setup
from strategies.multikrum import MultiKrum


class Krum(MultiKrum):
    """The one student with the lowest Krum score, buffers included; the others weigh 0.

    It is no average: of n hospitals, n - 1 have trained for nothing.

    Args:
        setup: What every strategy is told.
        num_malicious: f, clients that may send anything; a round has 2 f + 3 clients at least.

    Raises:
        ConfigError: Too few clients a round.

    Source: Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient
    Descent", NeurIPS 2017, of students instead of gradients. Scores are Flower's.
    """

    name = "krum"

    def __init__(self, setup: Setup, *, num_malicious: int) -> None:
        super().__init__(setup, num_malicious=num_malicious, num_selected=1)
