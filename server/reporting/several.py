"""What a page shows of several recipes beside each other."""

import math
from collections.abc import Sequence
from functools import partial

import pandas as pd

from server.comparison.sentences import LEAST_SEEDS
from server.pictures.page import Alarm, Block, DataTable, Drawing, Section
from server.pictures.report_bars import draw_scores
from server.pictures.report_curves import draw_group_curves
from server.reporting.grouping import Group
from server.reporting.numbers import METRICS, NOTHING, scalars, spread
from server.reporting.run_sections import alarms

MAX_CLIENTS = 12
"""Clients whose weights a page of several recipes shows."""
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
    """Warnings, scores, curves and weights of the recipes, and in which keys they differ.

    Args:
        groups: At least two.
        differing: The keys in which they differ, a row per group; see ``group_runs``.
        tested: Whether the page has a comparison's tests, warnings and drawings of scores already.
    """
    warnings: list[Block] = [
        Alarm(f"{group.label}: {alarm.text}") for group in groups for alarm in alarms(group)
    ]
    found = [
        _scores(groups, tested),
        _curves(groups),
        _weights(groups),
        Section("What differs", (DataTable(differing),)),
    ]
    return [Section("Warnings", warnings), *found] if warnings else found


def runs(groups: Sequence[Group]) -> Section:
    """Every run: its state, its directory, its hashes."""
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
    return Section("Runs", (DataTable(pd.DataFrame(rows)),))


def _weights(groups: Sequence[Group]) -> Section:
    """What each client weighs under each recipe, where they have the same clients."""
    heading = "Aggregation weights"
    rows: dict[str, dict[str, str]] = {}
    for group in groups:
        tables = [run.clients for run in group.records if not run.clients.empty]
        travels = group.records[0].recipe.strategy.exchange != "nothing"
        if tables and travels and len(group.records[0].summary["clients"]) > 1:
            by_client = pd.concat(tables).groupby("client", sort=False)["weight"]
            rows[group.label] = {
                str(name): f"{mean:.2f} ({least:.2f} to {most:.2f})"
                for name, mean, least, most in by_client.agg(["mean", "min", "max"]).itertuples()
            }
    clients = list(dict.fromkeys(name for row in rows.values() for name in row))
    if not rows or len(clients) > MAX_CLIENTS:
        return Section(
            heading, (f"There are none, or more clients than {MAX_CLIENTS}: see clients.csv.",)
        )
    table = pd.DataFrame.from_dict(rows, orient="index", columns=clients).fillna(NOTHING)
    return Section(
        heading,
        (
            "Share of each client in the aggregate, mean over rounds and seeds, and from the "
            "smallest to the largest; votes where a rule takes medians or trims. `fedkd report` of "
            "a single run shows them round by round.",
            DataTable(table.rename_axis("recipe").reset_index()),
        ),
    )


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
    few = [group.label for group in groups if len(group.finished) < LEAST_SEEDS]
    if few:
        blocks.insert(
            0,
            Alarm(
                f"Fewer than {LEAST_SEEDS} finished seeds: {'; '.join(few)}. No difference to or "
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
