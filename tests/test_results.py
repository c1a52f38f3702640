"""The run directory: every file, what it holds, and that it is written whole."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.image import imread
from safetensors.torch import load_file

from fedkd import config
from fedkd.errors import ConfigError
from fedkd.models import states
from fedkd.partitions import manifest
from fedkd.prediction import predict
from fedkd.recipe import Recipe
from server import Observer, results, simulate
from server.results import RunDirectory

FILES = {
    "config.toml", "rounds.csv", "clients.csv", "per_class.csv", "partition.csv",
    "partition.json",
    "predictions_test.csv", "predictions_clients.csv", "student.safetensors",
    "best_student.safetensors", "curves.png", "summary.json", "prompts",
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(make_recipe, hospitals, tiny_teacher, tmp_path_factory):
    """A run of three rounds that left a directory; a class is missing in its test split."""
    test = hospitals["test"]
    data = {**hospitals, "test": test.subset(np.flatnonzero(test.labels != 3))}
    recipe = make_recipe(num_rounds=3, name="trial")
    folder = tmp_path_factory.mktemp("runs")
    return simulate(recipe, **data, teacher=tiny_teacher, output=folder)


def summary_of(path):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads((path / "summary.json").read_text(), parse_constant=refuse)


def test_the_directory_holds_exactly_the_files_of_a_run(finished):
    assert {path.name for path in finished.path.iterdir()} == FILES


def test_the_directory_is_named_after_run_time_and_config(finished):
    assert finished.path.parent.name == "trial"
    stamp, _, short = finished.path.name.rpartition("-")
    assert pd.to_datetime(stamp, format="%Y%m%d-%H%M%S")
    assert finished.summary["config_hash"].startswith(short)
    assert len(short) == 8


def test_the_config_loads_back_to_the_recipe_of_the_run(finished):
    loaded = config.load(Recipe, finished.path / "config.toml")
    assert loaded == finished.board.experiment.recipe
    assert loaded.hash() == finished.summary["config_hash"]


def test_the_summary_is_strict_json_with_all_keys(finished):
    summary = summary_of(finished.path)
    assert summary == finished.summary
    assert summary.keys() >= {
        "status", "config_hash", "partition_hash", "student_sha256", "best_round", "val", "test",
        "num_rounds", "seconds", "versions",
    }  # fmt: skip
    assert summary["status"] == "finished"
    assert summary["mode"] == "federated"
    assert summary["engine"] == "inprocess"
    assert summary["num_rounds"] == 3
    assert summary["seconds"] > 0
    assert summary["clients"] == ["north", "south", "west"]
    assert summary["partition_hash"] == finished.board.experiment.partition.hash
    assert summary["versions"].keys() >= {"python", "fedkd", "torch", "flwr", "numpy"}
    assert summary["versions"]["torch"] == torch.__version__.partition("+")[0]


def test_a_score_that_is_undefined_is_null(finished):
    assert finished.summary["test"]["recall_per_class"]["d"] is None
    assert finished.summary["val"]["recall_per_class"]["d"] is not None


@pytest.mark.parametrize(
    ("name", "key"),
    [("student", "student_sha256"), ("best_student", "best_student_sha256")],
)
def test_the_stored_students_have_the_hashes_of_the_summary(finished, name, key):
    stored = load_file(finished.path / f"{name}.safetensors")
    assert states.sha256(stored) == finished.summary[key]


def test_the_final_student_is_stored_as_it_is_returned(finished):
    stored = load_file(finished.path / "student.safetensors")
    own = finished.student.state_dict()
    assert set(stored) == set(own)
    assert all(torch.equal(stored[name], own[name]) for name in own)
    assert stored["backbone.bn1.num_batches_tracked"].dtype == torch.int64


def test_the_rounds_table_has_a_row_for_each_round(finished):
    table = pd.read_csv(finished.path / "rounds.csv")
    assert table["round"].tolist() == [1, 2, 3]
    columns = {"train_loss", "val_balanced_accuracy", "val_mcc", "val_recall_tail",
               "val_worst_site_balanced_accuracy", "prior", "seconds"}  # fmt: skip
    assert columns <= set(table)
    pd.testing.assert_frame_equal(table, finished.rounds)


def test_the_clients_table_has_a_row_for_each_client_and_round(finished):
    table = pd.read_csv(finished.path / "clients.csv")
    assert list(zip(table["round"], table["client"], strict=True)) == [
        (number, name) for number in (1, 2, 3) for name in ("north", "south", "west")
    ]
    assert {"loss", "loss_distillation", "num_examples", "weight", "seconds"} <= set(table)
    pd.testing.assert_frame_equal(table, finished.clients)


def test_the_partition_table_counts_the_training_images(finished, hospitals):
    table = pd.read_csv(finished.path / "partition.csv")
    assert list(table) == ["client", "a", "b", "c", "d", "total"]
    for (_, row), site in zip(table.iterrows(), hospitals["sites"], strict=True):
        assert row[list("abcd")].tolist() == site.class_counts().tolist()
        assert row["total"] == len(site)


def test_the_manifest_is_that_of_the_run(finished):
    stored = manifest.read(finished.path / "partition.json")
    experiment = finished.board.experiment
    assert stored.partition_sha256 == finished.summary["partition_hash"]
    assert stored.seed == experiment.recipe.seed
    assert stored.settings["name"] == experiment.recipe.partition.name
    assert stored.data_set is None, "these images are not those of the recipe's [data]"
    assert [client.name for client in stored.clients] == ["north", "south", "west"]
    ids = [name for client in stored.clients for name in client.ids]
    assert ids == list(experiment.splits.train.ids)


def test_the_class_table_has_group_counts_and_recalls(finished):
    table = pd.read_csv(finished.path / "per_class.csv").set_index("class")
    assert table["num_train"].tolist() == [13, 6, 3, 4]
    assert table["num_val"].tolist() == [3, 3, 3, 3]
    assert table["num_test"].tolist() == [4, 3, 3, 0]
    assert table.loc["a", "group"] == "head"
    assert table.loc["c", "group"] == "tail"
    assert np.isnan(table.loc["d", "test_recall"])
    seen = table["test_recall"].dropna()
    assert seen.mean() == pytest.approx(finished.summary["test"]["balanced_accuracy"])


def test_the_predictions_give_the_test_scores_again(finished):
    table = pd.read_csv(finished.path / "predictions_test.csv")
    test = finished.board.experiment.splits.test
    assert table["id"].astype(str).tolist() == list(test.ids)
    assert table["label"].tolist() == [test.class_names[label] for label in test.labels]
    assert table["site"].tolist() == [test.site_names[site] for site in test.sites]
    right = table["label"] == table["prediction"]
    scores = finished.summary["test"]
    assert right.groupby(table["label"]).mean().mean() == pytest.approx(scores["balanced_accuracy"])
    assert right.mean() == pytest.approx(scores["accuracy"])
    probabilities = table[[f"p_{name}" for name in "abcd"]]
    assert probabilities.sum(axis=1).tolist() == pytest.approx([1] * len(table))
    assert [name[2:] for name in probabilities.idxmax(axis=1)] == table["prediction"].tolist()


def test_the_stored_best_student_makes_those_predictions(finished):
    experiment = finished.board.experiment
    student = experiment.build_student()
    student.load_state_dict(load_file(finished.path / "best_student.safetensors"))
    again = predict(student, experiment.held_out_loader("test"), 256)
    table = pd.read_csv(finished.path / "predictions_test.csv")
    np.testing.assert_allclose(table[[f"p_{name}" for name in "abcd"]], again, rtol=1e-12)


def test_the_picture_is_one(finished):
    assert imread(finished.path / "curves.png").shape[0] > 200


def test_runs_within_one_second_get_directories_of_their_own(opened, tmp_path, monkeypatch):
    monkeypatch.setattr(results.time, "strftime", lambda _: "20260101-120000")
    experiment = opened()
    paths = [RunDirectory.create(experiment, "federated", tmp_path).path for _ in range(3)]
    name = f"20260101-120000-{experiment.recipe.hash()[:8]}"
    assert [path.name for path in paths] == [name, f"{name}-2", f"{name}-3"]


def test_what_is_known_before_training_is_there_from_the_start(opened, tmp_path):
    directory = RunDirectory.create(opened(), "centralized", tmp_path)
    names = {path.name for path in directory.path.iterdir()}
    assert names == {"config.toml", "partition.csv", "partition.json", "summary.json"}
    summary = summary_of(directory.path)
    assert (summary["status"], summary["mode"]) == ("running", "centralized")


def test_the_tables_grow_round_by_round(make_recipe, hospitals, tmp_path):
    seen = []

    class Reader(Observer):
        def round_started(self, round_number):
            tables = list(tmp_path.glob("run/*/rounds.csv"))
            seen.append(len(pd.read_csv(tables[0])) if tables else 0)

    recipe = make_recipe(num_rounds=3, objective={"name": "supervised"})
    simulate(recipe, **hospitals, output=tmp_path, observers=[Reader()])
    assert seen == [0, 1, 2]


@pytest.mark.parametrize(
    ("error", "status"),
    [(RuntimeError("broken"), "failed"), (KeyboardInterrupt(), "interrupted")],
)
def test_the_summary_says_how_a_run_ended(opened, tmp_path, error, status):
    directory = RunDirectory.create(opened(), "federated", tmp_path)
    with pytest.raises(type(error)), directory:
        raise error
    summary = summary_of(directory.path)
    assert summary["status"] == status
    assert summary["error"].startswith(type(error).__name__)
    assert summary["seconds"] > 0


def test_a_failed_write_leaves_the_old_file_and_no_part_of_the_new(opened, tmp_path, monkeypatch):
    directory = RunDirectory.create(opened(), "federated", tmp_path)
    before = {path.name: path.read_bytes() for path in directory.path.iterdir()}

    def fail(self, path, **_):
        path.write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(pd.DataFrame, "to_csv", fail)
    with pytest.raises(OSError, match="disk full"):
        directory._write_partition()
    assert {path.name: path.read_bytes() for path in directory.path.iterdir()} == before


def test_a_folder_that_cannot_be_made_is_refused(opened, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(ConfigError, match="cannot make the run directory .*choose another output="):
        RunDirectory.create(opened(), "federated", blocked)


def test_without_another_folder_the_recipes_own_is_used(opened, tmp_path):
    experiment = opened(output=str(tmp_path / "own"))
    assert RunDirectory.create(experiment, "federated").path.parent == tmp_path / "own" / "run"


def test_only_name_and_folder_leave_the_config_hash_alone(opened):
    experiment = opened()
    other = dataclasses.replace(experiment, recipe=opened(name="x", output="y").recipe)
    first, second = (results.identity(e, "federated") for e in (experiment, other))
    assert first["config_hash"] == second["config_hash"]
    assert first["name"] != second["name"]
