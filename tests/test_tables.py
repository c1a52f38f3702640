"""Tables on the terminal: complete and within the width, however many classes and clients."""

import io
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from server.tables import print_partition

SOME = np.array([[3, 0, 1], [2, 5, 0]])


def printed(counts, clients, classes, width):
    table = pd.DataFrame(counts, columns=list(classes))
    table["total"] = table.sum(axis=1)
    table.insert(0, "client", list(clients))
    stream = io.StringIO()
    print_partition(Console(file=stream, width=width), table)
    return stream.getvalue()


def cells(text):
    """Cells of all rows, headings included, table by table."""
    tables = re.findall(r"^┏.*?^└", text, re.MULTILINE | re.DOTALL)
    return [
        [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in lines]
        for lines in (re.findall(r"^[│┃].*", table, re.MULTILINE) for table in tables)
    ]


def test_clients_are_rows_where_classes_fit_side_by_side():
    assert cells(printed(SOME, ["north", "south"], ["nv", "mel", "df"], 120)) == [
        [
            ["client", "nv", "mel", "df", "total"],
            ["north", "3", "·", "1", "4"],
            ["south", "2", "5", "·", "7"],
            ["all", "5", "5", "1", "11"],
        ]
    ]


def test_classes_are_rows_where_they_do_not_fit():
    assert cells(printed(SOME, ["north", "south"], ["nv", "mel", "df"], 32)) == [
        [
            ["class", "north", "south", "all"],
            ["nv", "3", "2", "5"],
            ["mel", "·", "5", "5"],
            ["df", "1", "·", "1"],
            ["total", "4", "7", "11"],
        ]
    ]


def test_clients_that_do_not_fit_either_go_into_further_tables():
    tables = cells(printed(SOME, ["north", "south"], ["nv", "mel", "df"], 20))
    assert [table[0] for table in tables] == [
        ["class", "north"],
        ["class", "south"],
        ["class", "all"],
    ]
    assert [table[1] for table in tables] == [["nv", "3"], ["nv", "2"], ["nv", "5"]]


@pytest.mark.parametrize("width", [120, 30])
def test_brackets_in_names_are_text(width):
    text = printed(SOME, ["[a]", "[/b]"], ["[red]", "mel", "df"], width)
    assert all(name in text for name in ("[a]", "[/b]", "[red]"))


@settings(deadline=None, max_examples=30)
@given(
    num_clients=st.integers(1, 30),
    num_classes=st.integers(1, 23),
    length=st.integers(3, 28),
    width=st.sampled_from([80, 120, 200]),
)
def test_every_count_is_shown_whole_whatever_the_width(num_clients, num_classes, length, width):
    counts = np.arange(num_clients * num_classes).reshape(num_clients, num_classes) + 1000
    classes = [f"{number:02}-".ljust(length, "x") for number in range(num_classes)]
    text = printed(counts, [f"client-{n}" for n in range(num_clients)], classes, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    shown = [cell for table in cells(text) for row in table for cell in row]
    assert set(map(str, counts.flat)) <= set(shown)


@pytest.mark.parametrize("width", [120, 30])
def test_a_client_may_be_called_as_the_sum_is(width):
    text = printed(SOME[:1], ["all"], ["nv", "mel", "df"], width)
    assert "largest : smallest class = 3 (nv) : 1 (df) = 3 : 1" in " ".join(text.split())
    assert [len(table) for table in cells(text)] == ([3] if width == 120 else [5])
