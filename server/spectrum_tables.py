"""The CSV tables of ``fedkd spectrum``."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from fedkd.fourier.priority_curve import Interval
from server.pictures.spectrum import Measured


def curves_table(lines: Sequence[Measured]) -> pd.DataFrame:
    """A row per curve and ring; low and high bound the 95 % interval of the priority."""
    tables = []
    for line in lines:
        curve = line.curve
        table = pd.DataFrame(
            {
                "frequency": curve.frequencies,
                "priority": curve.priority,
                "sd": curve.sd,
                "low": curve.low,
                "high": curve.high,
                "num_images": curve.num_images,
            }
        )
        for column, value in reversed(_identity(line).items()):
            table.insert(0, column, value)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def summary_table(lines: Sequence[Measured], score: str) -> pd.DataFrame:
    """A row per curve: centroid and the share of each band, with 95 % intervals."""
    rows = []
    for line in lines:
        curve = line.curve
        row: dict[str, Any] = {
            **_identity(line),
            "score": score,
            "num_images": curve.num_images,
            "num_groups": curve.num_groups,
            "unsure": line.is_unsure,
            **_columns("centroid", curve.centroid),
        }
        for name, share in curve.bands.items():
            row |= _columns(name, share)
        rows.append(row)
    return pd.DataFrame(rows)


def _identity(line: Measured) -> dict[str, Any]:
    number = pd.NA if line.round_number is None else line.round_number
    return {"model": line.label, "round": number, "group": line.group}


def _columns(name: str, value: Interval) -> dict[str, float]:
    return {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
