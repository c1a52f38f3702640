"""Tables that grow by rounds: the bytes of a table that is written at once, whole at any time."""

import pandas as pd
import pytest

from server.growing_table import GrowingTable

FIRST = [{"round": 1, "name": 'a, "b"', "loss": 0.1 + 0.2, "val": float("nan"), "of": None}]
LATER = {
    "the same": {"round": 2, "name": "é", "loss": 1e-17, "val": float("nan"), "of": None},
    "another column": {"round": 2, "name": "x", "loss": 1.0, "val": 0.5, "of": None, "new": 3},
    "a column less": {"round": 2, "name": "x", "loss": 1.0, "val": 0.5},
    "a fraction": {"round": 2.5, "name": "x", "loss": 1.0, "val": 0.5, "of": None},
    "a missing count": {"round": None, "name": "x", "loss": 1.0, "val": 0.5, "of": None},
    "a count where was a fraction": {"round": 2, "name": "x", "loss": 1, "val": 1, "of": None},
    "a number where was none": {"round": 2, "name": "x", "loss": 1.0, "val": 0.5, "of": 2.0},
    "another order": {"name": "x", "round": 2, "loss": 1.0, "val": 0.5, "of": None},
}


@pytest.mark.parametrize("row", LATER.values(), ids=LATER)
def test_a_table_has_after_each_write_the_bytes_of_one_written_at_once(tmp_path, row):
    grown, whole = tmp_path / "grown.csv", tmp_path / "whole.csv"
    table, rows = GrowingTable(grown), list(FIRST)
    for more in ([], [row, row], FIRST, [], [row]):
        rows += more
        table.write(rows)
        pd.DataFrame(rows).to_csv(whole, index=False)
        assert grown.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["grown.csv", "whole.csv"]


def test_a_row_is_formatted_once(tmp_path, monkeypatch):
    sizes = []
    whole = pd.DataFrame.to_csv
    monkeypatch.setattr(
        pd.DataFrame, "to_csv", lambda self, **more: sizes.append(len(self)) or whole(self, **more)
    )
    table = GrowingTable(tmp_path / "grown.csv")
    for number in range(1, 5):
        table.write([{"round": n, "loss": n / 3} for n in range(number)])
    assert sizes == [1, 1, 1, 1]


def test_who_reads_meanwhile_keeps_the_rows_that_were_there(tmp_path):
    table = GrowingTable(tmp_path / "grown.csv")
    table.write([{"round": 1}])
    with (tmp_path / "grown.csv").open() as reader:
        table.write([{"round": 1}, {"round": 2}])
        assert reader.read() == "round\n1\n"
    assert (tmp_path / "grown.csv").read_text() == "round\n1\n2\n"
