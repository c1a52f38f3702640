"""A comparison's statistics as files: CSV, JSON, and a LaTeX table for booktabs."""

import json
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from fedkd.files import replacing
from server.comparison.measures import MEASURES, PRIMARY
from server.comparison.paired import LEVEL, TEST_NAMES
from server.comparison.sentences import LEAST_SEEDS, label, points, separable
from server.comparison.statistics import Statistics
from server.latex import escape

LATEX_COLUMNS = {
    PRIMARY: "BA",
    "mcc": "MCC",
    "recall_head": "Head",
    "recall_medium": "Medium",
    "recall_tail": "Tail",
    "worst_site_balanced_accuracy": "Worst hosp.",
}
"""Measures of scores.tex and their headings."""
STATISTICS = "statistics.json"
_NBSP = "\N{NO-BREAK SPACE}"


def write_tables(statistics: Statistics, folder: Path) -> dict[str, Path]:
    """Write scores.csv, differences.csv, ranks.csv, statistics.json and scores.tex.

    Each is written whole or not at all; the folder is made. Scores are fractions, in scores.tex
    points.

    Returns:
        The files by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "scores.csv": statistics.scores.to_csv(index=False),
        "differences.csv": statistics.differences.to_csv(index=False),
        "ranks.csv": ranks_table(statistics).to_csv(index=False),
        STATISTICS: json.dumps(as_json(statistics), indent=2, allow_nan=False),
        "scores.tex": latex_scores(statistics),
    }
    for name, text in texts.items():
        with replacing(folder / name) as part:
            part.write_text(text, encoding="utf-8")
    return {name: folder / name for name in texts}


def ranks_table(statistics: Statistics) -> pd.DataFrame:
    """Average ranks of all measures: a row per measure and arm, best first.

    Columns metric, arm, average_rank, num_blocks, friedman, p, critical_difference (nan where there
    is none) and reason (why there is none).
    """
    columns = ("metric", "arm", "average_rank", "num_blocks", "friedman", "p",
               "critical_difference", "reason")  # fmt: skip
    rows = [
        (
            metric, arm, average, one.num_blocks, one.statistic, one.p,
            math.nan if one.critical_difference is None else one.critical_difference, one.reason,
        )
        for metric, one in statistics.ranks.items()
        for arm, average in one.average.items()
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=list(columns))


def as_json(statistics: Statistics) -> dict[str, Any]:
    """All numbers and sentences, ready for JSON: nan becomes None."""
    return {
        "reference": statistics.reference,
        "test": TEST_NAMES[statistics.test],
        "level": LEVEL,
        "correction": "Holm, over all settings and arms of one measure",
        "intervals": {
            "low, high": "95 %, Student's t over seeds",
            "boot_low, boot_high": "95 %, percentile bootstrap over seeds",
            "image_low, image_high": "95 %, percentile bootstrap over seeds and test lesions",
        },
        "effect": "Cohen's d_z with Hedges' correction",
        "alarms": list(statistics.alarms),
        "answer": list(statistics.answer),
        "sentences": statistics.sentences,
        "scores": _records(statistics.scores),
        "differences": _records(statistics.differences),
        "ranks": _records(ranks_table(statistics)),
    }


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    # By way of JSON, numpy's numbers become Python's, and nan None.
    found: list[dict[str, Any]] = json.loads(
        frame.to_json(orient="records", double_precision=15, force_ascii=False)
    )
    return found


def latex_scores(statistics: Statistics) -> str:
    r"""A table of scores, mean ± sd over seeds in points, for \usepackage{booktabs}.

    A score is bold if it is separably better than the reference's after Holm's correction, and has
    a dagger if it is separably worse. The highest mean is not marked as such: among several arms
    one is always the highest (our choice).
    """
    metrics = [name for name in LATEX_COLUMNS if name in set(statistics.scores["metric"])]
    lines = [
        "% Needs \\usepackage{booktabs}. Test scores in points (hundredths), mean ± sd over seeds.",
        f"% Bold: better than {statistics.reference} after Holm's correction "
        f"({TEST_NAMES[statistics.test]}, p < {LEVEL}, at least {LEAST_SEEDS} pairs).",
        "% Dagger: worse, likewise. The highest mean as such is not marked.",
        f"\\begin{{tabular}}{{l{'r' * (len(metrics) + 1)}}}",
        "\\toprule",
        " & ".join(["Arm", "Seeds", *(LATEX_COLUMNS[name] for name in metrics)]) + r" \\",
    ]
    settings = list(dict.fromkeys(statistics.scores["setting"]))
    for setting in settings:
        lines.append("\\midrule")
        if len(settings) > 1:
            title = escape(setting)
            lines.append(f"\\multicolumn{{{len(metrics) + 2}}}{{l}}{{\\emph{{{title}}}}} \\\\")
        lines += _latex_rows(statistics, setting, metrics)
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def _latex_rows(statistics: Statistics, setting: str, metrics: Sequence[str]) -> Iterator[str]:
    scores = statistics.scores[statistics.scores["setting"] == setting]
    for arm, rows in scores.groupby("arm", sort=False):
        of_metric = rows.set_index("metric").to_dict("index")
        texts = [escape(label(str(arm), statistics.reference))]
        texts.append(str(of_metric[metrics[0]]["n"]) if metrics else "0")
        for metric in metrics:
            mean, sd = float(of_metric[metric]["mean"]), float(of_metric[metric]["sd"])
            text = points(mean).replace("-", "--") if math.isnan(mean) else _number(mean)
            if not math.isnan(sd):
                text += f" $\\pm$ {points(sd)}"
            texts.append(_marked(text, verdict(statistics, setting, str(arm), metric)))
        yield " & ".join(texts) + r" \\"


def _number(value: float) -> str:
    text = points(value)
    return f"${text}$" if text.startswith("-") else text


def _marked(text: str, better: bool | None) -> str:
    if better is None:
        return text
    # Math mode keeps its own weight, so the sign stands between two bold numbers.
    return f"\\textbf{{{text}}}" if better else f"{text}$^\\dagger$"


def verdict(statistics: Statistics, setting: str, arm: str, metric: str) -> bool | None:
    """Whether an arm is separably better (True) or worse than the reference; None: neither."""
    rows = statistics.differences
    rows = rows[(rows["setting"] == setting) & (rows["arm"] == arm) & (rows["metric"] == metric)]
    if rows.empty or not separable(rows).iloc[0]:
        return None
    return bool((rows["mean"].iloc[0] > 0) == MEASURES[metric].higher_is_better)


def score_table(statistics: Statistics, setting: str) -> pd.DataFrame:
    """Mean ± sd of the main measures by arm, in points, as texts, for a page."""
    rows = []
    for arm, of_metric in _by_arm(statistics, setting):
        row = {"arm": arm, "seeds": of_metric.get(PRIMARY, {}).get("n", 0)}
        for metric, heading in LATEX_COLUMNS.items():
            if metric in of_metric:
                mean, sd = (float(of_metric[metric][name]) for name in ("mean", "sd"))
                row[heading] = points(mean)
                if not math.isnan(sd):
                    row[heading] += f"{_NBSP}±{_NBSP}{points(sd)}"
        rows.append(row)
    return pd.DataFrame(rows)


def interval_table(statistics: Statistics, setting: str) -> pd.DataFrame:
    """The 95 % intervals of balanced accuracy by arm, in points, as texts, for a page."""
    kinds = {
        "": "seeds (Student's t)",
        "boot_": "seeds (bootstrap)",
        "image_": "seeds and images (bootstrap)",
    }
    if statistics.scores.loc[statistics.scores["metric"] == PRIMARY, "image_low"].isna().all():
        del kinds["image_"]
    return pd.DataFrame(
        [
            {"arm": arm}
            | {
                heading: _range(of_metric[PRIMARY], f"{kind}low", f"{kind}high")
                for kind, heading in kinds.items()
            }
            for arm, of_metric in _by_arm(statistics, setting)
        ]
    )


def _by_arm(
    statistics: Statistics, setting: str
) -> Iterator[tuple[str, dict[Hashable, dict[Hashable, Any]]]]:
    """Scores by measure of each arm, under the name that a reader sees."""
    scores = statistics.scores[statistics.scores["setting"] == setting]
    for arm, rows in scores.groupby("arm", sort=False):
        yield label(str(arm), statistics.reference), rows.set_index("metric").to_dict("index")


def _range(found: Mapping[Hashable, Any], low: str, high: str) -> str:
    if math.isnan(found[low]):
        return "-"
    return f"{points(found[low])} to {points(found[high])}"
