"""The command ``fedkd shortcut``: does a federation learn a scanner's mark, not the lesion?"""

import argparse
import logging
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedkd import config, files
from fedkd.data.images import LabelledImages
from fedkd.errors import ClientFailure, ConfigError
from fedkd.experiment import open_splits
from fedkd.recipe import Recipe
from fedkd.shortcuts.marks import MarkedPixels, unmarked
from server import terminal
from server.pictures.shortcut import plot_alignment, plot_auc, plot_marks, plot_priority
from server.progress import TerminalProgress
from server.shortcut_sweep import Sweep, cells, sweep

logger = logging.getLogger(__name__)

COLUMNS = {
    "auc_iid": "AUC IID",
    "auc_clean": "AUC clean",
    "auc_ood": "AUC OOD",
    "band_share": "band share",
    "alignment": "alignment",
    "alignment_excess": "minus d = 0",
}


def shortcut(options: argparse.Namespace) -> None:
    """``fedkd shortcut``: a table of AUCs, pictures, and CSVs, over degradations and folds."""
    terminal.log_to_stderr()
    recipe = config.load(Recipe, options.config, options.overrides)
    degradations = parse_degradations(options.degradations)
    folder = Path(options.output or Path(recipe.output) / f"{recipe.name}-shortcut")
    terminal.make_folder(folder)
    found = sweep(
        recipe,
        degradations,
        options.folds,
        folder,
        lambda experiment: TerminalProgress(terminal.stderr(), experiment),
    )
    paths = _write(recipe, found, folder, options.folds)
    console = terminal.stdout()
    other = recipe.shortcut.other or "all others"
    title = f"{recipe.name}: {recipe.shortcut.marked_class} against {other}"
    print_summary(console, found.summary, title)
    if len(found.sites):
        print_sites(console, found.sites)
    print(conclusion(found.summary))
    for path in paths:
        print(path)
    if found.failures:
        lines = [f"{name}: {text}" for name, text in found.failures.items()]
        raise ClientFailure(
            f"{len(lines)} run(s) failed and are missing above; start again for these alone:\n"
            + "\n".join(lines)
        )


def parse_degradations(text: str) -> list[float]:
    """Numbers between commas; ConfigError for anything else."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(
            f"--degradations is {text!r}; it must be numbers from 0 to 1 with commas between, "
            "such as 0,0.5,1"
        ) from None


def conclusion(summary: pd.DataFrame) -> str:
    """What the highest degradation shows, in a sentence; nothing is claimed of significance."""
    last = summary.iloc[-1]
    degradation, n = last["degradation"], int(last["n"])
    if degradation == 0:
        return "No image had a mark (d = 0): there is nothing to compare."

    def said(name: str) -> str:
        return _plus_minus(last[f"{name}_mean"], last[f"{name}_sd"])

    iid, ood, clean = (last[f"auc_{name}_mean"] for name in ("iid", "ood", "clean"))
    if not np.isfinite([iid, ood, clean]).all():
        return "An AUC is not defined, as test images are of one class alone."
    spread = np.nanmax([last["auc_iid_sd"], last["auc_ood_sd"], 0.0])
    if ood < 0.5 and iid - ood > spread:
        reading = "the mark outweighs the lesion"
    elif iid - ood > spread:
        reading = "the students use the mark besides the lesion"
    else:
        reading = "the mark makes no difference beyond the spread of the folds"
    return (
        f"d = {degradation:g}: AUC {said('auc_iid')} with the mark as in training, "
        f"{said('auc_clean')} without it, {said('auc_ood')} with it on the other class "
        f"({n} fold(s)): {reading}. Folds share training images, so that sd understates the "
        "uncertainty."
    )


def print_summary(console: Console, summary: pd.DataFrame, title: str) -> None:
    """A row per degradation, mean ± sd over folds."""
    table = Table(title=f"{title}, mean ± sd over folds")
    table.caption = "IID: mark as in training; OOD: on the other class; clean: none"
    for name in ("d", "folds", *COLUMNS.values()):
        table.add_column(name, justify="right")
    for _, row in summary.iterrows():
        cells = [_plus_minus(row[f"{name}_mean"], row[f"{name}_sd"]) for name in COLUMNS]
        table.add_row(f"{row['degradation']:g}", str(int(row["n"])), *cells)
    console.print(table)


def print_sites(console: Console, sites: pd.DataFrame) -> None:
    """A row per degradation and hospital; hospitals whose test images are of one class have "-"."""
    table = Table(title="per hospital of the test images")
    for name in ("d", "hospital", "images", "AUC IID", "AUC clean", "AUC OOD"):
        table.add_column(name, justify="left" if name == "hospital" else "right")
    for degradation, ours in sites.groupby("degradation"):
        for site, rows in ours.groupby("site", sort=False):
            values = [
                _plus_minus(column.mean(), column.std())
                for column in (rows[f"auc_{v}"].astype(float) for v in ("iid", "clean", "ood"))
            ]
            count = str(int(rows["num_images"].sum()))
            table.add_row(f"{degradation:g}", escape(str(site)), count, *values)
        table.add_section()
    console.print(table)


def _plus_minus(mean: float, sd: float) -> str:
    if np.isnan(mean):
        return "-"
    return f"{mean:.3f}" if np.isnan(sd) else f"{mean:.3f} ± {sd:.3f}"


def _write(recipe: Recipe, found: Sweep, folder: Path, num_folds: int) -> list[Path]:
    """CSVs and pictures; returns their paths."""
    csvs = {"shortcut": found.rows, "shortcut_summary": found.summary}
    if len(found.sites):
        csvs["shortcut_sites"] = found.sites
    paths = []
    for name, table in csvs.items():
        path = folder / f"{name}.csv"
        with files.replacing(path) as part:
            table.to_csv(part, index=False)
        paths.append(path)
    names = ("auc", "alignment", "priority", "images")
    pictures = {name: folder / f"shortcut_{name}.png" for name in names}
    band = recipe.shortcut.band
    plot_auc(found.summary, pictures["auc"], f"{recipe.name}: does the mark decide?")
    plot_alignment(found.summary, pictures["alignment"], f"{recipe.name}: where students look")
    plot_priority(found.priorities, band, pictures["priority"], f"{recipe.name}: learning priority")
    example = _example(cells(recipe, [1.0], num_folds)[0])
    if example is None:
        del pictures["images"]
    else:
        title = f"{recipe.name}: mark on an image of {recipe.shortcut.marked_class}"
        plot_marks(example, band, recipe.shortcut.strength, pictures["images"], title)
    return [*paths, *pictures.values()]


def _example(recipe: Recipe) -> tuple[np.ndarray, np.ndarray] | None:
    """The first training image that is marked, without and with its mark; None if none is."""
    train = open_splits(recipe).train
    assert isinstance(train.images, MarkedPixels)
    row = next((row for row, name in enumerate(train.images.streams) if name), None)
    if row is None:
        return None

    def pixels(images: LabelledImages) -> np.ndarray:
        values = images.images[row]
        return values / 255 if values.dtype == np.uint8 else values.astype(np.float64)

    return pixels(unmarked(train)), pixels(train)
