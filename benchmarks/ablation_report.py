"""What benchmarks/ablation.py found: a CSV, and tables and a reading in docs/results.md.

All is made from the CSV, so that the page says what the CSV says.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from ablation_statistics import Arm, Comparison

from server.comparison.paired import LEVEL, holm

METRICS = ("balanced_accuracy", "mcc", "recall_tail")
COLUMNS = (
    "setting", "method", "teacher", "seed", "status", *METRICS, "val_balanced_accuracy",
    "best_round", "prior_clean", "prior", "mean_abs_log_gain", "magnitude", "seconds",
    "recipe_hash", "commit", "error",
)  # fmt: skip
LABELS = {
    "ce": "CE",
    "bsm": "BSM",
    "ekd": "EKD",
    "jitter": "EKD + jitter",
    "jitter_keep_dc": "EKD + jitter, DC kept",
    "amplitude_mix": "EKD + amplitude mix",
    "fpg": "EKD + FPG",
    "akd": "EKD + FPG + AKD",
    "probe: teacher": "the teacher's features",
    "probe: untrained network": "its network, untrained",
    "probe: raw 16x16 pixels": "raw 16x16 pixels",
}
SETTINGS = {"single": "Single client", "sites": "Four hospitals"}
TEACHERS = ("mobilenet_v2", "default")
DISTILLED = ("ekd", "jitter", "jitter_keep_dc", "amplitude_mix", "fpg", "akd")
LEARNED = ("fpg", "akd")
BEGIN, END = "<!-- ablation: begin -->", "<!-- ablation: end -->"


def pairs() -> Iterator[tuple[str, Arm, Arm]]:
    """Setting, what is compared, and what it is compared with, as the protocol says."""
    for setting in SETTINGS:
        yield setting, ("ce", "none"), ("bsm", "none")
        for teacher in TEACHERS:
            for method in DISTILLED:
                yield setting, (method, teacher), ("bsm", "none")
            for method in DISTILLED[1:]:
                yield setting, (method, teacher), ("ekd", teacher)
            for method in LEARNED:
                yield setting, (method, teacher), ("jitter", teacher)


Arms = Mapping[tuple[str, str, str], pd.DataFrame]
"""Finished cells by setting, method and teacher, in the order of their seeds."""


def arms_of(frame: pd.DataFrame) -> Arms:
    """Finished cells by what they ran."""
    finished = frame[frame.status == "finished"].set_index("seed").sort_index()
    groups = finished.groupby(["setting", "method", "teacher"])
    return {(str(one), str(two), str(three)): cells for (one, two, three), cells in groups}


def scores(arms: Arms, setting: str, arm: Arm, metric: str) -> pd.Series:
    """A score by seed; empty if no cell has finished."""
    found = arms.get((setting, *arm))
    return pd.Series(dtype=float) if found is None else found[metric]


def compare(arms: Arms, metric: str) -> list[Comparison]:
    """All comparisons of a score, corrected together."""
    found = []
    for setting, first, second in pairs():
        gap = scores(arms, setting, first, metric) - scores(arms, setting, second, metric)
        found.append(Comparison(setting, first, second, tuple(100 * gap.dropna())))
    corrected = holm([one.p for one in found])
    return [
        Comparison(one.setting, one.first, one.second, one.differences, p)
        for one, p in zip(found, corrected, strict=True)
    ]


def write_report(frame: pd.DataFrame, docs: Path) -> None:
    """Write results.csv, and from it the tables between the markers of results.md."""
    frame.to_csv(docs / "results.csv", index=False, float_format="%.6g")
    page = docs / "results.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{page} lacks the markers {BEGIN} and {END}; put them back, in order")
    text = f"{before}{BEGIN}\n{tables(read(docs / 'results.csv'))}\n{END}{after}"
    page.write_text(text, encoding="utf-8")


def read(path: Path) -> pd.DataFrame:
    """The CSV as it was written."""
    return pd.read_csv(path, keep_default_na=False, na_values=[""])


def tables(frame: pd.DataFrame) -> str:
    """All that stands between the markers."""
    arms = arms_of(frame)
    by_metric = {metric: compare(arms, metric) for metric in METRICS}
    parts = [_state(frame), "### In words", _reading(by_metric)]
    for setting, title in SETTINGS.items():
        parts += [f"### {title}", _means(arms, setting), _differences(by_metric, setting)]
    parts += ["### The teachers' own probes", _probes(arms)]
    parts += ["### What the prompts did", _prompts(arms)]
    return "\n\n".join(parts)


def _state(frame: pd.DataFrame) -> str:
    """How many cells there are, and which are not."""
    lacking = frame[frame.status != "finished"]
    names = sorted(
        f"{row.setting}.{row.method}.{row.teacher}.{row.seed} ({row.status})"
        for row in lacking.itertuples()
    )
    commits = sorted(set(frame.commit.dropna()))
    text = f"Code of commit {', '.join(commits) or 'unknown'}. "
    if not names:
        return text + "All cells have finished."
    if len(names) == len(frame):
        return text + "No cell has finished yet: the tables are empty."
    shown = ", ".join(names[:20]) + (" ..." if len(names) > 20 else "")
    return (
        f"{text}**Incomplete: {len(names)} cells are missing or failed:** {shown}. Each row says "
        "how many seeds it rests on."
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _spread(values: pd.Series, digits: int = 1, factor: float = 100) -> str:
    if not len(values):
        return "-"
    mean = f"{factor * values.mean():.{digits}f}"
    return f"{mean} ± {factor * values.std():.{digits}f}" if len(values) > 1 else mean


def _teacher(name: str) -> str:
    return "" if name == "none" else name


def _label(arm: Arm) -> str:
    method, teacher = arm
    return LABELS[method] + ("" if teacher == "none" else f" ({teacher})")


def _means(arms: Arms, setting: str) -> str:
    methods: list[Arm] = [("ce", "none"), ("bsm", "none")]
    methods += [(method, teacher) for teacher in TEACHERS for method in DISTILLED]
    rows = []
    for method, teacher in methods:
        found = [scores(arms, setting, (method, teacher), metric) for metric in METRICS]
        rows.append([LABELS[method], _teacher(teacher), str(len(found[0])), *map(_spread, found)])
    header = ["method", "teacher", "seeds", "balanced accuracy, %", "MCC, %", "tail recall, %"]
    return "Test scores, mean ± standard deviation over seeds.\n\n" + _table(header, rows)


def _interval(one: Comparison) -> str:
    if not one.differences:
        return "-"
    half = one.detectable()
    if math.isnan(half):
        return f"{one.mean:+.1f}"
    return f"{one.mean:+.1f} [{one.mean - half:+.1f}, {one.mean + half:+.1f}]"


def _p(value: float) -> str:
    return "-" if math.isnan(value) else "<0.001" if value < 0.001 else f"{value:.3f}"


def _differences(by_metric: Mapping[str, Sequence[Comparison]], setting: str) -> str:
    rows = []
    for first, *others in zip(*by_metric.values(), strict=True):
        if first.setting != setting:
            continue
        cells = [_label(first.first), _label(first.second), str(len(first.differences))]
        cells += [_interval(first), _p(first.p), _p(first.holm)]
        for other in others:
            cells += [_interval(other), _p(other.holm)]
        rows.append(cells)
    header = ["method", "minus", "pairs", "balanced accuracy, points [95 %]", "p", "p, Holm",
              "MCC, points [95 %]", "p, Holm", "tail recall, points [95 %]", "p, Holm"]  # fmt: skip
    return "Paired differences over seeds.\n\n" + _table(header, rows)


def _probes(arms: Arms) -> str:
    rows = []
    for teacher in TEACHERS:
        for method in LABELS:
            # Raw pixels are the same beside each teacher.
            if not method.startswith("probe: ") or ("raw" in method and teacher != TEACHERS[0]):
                continue
            arm = (method, teacher)
            found = [scores(arms, "single", arm, metric) for metric in METRICS]
            gap = found[0] - scores(arms, "single", ("bsm", "none"), METRICS[0])
            minus = Comparison("single", arm, ("bsm", "none"), tuple(100 * gap.dropna()))
            name = "" if "raw" in method else teacher
            rows.append(
                [LABELS[method], name, str(len(found[0])), *map(_spread, found), _interval(minus)]
            )
    header = ["features", "teacher", "seeds", "balanced accuracy, %", "MCC, %", "tail recall, %",
              "minus BSM (single client), points [95 %]"]  # fmt: skip
    return (
        "A linear probe on the same training images. The last column is descriptive and not among "
        "the corrected comparisons.\n\n" + _table(header, rows)
    )


def _prompts(arms: Arms) -> str:
    rows = []
    for setting, title in SETTINGS.items():
        for teacher in TEACHERS:
            pilot = scores(arms, setting, ("pilot", teacher), "mean_abs_log_gain")
            for method in DISTILLED[1:]:
                arm = (method, teacher)
                priors = [scores(arms, setting, arm, key) for key in ("prior_clean", "prior")]
                shown = _spread(pilot, 2, 1) if method in ("jitter", "jitter_keep_dc") else ""
                rows.append(
                    [title, teacher, LABELS[method], *(_spread(one, 3, 1) for one in priors), shown]
                )
    header = ["setting", "teacher", "method", "prior without prompts", "prior with full prompts",
              "mean absolute log-gain, matched to the pilot's FPG"]  # fmt: skip
    return (
        "Distance from the teacher's own data (the prior of exploration, lower is nearer) on a "
        "fixed batch of each client's training images, after the last round.\n\n"
        + _table(header, rows)
    )


def _reading(by_metric: Mapping[str, Sequence[Comparison]]) -> str:
    """What may be concluded, by the rule that was fixed before."""
    found = [one for one in by_metric[METRICS[0]] if len(one.differences) > 1]
    if not found:
        return "Nothing yet: no comparison has two pairs."
    sure = [one for one in found if one.holm < LEVEL]
    alone = [one for one in found if one.p < LEVEL <= one.holm]

    def listed(some: Sequence[Comparison]) -> str:
        return "; ".join(
            f"{_label(one.first)} minus {_label(one.second)}, {SETTINGS[one.setting].lower()}: "
            f"{_interval(one)} points"
            for one in some
        )

    num = len(found)
    lines = [
        f"Of {num} comparisons of balanced accuracy, {len(sure)} are separable from 0 after the "
        f"correction{': ' + listed(sure) if sure else ''}.",
        f"{len(alone)} more have an interval without 0, but do not survive the correction; with "
        f"{num} comparisons about {LEVEL * num:.0f} would be expected by chance alone"
        f"{': ' + listed(alone) if alone else ''}.",
        f"The other {num - len(sure) - len(alone)} are not separable from 0 by these seeds: "
        "neither a gain nor the lack of one is shown.",
    ]
    widths = [one.detectable() for one in found]
    corrected = [one.detectable(LEVEL / num) for one in found]
    lines.append(
        f"Smallest mean difference that these pairs could have shown: {np.median(widths):.1f} "
        f"points in the median comparison ({min(widths):.1f} to {max(widths):.1f}) if it were the "
        f"only one, {np.median(corrected):.1f} ({min(corrected):.1f} to {max(corrected):.1f}) if "
        f"it were the first of {num} to be corrected."
    )
    for metric, name in zip(METRICS[1:], ("MCC", "tail recall"), strict=True):
        others = [one for one in by_metric[metric] if one.holm < LEVEL]
        lines.append(
            f"{name}: {len(others)} separable after the correction"
            f"{': ' + listed(others) if others else ''}."
        )
    return "\n".join(f"- {line}" for line in lines)
