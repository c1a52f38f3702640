"""``fedkd evaluate``: the run's own figures again, other students, other images, and refusals."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file, save_file

from fedkd.data.images import LabelledImages
from fedkd.errors import ConfigError
from server.cli import main
from server.external_images import in_classes_of, overlap

SMALL = [
    "data.size=16", "data.num_train=40", "data.num_sites=2", "data.num_val_per_class=3",
    "data.num_test_per_class=2",
]  # fmt: skip


def train(folder, name, *changes):
    recipe = folder / f"{name}.toml"
    recipe.write_text(
        f'name = "{name}"\n[objective]\nname = "supervised"\n[partition]\nname = "by_site"\n'
    )
    assert main(["run", str(recipe), "num_rounds=2", f"output={folder}", *SMALL, *changes]) == 0
    (path,) = (folder / name).iterdir()
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train(tmp_path_factory.mktemp("evaluate"), "tiny", "keep_students_every=1")


@pytest.fixture
def path(trained, tmp_path, monkeypatch):
    """A copy of the run directory that a test may spoil."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(trained, tmp_path / "RUN")


def evaluated(folder):
    return json.loads((folder / "evaluation.json").read_text())


def last_error(capsys):
    return capsys.readouterr().err.splitlines()[-1]


def refused(capsys, *arguments):
    capsys.readouterr()
    assert main(["evaluate", *map(str, arguments)]) == 2
    return last_error(capsys)


def test_the_best_student_on_test_has_the_runs_own_figures(path, capsys):
    assert main(["evaluate", str(path), "--split", "test"]) == 0
    out, err = capsys.readouterr()
    folder = path / "evaluations" / "best-test"
    summary = json.loads((path / "summary.json").read_text())
    found = evaluated(folder)
    assert json.dumps(found["scores"]) == json.dumps(summary["test"])
    assert found["student_sha256"] == summary["best_student_sha256"]
    assert (folder / "predictions.csv").read_bytes() == (path / "predictions_test.csv").read_bytes()
    assert out.splitlines()[-2:] == [
        str(folder / "evaluation.json"),
        str(folder / "predictions.csv"),
    ]
    assert f"tiny: student of round {summary['best_round']}, best on val" in out
    assert "test (16)" in out
    assert "calibration error (ECE)" in out
    assert "balanced accuracy at hospital_1" in out
    assert "spread over hospitals (sd)" in out
    assert "predicting" in err
    assert "another student" not in err


def test_val_is_what_is_scored_unless_said_otherwise(path):
    assert main(["evaluate", str(path)]) == 0
    summary = json.loads((path / "summary.json").read_text())
    assert evaluated(path / "evaluations" / "best-val")["scores"] == summary["val"]


def test_the_training_images_are_a_split_too(path):
    assert main(["evaluate", str(path), "--split", "train"]) == 0
    assert evaluated(path / "evaluations" / "best-train")["scores"]["num_images"] == 40


def test_students_by_round_and_the_last_one_have_the_scores_of_their_rounds(path):
    rounds = pd.read_csv(path / "rounds.csv").set_index("round")
    for student, number in (("round:1", 1), ("round:2", 2), ("last", 2)):
        assert main(["evaluate", str(path), "--student", student]) == 0
        found = evaluated(path / "evaluations" / f"{student.replace(':', '-')}-val")["scores"]
        assert found["mcc"] == pytest.approx(rounds["val_mcc"][number], abs=1e-12)
        assert found["macro_auroc"] == pytest.approx(rounds["val_macro_auroc"][number], abs=1e-12)


def test_a_file_is_a_student_and_its_folder_tells_files_apart(path):
    file = str(path / "students" / "round-0001.safetensors")
    assert main(["evaluate", str(path), "--student", file]) == 0
    (folder,) = (path / "evaluations").iterdir()
    assert folder.name == f"round-0001-{evaluated(folder)['student_sha256'][:8]}-val"


def test_the_same_command_leaves_the_same_files(path):
    assert main(["evaluate", str(path)]) == 0
    folder = path / "evaluations" / "best-val"
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert set(before) == {"evaluation.json", "predictions.csv"}
    assert main(["evaluate", str(path)]) == 0
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


@pytest.mark.parametrize("damaged", [False, True])
def test_another_evaluation_is_not_written_over(path, capsys, damaged):
    out = ["--output", str(path / "mine")]
    assert main(["evaluate", str(path), *out]) == 0
    file = path / "mine" / "evaluation.json"
    if damaged:
        file.write_text("{}")
    before = file.read_bytes()
    error = refused(capsys, path, "--student", "round:0", *out)
    what = "content" if damaged else "student, student_sha256"
    assert error == (
        f"fedkd: {file} is there and of another evaluation ({what} differs), and nothing is "
        "written over; choose another --output"
    )
    assert file.read_bytes() == before


def test_test_with_a_student_that_was_not_chosen_on_val_is_warned_of(path, capsys):
    assert main(["evaluate", str(path), "--split", "test", "--student", "last"]) == 0
    warning = "the test split is looked at with another student than the one chosen on val"
    assert capsys.readouterr().err.count(warning) == 1
    (note,) = evaluated(path / "evaluations" / "last-test")["notes"]
    assert note.startswith(warning)
    assert main(["evaluate", str(path), "--split", "val", "--student", "last"]) == 0
    assert warning not in capsys.readouterr().err


