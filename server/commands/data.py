"""The commands ``fedkd data list``, ``fetch`` and ``check``."""

import argparse
import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedkd import config, paths
from fedkd.data import catalog
from fedkd.data.card import DataCard
from fedkd.data.catalog import DATASETS, DataConfig
from fedkd.data.check import Report, check
from fedkd.data.obtain import missing, path_keys
from fedkd.errors import ConfigError, DataError, DependencyError, FetchError
from fedkd.recipe import Recipe
from server import terminal
from server.downloads import by_hand, fetch_with_progress


def data(options: argparse.Namespace) -> None:
    """``fedkd data``: one of its three actions."""
    actions = {"list": _list, "fetch": _fetch, "check": _check}
    actions[options.action](options)


def _list(_: argparse.Namespace) -> None:
    table = Table(title="data sets")
    for column in ("name", "title", "images", "classes", "hospitals", "licence", "here"):
        table.add_column(column, justify="right" if column in _NUMBERS else "left")
    for name in DATASETS:
        settings = _defaults(name)
        card = _card(name, settings)
        table.add_row(
            name,
            card.title,
            _count(sum((card.class_counts or card.split_counts).values())),
            _count(len(card.class_counts)),
            _count(len(card.site_counts)),
            card.licence,
            _here(settings, card),
        )
    terminal.stdout().print(table)
    print("counts are the published ones, with default settings")
    if not os.environ.get("FEDKD_DATA"):
        print("FEDKD_DATA is not set; start the command with FEDKD_DATA=<folder of all data sets>")


_NUMBERS = ("images", "classes", "hospitals")


def _count(number: int) -> str:
    return f"{number:,}" if number else "-"


def _defaults(name: str) -> DataConfig | None:
    """The data set's settings if nothing is said; None if the user must say something."""
    try:
        return _settings(name, ())
    except ConfigError:
        return None


def _card(name: str, settings: DataConfig | None) -> DataCard:
    """As exact as it can be: where an extra is missing, what hangs on no settings."""
    try:
        return catalog.card(settings) if settings else DATASETS[name].card
    except DependencyError:
        return DATASETS[name].card


def _here(settings: DataConfig | None, card: DataCard) -> str:
    if settings is None:
        return "your own"
    if not path_keys(settings):
        return "embedded"
    if not os.environ.get("FEDKD_DATA"):
        return "?"
    return "no" if missing(settings, card) else "yes"


def _fetch(options: argparse.Namespace) -> None:
    name = options.source
    require_name(name)
    entry = DATASETS[name]
    if not (entry.card_for or entry.card.downloads or entry.card.steps):
        print(f"{name} is {entry.description}: there is nothing to fetch")
        return
    settings = _settings(name, options.overrides)
    card, folder = catalog.card(settings), paths.data_dir()
    terminal.log_to_stderr()
    try:
        fetch_with_progress(card.downloads, folder)
    except FetchError:
        print(f"\n{card.title}: files to bring from elsewhere")
        print(by_hand(card.downloads, folder, card.steps))
        raise
    lacking = missing(settings, card)
    if not lacking:
        print(f"what can be fetched is there; `fedkd data check {name}` shows whether it is whole")
        return
    print(f"\n{card.title} cannot be fetched without you:\n{card.steps or card.source}")
    raise DataError(
        f"{name} is not complete: {', '.join(map(str, lacking))} is not there yet; "
        "follow the steps above"
    )


def _check(options: argparse.Namespace) -> None:
    terminal.log_to_stderr()
    source = options.source
    if source.endswith(".toml") or Path(source).is_file():
        settings = config.load(Recipe, source, options.overrides).data
    else:
        settings = _settings(source, options.overrides)
    card = catalog.card(settings)
    try:
        report = check(settings, card)
    except DataError as error:
        hint = f"\n`fedkd data fetch {settings.name}` says how to get the data set"
        raise DataError(f"{error}{hint if card.downloads or card.steps else ''}") from None
    _print(terminal.stdout(), report)
    if report.faults:
        raise DataError("\n".join(report.faults))


def _print(console: Console, report: Report) -> None:
    console.print(f"[bold]{escape(report.title)}[/bold]: images", highlight=False)
    for kind, counts in (("class", report.classes), ("hospital", report.sites)):
        # Nothing is said of what nobody has published.
        table = counts.dropna(axis="columns", how="all")
        shown = Table()
        shown.add_column(kind)
        for column in table.columns:
            shown.add_column(str(column), justify="right")
        for name, row in table.iterrows():
            shown.add_row(escape(str(name)), *map(_cell, row))
        shown.add_section()
        total = table.sum(min_count=1)
        shown.add_row("all", *map(_cell, total))
        console.print(shown)
    for note in report.notes:
        print(f"note: {note}")
    tables = (report.classes, report.sites)
    if report.faults:
        verdict = "with faults"
    elif any(table["published"].notna().any() for table in tables):
        verdict = "as many as published, without faults"
    else:
        verdict = "without faults; there are no published counts to compare with"
    print(f"{report.name}: {report.classes['all'].sum()} images, {verdict}")


def _cell(value: Any) -> str:
    return "-" if pd.isna(value) else "·" if value == 0 else str(value)


def _settings(name: str, overrides: Sequence[str]) -> DataConfig:
    """A data set's settings: its defaults and, as on the command line, some of its keys."""
    require_name(name)
    keys = [text if text.startswith("data.") else f"data.{text}" for text in overrides]
    return config.load(Recipe, None, [f"data.name={name}", *keys]).data


def require_name(name: str) -> None:
    """Refuse what is no data set (ConfigError)."""
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(
            f"{name} is no data set and no recipe; {hint}there are {', '.join(DATASETS)}"
        )
