"""Folders of hospitals: what is written, what is read, and everything that is refused."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fedkd.data.images import GroupBounds, LabelledImages, Splits
from fedkd.data.site_folder import IMAGES, LABELS, SITE, read_site_folder
from fedkd.data.site_writing import write_sites
from fedkd.errors import ConfigError, DataError
from fedkd.experiment import open_data
from fedkd.held_out import divide_held_out
from fedkd.partition import Partition
from server.cli import main
from tests.site_federation import SMALL, recipe_with

HOSPITAL = {"splits": ("train", "val"), "needed": ("train",)}
SERVER = {"splits": ("val", "test"), "needed": ("val", "test")}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Splits, division and folders of the small recipe."""
    recipe = recipe_with()
    splits, divided = open_data(recipe)
    folder = tmp_path_factory.mktemp("written") / "sites"
    return splits, divided, write_sites(folder, splits, divided, recipe.seed, recipe.data_set())


def test_what_is_read_is_what_was_divided_pixel_by_pixel(written):
    splits, divided, folders = written
    own_val = divide_held_out(splits.val, splits.train.labels, divided, 0)
    assert [path.name for path in folders] == [
        *(f"{n}-{name}".replace(" ", "_") for n, name in enumerate(divided.client_names)),
        "server",
    ]
    for number, folder in enumerate(folders[:-1]):
        described, opened = read_site_folder(folder, 16, **HOSPITAL)
        assert described.name == divided.client_names[number]
        for images, rows, read in (
            (splits.train, divided.indices[number], opened.train),
            (splits.val, own_val[number], opened.val),
        ):
            assert np.array_equal(read.images, images.images[rows])
            assert read.labels.tolist() == images.labels[rows].tolist()
            assert read.groups == tuple(images.groups[row] for row in rows)
        assert opened.train.class_names == splits.train.class_names
        assert len(opened.test) == 0
    described, opened = read_site_folder(folders[-1], 16, **SERVER)
    for images, read in ((splits.val, opened.val), (splits.test, opened.test)):
        assert np.array_equal(read.images, images.images)
        assert read.labels.tolist() == images.labels.tolist()
        named = np.asarray(images.site_names)[images.sites]
        assert np.asarray(read.site_names)[read.sites].tolist() == named.tolist()


def test_all_training_images_are_in_exactly_one_folder(written):
    splits, _, folders = written
    found = [len(list((folder / IMAGES).iterdir())) for folder in folders]
    assert sum(found[:-1]) == len(splits.train) + len(splits.val)
    assert found[-1] == len(splits.val) + len(splits.test)


def one_class(ids, size=16):
    images = np.arange(len(ids) * 3 * size * size).reshape(len(ids), 3, size, size) % 251
    return LabelledImages(
        images.astype(np.uint8), np.zeros(len(ids), np.int64), ("a", "b"), ids=ids
    )


def test_names_that_no_file_may_have_are_made_safe_and_stay_apart(tmp_path):
    ids = ("../up", "a/b", "a b", "A_B", "x.jpg", "x", "y.PNG.jpg", "1.2.840", "é")
    splits = Splits(one_class(ids), one_class(("x",)), one_class(("x",)), GroupBounds(2, 5))
    divided = Partition((np.arange(len(ids)),), ("St. Mary's / north",))
    site, server = write_sites(tmp_path / "s", splits, divided, 0, {})
    assert site.name == "0-St._Mary_s_north"
    described, opened = read_site_folder(site, 16, **HOSPITAL)
    assert described.name == "St. Mary's / north"
    assert opened.train.ids == (
        "_up", "a_b", "a_b-2", "A_B-3", "x", "x-2", "y", "1.2.840", "_",
    )  # fmt: skip
    assert np.array_equal(opened.train.images, splits.train.images)
    assert opened.val.ids == ("x-3",)
    assert read_site_folder(server, 16, **SERVER)[1].bounds == (2, 5)


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path, written):
    splits, divided, _ = written
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(ConfigError) as refused:
        write_sites(tmp_path, splits, divided, 0, {})
    assert str(refused.value) == (
        f"--sites {tmp_path} is not empty, the first thing in it is kept.txt; nothing is written "
        "over: name another folder, or empty it"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]
    with pytest.raises(ConfigError, match="cannot write to --sites .*kept.txt"):
        write_sites(tmp_path / "kept.txt", splits, divided, 0, {})


