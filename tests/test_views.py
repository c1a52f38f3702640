"""``teacher.views``, from the recipe to the trained student."""

import re

import numpy as np
import pytest
import torch

from clients.factory import make_objective
from clients.node import Node
from fedkd import config
from fedkd.errors import ConfigError
from fedkd.experiment import open_experiment
from fedkd.recipe import Recipe
from fedkd.teachers.zoo import WEIGHTS
from server import simulate


@pytest.fixture
def train(make_recipe, hospitals):
    """A function that runs the tiny recipe with the default teacher; its summary."""

    def run(views, augmentation, objective="ekd", strategy="fedavg", by_client=()):
        recipe = make_recipe(
            objective={"name": objective},
            strategy={"name": strategy},
            teacher={"views": views, "by_client": list(by_client)},
            augmentation={"name": augmentation},
        )
        return simulate(recipe, **hospitals).summary

    return run


@pytest.mark.parametrize(("views", "augmentation"), [("dihedral", "dihedral"), ("clean", "none")])
@pytest.mark.parametrize("strategy", ["fedavg", "mas"])
def test_kept_features_of_what_the_student_sees_change_no_bit(train, views, augmentation, strategy):
    """Batches of 4, two rounds, three hospitals; with mas class scores come from the cache too."""
    kept = train(views, augmentation, strategy=strategy)
    asked = train("augmented", augmentation, strategy=strategy)
    assert kept["student_sha256"] == asked["student_sha256"]


def test_kept_features_of_another_image_are_another_method(train):
    students = {
        train(views, "dihedral_jitter")["student_sha256"]
        for views in ("augmented", "clean", "dihedral")
    }
    assert len(students) == 3


def test_a_teacher_whose_features_are_kept_does_not_run_during_training(
    make_recipe, hospitals, passes
):
    recipe = make_recipe(objective={"name": "ekd"}, teacher={"views": "dihedral"})
    node = Node(open_experiment(recipe, **hospitals))
    assert passes
    passes.clear()
    node.train(0, node.initial_arrays(), {}, 1, score_classes=True)
    assert not passes


def test_the_target_is_of_the_students_own_view_without_its_colours(make_recipe, hospitals):
    recipe = make_recipe(objective={"name": "ekd"}, teacher={"views": "dihedral"})
    experiment = open_experiment(recipe, **hospitals)
    objective = make_objective(experiment, 1, 1)
    pixels = experiment.loader(1).pixels(np.array([4, 2]))
    draws = np.ones((2, 10))
    draws[0, 0] = 0.0  # Its rows are flipped; the other image stays as it is.
    objective.next_images(np.array([4, 2]), draws)
    upside_down = torch.stack([pixels[0].flip(1), pixels[1]])
    expected = experiment.teacher_of(1).features(upside_down)
    assert torch.equal(objective.target(torch.zeros_like(pixels)), expected)


@pytest.mark.parametrize("changes", [{"name": "supervised"}, {"name": "ekd", "lambda_f": 0.0}])
def test_features_that_nobody_needs_are_not_computed(make_recipe, hospitals, passes, changes):
    recipe = make_recipe(objective=changes, teacher={"views": "clean"})
    Node(open_experiment(recipe, **hospitals))
    assert not passes


def test_clients_may_differ_in_what_is_kept(make_recipe, hospitals):
    shipped = str(WEIGHTS / "default.safetensors")
    own = {"clients": ["south"], "name": "pretrained", "checkpoint": shipped, "views": "dihedral"}
    recipe = make_recipe(objective={"name": "ekd"}, teacher={"by_client": [own]})
    north, south, west = open_experiment(recipe, **hospitals).kept_features
    assert (north, west) == (None, None)
    assert south.values.shape == (9, 8, 480), "the nine images of south"


def test_the_features_of_a_given_teacher_are_kept(make_recipe, hospitals, tiny_teacher):
    recipe = make_recipe(objective={"name": "ekd"}, teacher={"views": "clean"})
    experiment = open_experiment(recipe, **hospitals, teacher=tiny_teacher)
    for client, kept in enumerate(experiment.kept_features):
        pixels = experiment.loader(client).pixels(np.arange(3))
        expected = tiny_teacher(pixels).detach()
        torch.testing.assert_close(kept.of(np.arange(3), None), expected)


