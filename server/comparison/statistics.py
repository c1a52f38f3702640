"""The statistics of a comparison: scores, paired differences to a reference, ranks, sentences.

Which interval is of what. ``low`` and ``high`` are Student's t interval of the mean over seeds: on
normal scores it has its 95 % at any number of seeds, and with 3 it is honestly wide. The percentile
bootstrap over seeds (``boot_low``, ``boot_high``) is reported beside it since readers ask for it;
with few seeds it is too narrow (on normal scores it covers the truth in about 75 % of cases with 3
seeds, 84 % with 5 and 91 % with 10, measured in tests/test_comparison_intervals.py), and BCa cannot
mend that, its acceleration being estimated from the same few numbers. ``image_low`` and
``image_high`` resample test lesions or patients as well (``server.comparison.image_bootstrap``),
which no interval over seeds alone covers.
"""

import difflib
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from fedkd import seeding
from fedkd.errors import ConfigError, DataError
from server.comparison.image_bootstrap import (
    RESAMPLED,
    Floats,
    Predictions,
    TailClasses,
    resampled_scores,
    two_level,
)
from server.comparison.measures import MEASURES, is_baseline
from server.comparison.paired import (
    LEVEL,
    TEST_NAMES,
    Test,
    effect_size,
    half_width,
    holm,
    paired_p,
    spread,
)
from server.comparison.ranks import Ranking, rank
from server.comparison.sentences import alarms_of, sentences_of

NUM_SEED_RESAMPLES = 10_000
_KEYS = ("setting", "arm", "seed", "status", "error", "run")
# A score in the cells and the same one from predictions differ by rounding alone.
_ROUNDING = 1e-6
_Finished = Mapping[tuple[str, str], pd.DataFrame]
"""Measures of the finished cells of a setting and arm, by seed, ascending."""
_Resampled = Mapping[str, Mapping[tuple[str, int], Mapping[str, Floats]]]


@dataclass(frozen=True, eq=False)
class Statistics:
    """What a comparison shows. Scores are fractions, as in the cells.

    Attributes:
        reference: The arm that all others are set against.
        test: ``t`` or ``wilcoxon``.
        cells: As they were given.
        scores: Setting, arm, metric, n (finished seeds), mean, sd (n - 1), low, high, boot_low,
            boot_high, image_low, image_high; nan with fewer than 2 seeds, or without a spread.
        differences: Arm minus reference, paired by setting and seed: setting, arm, kind
            (``strategy`` or ``baseline``), metric, n (pairs), lacking (seeds without a pair), mean,
            sd, low, high, image_low, image_high, effect (Cohen's d_z with Hedges' correction), wins
            (pairs in which the arm is better), p, p_holm (corrected for all comparisons of the
            metric).
        ranks: By metric.
        answer: What balanced accuracy shows, in plain words.
        more: What else may be said.
        alarms: What must not be overlooked.
    """

    reference: str
    test: Test
    cells: pd.DataFrame
    scores: pd.DataFrame
    differences: pd.DataFrame
    ranks: Mapping[str, Ranking]
    answer: Sequence[str] = field(default_factory=tuple)
    more: Sequence[str] = field(default_factory=tuple)
    alarms: Sequence[str] = field(default_factory=tuple)

    @property
    def sentences(self) -> list[str]:
        """All that may be said, the answer first."""
        return [*self.answer, *self.more]


