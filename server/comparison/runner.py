"""Training of a comparison's cells, here or in processes of their own, as far as it is not done."""

import json
from collections.abc import Sequence
from pathlib import Path

from server.comparison.plan import Cell, Key
from server.comparison.training import Watch, train
from server.comparison.workers import in_processes


def finished_runs(folder: Path) -> dict[Key, Path]:
    """Directories of the finished runs among the cells, by key; of equals the first by name.

    Keyed by hash and mode alone, not by the cell's folder: its name changes as axes are added.
    """
    found: dict[Key, Path] = {}
    for path in sorted(folder.glob("*/*/summary.json")):
        try:
            summary = json.loads(path.read_text(encoding="utf-8"))
            key = summary["config_hash"], summary["mode"]
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            continue
        if summary.get("status") == "finished":
            found.setdefault(key, path.parent)
    return found


def run_cells(cells: Sequence[Cell], folder: Path, workers: int, watch: Watch) -> None:
    """Train all cells that are not finished yet, in the order given; interrupted ones go on.

    What fails leaves its error in ``error-<hash>.txt`` in its folder, and the others go on.

    Args:
        cells: Cells of one key are trained once.
        folder: Of the run directories, each in a folder with its cell's name.
        workers: Cells at the same time. 1 trains in this process; more, each in a process of its
            own, which is started once and serves cell after cell.
        watch: Told how it goes.

    Raises:
        KeyboardInterrupt: Ctrl-C; no worker is left by then.
    """
    done = finished_runs(folder)
    todo = list({cell.key: cell for cell in reversed(cells) if cell.key not in done}.values())
    todo.reverse()
    if min(workers, len(todo)) > 1:
        in_processes(todo, folder, min(workers, len(todo)), watch)
    else:
        for cell in todo:
            train(cell, folder, watch)
