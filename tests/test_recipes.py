"""The recipes in configs/: each loads, and holds only what differs from the defaults."""

import tomllib
from pathlib import Path

import pytest

from fedkd import config
from fedkd.data.catalog import DATASETS
from fedkd.data.sets.fed_isic2019 import FedIsic2019Config
from fedkd.data.sets.folder import FolderConfig
from fedkd.data.sets.ham10000 import Ham10000Config
from fedkd.data.sets.hyperkvasir import HyperKvasirConfig
from fedkd.data.sets.image_folder import ImageFolderConfig
from fedkd.data.sets.isic2019_lt import Isic2019LtConfig
from fedkd.data.sets.lesions import LesionsConfig
from fedkd.data.sets.medmnist import MedMnistConfig
from fedkd.pretraining.config import PretrainConfig
from fedkd.recipe import Recipe

FOLDER = Path(__file__).parents[1] / "configs"
FILES = sorted(FOLDER.glob("*.toml"))
DATA = {
    "lesions": LesionsConfig,
    "folder": FolderConfig,
    "isic2019_lt": Isic2019LtConfig,
    "fed_isic2019": FedIsic2019Config,
    "ham10000": Ham10000Config,
    "hyperkvasir": HyperKvasirConfig,
    "medmnist": MedMnistConfig,
    "image_folder": ImageFolderConfig,
}


def model_of(path):
    return PretrainConfig if path.name.startswith("pretrain_") else Recipe


def base_of(path, values):
    """What a recipe starts from: the one that it extends, or the defaults of its data set."""
    if "extends" in values:
        return config.load(model_of(path), path.parent / values["extends"])
    base = model_of(path)()
    if "data" in values:
        kind = DATA[values["data"].get("name", "lesions")]
        base = base.model_copy(update={"data": kind.model_construct()})
    return base


def needless(base, values, path=""):
    """Dotted keys whose value is the base's anyway; the name of a section may stand there."""
    found = []
    for key, value in values.items():
        where, before = f"{path}{key}", getattr(base, key, None)
        if isinstance(value, dict):
            found += needless(before, value, f"{where}.")
        elif path and key == "name":
            continue
        elif value == (list(before) if isinstance(before, tuple) else before):
            found.append(where)
    return found


def test_there_are_recipes_to_check():
    assert {"quickstart.toml", "ham10000_sites.toml"} <= {path.name for path in FILES}
    assert set(DATA) == set(DATASETS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_recipe_loads(path):
    assert config.load(model_of(path), path)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_recipe_says_only_what_differs_from_what_it_starts_from(path):
    values = tomllib.loads(path.read_text())
    base = base_of(path, values)
    values.pop("extends", None)
    assert needless(base, values) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_recipe_begins_with_a_comment_on_what_it_is_for(path):
    assert path.read_text().startswith("# ")


def test_a_needless_key_is_found():
    values = {"num_rounds": 10, "data": {"name": "lesions", "size": 64, "seed": 1},
              "student": {"name": "resnet8", "init": "random"}}  # fmt: skip
    assert needless(Recipe(), values) == ["num_rounds", "data.size", "student.init"]


def test_recipes_have_names_of_their_own():
    recipes = [path for path in FILES if model_of(path) is Recipe]
    names = [config.load(Recipe, path).name for path in recipes]
    assert names == [path.stem for path in recipes]