def analyse(
    cells: pd.DataFrame,
    reference: str,
    test: Test = "t",
    seed: int = 0,
    predictions: Predictions | None = None,
    tail: TailClasses | None = None,
) -> Statistics:
    """Compare all arms with the reference.

    Args:
        cells: Of an outcome: a row per cell with setting, arm, seed, status, error, run and the
            measures; measures that are absent, or nan throughout, are left out.
        reference: Name of an arm.
        test: Paired test, ``t`` or ``wilcoxon``.
        seed: Of the bootstrap's draws.
        predictions: Gives the predictions of a run, for intervals over test images; None leaves
            these intervals nan.
        tail: Gives the names of a run's tail classes, for those of tail recall.

    Raises:
        ConfigError: The reference is no arm, or the test is unknown.
        DataError: Columns are missing, a cell is there twice, or predictions do not give the
            score that the cell has.
    """
    _check(cells, reference, test)
    metrics = [name for name in MEASURES if name in cells and cells[name].notna().any()]
    rows = cells[cells["status"] == "finished"].sort_values("seed", kind="stable")
    resampled = _resample(rows, predictions, tail, seed)
    finished: _Finished = {
        (str(setting), str(arm)): own.set_index("seed")[metrics].astype(float)
        for (setting, arm), own in rows.groupby(["setting", "arm"], sort=False)
    }
    scores = _scores(cells, finished, metrics, resampled, seed)
    differences = _differences(cells, finished, metrics, reference, test, resampled, seed)
    ranks = {metric: rank(cells, metric) for metric in metrics}
    return Statistics(
        reference,
        test,
        cells,
        scores,
        differences,
        ranks,
        *sentences_of(cells, reference, scores, differences, ranks),
        alarms_of(cells, reference, test, differences),
    )


def _check(cells: pd.DataFrame, reference: str, test: str) -> None:
    if test not in TEST_NAMES:
        raise ConfigError(f"compare.test is {test!r}; allowed are {', '.join(TEST_NAMES)}")
    lacking = [name for name in _KEYS if name not in cells]
    if lacking:
        raise DataError(
            f"the cells of a comparison lack the columns {', '.join(lacking)}; they have "
            f"{', '.join(map(str, cells.columns))}"
        )
    arms = list(dict.fromkeys(cells["arm"]))
    if reference not in arms:
        near = difflib.get_close_matches(reference, arms, n=1)
        raise ConfigError(
            f"compare.reference is {reference!r}, which is no arm of the comparison; arms are "
            f"{', '.join(arms) or 'none'}{f'; did you mean {near[0]!r}?' if near else ''}"
        )
    twice = cells[cells.duplicated(["setting", "arm", "seed"])]
    if len(twice):
        one = twice.iloc[0]
        raise DataError(
            f"the cell of setting {one['setting']!r}, arm {one['arm']!r} and seed {one['seed']} is "
            "there more than once; a seed may be in compare.seeds once"
        )


def _resample(
    finished: pd.DataFrame,
    predictions: Predictions | None,
    tail: TailClasses | None,
    seed: int,
) -> _Resampled:
    """Scores of every finished cell on resamples of the test images, by setting."""
    if predictions is None:
        return {}
    found = {}
    for setting, rows in finished.groupby("setting", sort=False):
        keys = zip(rows["arm"], rows["seed"].astype(int), strict=True)
        runs = dict(zip(keys, rows["run"], strict=True))
        found[str(setting)] = resampled_scores(runs, predictions, tail, seed)
        for row in rows.to_dict("records"):
            own = found[str(setting)][str(row["arm"]), int(row["seed"])]
            for metric, values in own.items():
                told = row.get(metric, math.nan)
                if abs(told - values[0]) > _ROUNDING:
                    raise DataError(
                        f"predictions_test.csv of {row['run']} gives {MEASURES[metric].label} "
                        f"{values[0]:.6f}, its summary {told:.6f}; one of them is not of this run: "
                        "delete the run's folder and start the comparison again"
                    )
    return found


def _by_seed(finished: _Finished, setting: str, arm: str, metric: str) -> pd.Series:
    rows = finished.get((setting, arm))
    return pd.Series(dtype=float) if rows is None else rows[metric].dropna()


def _arms(cells: pd.DataFrame) -> list[tuple[str, str]]:
    """Settings and arms in the order of the plan, settings together."""
    pairs = cells[["setting", "arm"]].drop_duplicates()
    settings = list(dict.fromkeys(pairs["setting"]))
    return [(one, arm) for one in settings for arm in pairs.loc[pairs["setting"] == one, "arm"]]