def test_images_that_are_not_square_are_not_written(tmp_path):
    images = LabelledImages(np.zeros((2, 3, 8, 9), np.uint8), np.zeros(2, np.int64), ("a", "b"))
    divided = Partition((np.arange(2),), ("one",))
    with pytest.raises(ConfigError, match="the images are 8x9 px; folders of hospitals can be wri"):
        write_sites(tmp_path / "s", Splits(images, images, images), divided, 0, {})


@pytest.fixture
def hand_made(tmp_path):
    """A folder as a hospital makes it by hand: photographs of other sizes, no optional thing."""
    folder = tmp_path / "north"
    (folder / IMAGES).mkdir(parents=True)
    for number, name in enumerate(("one.jpg", "two.png", "three.png")):
        Image.new("RGB", (40 + number, 30), (50 * number, 9, 9)).save(folder / IMAGES / name)
    (folder / LABELS).write_text("id,label,split\none.jpg,a,train\ntwo,b,train\nthree,a,val\n")
    (folder / SITE).write_text('{"version": 1, "name": "north", "class_names": ["a", "b"]}')
    return folder


def test_a_folder_made_by_hand_is_read_and_resized(hand_made):
    described, opened = read_site_folder(hand_made, 16, **HOSPITAL)
    assert (described.name, described.image_size) == ("north", None)
    assert opened.train.images.shape == (2, 3, 16, 16)
    assert opened.train.ids == ("one.jpg", "two")
    assert opened.train.site_names == ("north",)
    assert opened.val.labels.tolist() == [0]


def test_a_hospital_may_have_no_val_images(hand_made):
    (hand_made / LABELS).write_text("id,label,split\none.jpg,a,train\ntwo,b,train\n")
    assert len(read_site_folder(hand_made, 16, **HOSPITAL)[1].val) == 0


def faults(folder, size=16, **whose):
    with pytest.raises(DataError) as refused:
        read_site_folder(folder, size, **(whose or HOSPITAL))
    return str(refused.value).splitlines()


def test_all_that_is_wrong_is_said_at_once(hand_made):
    csv = hand_made / LABELS
    csv.write_text(
        "id,label,group,split\none.jpg,a,p1,train\nfour,c,p2,train\nthree,,,test\n,a,,val\n"
        "two,b,,train\n../x,a,,val\n"
    )
    (hand_made / IMAGES / "two.png").write_bytes(b"")
    values = {"version": 1, "name": "north", "class_names": ["a", "b"], "image_size": 32}
    (hand_made / SITE).write_text(json.dumps({**values, "counts": {"train": {"a": 9}}}))
    assert faults(hand_made) == [
        f"{hand_made / SITE}: image_size is 32 but data.size is 16; resized twice they would be "
        "other images: make the folder anew for this size, or leave image_size out if the files "
        "are the originals",
        f"{csv}: 1 row(s) have no id: row 5 (''); fill it in or remove the rows",
        f"{csv}: 1 row(s) have no label: row 4 ('three'); fill it in or remove the rows",
        f"{csv}: 1 row(s) have an unknown label: row 3 ('c'); allowed are the class_names of "
        "site.json, a, b",
        f"{csv}: 1 row(s) have a split that may not be here: row 4 ('test'); allowed at a hospital "
        "are 'train', 'val'",
        f"{csv}: it has {{'train': {{'a': 1, 'b': 1, 'c': 1}}, 'val': {{'a': 2}}, 'test': "
        "{'': 1}}, but site.json says that there are {'train': {'a': 9}}; copy what is missing, or "
        "correct or remove counts",
        f"{csv}: 1 row(s) lead out of the folder images: row 7 ('../x'); name files inside that "
        "folder",
        f"{csv}: 1 row(s) name a file that does not exist: row 3 ({hand_made}/images/four.png); "
        f"put them into {hand_made}/images, or remove the rows",
        f"{csv}: 1 row(s) name an empty file (0 bytes): row 6 ({hand_made}/images/two.png); copy "
        "the files again",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is no JSON object in UTF-8: "),
        ("[1]", "is no JSON object in UTF-8: "),
        ('{"version": 2, "name": "n", "class_names": ["a", "b"]}', "version is 2 in "),
        ('{"version": 1, "name": "n"}', "class_names is missing in "),
        ('{"version": 1, "name": "", "class_names": ["a", "b"]}', "name is '' in "),
        (
            '{"version": 1, "name": "n", "class_names": ["a", "b"], "colour": 1}',
            "unknown key colour in ",
        ),
        (
            '{"version": 1, "name": "n", "class_names": ["a", "a", "b"]}',
            "names of classes stand there twice: a",
        ),
    ],
)
def test_a_broken_site_file_is_told_with_its_path(hand_made, text, said):
    (hand_made / SITE).write_text(text)
    (line,) = faults(hand_made)
    assert said in line
    assert str(hand_made / SITE) in line


