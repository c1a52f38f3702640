"""A table of a run that gets rows in every round, as a CSV file that is whole at any time."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from fedkd import files


class GrowingTable:
    """Writes what ``pandas.DataFrame(rows).to_csv`` would, but formats each row only once.

    The text is kept and the file replaced: whoever reads while the run goes on sees whole rounds,
    and so does whoever reads what a killed run has left.

    Args:
        path: The file; it is there after the first write.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._text = ""
        self._num_rows = 0
        self._types: list[tuple[str, str]] = []

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the table.

        Args:
            rows: All of them; those that were written before have not changed.
        """
        new = pd.DataFrame(rows[self._num_rows :])
        if self._num_rows and _types(new) == self._types:
            self._text += new.to_csv(index=False, header=False)
        elif len(new):
            # Another column, or a count that is a fraction or missing now: earlier rows look
            # different, too.
            whole = pd.DataFrame(rows)
            self._text, self._types = whole.to_csv(index=False), _types(whole)
        self._num_rows = len(rows)
        with files.replacing(self._path) as part:
            part.write_text(self._text, encoding="utf-8", newline="")


def _types(table: pd.DataFrame) -> list[tuple[str, str]]:
    return [(str(name), str(kind)) for name, kind in table.dtypes.items()]
