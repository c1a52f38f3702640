"""Paired differences over seeds, their intervals, and p-values corrected for their number."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student_t

LEVEL = 0.05

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
        freedom = len(self.differences) - 1
        return float(student_t.isf(level / 2, freedom)) * self.standard_error

    @property
    def p(self) -> float:
        """Two-sided p-value of Student's t test of the paired differences."""
        error = self.standard_error
        if error == 0:
            return float(self.mean == 0)
        return float(2 * student_t.sf(abs(self.mean) / error, len(self.differences) - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number; nan stays nan and does not count.

    Source: Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal
    of Statistics 1979.
    """
    order = [i for i in np.argsort(p_values, kind="stable") if not math.isnan(p_values[i])]
    corrected, largest = [math.nan] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, (len(order) - rank) * p_values[index])
        corrected[index] = min(largest, 1.0)
    return corrected
