"""The command ``fedkd compare``: strategies and whatever else, crossed, over seeds."""

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedkd import config
from fedkd.errors import ClientFailure, ConfigError
from fedkd.recipe import Recipe
from server import terminal
from server.comparison.live import LiveTable, mean_and_sd
from server.comparison.outcome import CELLS, TABLE, Outcome, gather
from server.comparison.plan import Plan, plan
from server.comparison.runner import run_cells
from server.comparison.sentences import LEAST_SEEDS
from server.comparison.tables import STATISTICS
from server.reporting.report import NUMBERS, write_report
from server.tables import METRICS

SHOWN = ("balanced_accuracy", "mcc", "macro_auroc", "recall_tail")
"""As many as fit into 80 columns; the page has all."""
_NAMES = {**METRICS, "recall_tail": "tail recall"}


def compare(options: argparse.Namespace) -> None:
    """``fedkd compare``: trains all cells that are not there yet, and prints a table of them."""
    terminal.log_to_stderr()
    recipe = config.load(Recipe, options.config, options.overrides)
    planned = plan(recipe)
    folder = Path(recipe.output) / recipe.name
    before = gather(recipe, planned, folder)
    console = terminal.stdout()
    print_plan(console, recipe, planned, before)
    terminal.make_folder(folder / CELLS, "output=<folder>")
    live = LiveTable(terminal.stderr(), planned, before, recipe.compare.workers)
    try:
        with live:
            run_cells(planned.cells, folder / CELLS, recipe.compare.workers, live)
    except KeyboardInterrupt:
        # What is there is balanced over seeds and may be looked at; `missing` says what is not.
        gather(recipe, planned, folder).write(folder)
        print(
            f"{live.num_done} of {len(planned.runs)} cells are done and in {folder / TABLE}; the "
            "same command goes on",
            file=sys.stderr,
        )
        raise
    outcome = gather(recipe, planned, folder)
    _refuse_if_all_failed(outcome)
    paths = outcome.write(folder)
    print_outcome(console, outcome)
    page = write_report(folder)
    found = json.loads((folder / NUMBERS / STATISTICS).read_text(encoding="utf-8"))
    for style, texts in (("bold red", found["alarms"]), (None, found["answer"])):
        for text in texts:
            console.print(text, style=style, highlight=False, markup=False)
    print(*paths, page, sep="\n")
    failed = outcome.cells[outcome.cells["status"] != "finished"].drop_duplicates("error")
    if len(failed):
        lines = [f"{row.arm}, seed {row.seed}: {row.error}" for row in failed.itertuples()]
        raise ClientFailure(
            f"{(outcome.cells['status'] != 'finished').sum()} of {len(outcome.cells)} cells failed "
            "and are missing above; the same command tries them again:\n" + "\n".join(lines)
        )


def print_plan(console: Console, recipe: Recipe, planned: Plan, outcome: Outcome) -> None:
    """How many cells of which kinds there are, and how many are done."""
    settings, arms, seeds = planned.settings, planned.arms, recipe.compare.seeds
    runs = planned.runs
    place = {cell.key: row for cell, row in zip(planned.cells, outcome.cells["run"], strict=True)}
    lines = [
        f"{recipe.name}: {len(planned.cells)} cells, {len(runs)} runs, "
        f"{sum(map(bool, place.values()))} of them done already",
        *([f"settings   {'; '.join(settings)}"] if settings != ("",) else []),
        f"arms       {'; '.join(arms)}",
        f"reference  {planned.reference}",
        f"seeds      {', '.join(map(str, seeds))}",
    ]
    if len(seeds) < LEAST_SEEDS:
        lines.append(
            f"{len(seeds)} seed(s) show no uncertainty: the seed alone moves scores; "
            f"{LEAST_SEEDS} are needed at least"
        )
    for line in lines:
        console.print(line, highlight=False, markup=False)


def print_outcome(console: Console, outcome: Outcome) -> None:
    """A table for each setting: arms by metrics on test, mean ± sd over the finished seeds."""
    for setting, cells in outcome.cells.groupby("setting", sort=False):
        title = ": ".join(filter(None, [outcome.name, str(setting)]))
        table = Table(title=escape(f"{title}, test, mean ± sd"))
        table.caption = "n: seeds that are finished; sd over seeds; one seed has none"
        table.add_column("arm", overflow="fold")
        for name in ("n", *(_NAMES[metric] for metric in SHOWN)):
            table.add_column(name, justify="right")
        for arm, rows in cells.groupby("arm", sort=False):
            done = int((rows["status"] == "finished").sum())
            n = f"{done}" if done == len(rows) else f"{done} of {len(rows)}"
            table.add_row(escape(str(arm)), n, *(mean_and_sd(list(rows[m])) for m in SHOWN))
        console.print(table)
    for note in outcome.notes:
        console.print(note, style="bold red", highlight=False, markup=False)


def _refuse_if_all_failed(outcome: Outcome) -> None:
    """ConfigError with each error once if no cell has finished."""
    if (outcome.cells["status"] == "finished").any():
        return
    errors = list(dict.fromkeys(outcome.cells["error"]))
    raise ConfigError("\n".join([f"none of {len(outcome.cells)} cells finished:", *errors]))
