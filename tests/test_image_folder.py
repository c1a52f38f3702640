import logging
import os
import sys

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from fedkd import config as configs
from fedkd.data.sets import image_folder
from fedkd.data.sets.image_folder import ImageFolderConfig
from fedkd.errors import ConfigError
from tests.image_project import Refused


class Project(Refused):
    """A root folder to fill with small images whose red channel counts up."""

    def __init__(self, folder):
        self.folder, self.root, self.num = folder, folder / "root", 0
        self.root.mkdir()

    def save(self, *paths):
        for path in paths:
            file = self.root / path
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 12), (self.num % 256, 90, 60)).save(file, quality=100)
            self.num += 1

    def load(self, **changes):
        fields = {"root": str(self.root), "size": 16, **changes}
        return image_folder.load(ImageFolderConfig(**fields), self.folder / "cache")


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


@pytest.fixture
def three(project):
    """Folders train, val and test of two classes; a file that is no image; an odd ending."""
    for split, num in (("train", 4), ("val", 1), ("test", 2)):
        for label in ("nv", "Mel"):
            project.save(*(f"{split}/{label}/{row}.jpg" for row in range(num)))
    project.save("train/nv/deep/er/x.PNG")
    (project.root / "train/nv/notes.txt").write_text("x")
    return project


@pytest.fixture
def flat(project):
    """Class folders alone: 20 images of 10 patients in a, 10 images of 5 other ones in b."""
    project.save(*(f"a/P{row // 2:02d}_north_{row}.jpg" for row in range(20)))
    project.save(*(f"b/P{50 + row // 2}_south_{row}.jpg" for row in range(10)))
    return project


def test_classes_images_and_labels_are_torchvisions(three):
    splits = three.load()
    for name in ("train", "val", "test"):
        theirs, ours = ImageFolder(three.root / name), getattr(splits, name)
        assert list(ours.class_names) == theirs.classes == ["Mel", "nv"]
        assert [str(three.root / image) for image in ours.ids] == [path for path, _ in theirs.imgs]
        assert ours.labels.tolist() == theirs.targets
        reds = [np.asarray(image)[0, 0, 0] for image, _ in theirs]
        assert np.abs(ours.images[:, 0, 8, 8].astype(int) - reds).max() <= 1


def test_files_that_are_no_images_are_counted_in_the_log(three, caplog):
    with caplog.at_level(logging.WARNING):
        three.load()
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"{three.root}: 1 of 16 files are left out, as they do not end in .jpg")


def test_without_val_a_part_of_train_becomes_val_and_test_stays(project):
    project.save(*(f"train/{label}/{row}.jpg" for label in "ab" for row in range(10)))
    project.save("test/a/x.jpg")
    splits = project.load(fraction_val=0.2)
    assert splits.test.ids == ("test/a/x.jpg",)
    assert splits.train.class_counts().tolist() == [8, 8]
    assert splits.val.class_counts().tolist() == [2, 2]


def test_class_folders_alone_are_split_by_class(flat):
    splits = flat.load()
    assert splits.train.class_counts().tolist() == [14, 7]
    assert splits.val.class_counts().tolist() == [2, 1]
    assert splits.test.class_counts().tolist() == [4, 2]
    assert splits.test.class_names == ("a", "b")
    assert set(flat.load(split_seed=1).test.ids) != set(splits.test.ids)


def test_classes_of_class_folders_alone_are_torchvisions(flat):
    splits = flat.load()
    theirs = dict(ImageFolder(flat.root).imgs)
    for split in (splits.train, splits.val, splits.test):
        assert [theirs[str(flat.root / image)] for image in split.ids] == split.labels.tolist()


def test_a_hidden_folder_is_no_class(flat):
    classes = flat.load().train.class_names
    (flat.root / ".ipynb_checkpoints").mkdir()
    assert flat.load().train.class_names == classes


def test_patients_stay_together_and_sites_are_read_from_names(flat):
    splits = flat.load(group_pattern="^(P[0-9]+)_", site_pattern="_(north|south)_")
    assert splits.train.site_names == ("north", "south")
    patients = [set(split.groups) for split in (splits.train, splits.val, splits.test)]
    assert sum(map(len, patients)) == len(set.union(*patients)) == 15
    for split in (splits.train, splits.val, splits.test):
        for image, group, site in zip(split.ids, split.groups, split.sites, strict=True):
            assert image[2:].startswith(group + "_" + splits.train.site_names[site])


