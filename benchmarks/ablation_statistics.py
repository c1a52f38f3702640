"""Comparisons of two arms over seeds, by the rule that the ablation fixed before."""

import math
import statistics
from dataclasses import dataclass

from server.comparison.paired import LEVEL, half_width, paired_p

Arm = tuple[str, str]
"""Method and teacher."""


@dataclass(frozen=True)
class Comparison:
    """Paired differences of two arms over seeds, in points (hundredths).

    Attributes:
        setting: ``single`` or ``sites``.
        first: What is compared.
        second: What is subtracted.
        differences: One for each seed that both arms have.
        holm: P-value corrected for all comparisons of the score; nan until then.
    """

    setting: str
    first: Arm
    second: Arm
    differences: tuple[float, ...]
    holm: float = math.nan

    @property
    def mean(self) -> float:
        """Mean difference; nan without pairs."""
        return statistics.fmean(self.differences) if self.differences else math.nan

    @property
    def standard_error(self) -> float:
        """Of the mean; nan with fewer than two pairs."""
        num = len(self.differences)
        return statistics.stdev(self.differences) / math.sqrt(num) if num > 1 else math.nan

    def detectable(self, level: float = LEVEL) -> float:
        """Half the interval: a smaller mean difference is not separable from 0 at this level."""
        return half_width(self.differences, level)

    @property
    def p(self) -> float:
        """Two-sided p-value of Student's t test of the paired differences.

        Without a spread it is that of the formula, 0 or 1.
        """
        if self.standard_error == 0:
            return float(self.mean == 0)
        return paired_p(self.differences)
