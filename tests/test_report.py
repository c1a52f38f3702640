"""The page of runs: its numbers are those of the run directory, and every text is escaped."""

import base64
import csv
import json
import math
import re
import shutil
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from fedkd.errors import ConfigError
from server import simulate, write_report
from server.cli import main
from server.latex import to_latex
from server.reporting.grouping import group_runs
from server.reporting.numbers import METRICS
from server.reporting.protocol import changed_keys, sentences
from server.reporting.record import read_record

NASTY = "<b>\"A\" & 'B'</b> $x_1$ ]]> --\x01"
HEADINGS = [
    "Outcome", "Protocol", "Data", "Over the rounds", "Confusion matrix", "Head, medium and tail",
    "Hospitals and classes", "Calibration", "Aggregation weights", "Communication and compute",
    "Environment", "The same numbers as files",
]  # fmt: skip
PLAIN = {"objective": {"name": "supervised"}, "name": "trial"}


def page_of(path):
    return ElementTree.fromstring(path.read_text(encoding="utf-8"))


def section(page, heading):
    return next(s for s in page.iter("section") if s.find("h2").text == heading)


def cells(table):
    return [["".join(cell.itertext()) for cell in row] for row in table.iter("tr")]


def words(element):
    return " ".join("".join(element.itertext()).split())


def change_summary(path, **values):
    summary = json.loads((path / "summary.json").read_text())
    summary.update(values)
    (path / "summary.json").write_text(json.dumps(summary))


@pytest.fixture(scope="module")
def runs(make_recipe, hospitals, tmp_path_factory):
    """Runs of two recipes, the first with seeds 0 and 1; a test class is missing."""
    folder = tmp_path_factory.mktemp("runs")
    test = hospitals["test"]
    data = {**hospitals, "test": test.subset(np.flatnonzero(test.labels != 3))}
    recipes = [
        make_recipe(**PLAIN, seed=0),
        make_recipe(**PLAIN, seed=1),
        make_recipe(**PLAIN, seed=0, strategy={"name": "mas"}),
    ]
    return [simulate(recipe, **data, output=folder).path for recipe in recipes]


@pytest.fixture
def run(runs, tmp_path):
    """A copy of the first, for a test to spoil."""
    return shutil.copytree(runs[0], tmp_path / "run")


def test_a_run_has_all_sections_and_says_how_it_may_be_repeated(run):
    page = page_of(write_report(run))
    assert [one.text for one in page.iter("h2")] == HEADINGS
    assert "no uncertainty" in words(section(page, "Outcome"))
    assert "Run at least 3 seeds" in words(section(page, "Outcome"))
    summary = json.loads((run / "summary.json").read_text())
    shown = dict(cells(section(page, "Environment").find(".//table"))[1:])
    assert shown["command"] == "fedkd run run/config.toml"
    assert shown["student sha256 (tested)"] == summary["best_student_sha256"]
    assert shown["partition hash"] == summary["partition_hash"]


def test_the_numbers_of_page_and_files_are_those_of_the_summary(run):
    page = page_of(write_report(run))
    summary = json.loads((run / "summary.json").read_text())
    rows = {row[0]: row[1:] for row in cells(section(page, "Outcome").find(".//table"))}
    for place, split in enumerate(("val", "test")):
        scores = summary[split]
        for name in ("balanced_accuracy", "mcc", "macro_f1", "kappa", "macro_auroc"):
            assert rows[METRICS[name]][place] == f"{scores[name]:.3f}"
        for group in ("head", "tail"):
            value = scores["recall"][group]
            shown = rows[METRICS[f"recall_{group}"]][place]
            assert shown == ("–" if value is None else f"{value:.3f}")
    known = [v for v in summary["test"]["balanced_accuracy_per_site"].values() if v is not None]
    assert rows[METRICS["site_sd_balanced_accuracy"]][1] == f"{np.std(known):.3f}"
    with (run / "report" / "scores.csv").open() as file:
        (line,) = csv.DictReader(file)
    assert float(line["test_mcc"]) == summary["test"]["mcc"]
    (entry,) = json.loads((run / "report" / "report.json").read_text())["runs"]
    assert entry["test_balanced_accuracy"] == summary["test"]["balanced_accuracy"]
    with (run / "clients.csv").open() as file:
        bytes_up = sum(int(row["bytes_up"]) for row in csv.DictReader(file))
    assert f"{bytes_up / 1e6:,.3f} MB came up" in words(page)