def test_the_pattern_sees_the_name_and_not_the_folder(flat):
    text = flat.error(site_pattern="^(a|b)")
    assert "30 row(s) have a name in which data.site_pattern finds nothing: " in text


def test_names_without_group_are_named(flat):
    flat.save("a/unknown.jpg")
    assert flat.error(group_pattern="^(P[0-9]+)_") == (
        f"{flat.root}: 1 row(s) have a name in which data.group_pattern finds nothing: row 21 "
        "('a/unknown.jpg'); it is '^(P[0-9]+)_'; change it, or rename or remove the files"
    )


def test_a_patient_in_two_given_splits_is_refused(three):
    text = three.error(group_pattern="(.)")
    assert "group(s) are in more than one split, which leaks test images into training" in text


@pytest.mark.parametrize(
    ("folders", "text"),
    [
        ((), "holds no folders; it must hold one per class"),
        (("train/a", "test/a", "valid/a"), "holds the folders test, train, valid; it must hold tr"),
        (("train/a", "val/a"), "holds the folders train, val; it must hold train, test and perh"),
        (("train/a", "test/a"), "there is no image in the class folders of "),
        (("train", "test"), "train holds no folders; it must hold one per class"),
        (("a", "b"), "there is no image in the class folders of "),
    ],
)
def test_other_layouts_are_refused(project, folders, text):
    for folder in folders:
        (project.root / folder).mkdir(parents=True)
    assert text in project.error()


def test_splits_by_another_name_do_not_become_classes(project):
    project.save(*(f"{split}/{c}/1.jpg" for split in ("Train", "validation") for c in "ab"))
    assert project.error() == (
        f"data.root {project.root} holds the folders Train, validation, which would become "
        "classes; rename them to train, val and test"
    )


def test_a_circle_of_links_repeats_no_image(flat):
    (flat.root / "a/again").symlink_to(".")
    assert "row(s) name the same image twice: " in flat.error()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_that_are_not_utf8_are_shown_escaped(flat):
    (flat.root / "a" / os.fsdecode(b"\xff.jpg")).write_bytes(b"x")
    assert "1 file(s) in " in flat.error()
    assert "\\udcff.jpg'; rename them" in flat.error()


def test_an_empty_test_folder_is_not_drawn_anew(project):
    project.save(*(f"train/a/{row}.jpg" for row in range(10)))
    (project.root / "test/a").mkdir(parents=True)
    assert f"there is no image in the class folders of {project.root / 'test'}" in project.error()


def test_a_class_that_train_lacks_is_named_and_an_empty_folder_says_it_is_meant(three):
    three.save("test/bcc/1.jpg")
    assert three.error() == (
        f"{three.root / 'test'} has class folders that {three.root / 'train'} lacks: bcc; correct "
        "their names, or make empty folders of these names in train if no image is known there"
    )
    (three.root / "train/bcc").mkdir()
    splits = three.load()
    assert splits.train.class_names == ("Mel", "bcc", "nv")
    assert splits.train.class_counts().tolist() == [4, 0, 5]
    assert splits.test.class_counts().tolist() == [2, 1, 2]


def test_a_broken_image_is_named(three):
    (three.root / "val/nv/0.jpg").write_text("not an image")
    assert "cannot be decoded" in (text := three.error())
    assert "val/nv/0.jpg: " in text


def test_a_folder_that_is_not_there_is_named(project):
    nowhere = str(project.root / "nowhere")
    assert project.error(root=nowhere) == (
        f"data.root is {nowhere}, which is not a folder; check the path"
    )


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"group_pattern": "("}, "'(' is no regular expression: missing ), unterminated"),
        ({"site_pattern": "P[0-9]+"}, "'P[0-9]+' has no parentheses; put them around what names"),
        ({"fraction_val": 0.7, "fraction_test": 0.3}, "fraction_val + fraction_test is 1; it must"),
    ],
)
def test_settings_that_cannot_work_are_refused(values, text):
    with pytest.raises(ConfigError) as caught:
        configs.build(ImageFolderConfig, {"root": "x", **values})
    assert text in str(caught.value)
