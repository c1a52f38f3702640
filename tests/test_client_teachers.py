"""Teachers may differ by client."""

import copy

import pytest
import torch
from torch import nn

from fedkd import config
from fedkd.errors import ConfigError, StudentError, TeacherError
from fedkd.experiment import open_experiment
from fedkd.recipe import Recipe
from fedkd.teachers.zoo import WEIGHTS
from server import simulate

EKD = {"objective": {"name": "ekd"}}


@pytest.fixture
def other(tiny_teacher):
    """A teacher of the same width with other weights."""
    network = copy.deepcopy(tiny_teacher)
    with torch.no_grad():
        network.conv2.weight.mul_(-1)
    return network


def test_each_client_distils_from_its_own_teacher(opened, teacher, other):
    experiment = opened(teacher=[teacher, other, teacher], **EKD)
    pixels = experiment.loader(0).pixels([0, 1, 2])
    features = [experiment.teacher_of(client).features(pixels) for client in range(3)]
    torch.testing.assert_close(features[0], teacher(pixels))
    torch.testing.assert_close(features[1], other(pixels))
    assert not torch.equal(features[0], features[1])
    assert experiment.teacher_of(0) is experiment.teacher_of(2), "a shared teacher is loaded once"


def test_one_teacher_for_all_is_the_same_as_a_sequence_of_it(run, make_recipe, hospitals, teacher):
    one = run(**EKD)
    many = simulate(make_recipe(**EKD), **hospitals, teacher=[teacher] * 3)
    assert one.summary["student_sha256"] == many.summary["student_sha256"]


@pytest.mark.parametrize("num", [1, 2, 4])
def test_a_sequence_has_one_teacher_per_client(opened, teacher, num):
    with pytest.raises(TeacherError, match=f"{num} teachers are given for 3 clients"):
        opened(teacher=[teacher] * num, **EKD)


def test_teachers_of_different_widths_are_refused(opened, teacher):
    narrow = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(TeacherError, match=r"different numbers of features.*'south': 4"):
        opened(teacher=[teacher, narrow, teacher], **EKD)


def recipe_with(*tables, objective="ekd"):
    values = {"objective": {"name": objective}, "teacher": {"by_client": list(tables)}}
    return config.build(Recipe, values)


def test_the_recipe_names_the_clients_of_other_teachers(hospitals):
    shipped = str(WEIGHTS / "default.safetensors")
    recipe = recipe_with({"clients": ["south"], "name": "pretrained", "checkpoint": shipped})
    experiment = open_experiment(recipe, **hospitals)
    names = [experiment.teacher_of(client).name for client in range(3)]
    assert names == ["default", "pretrained", "default"]
    assert experiment.teacher_of(0) is experiment.teacher_of(2)


def test_a_client_that_does_not_exist_is_refused(hospitals):
    with pytest.raises(ConfigError, match=r"by_client.1.clients names 'east'.*north, south, west"):
        open_experiment(recipe_with({"clients": ["west"]}, {"clients": ["east"]}), **hospitals)


def test_a_client_with_two_teachers_is_refused(hospitals):
    with pytest.raises(ConfigError, match=r"by_client.1.clients names 'west' again"):
        open_experiment(recipe_with({"clients": ["west"]}, {"clients": ["west"]}), **hospitals)


def test_a_teacher_of_nobody_is_refused():
    with pytest.raises(ConfigError, match=r"teacher.by_client.0.clients"):
        recipe_with({"clients": []})


def test_a_wrong_key_in_a_clients_teacher_is_named():
    with pytest.raises(ConfigError, match=r"checkpiont.*did you mean.*checkpoint"):
        recipe_with({"clients": ["west"], "checkpiont": "x"})


@pytest.mark.parametrize("given", [["a", "b", "c"], "abc", [None] * 3, len])
def test_a_given_teacher_is_a_module_or_modules(opened, given):
    with pytest.raises(TeacherError, match="it must be a torch module, or a sequence"):
        opened(teacher=given, **EKD)


def test_students_cannot_begin_as_different_teachers(opened, teacher, other):
    with pytest.raises(StudentError, match="'teacher' but the clients have different teachers"):
        opened(teacher=[teacher, other, teacher], student={"init": "teacher"}, **EKD)
