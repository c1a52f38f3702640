"""Of hundreds of clients tables and pictures show the spread, and say where each is."""

import io

import numpy as np
import pandas as pd
from rich.console import Console

from server import many_clients
from server.pictures.partition import plot_partition
from server.tables import print_divergence, print_partition

COUNTS = np.array([[number, 2, 0 if number % 2 else 5] for number in range(40)])
NAMES = tuple(f"client-{number}" for number in range(40))


def printed(show, *arguments):
    stream = io.StringIO()
    show(Console(file=stream, width=100), *arguments)
    return stream.getvalue()


def partition(counts):
    table = pd.DataFrame(counts, columns=["a", "b", "c"])
    table["total"] = table.sum(axis=1)
    table.insert(0, "client", list(NAMES[: len(counts)]))
    return table


def rows(text):
    found = [line.split("│")[1:-1] for line in text.splitlines() if line.startswith("│")]
    return {first.strip(): [cell.strip() for cell in others] for first, *others in found}


def test_of_many_clients_the_table_has_the_spread_of_each_class():
    text = printed(print_partition, partition(COUNTS))
    assert rows(text) == {
        "fewest": ["0", "2", "0", "3"],
        "median": ["19.5", "2", "2.5", "24"],
        "most": ["39", "2", "5", "45"],
        "clients without": ["1", "0", "20", "0"],
        "all": ["780", "80", "100", "960"],
    }
    assert "of 40 clients" in text
    assert "partition.csv has each of the 40 clients" in text


def test_thirty_clients_are_still_shown_one_by_one():
    shown = rows(printed(print_partition, partition(COUNTS[: many_clients.MAX_CLIENTS])))
    assert list(shown) == [*NAMES[: many_clients.MAX_CLIENTS], "all"]


def test_of_many_clients_those_that_differ_most_are_listed():
    counts = np.full((40, 3), 10)
    counts[33] = [30, 0, 0]
    counts[7] = [20, 10, 0]
    text = printed(print_divergence, counts, NAMES, ("a", "b", "c"))
    assert list(rows(text))[:2] == ["client-33", "client-7"]
    assert len(rows(text)) == 30
    assert "the 30 of 40 clients that differ most; divergence of all: median 0.00" in text


def test_the_picture_of_many_clients_has_some_of_all_sizes(tmp_path, monkeypatch):
    seen = []

    def note(figure, path):
        bars, _ = figure.axes
        seen.append([label.get_text() for label in bars.get_yticklabels()])
        seen.append(figure.get_suptitle())

    monkeypatch.setattr("server.pictures.partition.write_figure", note)
    plot_partition(COUNTS, NAMES, ("a", "b", "c"), tmp_path / "x.png", "a title")
    names, title = seen
    assert len(names) == 30
    # 38 + 2 + 5 images, and 1 + 2 + 0.
    assert (names[0], names[-1]) == ("client-38", "client-1")
    assert title == "a title (30 of 40, from the largest to the smallest)"