def test_seeds_are_repetitions_and_shown_as_mean_and_sd(runs, tmp_path):
    page = page_of(write_report(*runs[:2], output=tmp_path))
    scores = [json.loads((one / "summary.json").read_text())["test"]["mcc"] for one in runs[:2]]
    mean = sum(scores) / 2
    sd = math.sqrt(sum((value - mean) ** 2 for value in scores))  # n - 1 = 1
    rows = {row[0]: row[1:] for row in cells(section(page, "Outcome").find(".//table"))}
    assert rows["metric"] == ["val", "test", "seed 0", "seed 1"]
    assert rows["MCC"][1:] == [f"{mean:.3f} ± {sd:.3f}", *(f"{value:.3f}" for value in scores)]
    assert "2 seeds: this page shows no uncertainty" in words(page)


def test_runs_are_grouped_by_the_keys_in_which_they_differ(runs, tmp_path):
    groups, differing = group_runs([read_record(one) for one in runs])
    assert [group.label for group in groups] == ["fedavg", "mas"]
    assert [[run.seed for run in group.records] for group in groups] == [[0, 1], [0]]
    assert differing.to_dict("list") == {
        "recipe": ["fedavg", "mas"],
        "strategy.name": ["fedavg", "mas"],
    }
    page = page_of(write_report(*runs, output=tmp_path))
    rows = cells(section(page, "Scores on test").find(".//table"))
    assert [row[:2] for row in rows[1:]] == [["fedavg", "2"], ["mas", "1"]]
    assert "Fewer than 3 finished seeds: fedavg; mas" in words(page)
    weights = cells(section(page, "Aggregation weights").find(".//table"))
    assert weights[0] == ["recipe", "north", "south", "west"]
    images = (11, 9, 6)  # the same in every round
    assert weights[1][1:] == [f"{n / 26:.2f} ({n / 26:.2f} to {n / 26:.2f})" for n in images]
    headings = [words(one) for one in page.iter("h2")]
    assert headings.index("Scores on test") < headings.index("Runs") < len(headings) - 2
    assert "do not have the same finished seeds" in words(page)


def test_mixed_precision_is_another_recipe_but_another_engine_is_none(runs, run):
    text = (run / "config.toml").read_text()
    first = read_record(runs[0])
    for key, num_groups in (("mixed_precision", 2), ("name", 1)):
        value = {"mixed_precision": "bfloat16", "name": "ray"}[key]
        changed, old = re.subn(rf'(?s)(\[engine\].*?\n{key} = )"[^"]*"', rf'\1"{value}"', text)
        assert old == 1
        (run / "config.toml").write_text(changed)
        groups, _ = group_runs([first, read_record(run)])
        assert len(groups) == num_groups
        told = "backbones in bfloat16" in " ".join(sentences(read_record(run)))
        assert told == (key == "mixed_precision")


def test_a_seed_that_was_run_twice_counts_once(runs, run, tmp_path):
    (group,), _ = group_runs([read_record(one) for one in (runs[0], run)])
    assert len(group.records) == 1
    page = page_of(write_report(runs[0], run, output=tmp_path))
    assert "Left out:" in words(page.find(".//p[@class='alarm']"))


def test_an_unfinished_run_shows_what_there_is_and_an_alarm(run):
    summary = json.loads((run / "summary.json").read_text())
    for key in ("test", "val", "best_round", "student_sha256", "best_student_sha256"):
        del summary[key]
    summary.update(status="failed", error="ClientFailure: north")
    (run / "summary.json").write_text(json.dumps(summary))
    for name in ("per_class.csv", "predictions_test.csv"):
        (run / name).unlink()
    page = page_of(write_report(run))
    assert [one.text for one in page.iter("h2")] == HEADINGS
    alarm = words(page.find(".//p[@class='alarm']"))
    assert "'failed' (ClientFailure: north). It has 2 of 2 rounds and no test scores." in alarm
    assert section(page, "Over the rounds").find(".//img") is not None
    for heading in ("Confusion matrix", "Head, medium and tail", "Calibration"):
        assert section(page, heading).find(".//img") is None
        assert "no test scores" in words(section(page, heading))
    (run / "rounds.csv").unlink()
    (run / "clients.csv").unlink()
    page = page_of(write_report(run))
    assert "No round is finished" in words(section(page, "Outcome"))


def test_reliability_is_drawn_if_the_run_noted_it_and_else_a_sentence_says_so(run):
    summary = json.loads((run / "summary.json").read_text())
    test = {k: v for k, v in summary["test"].items() if k not in ("ece", "reliability")}
    change_summary(run, test=test)
    page = page_of(write_report(run))
    assert section(page, "Calibration").find(".//img") is None
    assert "noted no reliability bins" in words(section(page, "Calibration"))
    bins = {"confidence": [None, 0.7], "accuracy": [None, 0.5], "num_images": [0, 10]}
    change_summary(run, test={**test, "ece": 0.2, "reliability": bins})
    page = page_of(write_report(run))
    assert section(page, "Calibration").find(".//img") is not None
    assert "calibration error on test: 0.200" in words(section(page, "Calibration"))


