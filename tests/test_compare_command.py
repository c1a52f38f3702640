import io
import json

import pytest
import tomli_w
from rich.console import Console

from fedkd import config
from fedkd.errors import PartitionError
from fedkd.recipe import Recipe
from server import cli
from server.comparison import live, runner, training
from server.comparison.live import LiveTable, mean_and_sd
from server.comparison.outcome import gather
from server.comparison.plan import plan
from tests.test_comparison_runner import VALUES


@pytest.fixture
def start(tmp_path, capsys):
    """A function that calls ``fedkd compare``: exit code, stdout, stderr."""
    path = tmp_path / "c.toml"
    one_seed = {"strategies": ["fedavg"], "seeds": [0]}
    values = {**VALUES, "compare": one_seed, "output": str(tmp_path / "runs")}
    path.write_text(tomli_w.dumps(values))

    def call(*overrides):
        code = cli.main(["compare", str(path), *overrides])
        return code, *capsys.readouterr()

    call.folder = tmp_path / "runs" / "tiny"
    return call


@pytest.fixture
def quick(monkeypatch):
    """Opening fails at once for the arms that are named; returns them."""
    failing = set()
    real = training.open_experiment

    def opened(recipe):
        if recipe.strategy.exchange in failing:
            raise PartitionError("too few images")
        return real(recipe)

    monkeypatch.setattr(training, "open_experiment", opened)
    return failing


def test_it_prints_the_plan_the_table_and_the_paths(start):
    code, out, err = start()
    assert code == 0
    lines = out.splitlines()
    assert lines[:5] == [
        "tiny: 3 cells, 3 runs, 0 of them done already",
        "arms       fedavg; local; pooled",
        "reference  fedavg",
        "seeds      0",
        "1 seed(s) show no uncertainty: the seed alone moves scores; 3 are needed at least",
    ]
    assert "tiny, test, mean ± sd" in out
    assert "This comparison shows no uncertainty: it has 1 pair" in out
    assert "\nNothing could be tested against fedavg: no arm has 2 pairs.\n" in out
    assert "\nBy mean balanced accuracy, in points: " in out
    assert lines[-3:] == [
        str(start.folder / name) for name in ("comparison.csv", "comparison.json", "report.html")
    ]
    record = json.loads((start.folder / "comparison.json").read_text())
    assert record["cells"][0]["arm"] == "fedavg"
    assert f"│ fedavg │ 1 │             {record['cells'][0]['balanced_accuracy']:.3f} │" in out
    assert "cell 1 of 3 fedavg, seed 0: test bal. acc. " in err
    code, out, err = start()
    assert (code, err) == (0, "statistics of 3 cells ...\n")
    assert out.startswith("tiny: 3 cells, 3 runs, 3 of them done already\n")


def test_a_failed_cell_is_told_with_exit_code_1(start, quick):
    quick.add("nothing")
    code, out, err = start()
    assert code == 1
    assert "│ local  │ 0 of 1 │" in out
    assert err.endswith(
        "cell 2 of 3 local, seed 0: failed: too few images\n" + err.splitlines()[2] + "\n"
        "statistics of 3 cells ...\n"
        "fedkd: 1 of 3 cells failed and are missing above; the same command tries them again:\n"
        "local, seed 0: too few images\n"
    )


def test_no_finished_cell_is_one_error_with_exit_code_2(start, quick):
    quick.update(["nothing", "all"])
    code, out, err = start()
    assert code == 2
    assert err.endswith("fedkd: none of 3 cells finished:\nfedkd: too few images\n")
    assert "mean ± sd" not in out
    assert not (start.folder / "comparison.json").exists()


def test_a_wrong_recipe_trains_nothing(start):
    code, out, err = start('compare.strategies=["fedsgd"]')
    assert code == 2
    assert err.startswith("fedkd: cell fedsgd: strategy.name is 'fedsgd' in [compare]; it must be")
    assert out == ""
    assert not start.folder.exists()


