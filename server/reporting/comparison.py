"""The runs of one comparison, as its folder names them, and its statistics for the page."""

import json
from pathlib import Path
from typing import Any

from fedkd.errors import ConfigError
from server.pictures.page import Alarm, Section

RECORD = "comparison.json"


def is_comparison(folder: Path) -> bool:
    """Whether the folder is one that ``fedkd compare`` wrote."""
    return (folder / RECORD).is_file()


def read_cells(folder: Path) -> list[dict[str, Any]]:
    """The cells of a comparison: setting, arm, seed, status, error, run, scores.

    Raises:
        ConfigError: The record is damaged.
    """
    try:
        cells = json.loads((folder / RECORD).read_text(encoding="utf-8"))["cells"]
        return [{**cell, "label": _label(cell)} for cell in cells]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"cannot read {folder / RECORD}: {type(error).__name__}: {error}; `fedkd compare` "
            "writes it anew, finished cells are kept"
        ) from None


def _label(cell: dict[str, Any]) -> str:
    return ", ".join(str(cell[key]) for key in ("setting", "arm") if cell[key])


def failures(cells: list[dict[str, Any]]) -> list[Alarm]:
    """An alarm for each cell that has no scores."""
    return [
        Alarm(
            f"{cell['label']}, seed {cell['seed']}: {cell['status']}. {cell['error'] or ''}".strip()
        )
        for cell in cells
        if cell["status"] != "finished"
    ]


def statistics_sections(folder: Path) -> list[Section]:
    """Sections of the comparison's statistics; the one place where they come in."""
    return []
