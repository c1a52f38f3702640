import json
import math
import multiprocessing

import pandas as pd
import pytest

from fedkd import config
from fedkd.errors import ClientFailure, ConfigError
from fedkd.recipe import Recipe
from server.comparison import runner, training, workers
from server.comparison.outcome import CELLS, COLUMNS, Outcome, gather
from server.comparison.plan import plan

VALUES = {
    "name": "tiny",
    "num_rounds": 1,
    "data": {"size": 16, "num_train": 48, "num_val_per_class": 2, "num_test_per_class": 2},
    "objective": {"name": "supervised"},
    "evaluation": {"personalised": False},
    "compare": {"strategies": ["fedavg", "mas"], "seeds": [0, 1]},
}
VARY = ["run", "seconds", "client_seconds"]


def recipe(**changes):
    return config.build(Recipe, {**VALUES, **changes})


class Quiet:
    """A watch that notes what it hears."""

    def __init__(self):
        self.heard = []

    def started(self, cell):
        self.heard.append(("started", cell.label))

    def round_finished(self, cell, number):
        self.heard.append(("round", cell.label, number))

    def ended(self, cell, error, score):
        self.heard.append(("ended", cell.label, error, score))

    def tick(self):
        pass


class Interrupted(Quiet):
    """Ctrl-C in the middle of the n-th cell: it has trained and is not finished."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def round_finished(self, cell, number):
        super().round_finished(cell, number)
        if len([entry for entry in self.heard if entry[0] == "round"]) == self.number:
            raise KeyboardInterrupt


def compare(given, folder, watch=None, at_once=1):
    planned = plan(given)
    runner.run_cells(planned.cells, folder / CELLS, at_once, watch or Quiet())
    return gather(given, planned, folder)


def same(left, right):
    pd.testing.assert_frame_equal(
        left.cells.drop(columns=VARY), right.cells.drop(columns=VARY), check_exact=True
    )
    assert left.notes == right.notes


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A comparison that nothing interrupted, and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    watch = Quiet()
    return compare(recipe(), folder, watch), folder, watch


def test_cells_have_a_row_each_seed_by_seed(whole):
    cells = whole[0].cells
    assert list(cells["arm"]) == ["fedavg", "mas", "local", "pooled"] * 2
    assert list(cells["seed"]) == [0] * 4 + [1] * 4
    assert set(cells["status"]) == {"finished"}
    assert tuple(cells) == COLUMNS


def test_numbers_are_those_of_the_run_directory(whole):
    outcome, folder, _ = whole
    row = outcome.cells.iloc[1]
    path = folder / row["run"]
    summary = json.loads((path / "summary.json").read_text())
    rounds, clients = (pd.read_csv(path / f"{name}.csv") for name in ("rounds", "clients"))
    assert summary["name"] == "mas-seed0"
    assert row["balanced_accuracy"] == summary["test"]["balanced_accuracy"]
    assert row["recall_tail"] == summary["test"]["recall"]["tail"]
    assert row["val_balanced_accuracy"] == summary["val"]["balanced_accuracy"]
    assert row["megabytes_down"] == rounds["bytes_down"].sum() / 1e6 > 0
    assert row["client_seconds"] == clients["seconds"].sum()
    assert row["num_seen"] == 48


def test_nothing_of_local_and_pooled_goes_down(whole):
    cells = whole[0].cells
    alone = cells[cells["arm"].isin(["local", "pooled"])]
    assert (alone["megabytes_down"] == 0).all()
    assert (alone["num_seen"] == 48).all()


def test_cells_of_a_seed_are_paired(whole):
    outcome, folder, _ = whole
    assert outcome.notes == ()
    found = [json.loads((folder / p / "summary.json").read_text()) for p in outcome.cells["run"]]
    hashes = [summary["initial_student_sha256"] for summary in found]
    assert [hashes.count(value) for value in hashes] == [4] * 8
    divided = [summary["partition_hash"] for summary in found]
    assert divided[0] == divided[1] == divided[2] != divided[3]


def test_cells_that_are_not_paired_are_told_loudly(whole, tmp_path):
    outcome, folder, _ = whole
    changed = []
    for path in outcome.cells["run"]:
        target = tmp_path / path / "summary.json"
        target.parent.mkdir(parents=True)
        summary = json.loads((folder / path / "summary.json").read_text())
        if path.startswith("cells/mas-seed1"):
            summary |= {"partition_hash": "p", "initial_student_sha256": "s"}
            changed.append(path)
        target.write_text(json.dumps(summary))
        for name in ("rounds.csv", "clients.csv"):
            (target.parent / name).write_bytes((folder / path / name).read_bytes())
    assert len(changed) == 1
    given = recipe()
    notes = gather(given, plan(given), tmp_path).notes
    assert notes == (
        "NOT PAIRED: seed 1 has 2 different divisions of the images (fedavg, local; mas); "
        "differences between these arms are not those of the method alone",
        "NOT PAIRED: seed 1 has 2 different initial students (fedavg, local, pooled; mas); "
        "differences between these arms are not those of the method alone",
    )


def test_the_watch_hears_of_each_cell(whole):
    outcome, _, watch = whole
    score = outcome.cells["balanced_accuracy"][0]
    assert watch.heard[:3] == [
        ("started", "fedavg, seed 0"),
        ("round", "fedavg, seed 0", 1),
        ("ended", "fedavg, seed 0", "", score),
    ]
    assert len(watch.heard) == 3 * 8


def test_interrupted_at_every_cell_in_turn_the_table_is_the_same(whole, tmp_path):
    for number in range(8):
        # Each start finishes one cell more, and is interrupted in the middle of the next.
        with pytest.raises(KeyboardInterrupt):
            compare(recipe(), tmp_path, Interrupted(1 if number == 0 else 2))
        given = recipe()
        partial = gather(given, plan(given), tmp_path).cells
        assert list(partial["status"]) == ["finished"] * number + ["missing"] * (8 - number)
        pd.testing.assert_frame_equal(
            partial[:number].drop(columns=VARY),
            whole[0].cells[:number].drop(columns=VARY),
            check_exact=True,
        )
    same(compare(recipe(), tmp_path), whole[0])


def test_finished_cells_are_not_run_again_whatever_their_folder(whole):
    outcome, folder, _ = whole
    watch = Quiet()
    same(compare(recipe(), folder, watch), outcome)
    assert watch.heard == []
    # One more axis renames all cells.
    more = {**VALUES["compare"], "seeds": [0], "axes": {"num_rounds": [1, 2]}}
    given = recipe(compare=more)
    found = gather(given, plan(given), folder).cells
    assert list(found.loc[found["status"] == "finished", "arm"]) == [
        f"{arm} · num rounds 1" for arm in ("fedavg", "mas", "local", "pooled")
    ]


def test_what_is_loaded_is_what_was_written(whole, tmp_path):
    outcome = whole[0]
    paths = outcome.write(tmp_path)
    assert [path.name for path in paths] == ["comparison.csv", "comparison.json"]
    loaded = Outcome.load(tmp_path)
    pd.testing.assert_frame_equal(loaded.cells, outcome.cells, check_exact=True)
    assert (loaded.name, loaded.reference, loaded.notes) == ("tiny", "fedavg", ())
    assert loaded.recipe == outcome.recipe
    assert loaded.metrics == outcome.metrics
    csv = pd.read_csv(tmp_path / "comparison.csv", keep_default_na=False, na_values={"ece": [""]})
    assert list(csv["run"]) == list(outcome.cells["run"])


def test_no_comparison_and_a_damaged_one_are_told(tmp_path):
    with pytest.raises(ConfigError) as caught:
        Outcome.load(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} is no comparison, as it has no comparison.json; `fedkd compare` prints the "
        "folder that it writes"
    )
    (tmp_path / "comparison.json").write_text("{}")
    with pytest.raises(ConfigError) as caught:
        Outcome.load(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / 'comparison.json'} is damaged (KeyError: 'cells'); the same `fedkd compare` "
        "writes it anew from the finished runs"
    )


def test_a_failing_cell_leaves_its_error_and_the_others_go_on(whole, tmp_path, monkeypatch):
    once = recipe(compare={**VALUES["compare"], "seeds": [0]})
    real = training.run

    def fail(experiment, **options):
        if experiment.recipe.strategy.name == "mas":
            raise RuntimeError("no\nluck")
        if experiment.recipe.strategy.exchange == "nothing":
            raise ClientFailure("client north failed:\nTraceback\n  ...\nValueError: bad")
        return real(experiment, **options)

    monkeypatch.setattr(training, "run", fail)
    watch = Quiet()
    cells = compare(once, tmp_path, watch).cells
    assert list(cells["status"]) == ["finished", "failed", "failed", "finished"]
    assert list(cells["error"]) == [
        "",
        "RuntimeError: no luck",
        "client north failed: ... ValueError: bad",
        "",
    ]
    ended = [entry for entry in watch.heard if entry[0] == "ended"]
    assert ended[1][:3] == ("ended", "mas, seed 0", "RuntimeError: no luck")
    assert math.isnan(ended[1][3])
    assert math.isnan(cells["mcc"][1])
    (written,) = (tmp_path / CELLS / "mas-seed0").glob("error-*.txt")
    assert 'raise RuntimeError("no\\nluck")' in written.read_text()
    other = once.model_copy(update={"num_rounds": 9})
    assert set(gather(other, plan(other), tmp_path).cells["status"]) == {"missing"}
    monkeypatch.undo()
    again = Quiet()
    mended = compare(once, tmp_path, again)
    assert [entry[1] for entry in again.heard if entry[0] == "started"] == [
        "mas, seed 0",
        "local, seed 0",
    ]
    pd.testing.assert_frame_equal(
        mended.cells.drop(columns=VARY), whole[0].cells[:4].drop(columns=VARY), check_exact=True
    )


class Unlucky(Quiet):
    """Kills one worker as soon as a cell has begun, and is interrupted after five cells."""

    def started(self, cell):
        super().started(cell)
        if len(self.heard) == 1:
            multiprocessing.active_children()[0].kill()

    def ended(self, cell, error, score):
        super().ended(cell, error, score)
        if len([entry for entry in self.heard if entry[0] == "ended"]) == 5:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_workers_that_are_killed_and_interrupted_leave_no_process_and_the_same_table(
    whole, tmp_path
):
    with pytest.raises(KeyboardInterrupt):
        compare(recipe(), tmp_path, Unlucky(), at_once=2)
    assert multiprocessing.active_children() == []
    given = recipe()
    cells = gather(given, plan(given), tmp_path).cells
    assert (cells["status"] == "finished").sum() >= 4
    failed = cells[cells["status"] == "failed"]
    assert list(failed["error"]) == [
        "its process was killed by SIGKILL, of lack of memory mostly; start the same command "
        "again, with fewer compare.workers if it happens again"
    ]
    same(compare(recipe(), tmp_path), whole[0])


def test_a_worker_stops_when_its_parent_has_gone():
    ours, theirs = multiprocessing.Pipe()
    ours.close()
    with pytest.raises(KeyboardInterrupt):
        workers._ToParent(theirs).send("started")


@pytest.mark.parametrize("name", ["by_site", "iid", "dirichlet"])
def test_hospitals_that_are_tested_on_their_own_classes_are_told_apart(tmp_path, name):
    given = recipe(partition={"name": name}, num_clients=4)
    notes = gather(given, plan(given), tmp_path).notes
    if name != "dirichlet":
        assert not notes
        return
    (note,) = notes
    assert note.startswith("NOT THE SAME TASK: with partition dirichlet, val and test images are ")
    assert " and local predicts each by its hospital's own student, " in note
