"""What a comparison's scores are called, and which way each of them is better."""

from collections.abc import Collection
from dataclasses import dataclass

BASELINES = ("local", "pooled")
"""Arms that are no strategies: each hospital alone, and all images in one place."""
JOINT = " · "
"""Joins the parts of an arm's name; the first is its strategy or baseline."""


def is_baseline(arm: str, names: Collection[str] = BASELINES) -> bool:
    """Whether an arm is one of the baselines, with whatever else varies."""
    return arm.partition(JOINT)[0] in names


@dataclass(frozen=True)
class Measure:
    """A score of the test split.

    Attributes:
        label: In running text.
        higher_is_better: False for errors and spreads.
    """

    label: str
    higher_is_better: bool = True


MEASURES = {
    "balanced_accuracy": Measure("balanced accuracy"),
    "mcc": Measure("MCC"),
    "macro_f1": Measure("macro-F1"),
    "kappa": Measure("Cohen's kappa"),
    "macro_auroc": Measure("macro-AUROC"),
    "accuracy": Measure("accuracy"),
    "recall_head": Measure("head recall"),
    "recall_medium": Measure("medium recall"),
    "recall_tail": Measure("tail recall"),
    "worst_site_balanced_accuracy": Measure("balanced accuracy of the worst hospital"),
    "site_sd_balanced_accuracy": Measure("spread of balanced accuracy over hospitals", False),
    "ece": Measure("expected calibration error", False),
}
"""All that is analysed, by the column's name; fractions, shown as points (hundredths)."""
PRIMARY = "balanced_accuracy"
SPOKEN = (PRIMARY, "recall_tail", "worst_site_balanced_accuracy")
"""Measures that the sentences speak of; the others are in the tables."""