def test_what_is_not_there_is_told_together(tmp_path):
    assert faults(tmp_path) == [
        f"site.json is {tmp_path / SITE}, which does not exist; check the path",
        f"labels.csv is {tmp_path / LABELS}, which does not exist; check the path",
    ]


def test_a_missing_column_and_a_missing_split_are_told(hand_made):
    (hand_made / LABELS).write_text("id,split\none.jpg,train\n")
    (line,) = faults(hand_made)
    assert f"{hand_made / LABELS} has no column 'label'" in line
    (hand_made / LABELS).write_text("id,label,split\none.jpg,a,val\n")
    csv = hand_made / LABELS
    assert faults(hand_made) == [
        f"{csv}: no row has the split 'train'; one image at least is needed"
    ]
    assert faults(hand_made, **SERVER) == [
        f"{csv}: no row has the split 'test'; one image at least is needed"
    ]
    csv.write_text("id,label,split\none.jpg,a,val\ntwo,a,test\nthree,b,train\n")
    assert faults(hand_made, **SERVER) == [
        f"{csv}: 1 row(s) have a split that may not be here: row 4 ('train'); allowed at the "
        "server are 'val', 'test'"
    ]


def test_a_patient_in_train_and_val_is_warned_of(hand_made, caplog):
    text = "id,label,group,split\none.jpg,a,p1,train\ntwo,b,,train\nthree,a,p1,val\n"
    (hand_made / LABELS).write_text(text)
    read_site_folder(hand_made, 16, **HOSPITAL)
    assert "1 lesions or patients (groups) are in two splits" in caplog.text


def test_a_broken_image_is_told(hand_made):
    (hand_made / IMAGES / "two.png").write_bytes(b"no picture")
    (line,) = faults(hand_made)
    assert "1 row(s) name an image that cannot be decoded: row 3 (two: " in line


def test_the_command_writes_folders_and_says_where(tmp_path, capsys):
    recipe = tmp_path / "recipe.toml"
    data = SMALL["data"]
    lines = [f"{k} = {json.dumps(v)}" for k, v in data.items()]
    recipe.write_text("\n".join(["num_clients = 3", "[data]", *lines, "[partition]",
                                 'name = "by_site"']))  # fmt: skip
    sites = tmp_path / "sites"
    command = ["partition", str(recipe), "--output", str(tmp_path / "out"), "--sites", str(sites)]
    assert main(command) == 0
    printed = capsys.readouterr()
    folders = sorted(path for path in sites.iterdir())
    assert printed.out.splitlines()[-4:] == [str(path) for path in folders]
    assert f"images to {folders[0]} ..." in printed.err
    table = pd.read_csv(folders[0] / LABELS)
    assert table.columns.tolist() == ["id", "label", "group", "split"]
    counts = pd.read_csv(tmp_path / "out" / "partition.csv")
    assert (table["split"] == "train").sum() == counts["total"][0]
    assert main(command) == 2
    assert "is not empty, the first thing in it is 0-" in capsys.readouterr().err