@pytest.mark.parametrize("objective", ["ekd", "fopro"])
@pytest.mark.parametrize(
    ("views", "augmentation", "said"),
    [
        ("clean", "none", False),
        ("clean", "dihedral", True),
        ("dihedral", "dihedral", False),
        ("dihedral", "dihedral_jitter", True),
    ],
)
def test_the_log_says_where_the_method_changes(
    make_recipe, hospitals, caplog, views, augmentation, said, objective
):
    caplog.set_level("INFO")
    recipe = make_recipe(
        objective={"name": objective},
        prompts={"kept_views": 2},
        teacher={"views": views},
        augmentation={"name": augmentation},
    )
    _ = open_experiment(recipe, **hospitals).kept_features
    text = f"teacher.views = '{views}' with augmentation.name = '{augmentation}' is another method"
    assert (text in caplog.text) == said


FOPRO = (
    "{key} is '{views}', but objective.name = 'fopro' draws a new prompt for every image and step, "
    "so that no feature can be kept; set it to 'augmented', prompts.kept_views to 3, say, or "
    "objective.name to 'ekd'"
)
BANK = (
    "{key} is '{views}', but prompts.kept_views = 3 keeps features, and augmentation.name = "
    "'dihedral' shows the student another image in every step; set {key} to 'dihedral' or 'clean', "
    "augmentation.name to 'none', or prompts.kept_views to 0"
)
NO_VIEWS = (
    "{key} is 'dihedral', but augmentation.name is 'fedmas_isic', whose views are not the flips "
    "and quarter turns; set augmentation.name to 'dihedral' or 'dihedral_jitter', or {key} to "
    "'augmented' or 'clean'"
)


@pytest.mark.parametrize("by_client", [False, True])
@pytest.mark.parametrize(
    ("objective", "augmentation", "views", "text"),
    [
        ("fopro", "dihedral", "dihedral", FOPRO),
        ("fopro", "none", "clean", FOPRO),
        ("ekd", "fedmas_isic", "dihedral", NO_VIEWS),
    ],
)
def test_features_that_cannot_be_kept_are_refused(objective, augmentation, views, text, by_client):
    key, teacher = "teacher.views", {"views": views}
    if by_client:
        key, teacher = "teacher.by_client.0.views", {"by_client": [{"clients": ["a"], **teacher}]}
    values = {
        "objective": {"name": objective},
        "augmentation": {"name": augmentation},
        "teacher": teacher,
    }
    with pytest.raises(ConfigError, match=re.escape(text.format(key=key, views=views))):
        config.build(Recipe, values)
    config.build(Recipe, {**values, "objective": {"name": "supervised"}})


def test_a_bank_keeps_no_features_of_images_that_change_in_every_step():
    values = {"prompts": {"kept_views": 3}, "augmentation": {"name": "dihedral"}}
    text = BANK.format(key="teacher.views", views="augmented")
    with pytest.raises(ConfigError, match=re.escape(text)):
        config.build(Recipe, values)
    for changes in (
        {"augmentation": {"name": "none"}},
        {"teacher": {"views": "clean"}},
        {"teacher": {"views": "dihedral"}},
        {"objective": {"name": "ekd"}},
    ):
        config.build(Recipe, {**values, **changes})
    turned = {"teacher": {"views": "dihedral"}, "augmentation": {"name": "fedmas_isic"}}
    with pytest.raises(ConfigError, match=re.escape(NO_VIEWS.format(key="teacher.views"))):
        config.build(Recipe, {**values, **turned})


def test_views_are_part_of_what_identifies_a_recipe():
    hashes = {
        config.build(Recipe, {"objective": {"name": "ekd"}, "teacher": {"views": views}}).hash()
        for views in ("augmented", "clean", "dihedral")
    }
    assert len(hashes) == 3