def _summary(values: Floats) -> dict[str, float]:
    """Number, mean, sd and Student's interval."""
    num = len(values)
    mean = float(values.mean()) if num else math.nan
    half = half_width(values)
    sd = spread(values)
    return {"n": num, "mean": mean, "sd": sd, "low": mean - half, "high": mean + half}


def _scores(
    cells: pd.DataFrame,
    finished: _Finished,
    metrics: Sequence[str],
    resampled: _Resampled,
    seed: int,
) -> pd.DataFrame:
    rows = []
    for setting, arm in _arms(cells):
        for metric in metrics:
            values = _by_seed(finished, setting, arm, metric)
            of_seeds = _bootstrap(values.to_numpy(), seed)
            images = _images(resampled, setting, arm, None, metric, values.index, seed)
            rows.append(
                {
                    "setting": setting,
                    "arm": arm,
                    "metric": metric,
                    **_summary(values.to_numpy()),
                    **dict(zip(("boot_low", "boot_high"), of_seeds, strict=True)),
                    **dict(zip(("image_low", "image_high"), images, strict=True)),
                }
            )
    return pd.DataFrame(rows)


def _bootstrap(values: Floats, seed: int) -> tuple[float, float]:
    """Percentile interval of the mean; its draws depend on seed and number of values only."""
    if not spread(values) > 0:
        return math.nan, math.nan
    means = _resampling(len(values), seed) @ values
    low, high = np.quantile(means, [LEVEL / 2, 1 - LEVEL / 2])
    return float(low), float(high)


@functools.lru_cache(maxsize=8)
def _resampling(num: int, seed: int) -> Floats:
    """Share of each value in each resample, float64 (NUM_SEED_RESAMPLES, num)."""
    rng = seeding.rng(seed, "bootstrap-scores", num)
    return rng.multinomial(num, np.full(num, 1 / num), size=NUM_SEED_RESAMPLES) / num


def _images(
    resampled: _Resampled,
    setting: str,
    arm: str,
    minus: str | None,
    metric: str,
    seeds: pd.Index,
    seed: int,
) -> tuple[float, float]:
    """Interval over images and seeds of a score, or of its difference to another arm's."""
    if not resampled or metric not in RESAMPLED or len(seeds) < 2:
        return math.nan, math.nan
    found = resampled[setting]
    if metric not in found[arm, int(seeds[0])]:
        return math.nan, math.nan
    values = np.stack([found[arm, int(one)][metric][1:] for one in seeds])
    if minus is not None:
        values -= np.stack([found[minus, int(one)][metric][1:] for one in seeds])
    return two_level(values, seed, LEVEL)


def _differences(
    cells: pd.DataFrame,
    finished: _Finished,
    metrics: Sequence[str],
    reference: str,
    test: Test,
    resampled: _Resampled,
    seed: int,
) -> pd.DataFrame:
    rows = []
    planned = cells.groupby(["setting", "arm"]).size()
    for metric in metrics:
        sign = 1 if MEASURES[metric].higher_is_better else -1
        for setting, arm in _arms(cells):
            if arm == reference:
                continue
            against = _by_seed(finished, setting, reference, metric)
            paired = (_by_seed(finished, setting, arm, metric) - against).dropna()
            values = paired.to_numpy()
            images = _images(resampled, setting, arm, reference, metric, paired.index, seed)
            rows.append(
                {
                    "setting": setting,
                    "arm": arm,
                    "kind": "baseline" if is_baseline(arm) else "strategy",
                    "metric": metric,
                    "lacking": int(planned[setting, arm]) - len(values),
                    **_summary(values),
                    **dict(zip(("image_low", "image_high"), images, strict=True)),
                    "effect": effect_size(values),
                    "wins": int((sign * values > 0).sum()),
                    "p": paired_p(values, test),
                }
            )
    columns = ("setting", "arm", "kind", "metric", "n", "lacking", "mean", "sd", "low", "high",
               "image_low", "image_high", "effect", "wins", "p")  # fmt: skip
    frame = pd.DataFrame(rows, columns=list(columns))
    corrected = frame.groupby("metric")["p"].transform(lambda p: holm(p.tolist()))
    return frame.assign(p_holm=corrected.astype(float))
