"""What ``summary.json`` of a run directory must hold for those who read it."""

from typing import Any

from pydantic import ConfigDict, Field, FiniteFloat, model_validator

from fedkd.config import Section

Score = FiniteFloat | None


class _Part(Section):
    """More keys than these may be there: only what is read is checked."""

    model_config = ConfigDict(extra="allow")


class Reliability(_Part):
    """Bins of confidence."""

    confidence: list[Score]
    """Mean confidence of each bin; null where it is empty."""
    accuracy: list[Score]
    """Share of right predictions."""
    num_images: list[int]
    """Images in the bin."""


class Scores(_Part):
    """Of one split."""

    num_images: int = Field(ge=0)
    """Images of the split."""
    accuracy: Score = None
    """Share of right predictions."""
    balanced_accuracy: Score
    """Mean recall."""
    mcc: Score = None
    """Matthews' correlation."""
    macro_f1: Score = None
    """Mean F1."""
    kappa: Score = None
    """Cohen's kappa."""
    macro_auroc: Score = None
    """Mean area under the ROC curve."""
    ece: Score = None
    """Expected calibration error."""
    worst_site_balanced_accuracy: Score = None
    """Of the worst hospital."""
    site_sd_balanced_accuracy: Score = None
    """Spread over hospitals."""
    recall: dict[str, Score]
    """Of head, medium and tail."""
    recall_per_class: dict[str, Score]
    """Of each class."""
    balanced_accuracy_per_site: dict[str, Score]
    """Of each hospital."""
    worst_site: str
    """Name of the worst hospital."""
    confusion: list[list[int]]
    """Images by true (rows) and predicted class."""
    reliability: Reliability | None = None
    """Bins of confidence."""


class RunSummary(_Part):
    """A run, finished or not."""

    mode: str
    """federated or centralized."""
    status: str
    """running, finished, failed or interrupted."""
    config_hash: str = Field(min_length=8)
    """``Recipe.hash``."""
    partition_hash: str
    """``Partition.hash``."""
    clients: list[str] = Field(min_length=1)
    """Names of the hospitals."""
    train_counts: dict[str, int] = Field(min_length=2)
    """Training images of each class."""
    train_imbalance: float = 1.0
    """Of the largest to the smallest class."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Of the packages that it ran with."""
    given: list[str] = Field(default_factory=list)
    """What was given in Python."""
    at_hospitals: bool = False
    """Whether training images stayed at the hospitals."""
    seconds: FiniteFloat | None = None
    """Wall clock so far."""
    error: str | None = None
    """Why it did not end well."""
    best_round: int | None = Field(default=None, ge=0)
    """Whose student was tested."""
    val: Scores | None = None
    """Of the best round."""
    test: Scores | None = None
    """Of the student that was tested."""
    failures: dict[str, Any] | None = None
    """Of clients."""

    @model_validator(mode="after")
    def _is_whole(self) -> "RunSummary":
        scores = {"best_round": self.best_round, "val": self.val, "test": self.test}
        lacking = [name for name, value in scores.items() if value is None]
        if self.status == "finished" and lacking:
            raise ValueError(f"status is 'finished', but it has no {', '.join(lacking)}")
        classes = list(self.train_counts)
        for name, split in (("val", self.val), ("test", self.test)):
            if split is None:
                continue
            if [len(row) for row in split.confusion] != [len(classes)] * len(classes):
                raise ValueError(f"{name}.confusion has not a row and a column for each class")
            if list(split.recall_per_class) != classes:
                raise ValueError(f"{name}.recall_per_class has other classes than train_counts")
            if split.worst_site not in split.balanced_accuracy_per_site:
                raise ValueError(f"{name}.worst_site is none of balanced_accuracy_per_site")
            bins = split.reliability
            if bins and len({len(bins.confidence), len(bins.accuracy), len(bins.num_images)}) > 1:
                raise ValueError(f"the lists of {name}.reliability differ in length")
        return self
