"""What a page shows of several recipes beside each other."""

import math
from collections.abc import Sequence
from functools import partial

import pandas as pd

from server.pictures.page import Alarm, Block, DataTable, Drawing, Section
from server.pictures.report_bars import draw_scores
from server.pictures.report_curves import draw_group_curves
from server.reporting.grouping import Group
from server.reporting.numbers import METRICS, scalars, spread
from server.reporting.run_sections import ENOUGH_SEEDS, alarms

DRAWN = ("balanced_accuracy", "recall_tail", "worst_site_balanced_accuracy")
COLUMNS = {
    "balanced_accuracy": "balanced accuracy",
    "mcc": "MCC",
    "macro_f1": "macro-F1",
    "kappa": "kappa",
    "macro_auroc": "AUROC",
    "ece": "ECE",
    "recall_head": "head",
    "recall_medium": "medium",
    "recall_tail": "tail",
    "worst_site_balanced_accuracy": "worst hospital",
    "site_sd_balanced_accuracy": "sd over hospitals",
}


def scores_by_recipe(groups: Sequence[Group]) -> pd.DataFrame:
    """A row per recipe: its seeds and its scores on test, as texts."""
    rows = []
    for group in groups:
        values = [scalars(run.summary["test"]) for run in group.finished]
        rows.append(
            {
                "recipe": group.label,
                "seeds": str(len(values)),
                **{label: spread([v[name] for v in values]) for name, label in COLUMNS.items()},
            }
        )
    return pd.DataFrame(rows)


def several_sections(
    groups: Sequence[Group], differing: pd.DataFrame, tested: bool
) -> list[Section]:
    """Which recipes there are, their scores and their curves.

    Args:
        groups: At least two.
        differing: The keys in which they differ, a row per group; see ``group_runs``.
        tested: Whether the page has a comparison's tests, warnings and drawings of scores already.
    """
    warnings: list[Block] = [
        Alarm(f"{group.label}: {alarm.text}") for group in groups for alarm in alarms(group)
    ]
    return [
        Section("Runs", (*warnings, _runs(groups))),
        Section("What differs", (DataTable(differing),)),
        _scores(groups, tested),
        _curves(groups),
    ]


def _runs(groups: Sequence[Group]) -> DataTable:
    rows = [
        {
            "recipe": group.label,
            "seed": str(record.seed),
            "status": str(record.summary.get("status")),
            "rounds": f"{len(record.rounds)} of {record.recipe.num_rounds}",
            "run directory": record.path.name,
            "config hash": record.summary["config_hash"][:8],
            "partition hash": record.summary["partition_hash"][:8],
        }
        for group in groups
        for record in group.records
    ]
    return DataTable(pd.DataFrame(rows))


def _scores(groups: Sequence[Group], tested: bool) -> Section:
    heading = "Scores on test"
    if not any(group.finished for group in groups):
        return Section(heading, ("There are no test scores, as no run is finished.",))
    table: list[Block] = [
        "Students chosen on val; mean ± standard deviation (n - 1) over seeds.",
        DataTable(scores_by_recipe(groups)),
    ]
    if tested:
        return Section(heading, table)
    scores = {
        METRICS[name]: {
            group.label: [scalars(run.summary["test"])[name] for run in group.finished]
            for group in groups
        }
        for name in DRAWN
    }
    drawn = {
        metric: values
        for metric, values in scores.items()
        if any(not math.isnan(v) for runs in values.values() for v in runs)
    }
    blocks: list[Block] = [
        *table,
        "A dot for each seed, a bar at the mean.",
        Drawing(partial(draw_scores, drawn), "Test scores of each recipe, a dot for each seed"),
    ]
    few = [group.label for group in groups if len(group.finished) < ENOUGH_SEEDS]
    if few:
        blocks.insert(
            0,
            Alarm(
                f"Fewer than {ENOUGH_SEEDS} finished seeds: {'; '.join(few)}. No difference to or "
                "from these can be judged; run more seeds (`fedkd compare` does, and tests)."
            ),
        )
    else:
        blocks.append(
            "Overlapping dots are no test, nor are distant ones: `fedkd compare` pairs seeds and "
            "corrects for the number of comparisons."
        )
    seeds = {tuple(run.seed for run in group.finished) for group in groups}
    if len(seeds) > 1:
        blocks.append(Alarm("The recipes do not have the same finished seeds: means do not pair."))
    return Section(heading, tuple(blocks))


def _curves(groups: Sequence[Group]) -> Section:
    heading = "Over the rounds"
    tables = {
        group.label: [run.rounds for run in group.records if not run.rounds.empty]
        for group in groups
    }
    tables = {name: rounds for name, rounds in tables.items() if rounds}
    if not tables:
        return Section(heading, ("No round is finished, so there are no curves yet.",))
    return Section(
        heading,
        (
            "Means over seeds; bands go from the lowest to the highest seed. With many recipes "
            "each has a panel, the others' seeds being the thin lines behind it.",
            Drawing(partial(draw_group_curves, tables), "Val scores of each recipe by round"),
        ),
    )