def test_another_data_set_is_scored_by_its_test_split_at_the_runs_size(path, capsys):
    other = ["data.num_train=40", "num_val_per_class=1", "num_test_per_class=3", "seed=7"]
    assert main(["evaluate", str(path), "--data", "lesions", *other]) == 0
    out = capsys.readouterr().out
    folder = path / "evaluations" / "best-test-lesions"
    found = evaluated(folder)
    assert found["data"]["data"]["size"] == 16
    assert found["data"]["data"]["seed"] == 7
    assert found["scores"]["num_images"] == len(pd.read_csv(folder / "predictions.csv")) == 24
    assert "lesions test (24)" in out


def test_what_students_there_are_is_said(path, capsys):
    assert refused(capsys, path, "--student", "round:7") == (
        f"fedkd: --student is 'round:7', but of the students by round {path} has those of rounds "
        "0, 1, 2; a run keeps them with keep_students_every=1"
    )
    shutil.rmtree(path / "students")
    assert "by round" in (error := refused(capsys, path, "--student", "round:1"))
    assert "has none; a run keeps them with" in error
    assert refused(capsys, path, "--student", "bset") == (
        "fedkd: --student is 'bset'; it must be best, last, round:N or a file of a student of this "
        "run's kind (.safetensors)"
    )


def test_a_file_that_is_no_such_student_is_refused(path, capsys):
    tensors = load_file(path / "best_student.safetensors")
    del tensors["fc.bias"]
    save_file(tensors, "half.safetensors")
    error = refused(capsys, path, "--student", "half.safetensors")
    assert error.endswith("it lacks 1 tensors, the first fc.bias")
    save_file({**tensors, "fc.bias": tensors["fc.weight"].clone()}, "odd.safetensors")
    error = refused(capsys, path, "--student", "odd.safetensors")
    assert "odd.safetensors is no student of" in error
    (path / "bad.safetensors").write_bytes(b"no")
    assert "cannot read the student" in refused(capsys, path, "--student", path / "bad.safetensors")


def test_keys_without_other_data_are_refused(path, capsys):
    assert refused(capsys, path, "data.size=64") == (
        "fedkd: data.size=64 is given, but the run's own images are those of its config.toml; "
        "key=value changes what --data names"
    )


def test_another_size_of_images_is_refused(path, capsys):
    error = refused(capsys, path, "--data", "lesions", "size=32", "num_train=40")
    assert error == (
        "fedkd: the test split of lesions has uint8 images of 3 x 32 x 32, but the run was trained "
        "on uint8 ones of 3 x 16 x 16; give the same, such as data.size=16"
    )


def test_a_run_whose_hospitals_keep_tensors_is_refused(tmp_path, capsys):
    path = train(tmp_path, "own", "strategy.exchange=without_batchnorm", "num_rounds=1")
    assert refused(capsys, path) == (
        f"fedkd: {path} has strategy.exchange = 'without_batchnorm': each hospital predicts with "
        "tensors of its own, which no file of the run holds; its scores are in summary.json, its "
        "predictions in predictions_test.csv"
    )


def test_a_student_without_classifier_is_scored_by_neighbours_as_in_its_run(tmp_path, capsys):
    path = train(tmp_path, "contrast", "objective.name=moco", "moco.queue_size=8", "num_rounds=1",
                 "training.batch_size=8")  # fmt: skip
    for split in ("val", "test"):
        assert main(["evaluate", str(path), "--split", split]) == 0
        found = evaluated(path / "evaluations" / f"best-{split}")
        assert found["scores"] == json.loads((path / "summary.json").read_text())[split]
        assert found["scored_by"] == "neighbours"
    assert "kNN scores" in capsys.readouterr().out


# Classes by name


def images(labels, names, ids=(), groups=(), size=4):
    return LabelledImages(
        images=np.zeros((len(labels), 3, size, size), np.uint8),
        labels=np.array(labels),
        class_names=names,
        ids=ids,
        groups=groups,
    )


def test_classes_are_matched_by_name_and_unknown_ones_left_out_aloud():
    ours = images([0, 1, 2], ("mel", "nv", "df"))
    theirs = images([0, 1, 1, 2], ("NV", "SCC", "Mel"), ids=("a", "b", "c", "d"))
    found, notes = in_classes_of(ours, theirs, "that")
    assert found.class_names == ("mel", "nv", "df")
    assert (found.labels.tolist(), found.ids) == ([1, 0], ("a", "d"))
    assert notes == [
        "that: 2 of 4 images are left out, as the run does not know their classes (SCC 2)",
        "that has no image of df; no mean counts them",
    ]


def test_letters_count_where_they_tell_classes_apart():
    ours, theirs = images([0, 1], ("a", "A")), images([0, 1, 2], ("A", "a", "AA"))
    assert in_classes_of(ours, theirs, "that")[0].labels.tolist() == [1, 0]


def test_no_class_in_common_is_refused():
    with pytest.raises(ConfigError) as error:
        in_classes_of(images([0], ("mel", "nv")), images([0], ("cat", "dog")), "that")
    assert str(error.value) == (
        "that has no image of a class of the run: its classes are cat, dog, the run's mel, nv; "
        "classes are matched by name, so name them alike"
    )


def test_names_of_training_images_are_warned_of_but_row_numbers_are_none():
    assert overlap(images([0, 0], ("a",)), images([0, 0], ("a",)), "that") == []
    ours = images([0, 0], ("a",), ids=("x", "y"), groups=("p1", ""))
    theirs = images([0, 0], ("a",), ids=("z", "y"), groups=("p1", ""))
    end = "if they are the same, these scores are no external validation"
    assert overlap(ours, theirs, "that") == [
        f"that: 1 images have the name of one that the run was trained on (y); {end}",
        f"that: 1 lesions or patients have the name of one that the run was trained on (p1); {end}",
    ]
