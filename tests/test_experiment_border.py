"""Opening an experiment: everything that is refused before any training."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fedkd.data.augment import AUGMENTATIONS, AugmentationConfig, augment_, draw
from fedkd.errors import ConfigError, DataError, PartitionError, TeacherError
from fedkd.experiment import open_experiment

LESIONS = {"name": "lesions", "size": 16, "num_train": 60, "num_sites": 2,
           "num_val_per_class": 1, "num_test_per_class": 1}  # fmt: skip


NOT_REFUSED = pytest.fail.Exception


@pytest.fixture
def refused(make_recipe, hospitals, tiny_teacher):
    """A function that opens the tiny experiment, must be refused, and returns the text."""

    def check(error, data=None, teacher=tiny_teacher, **changes):
        given = {**hospitals, **(data or {})}
        with pytest.raises(error) as caught:
            open_experiment(make_recipe(**changes), **given, teacher=teacher)
        return str(caught.value)

    return check


@pytest.mark.parametrize("missing", ["val", "test"])
def test_hospitals_without_val_or_test_are_refused(refused, missing):
    text = refused(ConfigError, {missing: None})
    assert text == "sites, val and test must be given together, with at least one site"


def test_val_and_test_without_hospitals_are_refused(refused, hospitals):
    text = refused(ConfigError, {"sites": None})
    assert text == "val or test images are given without sites; give all three or none"


def test_no_hospital_at_all_is_refused(refused):
    assert "at least one site" in refused(ConfigError, {"sites": []})


@pytest.mark.parametrize("num_clients", [2, 4])
def test_a_number_of_clients_other_than_hospitals_or_one_is_refused(refused, num_clients):
    text = refused(PartitionError, num_clients=num_clients)
    assert text == (
        f"num_clients is {num_clients} but 3 sites are given; leave it out, or use 1 to pool them"
    )


def test_a_number_of_clients_that_the_recipes_data_do_not_have_is_refused(make_recipe):
    with pytest.raises(PartitionError, match="num_clients is 3 and partition.name is 'by_site'"):
        open_experiment(make_recipe(data=LESIONS, num_clients=3))


@pytest.mark.parametrize(("where", "name"), [("sites", "site 1"), ("val", "val"), ("test", "test")])
@pytest.mark.parametrize("what", ["classes", "size"])
def test_hospitals_and_splits_must_agree(refused, hospitals, where, name, what):
    def spoil(images):
        if what == "classes":
            return replace(images, class_names=("a", "b", "c", "e"))
        return replace(images, images=images.images[:, :, :, :15])

    given = hospitals[where]
    data = [given[0], spoil(given[1]), given[2]] if where == "sites" else spoil(given)
    text = refused(DataError, {where: data})
    assert re.fullmatch(
        rf"{name} has classes \(.*\) and images \(3, 16, 1[56]\); site 0 has "
        r"\('a', 'b', 'c', 'd'\) and \(3, 16, 16\): they must agree",
        text,
    )


@pytest.mark.parametrize("where", ["sites", "val", "test"])
def test_hospitals_and_splits_must_have_one_dtype(refused, hospitals, where):
    def spoil(images):
        return replace(images, images=(images.images / 255).astype(np.float32))

    given = hospitals[where]
    data = [given[0], spoil(given[1]), given[2]] if where == "sites" else spoil(given)
    assert "float32" in refused(DataError, {where: data}, objective={"name": "ekd"})


@pytest.mark.parametrize("name", ["val", "test"])
def test_an_empty_split_is_refused(refused, hospitals, name):
    text = refused(DataError, {name: hospitals[name].subset([])})
    assert text == f"the {name} split is empty; it needs at least one image"


def test_grey_images_are_refused(refused, hospitals):
    def grey(images):
        return replace(images, images=images.images[:, :1])

    data = {
        "sites": [grey(site) for site in hospitals["sites"]],
        "val": grey(hospitals["val"]),
        "test": grey(hospitals["test"]),
    }
    text = refused(DataError, data)
    assert text.startswith("train images have 1 channels; students and teachers take 3 (repeat")


def cropped(hospitals, height, width):
    def crop(images):
        return replace(images, images=images.images[:, :, :height, :width])

    return {
        "sites": [crop(site) for site in hospitals["sites"]],
        "val": crop(hospitals["val"]),
        "test": crop(hospitals["test"]),
    }


@pytest.mark.parametrize(("height", "width"), [(15, 16), (16, 15)])
def test_images_too_small_for_prompts_are_refused_for_fopro_alone(
    refused, opened, hospitals, height, width
):
    data = cropped(hospitals, height, width)
    text = refused(DataError, data)
    assert text == (
        f"train images are {height}x{width} px; Fourier prompts need at least 16x16: use larger "
        "images or objective.name = 'ekd'"
    )
    assert opened(data, objective={"name": "ekd"}).num_clients == 3


def floats(hospitals, scale=1 / 255, shift=0.0):
    def convert(images):
        return replace(images, images=(images.images * scale + shift).astype(np.float32))

    return {
        "sites": [convert(site) for site in hospitals["sites"]],
        "val": convert(hospitals["val"]),
        "test": convert(hospitals["test"]),
    }


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1 / 255, -0.5)])
def test_floats_outside_zero_to_one_are_refused_for_fopro_alone(
    refused, opened, hospitals, scale, shift
):
    data = floats(hospitals, scale, shift)
    text = refused(DataError, data)
    assert re.fullmatch(
        r"train images are floats from \S+ to \S+, but Fourier prompts need pixels in \[0, 1\]; "
        "give uint8 or unnormalised images, or use objective.name = 'ekd'",
        text,
    )
    ekd = {"objective": {"name": "ekd"}, "augmentation": {"name": "dihedral"}}
    assert opened(data, **ekd).num_clients == 3
    assert opened(floats(hospitals)).num_clients == 3


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_floats_outside_zero_to_one_are_refused_where_an_augmentation_would_clamp_them(
    refused, opened, hospitals, name
):
    data, numbers = floats(hospitals, 4 / 255, -2.0), draw(np.arange(4), np.random.default_rng(0))
    ekd = {"objective": {"name": "ekd"}, "augmentation": {"name": name}}
    changed = augment_(
        torch.from_numpy(data["val"].images[:4].copy()), numbers, AugmentationConfig(name=name)
    )
    if changed.min() >= 0 and changed.max() <= 1:
        text = refused(DataError, data, **ekd)
        assert re.fullmatch(
            rf"train images are floats from -\S+ to \S+, but augmentation.name = '{name}' clamps "
            r"colours to \[0, 1\]; give uint8 or unnormalised images, or use augmentation.name = "
            "'dihedral' or 'none'",
            text,
        )
        assert opened(floats(hospitals), **ekd).num_clients == 3
    else:
        assert opened(data, **ekd).num_clients == 3


@pytest.mark.parametrize("objective", ["supervised", "fopro"])
def test_pixels_that_are_not_finite_are_refused(refused, hospitals, objective):
    data = floats(hospitals)
    data["sites"][1].images[0, 0, 0, 0] = np.nan
    assert "train" in refused(DataError, data, objective={"name": objective})


def test_a_client_with_too_few_images_is_named(refused, hospitals):
    sites = [hospitals["sites"][0], hospitals["sites"][1].subset([0]), hospitals["sites"][2]]
    assert refused(PartitionError, {"sites": sites}) == (
        "clients with too few training images: south (1); each needs 2 (BatchNorm): raise "
        "partition.min_examples or use fewer clients"
    )
    text = refused(PartitionError, training={"drop_last": True, "batch_size": 9})
    assert "west (6); each needs one full batch of 9" in text
    assert "south" not in text


class Returns(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, pixels):
        return self.value(pixels)


@pytest.mark.parametrize(
    ("value", "seen"),
    [
        (lambda x: x, r"\(2, 3, 16, 16\)"),
        (lambda x: x.mean(), r"\(\)"),
        (lambda x: (x, x), "tuple"),
    ],
)
@pytest.mark.parametrize("objective", ["ekd", "fopro"])
def test_a_teacher_that_does_not_return_features_is_refused(refused, value, seen, objective):
    text = refused(TeacherError, teacher=Returns(value), objective={"name": objective})
    assert re.fullmatch(
        f"the given teacher returns {seen}; it must map a batch of images to features "
        r"\(batch, D\)",
        text,
    )


def test_prompts_are_refused_for_a_teacher_that_cannot_be_observed(refused):
    teacher = Returns(lambda x: x.flatten(1))
    assert "nothing could be measured on teacher 'given'" in refused(TeacherError, teacher=teacher)


@pytest.mark.parametrize("device", ["gpu", "tpu:x", "cuda:one"])
def test_an_unknown_device_is_refused(refused, device):
    text = refused(ConfigError, engine={"device": device})
    assert text == f"engine.device is {device!r}; it must be auto, cpu, cuda or cuda:<number>"


@pytest.mark.parametrize("device", ["meta", "xpu"])
def test_a_device_that_is_neither_cpu_nor_cuda_is_refused(refused, device):
    assert "it must be auto" in refused(ConfigError, engine={"device": device})


def test_a_gpu_that_is_not_there_is_refused(refused, opened, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    text = refused(ConfigError, engine={"device": "cuda:0"})
    assert text == "engine.device is 'cuda:0' but torch sees no GPU; use cpu or auto"
    assert opened(engine={"device": "auto"}).device == torch.device("cpu")


def test_two_hospitals_with_one_name_are_refused_unless_pooled(opened, hospitals):
    sites = [*hospitals["sites"], hospitals["sites"][0]]
    with pytest.raises(DataError, match="several sites are called 'north'; give each hospital"):
        opened({"sites": sites})
    assert opened({"sites": sites}, num_clients=1).num_clients == 1


def test_a_val_split_on_which_the_selection_is_not_defined_is_refused(opened, hospitals):
    one = replace(hospitals["val"], labels=np.zeros(12, np.int64))
    with pytest.raises(DataError, match="all val images are of one class.*macro_auroc"):
        opened({"val": one}, evaluation={"select_on": "macro_auroc"})
    assert opened({"val": one})


def test_a_patient_in_two_given_splits_is_refused(opened, hospitals):
    north, *others = hospitals["sites"]
    north = replace(north, groups=("p1", "p1", "p2", *[""] * 8))
    test = replace(hospitals["test"], groups=("p2", *[""] * 13))
    with pytest.raises(DataError) as caught:
        opened({"sites": [north, *others], "test": test})
    assert "1 lesions or patients (groups) are in both train and test, which leaks: p2; put" in str(
        caught.value
    )
    other = replace(test, groups=("p3", *[""] * 13))
    assert opened({"sites": [north, *others], "test": other}).splits.train.groups[2] == "p2"
