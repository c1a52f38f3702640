"""The files of a comparison's statistics say what the statistics say."""

import json
import re

import pandas as pd
import pytest

from server.comparison.statistics import analyse
from server.comparison.tables import write_tables
from server.latex import escape
from tests.comparison_cells import cells_of, drawn, few

NASTY = r"a_b & 50% #1 {x} ~^\ $ <3"


def parse_latex(text):
    """Rows of cells of the one tabular, with every brace, rule and number of columns checked."""
    body = re.fullmatch(
        r"(?:%.*\n)+\\begin\{tabular\}\{(l r*|lr*)\}\n\\toprule\n(.*)\\bottomrule\n"
        r"\\end\{tabular\}\n",
        text,
        re.DOTALL,
    )
    assert body, text
    columns, rows = len(body[1]), []
    for line in body[2].splitlines():
        if line == r"\midrule":
            continue
        assert line.endswith(r" \\"), line
        bare = re.sub(r"\\[&%$#_{}]", "", line[:-3])
        assert bare.count("{") == bare.count("}")
        assert bare.count("$") % 2 == 0
        assert not re.search(r"[%#~]", bare)
        for math in re.findall(r"\$[^$]*\$", bare):
            assert re.fullmatch(r"\$(\\pm|-?\d+\.\d|\^\\dagger)\$", math), math
            bare = bare.replace(math, "")
        assert not re.search(r"[_^]", bare)
        cells = re.split(r"(?<!\\) & ", line[:-3])
        span = re.match(r"\\multicolumn\{(\d+)\}", line)
        assert (int(span[1]) if span else len(cells)) == columns
        rows.append(cells)
    return rows


def test_all_files_are_written_and_nothing_else(tmp_path):
    files = write_tables(analyse(drawn(4, 5), "fedavg"), tmp_path / "new")
    names = ["differences.csv", "ranks.csv", "scores.csv", "scores.tex", "statistics.json"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == names
    assert sorted(files) == names


def test_csv_and_json_have_the_same_numbers(tmp_path):
    cells = few(drawn(4, 5, settings=("a", "b")))
    cells.loc[cells["arm"] == "strategy_2", "status"] = "missing"
    statistics = analyse(cells, "fedavg")
    files = write_tables(statistics, tmp_path)
    read = json.loads(files["statistics.json"].read_text(encoding="utf-8"))
    for name, frame in (("scores", statistics.scores), ("differences", statistics.differences)):
        stored = pd.read_csv(files[f"{name}.csv"])
        pd.testing.assert_frame_equal(stored, frame, check_dtype=False)
        again = pd.DataFrame(read[name]).astype(frame.dtypes.to_dict())
        pd.testing.assert_frame_equal(again, frame)
    ranks = pd.read_csv(files["ranks.csv"])
    best = ranks[ranks["metric"] == "balanced_accuracy"].iloc[0]
    assert best["average_rank"] == statistics.ranks["balanced_accuracy"].average.iloc[0]
    assert read["sentences"] == statistics.sentences
    assert read["alarms"][0].startswith("10 of 60 cells are not finished")
    assert read["test"] == "paired t test"


def test_latex_has_every_arm_and_marks_only_what_is_separable(tmp_path):
    base = [0.50, 0.52, 0.48]
    noise = (0.002, -0.001, 0.001)
    shift = {"good": 0.1, "bad": -0.1}
    scores = {
        "fedavg": base,
        **{arm: [a + by + b for a, b in zip(base, noise, strict=True)]
           for arm, by in shift.items()},
        "wild": [0.9, 0.2, 0.8],
        NASTY: [None] * 3,
    }  # fmt: skip
    path = write_tables(analyse(cells_of(scores), "fedavg"), tmp_path)["scores.tex"]
    rows = parse_latex(path.read_text(encoding="utf-8"))
    assert rows == [
        ["Arm", "Seeds", "BA"],
        ["fedavg (reference)", "3", r"50.0 $\pm$ 2.0"],
        ["good", "3", r"\textbf{60.1 $\pm$ 1.9}"],
        ["bad", "3", r"40.1 $\pm$ 1.9$^\dagger$"],
        ["wild", "3", r"63.3 $\pm$ 37.9"],  # the highest mean, and not bold
        [escape(NASTY), "0", "--"],
    ]


def test_latex_has_a_heading_per_setting(tmp_path):
    statistics = analyse(drawn(3, 1, settings=("alpha=0.1", "a_b")), "fedavg")
    rows = parse_latex(write_tables(statistics, tmp_path)["scores.tex"].read_text("utf-8"))
    assert [row[0] for row in rows if len(row) == 1] == [
        r"\multicolumn{8}{l}{\emph{alpha=0.1}}",
        r"\multicolumn{8}{l}{\emph{a\_b}}",
    ]
    assert len(rows) == 1 + 2 * (1 + 5)


@pytest.mark.parametrize(
    ("text", "found"),
    [("a_b", r"a\_b"), ("\\", r"\textbackslash{}"), ("5%&{", r"5\%\&\{"), ("ü", "ü")],
)
def test_latex_is_escaped(text, found):
    assert escape(text) == found
