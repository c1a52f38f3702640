"""The manifest of a division: written, read, followed, and refused where it does not fit."""

import json
import logging
import typing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fedkd.data.catalog import DATASETS, DataConfig
from fedkd.data.images import LabelledImages
from fedkd.errors import ConfigError, PartitionError
from fedkd.partitions import manifest
from fedkd.partitions.factory import PartitionConfig, partition
from fedkd.recipe import PLACES, Recipe

CLASSES, SITES = ("nv", "mel", "df"), ("graz", "wien")


def training(labels=(0, 0, 0, 0, 0, 1, 1, 1, 1, 0), sites=(0, 1) * 5, ids=None, classes=CLASSES):
    ids = tuple(f"ä/{number}.jpg" for number in range(len(labels))) if ids is None else ids
    pixels = np.zeros((len(labels), 3, 1, 1), np.uint8)
    return LabelledImages(pixels, np.array(labels), classes, np.array(sites), SITES, ids)


def write(path, images, num_clients=3, name="iid", seed=1, **options):
    """Divide, write the manifest and return the division."""
    config = PartitionConfig(name=name, **options)
    divided = partition(config, images, num_clients, seed)
    described = manifest.describe(divided, images, config.model_dump(), seed)
    path.write_text(manifest.to_json(described), encoding="utf-8")
    return divided


def follow(path, images, num_clients=None, seed=99, **options):
    config = PartitionConfig(name="file", file=str(path), **options)
    return partition(config, images, num_clients, seed)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "partition.json"


@settings(deadline=None, max_examples=40)
@given(
    name=st.sampled_from(["iid", "dirichlet", "quantity_skew", "by_site", "by_site_dirichlet"]),
    labels=st.lists(st.integers(0, 2), min_size=12, max_size=40),
    seed=st.integers(0, 2**40),
)
def test_every_division_is_made_again_bit_for_bit(tmp_path_factory, name, labels, seed):
    path = tmp_path_factory.mktemp("division") / "partition.json"
    images = training(labels, [number % 2 for number in range(len(labels))])
    num_clients = None if name.startswith("by_site") else 3
    made = write(path, images, num_clients, name, seed, alpha=10.0)
    again = follow(path, images)
    assert again.hash == made.hash
    assert again.client_names == made.client_names
    assert again.client_sites == made.client_sites
    assert all(own.dtype == np.int64 for own in again.indices)


def test_the_manifest_says_who_has_what_and_what_made_it(path):
    images = training()
    divided = write(path, images, None, "by_site_dirichlet", seed=7, alpha=2.0)
    stored = json.loads(path.read_text())
    assert stored["version"] == 2
    assert stored["data_set"] is None
    assert stored["seed"] == 7
    assert stored["settings"] == {
        "name": "by_site_dirichlet", "alpha": 2.0, "classes_per_client": 2, "shards_per_client": 2,
        "clients_per_site": 2, "keep_groups": True, "min_examples": 1, "file": "",
    }  # fmt: skip
    assert stored["num_images"] == 10
    assert stored["class_names"] == list(CLASSES)
    assert stored["partition_sha256"] == divided.hash
    for client, rows in zip(stored["clients"], divided.indices, strict=True):
        assert client["ids"] == [images.ids[row] for row in rows]
        counts = np.bincount(images.labels[rows], minlength=3).tolist()
        assert client["counts"] == dict(zip(CLASSES, counts, strict=True))
    assert [client["site"] for client in stored["clients"]] == ["graz", "graz", "wien", "wien"]


def test_the_manifest_names_the_data_set_but_no_folder_of_this_machine(path):
    values = {"name": "folder", "images": "/here", "csv": "/here/a.csv", "site_column": "hospital"}
    recipe = Recipe.model_validate({"data": values, "long_tail": {"counts": {"nv": 4}}})
    images = training()
    divided = partition(PartitionConfig(), images, None, 0)
    described = manifest.describe(divided, images, {}, 0, recipe.data_set())
    path.write_text(manifest.to_json(described), encoding="utf-8")
    stored = manifest.read(path).data_set
    assert stored["data"]["name"] == "folder"
    assert stored["data"]["site_column"] == "hospital"
    assert stored["long_tail"]["counts"] == {"nv": 4}
    assert "here" not in json.dumps(stored)


def test_no_data_set_brings_its_folders_into_the_manifest():
    # Where images lie must be given, or is a default that names a variable.
    union = typing.get_args(typing.get_args(DataConfig)[0])
    configs = [typing.get_args(tagged)[0] for tagged in union]
    assert len(configs) == len(DATASETS)
    for config in configs:
        names = {
            name
            for name, info in config.model_fields.items()
            if (info.is_required() and info.annotation is str) or "${" in str(info.default)
        }
        assert names <= PLACES, config


def test_tables_that_need_not_be_given_are_no_part_of_the_manifest_either():
    values = {"name": "fed_isic2019", "split_csv": "/here/a.csv", "metadata": "/here/b.csv"}
    described = Recipe.model_validate({"data": values}).data_set()
    assert described["data"]["name"] == "fed_isic2019"
    assert "here" not in json.dumps(described)


def test_a_manifest_of_version_1_is_still_followed(path):
    images = training()
    made = write(path, images)
    values = json.loads(path.read_text())
    del values["data_set"], values["settings"]["keep_groups"]
    path.write_text(json.dumps(values | {"version": 1}))
    assert follow(path, images).hash == made.hash


def test_the_data_hash_sees_ids_classes_and_sites_in_any_order():
    images = training()
    other = [
        training(labels=(1, 0, 0, 0, 0, 0, 1, 1, 1, 0)),
        training(sites=(1, 0) + (0, 1) * 4),
        training(ids=("x", *images.ids[1:])),
    ]
    hashes = {manifest.data_sha256(changed) for changed in [images, *other]}
    assert len(hashes) == 4
    assert manifest.data_sha256(images.subset(np.arange(10)[::-1])) in hashes