def test_one_client_and_no_exchange_have_no_weights(make_recipe, hospitals, tmp_path):
    alone = simulate(make_recipe(**PLAIN, num_clients=1), **pooled(hospitals), output=tmp_path)
    text = words(section(page_of(write_report(alone.path)), "Aggregation weights"))
    assert "one client" in text


def pooled(hospitals):
    return {**hospitals, "sites": hospitals["sites"][:1]}


@pytest.mark.usefixtures("with_drawings")
def test_texts_of_users_are_escaped_in_page_and_drawings(run):
    name = json.loads((run / "summary.json").read_text())["clients"][0]
    for path in (run / "summary.json", *run.glob("*.csv")):
        text = path.read_text()
        new = NASTY.replace("\x01", "")
        quoted = json.dumps(new)[1:-1] if path.suffix == ".json" else new.replace('"', '""')
        text = text.replace(f'"{name}"', f'"{quoted}"') if path.suffix == ".json" else text
        if path.suffix == ".csv":
            text = text.replace(f",{name},", f',"{quoted}",').replace(
                f"\n{name},", f'\n"{quoted}",'
            )
        path.write_text(text)
    page = page_of(write_report(run))
    assert NASTY.replace("\x01", "") in words(section(page, "Communication and compute"))
    assert page.find(".//b") is None
    for image in page.iter("img"):
        ElementTree.fromstring(svg(image))


def svg(image):
    return base64.b64decode(image.get("src").partition(",")[2])


def test_latex_is_escaped_and_has_a_row_for_each_row(runs, tmp_path):
    text = to_latex(pd.DataFrame({"a_b": ["50 %", "x & y"], "c": [1, "0.1 ± 0.2"]}), "50 % #1")
    assert r"\caption{50 \% \#1}" in text
    assert "\\toprule\na\\_b & c \\\\\n\\midrule\n50 \\% & 1 \\\\\n" in text
    assert "x \\& y & 0.1 $\\pm$ 0.2 \\\\\n\\bottomrule" in text
    write_report(*runs[:2], output=tmp_path)
    tables = (tmp_path / "report" / "tables.tex").read_text()
    assert tables.count(r"\begin{tabular}") == 2


def test_changed_keys_are_those_that_are_not_at_their_defaults(make_recipe):
    table = changed_keys(make_recipe(**PLAIN, seed=3, strategy={"name": "mas"}))
    rows = table.set_index("key")["value"].to_dict()
    assert rows["strategy.name"] == "mas"
    assert rows["seed"] == "3"
    assert table.set_index("key")["default"]["strategy.name"] == "fedavg"
    assert "name" not in rows
    assert "student.name" not in rows


def test_a_comparison_shows_its_arms_and_its_failed_cells(runs, tmp_path):
    for run in runs:
        shutil.copytree(run, tmp_path / "cells" / run.name)
    cells_of = [
        {
            "setting": "",
            "arm": arm,
            "seed": seed,
            "status": "finished",
            "error": "",
            "run": f"cells/{run.name}",
            "balanced_accuracy": read_record(run).summary["test"]["balanced_accuracy"],
        }
        for arm, seed, run in zip(("fedavg", "fedavg", "mas"), (0, 1, 0), runs, strict=True)
    ]
    failed = {**cells_of[2], "seed": 1, "status": "failed", "error": "out of memory", "run": ""}
    record = {
        "name": "three",
        "reference": "fedavg",
        "cells": [*cells_of, failed],
        "notes": ["NOT PAIRED: the dice"],
        "recipe": {"compare": {"test": "t"}},
        "versions": {},
        "metrics": ["balanced_accuracy"],
    }
    (tmp_path / "comparison.json").write_text(json.dumps(record))
    page = page_of(write_report(tmp_path))
    alarms = section(page, "Cells that are not paired").findall("p")
    assert [words(one) for one in alarms] == ["NOT PAIRED: the dice"]
    shown = [words(one) for one in section(page, "What the comparison shows").findall("p")]
    assert shown[1] == (
        "1 of 4 cells is not finished, and their pairs are left out: mas, seed 1 (failed: out of "
        "memory)."
    )
    assert (tmp_path / "report" / "differences.csv").is_file()
    rows = cells(section(page, "Scores on test").find(".//table"))
    assert [row[:2] for row in rows[1:]] == [["fedavg", "2"], ["mas", "1"]]
    with pytest.raises(ConfigError, match="is a comparison; a report shows one comparison alone"):
        write_report(runs[0], tmp_path)


def test_a_wrong_folder_is_one_clear_line(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "is no run directory, as it has no config.toml" in error


def test_a_damaged_table_is_named(run, capsys):
    (run / "rounds.csv").write_text('a,b\n1,2,3\n4,"5\n')
    assert main(["report", str(run)]) == 2
    assert f"cannot read the table {run / 'rounds.csv'}" in capsys.readouterr().err


def test_the_command_prints_the_page(run, capsys):
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