def test_a_folder_that_cannot_be_made_is_told(start, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = start(f"output={tmp_path / 'file'}")
    assert code == 2
    assert err.startswith(f"fedkd: cannot make the folder {tmp_path / 'file'}/tiny/cells: ")
    assert err.endswith("; choose another output=<folder>\n")


def test_ctrl_c_says_how_far_it_has_come(start, monkeypatch):
    real = runner.train

    def second(cell, folder, watch):
        if cell.arm == "local":
            raise KeyboardInterrupt
        real(cell, folder, watch)

    monkeypatch.setattr(runner, "train", second)
    code, _, err = start()
    assert code == 130
    assert err.endswith(
        f"1 of 3 cells are done and in {start.folder / 'comparison.csv'}; the same command goes "
        "on\nfedkd: interrupted\n"
    )
    record = json.loads((start.folder / "comparison.json").read_text())
    assert [cell["status"] for cell in record["cells"]] == ["finished", "missing", "missing"]


def test_mean_and_sd_are_those_of_the_seeds():
    assert mean_and_sd([]) == "-"
    assert mean_and_sd([0.25]) == "0.250"
    # Mean 0.3; squares 0.01 and 0.01 over n - 1 = 1: sd = sqrt(0.02) = 0.141.
    assert mean_and_sd([0.2, float("nan"), 0.4]) == "0.300 ± 0.141"


@pytest.fixture
def clock(monkeypatch):
    """The time that the live table sees; a list of one."""
    now = [0.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def table(tmp_path, clock):
    """A function that makes a live table of nine cells, and what it writes."""

    def make(terminal):
        text = io.StringIO()
        values = {**VALUES, "num_rounds": 5, "compare": {"seeds": [0, 1, 2]}}
        recipe = config.build(Recipe, values)
        planned = plan(recipe)
        console = Console(file=text, force_terminal=terminal, width=100, no_color=True)
        shown = LiveTable(console, planned, gather(recipe, planned, tmp_path), 2)
        return shown, planned.cells, text, console

    return make


def test_without_a_terminal_silence_ends_after_ten_seconds(table, clock):
    shown, cells, text, _ = table(terminal=False)
    shown.started(cells[0])
    shown.started(cells[1])
    shown.round_finished(cells[0], 3)
    clock[0] = 10.0
    shown.tick()
    assert text.getvalue() == ""
    clock[0] = 11.0
    shown.tick()
    shown.tick()
    assert text.getvalue() == (
        "0 of 9 cells done, 11 s elapsed; now fedavg, seed 0 (round 3/5), local, seed 0 (round "
        "0/5)\n"
    )


def test_time_left_is_that_of_the_cells_that_are_not_done(table, clock):
    shown, cells, text, _ = table(terminal=False)
    shown.started(cells[0])
    clock[0] = 20.0
    shown.ended(cells[0], "", 0.5)
    shown.started(cells[1])
    clock[0] = 31.0
    shown.tick()
    # Eight cells of 20 s less the 11 s that one has run, by two workers: 74.5 s.
    assert text.getvalue().splitlines() == [
        "cell 1 of 9 fedavg, seed 0: test bal. acc. 0.500, 20 s",
        "1 of 9 cells done, 31 s elapsed, about 1 min left; now local, seed 0 (round 0/5)",
    ]


def test_the_table_on_a_terminal_has_a_row_per_arm(table, clock):
    shown, cells, _, console = table(terminal=True)
    for number, score in ((0, 0.2), (3, 0.4)):
        shown.started(cells[number])
        shown.ended(cells[number], "", score)
    shown.started(cells[6])
    shown.round_finished(cells[6], 2)
    shown.ended(cells[1], "no luck", float("nan"))
    with console.capture() as drawn:
        console.print(shown._render())
    lines = [[c.strip() for c in line.split("│")[1:-1]] for line in drawn.get().splitlines()]
    rows = [row for row in lines if row]
    assert drawn.get().startswith("2 of 9 cells done, 1 failed, 0 s elapsed, about 0 s left\n")
    assert rows == [
        ["fedavg", "2/3", "seed 2 round 2/5", "0.300 ± 0.141"],
        ["local", "0/3", "1 failed", "-"],
        ["pooled", "0/3", "", "-"],
    ]