def test_another_order_of_the_images_keeps_every_clients_images_and_warns(path, caplog):
    images = training()
    made = write(path, images)
    assert follow(path, images).hash == made.hash
    assert not caplog.records
    turned = images.subset(np.arange(10)[::-1])
    with caplog.at_level(logging.WARNING):
        again = follow(path, turned)
    assert "another order" in caplog.text
    for before, after in zip(made.indices, again.indices, strict=True):
        assert {images.ids[row] for row in before} == {turned.ids[row] for row in after}
        assert np.all(np.diff(after) > 0)


def test_one_client_pools_and_other_numbers_are_refused(path):
    write(path, training())
    pooled = follow(path, training(), num_clients=1)
    assert pooled.client_names == ("client-0",)
    assert len(pooled.indices[0]) == 10
    assert follow(path, training(), num_clients=3).hash == follow(path, training()).hash
    with pytest.raises(PartitionError, match="num_clients is 2 .* has 3 clients; leave .* to 3 "):
        follow(path, training(), num_clients=2)


def test_a_variable_in_the_path_is_filled_in(path, monkeypatch):
    made = write(path, training())
    monkeypatch.setenv("DIVISIONS", str(path.parent))
    assert follow("${DIVISIONS}/partition.json", training()).hash == made.hash
    with pytest.raises(ConfigError, match=r"partition\.file is .* NOWHERE_SET is not set"):
        follow("${NOWHERE_SET}/partition.json", training())


def test_images_that_are_missing_or_new_are_refused_and_the_first_is_named(path):
    images = training()
    divided = write(path, images)
    owner = next(name for name, rows in zip(divided.client_names, divided.indices, strict=True)
                 if 4 in rows)  # fmt: skip
    renamed = training(ids=(*images.ids[:4], "new.jpg", *images.ids[5:]))
    with pytest.raises(PartitionError) as caught:
        follow(path, renamed)
    text = str(caught.value)
    assert f"1 of its 10 images are not in the training split, the first ä/4.jpg of {owner}" in text
    assert "1 of 10 training images are not in it, the first new.jpg" in text
    assert "use the data set that it was made from" in text
    with pytest.raises(PartitionError, match=r"2 of its 10 images are not in the training split"):
        follow(path, images.subset(np.arange(8)))


def test_another_class_or_site_of_an_image_is_refused(path):
    write(path, training())
    relabelled = training(labels=(2, 0, 0, 0, 0, 1, 1, 1, 1, 0))
    with pytest.raises(PartitionError, match=r"images of nv at client-\d, but by the data set's"):
        follow(path, relabelled)
    moved = training(sites=(1, 1) + (0, 1) * 4)
    with pytest.raises(PartitionError, match=r"another class or site .* \(data_sha256 differs\)"):
        follow(path, moved)
    with pytest.raises(PartitionError, match="classes nv, mel, df, the data set has mel, nv, df"):
        follow(path, training(classes=("mel", "nv", "df")))


def test_ids_that_occur_twice_are_refused(path):
    doubled = training(ids=("a", "a", *map(str, range(8))))
    write(path, doubled)
    with pytest.raises(PartitionError, match="names the image a twice, at client-. and at client"):
        follow(path, doubled)
    write(path, training())
    with pytest.raises(PartitionError, match="image id a occurs twice in the training split"):
        follow(path, doubled)


def test_the_minimum_holds_for_a_file_too(path):
    write(path, training())
    assert follow(path, training(), min_examples=3)
    with pytest.raises(
        PartitionError, match=r"at client-1 \(3\), client-2 \(3\); .* = 4: lower it"
    ):
        follow(path, training(), num_clients=1, min_examples=4)


def test_a_manifest_that_was_changed_is_refused(path):
    write(path, training())
    values = json.loads(path.read_text())
    first, second = values["clients"][:2]
    first["ids"][0], second["ids"][0] = second["ids"][0], first["ids"][0]
    path.write_text(json.dumps(values))
    with pytest.raises(PartitionError, match="was changed after it was written: .*clients_sha256"):
        follow(path, training())


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "is no manifest: Invalid JSON"),
        (b"[1, 2]", "is no manifest: Input should be an object"),
        (b'{"version": 3}', "is no manifest: version: Input should be 1 or 2"),
        (b"\xff\xfe{}", "is no manifest: Invalid JSON"),
    ],
)
def test_a_file_that_is_no_manifest_is_refused(path, content, text):
    path.write_bytes(content)
    with pytest.raises(PartitionError, match=f"{text}.*must be a partition.json"):
        follow(path, training())


def test_a_manifest_without_clients_is_refused(path):
    write(path, training())
    values = json.loads(path.read_text())
    values["clients"], values["clients_sha256"] = [], manifest.clients_sha256(())
    path.write_text(json.dumps(values))
    with pytest.raises(PartitionError, match="was changed after it was written"):
        follow(path, training())


def test_a_file_that_is_not_there_is_refused(path):
    with pytest.raises(PartitionError, match="cannot read the manifest .*No such file"):
        follow(path, training())
    with pytest.raises(PartitionError, match="cannot read the manifest .*directory"):
        follow(path.parent, training())


def test_name_and_file_belong_together():
    with pytest.raises(
        ValidationError, match="partition.name is 'file', but partition.file is not"
    ):
        PartitionConfig(name="file")
    with pytest.raises(
        ValidationError, match="partition.name is 'by_site'; set the name to 'file'"
    ):
        PartitionConfig(file="partition.json")
