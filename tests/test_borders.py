"""Damaged input at the border: everything is said in a line each, and nothing is written over."""

import json
import shutil
from contextlib import suppress

import pytest

from fedkd import config
from fedkd.data.site_folder import SiteFile
from fedkd.errors import ConfigError, DataError
from fedkd.recipe import Recipe
from server import simulate, write_report
from server.cli import main
from server.commands.table import COMMANDS
from server.output_folder import new_file, output_folder
from server.reporting.record import read_record


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = " + "[" * 3000, "is not valid TOML: tables or lists nest too deeply"),
        ("seed = " + "9" * 6000, "is not valid TOML: Exceeds the limit (4300 digits)"),
        ('extends = "a\\u0000b"', "cannot read the config"),
        ("data = 3", "data.name is '3' in"),
        ('name = "' + "a" * 9000 + ' b"', "aaa ... aaa"),
    ],
)
def test_recipes_that_no_parser_likes_are_refused_in_a_line(text, said, tmp_path):
    path = tmp_path / "a.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as refused:
        config.load(Recipe, path)
    assert said in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
    assert len(str(refused.value)) < 500


def test_all_wrong_overrides_are_told_at_once():
    with pytest.raises(ConfigError) as refused:
        config.load(Recipe, None, ["name", "seed=1", "=3", "x=" + "[" * 3000])
    lines = str(refused.value).splitlines()
    assert lines[:2] == [
        "override 'name' is not key=value; write for example strategy.name=mas",
        "override '=3' is not key=value; write for example strategy.name=mas",
    ]
    assert "nests too deeply" in lines[2]


def test_of_many_faults_of_a_recipe_twenty_are_shown():
    with pytest.raises(ConfigError) as refused:
        config.build(Recipe, {f"nothing{n}": 1 for n in range(50)}, "a.toml")
    lines = str(refused.value).splitlines()
    assert len(lines) == 21
    assert lines[-1] == "and 30 more like these in a.toml"


SITE = {"version": 1, "name": "north", "class_names": ["a", "b"]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bounds": [9, 3]}, "[tail_below, head_above] is [9, 3]"),
        ({"bounds": [-1, 3]}, "[tail_below, head_above] is [-1, 3]"),
        ({"name": "  "}, "the hospital's name is '  '"),
        ({"name": "a\nb"}, "the hospital's name is 'a\\nb'"),
        ({"class_names": ["", "b", " c"]}, "names of classes 0, 2 (counted from 0) are empty"),
        ({"counts": {"train": {"a": -1}}}, "train has less than 0 images of a"),
        ({"counts": {"trian": {"a": 1}}}, "'trian' is no split; there are train, val, test"),
        ({"image_size": 0}, "image_size is 0 in site.json; it must be greater than or equal to 1"),
    ],
)
def test_site_json_is_checked_key_by_key(change, said):
    config.build(SiteFile, SITE)
    with pytest.raises(ConfigError) as refused:
        config.build(SiteFile, SITE | change, "site.json")
    assert said in str(refused.value)


@pytest.fixture(scope="module")
def whole_run(make_recipe, hospitals, tmp_path_factory):
    recipe = make_recipe(objective={"name": "supervised"}, num_rounds=1)
    return simulate(recipe, **hospitals, output=tmp_path_factory.mktemp("borders")).path


@pytest.fixture
def run(whole_run, tmp_path):
    """A copy of a run that a test may spoil."""
    return shutil.copytree(whole_run, tmp_path / "run")


def drop(key):
    return lambda summary: summary.pop(key)


def put(value, *keys):
    def change(summary):
        for key in keys[:-1]:
            summary = summary[key]
        summary[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (drop("test"), "status is 'finished', but it has no test"),
        (drop("config_hash"), "config_hash is missing"),
        (drop("clients"), "clients is missing"),
        (put(3, "train_counts"), "train_counts is 3"),
        (put("x", "test", "recall_per_class", "a"), "test.recall_per_class.a is 'x'"),
        (put([[1]], "val", "confusion"), "val.confusion has not a row and a column for each"),
        (put("east", "test", "worst_site"), "test.worst_site is none of balanced_accuracy_per_"),
        (put([], "test", "reliability", "accuracy"), "the lists of test.reliability differ"),
        (put({}, "val", "recall_per_class"), "val.recall_per_class has other classes than"),
    ],
)
def test_damaged_summary_of_a_run_is_refused(change, said, run, capsys):
    write_report(run)
    summary = json.loads((run / "summary.json").read_text())
    change(summary)
    (run / "summary.json").write_text(json.dumps(summary))
    assert main(["report", str(run)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert said in lines[0]
    assert "summary.json" in lines[0]
    assert lines[0].endswith("; the run directory is damaged")


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("rounds.csv", "seconds", "second", "it has no column seconds"),
        ("rounds.csv", "\n1,", "\nx,", "round must hold numbers"),
        ("rounds.csv", "\n1,", "\n1.5,", "round must hold numbers, and counts whole ones"),
        ("clients.csv", "partition_id", "id", "it has no column partition_id"),
        ("clients.csv", "\n1,0,", "\n1,9,", "it has the unknown partition_id 9"),
        ("clients.csv", "bytes_down", "x", "it has no column bytes_down"),
        ("per_class.csv", "class", "x", "it has no column class"),
        ("per_class.csv", "\na,", "\nz,", "its classes are not a, b, c, d of summary.json"),
        ("partition.csv", "north", "east", "its clients or classes are not those of"),
        ("partition.csv", "\nnorth,5,", "\nnorth,-5,", "its counts must be whole numbers"),
        ("predictions_test.csv", ",a,", ",z,", "have a label or prediction of no class"),
    ],
)
def test_damaged_tables_of_a_run_are_refused(name, old, new, said, run):
    text = (run / name).read_text()
    assert old in text
    (run / name).write_text(text.replace(old, new, 1))
    with pytest.raises(DataError) as refused:
        write_report(run)
    assert str(refused.value).startswith(f"{run / name} is damaged: ")
    assert said in str(refused.value)


