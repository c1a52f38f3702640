"""Settings of a comparison: which axes are crossed, over which seeds, against what."""

from typing import Any, Literal

from pydantic import Field

from fedkd.config import Section

Choice = str | dict[str, Any]
"""A name, or a table of keys of the section, its name among them."""


class CompareConfig(Section):
    """What `fedkd compare` crosses; `fedkd run` reads none of it.

    Every combination is run with every seed, and beside the strategies always fedavg, ``local``
    (each hospital alone) and ``pooled`` (all images in one place). Cells of one seed share images,
    partition, initial student and rounds.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the recipe, each once; 3 at least show an uncertainty."""
    strategies: tuple[Choice, ...] = ()
    """Names, or tables such as { name = "fedtrimmedavg", trim = 0.25 }. Empty, here and below,
    means that of the recipe alone; fedavg is in as well."""
    objectives: tuple[Choice, ...] = ()
    """The same for section objective."""
    teachers: tuple[Choice, ...] = ()
    """The same for section teacher."""
    partitions: tuple[Choice, ...] = ()
    """The same for section partition."""
    imbalance_factors: tuple[float, ...] = ()
    """Values of long_tail.imbalance_factor."""
    axes: dict[str, list[Any]] = Field(default_factory=dict)
    """Any other key with its values, such as "training.local_epochs" = [1, 4]."""
    baselines: tuple[Literal["local", "pooled"], ...] = ("local", "pooled")
    """Which of them are run; leaving one out is for trying things."""
    reference: str = "fedavg"
    """Strategy that all others are set against."""
    test: Literal["t", "wilcoxon"] = "t"
    """Paired test over seeds: Student's t, or Wilcoxon's signed ranks, which with n seeds gives no
    p-value below 2^(1-n)."""
    workers: int = Field(default=1, ge=1)
    """Cells that run at the same time, each in a process of its own; 1 stays in this one."""
