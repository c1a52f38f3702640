"""The CSVs that describe a folder of images: reading, and everything that can be wrong in them."""

import difflib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from fedkd.errors import DataError, first_of


class Problems:
    """Collects faults of a CSV, one line per kind, with the number of rows and the first of them.

    Args:
        csv: The file, or the folder of the files, named in every line.
    """

    def __init__(self, csv: Path) -> None:
        self.csv = csv
        self.lines: list[str] = []

    def add(self, what: str, rows: Sequence[tuple[int | str, str]], remedy: str) -> None:
        """Note that these rows (number in the file, what they hold) have a fault, if any do.

        Args:
            what: The fault as a verb phrase, such as "have no label".
            rows: Rows with the fault: the number in the file, the header being row 1, or, where
                there are several files, also which file.
            remedy: What is allowed, or what to do.
        """
        if rows:
            shown = first_of([f"row {row} ({value})" for row, value in rows])
            self.lines.append(f"{self.csv}: {len(rows)} row(s) {what}: {shown}; {remedy}")

    def add_line(self, text: str) -> None:
        """Note a fault of the table as a whole."""
        self.lines.append(f"{self.csv}: {text}")

    def raise_if_any(self) -> None:
        """Raise a DataError with everything noted."""
        if self.lines:
            raise DataError("\n".join(self.lines))


def read_table(
    csv: Path, content: bytes, columns: Mapping[str, str | None], have_keys: bool = True
) -> pd.DataFrame:
    """The columns of a CSV that matter, as text without surrounding space.

    Args:
        csv: Where the content comes from, for errors.
        content: The file's bytes, UTF-8 with or without byte-order mark, with a header line.
        columns: Column of the CSV for each purpose (id, label, split, site, group), or None.
        have_keys: Whether a column is named by the key ``data.<purpose>_column``, which the error
            then names, or else by the format.

    Returns:
        One column per purpose that has one; the index is the row's number in the file, the header
        being row 1. Blank rows are left out.

    Raises:
        DataError: Not a CSV, no rows, or a column is missing (with the nearest there is) or there
            more than once.
    """
    try:
        # Blank lines are kept at first, so that rows keep the number they have in the file; the
        # header is read as a row, as pandas would rename a column whose name stands there twice.
        frame = pd.read_csv(
            io.BytesIO(content),
            header=None,
            dtype=str,
            keep_default_na=False,
            na_filter=False,
            skip_blank_lines=False,
            encoding="utf-8-sig",
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise DataError(f"{csv} is not a CSV in UTF-8: {str(error).strip()}") from None
    if b"\0" in content:
        raise DataError(f"{csv} is not a CSV in UTF-8: it holds zero bytes; save it anew")
    names = list(frame.iloc[0])
    frame = frame.iloc[1:]
    wanted = {purpose: column for purpose, column in columns.items() if column is not None}
    missing = [
        (
            f"data.{purpose}_column is {column!r} but {csv} has no such column; "
            if have_keys
            else f"{csv} has no column {column!r} (the {purpose}); "
        )
        + _nearest(column, names)
        for purpose, column in wanted.items()
        if column not in names
    ] + [
        f"{csv} has {names.count(column)} columns {column!r} (the {purpose}); rename all but one"
        for purpose, column in wanted.items()
        if names.count(column) > 1
    ]
    if missing:
        raise DataError("\n".join(missing))
    frame.index = pd.RangeIndex(2, len(frame) + 2)
    frame = frame[(frame != "").any(axis=1)]
    if frame.empty:
        raise DataError(f"{csv} has a header but no rows; one row per image is needed")
    return pd.DataFrame({
        purpose: frame[names.index(column)].str.strip() for purpose, column in wanted.items()
    })  # fmt: skip


def _nearest(column: str, known: list[str]) -> str:
    near = difflib.get_close_matches(column, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    if len(known) == 1 and any(mark in known[0] for mark in ";\t|"):
        hint = "fields must be divided by commas. "
    return f"{hint}It has {', '.join(map(repr, known))}"


def check_table(
    table: pd.DataFrame,
    split_values: tuple[str, str, str],
    classes: Sequence[str],
    require_all_sites: bool,
    problems: Problems,
) -> None:
    """Note every fault that shows without opening an image.

    Args:
        table: Columns id, label, split and, optionally, site and group, all text; the index says
            which row of which file it is.
        split_values: What the split column may hold: for train, for val, for test.
        classes: Allowed labels; empty allows any.
        require_all_sites: Whether a site without training image is a fault.
        problems: Takes what is found.
    """
    for column in ("id", "label", "site"):
        if column in table:
            rows = table.loc[table[column] == "", "id"]
            problems.add(f"have no {column}", shown(rows), "fill it in or remove the rows")
    if classes:
        rows = table.loc[~table["label"].isin(classes) & (table["label"] != ""), "label"]
        problems.add("have an unknown label", shown(rows), f"allowed are {', '.join(classes)}")
    allowed = ", ".join(map(repr, split_values))
    rows = table.loc[~table["split"].isin(split_values), "split"]
    problems.add("have an unknown split", shown(rows), f"allowed are {allowed}")
    for value, purpose in zip(split_values, ("train", "val", "test"), strict=True):
        if not (table["split"] == value).any():
            problems.add_line(
                f"no row has the split {value!r}; {purpose} needs at least one image "
                f"(data.{purpose}_value names it)"
            )
    if require_all_sites and "site" in table:
        trained = set(table.loc[table["split"] == split_values[0], "site"])
        untrained = table[~table["site"].isin(trained) & (table["site"] != "")]
        if not untrained.empty:
            counts = untrained["site"].value_counts().sort_index()
            named = ", ".join(f"{site!r} ({count} images)" for site, count in counts.items())
            problems.add_line(
                f"{len(counts)} site(s) have no training image: {named}; the first is row "
                f"{untrained.index[0]}. Give them some or set data.require_all_sites = false"
            )
    if "group" in table:
        _check_groups(table[table["group"] != ""], problems)


def _check_groups(table: pd.DataFrame, problems: Problems) -> None:
    firsts = table.reset_index(names="row").drop_duplicates(["group", "split"])
    leaking = firsts[firsts["group"].duplicated(keep=False)]
    if leaking.empty:
        return
    lines = [
        f"{group!r} in " + " and ".join(f"{s} (row {r})" for s, r in zip(*columns, strict=True))
        for group, part in leaking.groupby("group", sort=False)
        for columns in [(part["split"], part["row"])]
    ]
    problems.add_line(
        f"{len(lines)} group(s) are in more than one split, which leaks test images into "
        f"training: {first_of(lines)}; put each group into one split"
    )


def shown(rows: "pd.Series[str]") -> list[tuple[int | str, str]]:
    """Rows and what they hold, as :meth:`Problems.add` takes them."""
    return [(row, repr(value)) for row, value in zip(rows.index, rows, strict=True)]