def test_record_of_a_whole_run_is_read(whole_run):
    record = read_record(whole_run)
    assert record.counts.sum(axis=1).tolist() == [11, 9, 6]
    assert list(record.per_class["class"]) == list("abcd")


def test_files_of_another_question_are_not_written_over(tmp_path):
    folder = tmp_path / "a" / "b"
    with output_folder(folder, tmp_path, "probe", {"x": 1}) as place:
        (place / "probe.csv").write_text("first")
    with output_folder(folder, tmp_path, "probe", {"x": 1}) as place:
        (place / "probe.csv").write_text("again")
    with (
        pytest.raises(ConfigError, match="nothing is written over"),
        output_folder(folder, tmp_path, "probe", {"x": 2}) as place,
    ):
        (place / "probe.csv").write_text("other")
    assert (folder / "probe.csv").read_text() == "again"
    with output_folder(folder, tmp_path, "spectrum", {"x": 2}) as place:
        assert place == folder


def test_by_default_another_question_has_a_folder_beside(tmp_path):
    default, places = tmp_path / "probe", []
    for question in (1, 2, 1, 3):
        with output_folder(None, default, "probe", {"x": question}) as place:
            (place / "probe.csv").write_text(str(question))
        places.append(place.name)
    assert places == ["probe", "probe-2", "probe", "probe-3"]
    assert (default / "probe.csv").read_text() == "1"


def test_files_of_a_command_that_was_interrupted_are_made_anew(tmp_path):
    for name in ("first", "again"):
        with suppress(KeyboardInterrupt), output_folder(tmp_path, tmp_path, "probe", {}) as place:
            (place / "probe.csv").write_text(name)
            raise KeyboardInterrupt
    assert (tmp_path / "probe.csv").read_text() == "again"


def test_an_error_leaves_no_empty_folder_and_removes_none_that_was_there(tmp_path):
    there = tmp_path / "there"
    there.mkdir()
    for folder in (there, there / "new" / "newer"):
        with pytest.raises(DataError), output_folder(folder, tmp_path, "probe", {}):
            raise DataError("late")
    assert list(tmp_path.rglob("*")) == [there]


def test_a_file_that_is_there_is_no_output(tmp_path):
    (tmp_path / "a.csv").write_text("old")
    with pytest.raises(ConfigError, match=r"a\.csv is there already, and nothing is written over"):
        new_file(tmp_path / "a.csv")
    new_file(tmp_path / "b.csv")


def test_report_of_another_run_is_not_written_over(run, tmp_path, capsys):
    other = shutil.copytree(run, tmp_path / "other")
    output = ["--output", str(tmp_path / "out")]
    assert main(["report", str(run), *output]) == 0
    assert main(["report", str(run), *output]) == 0
    page = (tmp_path / "out" / "report.html").read_bytes()
    assert main(["report", str(other), *output]) == 2
    assert "nothing is written over" in capsys.readouterr().err
    assert (tmp_path / "out" / "report.html").read_bytes() == page
    # In its own directory a run's page is made anew.
    assert [main(["report", str(other)]) for _ in range(2)] == [0, 0]


def test_division_of_another_seed_is_not_written_over(tmp_path, capsys):
    (tmp_path / "a.toml").write_text(
        "[data]\nsize = 16\nnum_train = 60\nnum_val_per_class = 1\nnum_test_per_class = 1\n"
    )
    command = ["partition", str(tmp_path / "a.toml"), "--output", str(tmp_path / "out")]
    assert main(command) == 0
    assert main(command) == 0
    text = (tmp_path / "out" / "partition.json").read_text()
    assert main([*command, "seed=1"]) == 2
    assert "partition.csv, partition.json, partition.png already" in capsys.readouterr().err
    assert (tmp_path / "out" / "partition.json").read_text() == text


def test_all_missing_images_are_named_at_once(run, capsys):
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, "given": []}))
    assert main(["predict", str(run), str(run / "x.png"), str(run / "y.png")]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("fedkd: 2 of 2 files or folders are not there: ")
    assert "x.png" in last
    assert "y.png" in last


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[...] can't allocate memory: you tried 8 bytes")]
)
def test_too_little_memory_is_no_traceback(error, monkeypatch, capsys):
    def fail(options):
        raise error

    monkeypatch.setitem(COMMANDS, "list", fail)
    assert main(["list"]) == 2
    assert capsys.readouterr().err.startswith("fedkd: there is not enough memory for this (")


def test_other_errors_of_the_runtime_are_our_own(monkeypatch):
    def fail(options):
        raise RuntimeError("shapes")

    monkeypatch.setitem(COMMANDS, "list", fail)
    with pytest.raises(RuntimeError, match="shapes"):
        main(["list"])
