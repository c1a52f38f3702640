"""The teacher that hospitals make by objective moco: its file, its card, its use."""

import copy
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fedkd import config
from fedkd.models import states
from fedkd.models.factory import STUDENTS
from fedkd.recipe import Recipe
from fedkd.teachers.config import TeacherConfig
from fedkd.teachers.loading import open_teacher
from server import simulate
from server.cli import main
from server.made_teacher import write_teacher

MOCO = {"objective": {"name": "moco"}, "augmentation": {"name": "none"}}


@pytest.fixture(scope="module")
def finished(make_recipe, hospitals, tmp_path_factory):
    """A finished run with a directory."""
    return simulate(make_recipe(**MOCO), **hospitals, output=tmp_path_factory.mktemp("runs"))


def test_the_stored_teacher_is_the_student_that_was_evaluated(finished, hospitals):
    path = finished.path / "teacher.safetensors"
    teacher = open_teacher(TeacherConfig(name="pretrained", checkpoint=str(path)))
    best = load_file(finished.path / "best_student.safetensors")
    own = teacher.backbone.state_dict()
    assert states.sha256(own) == states.sha256(
        {name: best[f"backbone.{name}"] for name in own},
    )
    student = finished.board.final_student(best)
    pixels = torch.from_numpy(hospitals["val"].images).float() / 255
    with torch.no_grad():
        out = student(pixels)
        torch.testing.assert_close(teacher.features(pixels), out.features)
        torch.testing.assert_close(teacher.observe(pixels).head_output, out.projection)
    assert teacher.has_reference


def test_the_card_says_how_the_teacher_was_made(finished):
    card = json.loads((finished.path / "teacher.json").read_text())
    assert card["method"] == "federated MoCo v2, 3 clients"
    assert card["data"] == "26 given images, without labels"
    assert (card["num_clients"], card["num_rounds"]) == (3, 2)
    assert card["config_hash"] == finished.summary["config_hash"]
    assert card["licence"] == "that of your images"
    assert "running averages of training" in card["batchnorm_statistics"]
    for split in ("val", "test"):
        assert card["knn"][split]["mcc"] == finished.summary[split]["mcc"]
    assert finished.summary["scored_by"] == "neighbours"


# ResNet-50 differs from ResNet-18 in width alone, and takes long.
@pytest.mark.parametrize("name", [name for name in STUDENTS if name != "resnet50"])
def test_every_student_can_become_a_teacher(opened, finished, tmp_path, name):
    experiment = opened(**MOCO, student={"name": name, "normalize": "none"})
    board = copy.copy(finished.board)
    board.experiment = experiment
    student = experiment.build_student().eval()
    board.best_arrays = student.state_dict()
    write_teacher(board, tmp_path / "t.safetensors", "centralized")
    config_ = TeacherConfig(name="pretrained", checkpoint=str(tmp_path / "t.safetensors"))
    pixels = experiment.held_out_loader("val").pixels(np.arange(3))
    with torch.no_grad():
        torch.testing.assert_close(open_teacher(config_).features(pixels), student(pixels).features)
    assert json.loads((tmp_path / "t.json").read_text())["method"].endswith("pooled images")


def test_hospitals_distil_from_the_teacher_that_they_made(finished, make_recipe, hospitals):
    path = str(finished.path / "teacher.safetensors")
    for objective in ("ekd", "fopro"):
        recipe = make_recipe(
            objective={"name": objective}, teacher={"name": "pretrained", "checkpoint": path}
        )
        assert simulate(recipe, **hospitals).summary["status"] == "finished"


def test_the_command_says_how_scores_were_made_and_how_to_use_the_teacher(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    small = ["data.size=16", "data.num_train=80", "data.imbalance_factor=2",
             "data.num_val_per_class=1", "data.num_test_per_class=1", "num_rounds=1"]  # fmt: skip
    recipe = tmp_path / "r.toml"
    recipe.write_text('objective.name = "moco"\naugmentation.name = "none"\n')
    assert main(["run", str(recipe), *small]) == 0
    captured = capsys.readouterr()
    assert "val by kNN: bal. acc." in captured.err
    assert "kNN scores: predicted by the nearest labelled val images" in captured.out
    _, hint = captured.out.rsplit("fedkd run CONFIG ", 1)
    overrides = [text.strip("'") for text in hint.split()]
    made = config.load(Recipe, None, overrides)
    assert (made.objective.name, made.teacher.name) == ("ekd", "pretrained")
    assert open_teacher(made.teacher).num_features == 64
