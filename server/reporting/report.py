"""The page of a run, of several runs, or of a comparison, and the same numbers as files."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from fedkd import files
from fedkd.errors import ConfigError
from server.comparison.outcome import RECORD, Outcome
from server.comparison.tables import write_tables
from server.latex import to_latex
from server.pictures.comparison import sections as statistics_sections
from server.pictures.page import Alarm, Section, write_page
from server.reporting import comparison, result_sections, run_sections
from server.reporting.grouping import Group, group_runs
from server.reporting.numbers import METRICS, scalars, scores_table, spread
from server.reporting.record import Record, read_record
from server.reporting.several import runs, scores_by_recipe, several_sections

PAGE, NUMBERS = "report.html", "report"
MAX_IN_FULL = 12
"""Recipes that a page of several shows with matrices of their own."""
_FILES = ("scores.csv", "report.json", "tables.tex")


def write_report(path: Path | str, *more: Path | str, output: Path | str | None = None) -> Path:
    """Write ``report.html`` and, in a folder ``report`` beside it, its numbers.

    Args:
        path: A run directory, or a comparison's folder.
        more: Further run directories; runs that differ in nothing but their seed are repetitions.
        output: Folder of the page. Not given means ``path`` itself if it is alone, else a folder
            ``report`` in the deepest folder that holds all runs.

    Returns:
        The path of the page.

    Raises:
        ConfigError: No such directory, or the output cannot be written.
        DataError: A table of a run is damaged.
    """
    paths = [Path(one) for one in (path, *more)]
    if len(paths) == 1 and comparison.is_comparison(paths[0]):
        return _write_comparison(paths[0], Path(output or paths[0]))
    inner = next((one for one in paths if comparison.is_comparison(one)), None)
    if inner is not None:
        raise ConfigError(
            f"{inner} is a comparison; a report shows one comparison alone, or runs: give the "
            "run directories in it instead"
        )
    folder = Path(output) if output else paths[0] if len(paths) == 1 else _common(paths)
    records = [read_record(one) for one in dict.fromkeys(one.resolve() for one in paths)]
    groups, differing = group_runs(records)
    return _write(
        folder, groups, differing, _title(groups), [], lambda into: _write_numbers(into, groups)
    )


def _common(paths: Sequence[Path]) -> Path:
    shared = [Path(*level) for level in [one.resolve().parts for one in paths]]
    parents = [set(one.parents) for one in shared]
    return max(set.intersection(*parents), key=lambda one: len(one.parts)) / NUMBERS


def _title(groups: Sequence[Group]) -> str:
    names = list(dict.fromkeys(run.recipe.name for group in groups for run in group.records))
    seeds = sorted({run.seed for group in groups for run in group.records})
    text = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    if len(groups) > 1:
        return f"{text}: {len(groups)} recipes"
    return f"{text}: " + (f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds")


def _write_comparison(folder: Path, output: Path) -> Path:
    outcome = Outcome.load(folder)
    by_label: dict[str, list[Record]] = {}
    for cell in outcome.cells.to_dict("records"):
        if cell["run"]:
            name = comparison.label(cell["setting"], cell["arm"])
            by_label.setdefault(name, []).append(read_record(folder / cell["run"]))
    if not by_label:
        raise ConfigError(
            f"{folder / RECORD} names no run yet; run `fedkd compare` until cells finish"
        )
    groups = [
        Group(label, tuple(sorted(runs, key=lambda run: run.seed)))
        for label, runs in by_label.items()
    ]
    _, differing = group_runs([run for group in groups for run in group.records])
    statistics = comparison.statistics_of(outcome, folder)
    notes = [*map(Alarm, outcome.notes)]
    first = [Section("Cells that are not paired", notes)] if notes else []
    first += statistics_sections(statistics)
    title = f"Comparison {outcome.name}"
    return _write(
        output, groups, differing, title, first, lambda into: list(write_tables(statistics, into))
    )


def _write(
    folder: Path,
    groups: Sequence[Group],
    differing: pd.DataFrame,
    title: str,
    first: Sequence[Section],
    write_numbers: Callable[[Path], list[str]],
) -> Path:
    numbers = folder / NUMBERS
    try:
        numbers.mkdir(parents=True, exist_ok=True)
        written = write_numbers(numbers)
        page = folder / PAGE
        sections = [*first, *_sections(groups, differing, tested=bool(first))]
        sections.append(
            Section(
                "The same numbers as files",
                (f"In the folder {NUMBERS} beside this page: {', '.join(written)}.",),
            )
        )
        write_page(page, title, _introduction(groups), sections, "Made by: fedkd report")
    except OSError as error:
        raise ConfigError(f"cannot write to {folder}: {error}; choose another --output") from None
    return page


def _introduction(groups: Sequence[Group]) -> list[str]:
    runs = [run for group in groups for run in group.records]
    finished = sum(run.is_finished for run in runs)
    if len(runs) == 1:
        return [f"Status: {runs[0].summary.get('status')}, mode: {runs[0].summary['mode']}."]
    recipes = "one recipe" if len(groups) == 1 else f"{len(groups)} recipes"
    return [f"{len(runs)} runs of {recipes}, {finished} finished."]


def _sections(groups: Sequence[Group], differing: pd.DataFrame, tested: bool) -> list[Section]:
    if len(groups) == 1:
        return _of_one(groups[0])
    sections = several_sections(groups, differing, tested)
    sections += [run_sections.protocol(groups[0]), run_sections.data(groups[0])]
    for group in groups[:MAX_IN_FULL]:
        if group.finished:
            for make in (result_sections.confusion, result_sections.recall, result_sections.sites):
                made = make(group)
                sections.append(Section(f"{made.heading}: {group.label}", made.blocks))
    if len(groups) > MAX_IN_FULL:
        sections.append(
            Section(
                "Not shown",
                (
                    f"Matrices of the first {MAX_IN_FULL} of {len(groups)} recipes are shown; "
                    "`fedkd report RUN` makes a page of any run.",
                ),
            )
        )
    sections += [
        result_sections.traffic(groups[0]),
        runs(groups),
        run_sections.environment(groups[0]),
    ]
    named = f": {groups[0].label}"
    return [
        Section(one.heading + named, one.blocks)
        if one.heading in ("Protocol", "Data", "Communication and compute", "Environment")
        else one
        for one in sections
    ]


def _of_one(group: Group) -> list[Section]:
    return [
        run_sections.outcome(group),
        run_sections.protocol(group),
        run_sections.data(group),
        run_sections.curves(group),
        result_sections.confusion(group),
        result_sections.recall(group),
        result_sections.sites(group),
        result_sections.calibration(group),
        result_sections.weights(group),
        result_sections.traffic(group),
        run_sections.environment(group),
    ]


def _write_numbers(folder: Path, groups: Sequence[Group]) -> list[str]:
    records = [record for group in groups for record in group.records]
    labels = [group.label for group in groups for _ in group.records]
    scores = scores_table(records, labels)
    with files.replacing(folder / "scores.csv") as part:
        scores.to_csv(part, index=False)
    record = {"runs": [_plain(row) for row in scores.to_dict("records")]}
    with files.replacing(folder / "report.json") as part:
        part.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    with files.replacing(folder / "tables.tex") as part:
        part.write_text("\n".join(_tables(groups)), encoding="utf-8")
    return list(_FILES)


def _plain(row: dict[Any, Any]) -> dict[str, Any]:
    return {
        str(key): None if isinstance(value, float) and math.isnan(value) else value
        for key, value in row.items()
    }


def _tables(groups: Sequence[Group]) -> list[str]:
    if len(groups) > 1:
        caption = "Test scores, mean ± standard deviation over seeds."
        return [to_latex(scores_by_recipe(groups), caption)]
    runs = groups[0].finished
    if not runs:
        return []
    frame = pd.DataFrame(
        {
            "metric": label,
            **{
                split: spread([scalars(run.summary[split])[name] for run in runs])
                for split in ("val", "test")
            },
        }
        for name, label in METRICS.items()
    )
    seeds = f"mean ± standard deviation over {len(runs)} seeds" if len(runs) > 1 else "one seed"
    caption = f"Scores of {runs[0].recipe.name}, student chosen on val ({seeds})."
    table = runs[0].per_class.fillna(float("nan"))
    classes = pd.DataFrame(
        {
            "class": table["class"],
            "group": table["group"],
            "train": table["num_train"],
            "test": table["num_test"],
            "recall": [
                spread(
                    [
                        float("nan") if value is None else float(value)
                        for run in runs
                        for value in [run.summary["test"]["recall_per_class"][name]]
                    ]
                )
                for name in table["class"]
            ],
        }
    )
    return [to_latex(frame, caption), to_latex(classes, "Test recall of each class.")]
