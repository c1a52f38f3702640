"""What `check` counts and finds, on images whose every fault is put there by the test."""

import dataclasses
import hashlib
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedkd import config as configs
from fedkd.data import catalog, check
from fedkd.data.card import DataCard, Download
from fedkd.data.images import LabelledImages, Splits
from fedkd.data.sets.ham10000 import Ham10000Config
from fedkd.data.sets.lesions import LesionsConfig
from fedkd.errors import DataError
from fedkd.recipe import Recipe
from tests.test_folder import Project

PUBLISHED = DataCard("a published set", source="https://example.org")
OWN = DataCard("one's own")
CONFIGS = Path(__file__).parents[1] / "configs"


def part(rows):
    """A split from (value of all pixels, id, label, site, group) rows."""
    values, ids, labels, sites, groups = zip(*rows, strict=True)
    images = np.broadcast_to(np.array(values, np.uint8)[:, None, None, None], (len(rows), 3, 2, 2))
    return LabelledImages(
        images=images,
        labels=np.array(labels),
        class_names=("a", "b"),
        sites=np.array(sites),
        site_names=("north", "south"),
        ids=ids,
        groups=groups,
    )


SOUND = {
    "train": [(1, "i1", 0, 0, "p1"), (2, "i2", 1, 1, "p1"), (3, "i3", 0, 0, "")],
    "val": [(4, "i4", 0, 1, "p2"), (5, "i5", 1, 1, "p2")],
    "test": [(6, "i6", 1, 0, "p3")],
}


@pytest.fixture
def report(monkeypatch):
    """A function that checks given rows against a card."""

    def make(card=OWN, **changes):
        splits = Splits(**{name: part(rows) for name, rows in {**SOUND, **changes}.items()})
        entry = catalog.DATASETS["lesions"]._replace(load=lambda config, cache_dir: splits)
        monkeypatch.setitem(catalog.DATASETS, "lesions", entry)
        return check.check(LesionsConfig(), card)

    return make


def test_sound_images_are_counted_by_class_site_and_split(report):
    found = report()
    assert found.classes.drop(columns="published").to_dict("index") == {
        "a": {"train": 2, "val": 1, "test": 0, "all": 3},
        "b": {"train": 1, "val": 1, "test": 1, "all": 3},
    }
    assert found.sites.drop(columns="published").to_dict("index") == {
        "north": {"train": 2, "val": 0, "test": 1, "all": 3},
        "south": {"train": 1, "val": 2, "test": 0, "all": 3},
    }
    assert found.classes["published"].isna().all()
    assert found.faults == ()
    assert found.notes == ("the lesion or patient is known of 5 of 6 images",)
    assert (found.name, found.title) == ("lesions", "one's own")


def test_counts_that_are_not_the_published_ones_are_faults(report):
    card = dataclasses.replace(
        PUBLISHED, class_counts={"a": 3, "b": 4, "c": 2}, site_counts={"north": 3}
    )
    found = report(card)
    assert found.faults == (
        "class b has 3 images, 4 are published",
        "class c has 0 images, 2 are published",
        "hospital south has 3 images, 0 are published",
    )
    assert found.classes["published"].tolist() == [3, 4, 2]
    assert found.classes.loc["c", "all"] == 0


def test_published_counts_that_agree_are_no_fault(report):
    card = dataclasses.replace(PUBLISHED, class_counts={"b": 3, "a": 3})
    found = report(card)
    assert found.faults == ()
    assert found.classes["published"].tolist() == [3, 3]
    assert found.sites["published"].isna().all()


def test_a_group_and_a_name_in_two_splits_are_faults(report):
    found = report(test=[(6, "i1", 1, 0, "p1"), (7, "i7", 1, 0, "p2")])
    assert found.faults == (
        "1 image name(s) are in both train and test: i1",
        "1 lesion(s) or patient(s) are in both train and test: p1",
        "1 lesion(s) or patient(s) are in both val and test: p2",
    )


def test_what_the_publishers_splits_have_in_common_is_a_note(report):
    card = dataclasses.replace(PUBLISHED, fixed_splits=(("train", "test"),))
    found = report(card, test=[(1, "i7", 0, 0, "p1"), (7, "i8", 1, 0, "p2")])
    assert found.notes[:2] == (
        "1 lesion(s) or patient(s) are in both train and test: p1 "
        "(the publisher's splits, used as they are)",
        "1 set(s) of images with equal pixels are in both train and test: i1 (train, a) = "
        "i7 (test, a) (the publisher's splits, used as they are)",
    )
    assert found.faults == ("1 lesion(s) or patient(s) are in both val and test: p2",)


def test_equal_pixels_in_two_splits_are_a_fault_that_names_the_pair(report):
    found = report(val=[(3, "i4", 0, 1, ""), (9, "i5", 1, 1, "")])
    assert found.faults == (
        "1 set(s) of images with equal pixels are in both train and val: i3 (train, a) = "
        "i4 (val, a)",
    )


def test_equal_pixels_with_two_labels_are_a_fault_of_ones_own_images_only(report):
    train = [(1, "i1", 0, 0, ""), (1, "i2", 1, 0, "")]
    text = "1 set(s) of images with equal pixels have two labels: i1 (train, a) = i2 (train, b)"
    assert report(train=train).faults == (text,)
    found = report(PUBLISHED, train=train)
    assert found.faults == ()
    assert text in found.notes


def test_equal_pixels_in_one_split_and_class_are_a_note(report):
    found = report(train=[(1, f"i1{n}", 0, 0, "") for n in range(7)])
    assert found.faults == ()
    named = " = ".join(f"i1{n} (train, a)" for n in range(5))
    assert found.notes[0] == (
        f"1 set(s) of images with equal pixels are in one split and class: {named}"
    )


def test_row_numbers_are_no_names(report):
    numbered = {
        split: [(10 * place + row, str(row), 0, 0, "") for row in range(2)]
        for place, split in enumerate(SOUND)
    }
    found = report(**numbered)
    assert found.faults == ()
    assert found.notes == (
        "no lesion or patient is known, so one that is in two splits would not be seen",
    )


def test_a_downloaded_file_that_is_another_is_a_fault(report, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDKD_DATA", str(tmp_path))
    (tmp_path / "good.csv").write_bytes(b"good")
    (tmp_path / "bad.csv").write_bytes(b"bad")
    good = hashlib.sha256(b"good").hexdigest()
    url = "https://example.org/f"
    downloads = [
        Download(url, "good.csv", sha256=good),
        Download(url, "bad.csv", md5="0" * 32),
        Download(url, "absent.csv", sha256=good),
        Download(url, "bad.csv", sha256=good, unpack="x"),
        Download(url, "bad.csv"),
    ]
    found = report(dataclasses.replace(PUBLISHED, downloads=tuple(downloads)))
    assert found.faults == (
        f"{tmp_path / 'bad.csv'} is not as published: its md5 is "
        f"{hashlib.md5(b'bad').hexdigest()}, not {'0' * 32}",
    )


def test_files_are_decoded_afresh_and_no_copy_stays(tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setenv("FEDKD_CACHE", str(cache))
    project = Project(tmp_path)
    project.write()
    settings = project.config()
    assert check.check(settings).faults == ()
    catalog.load_splits(settings)
    before = sorted(cache.iterdir())
    # Damage that name, size and time of the file do not show: the cache would not notice.
    file = tmp_path / "images" / "b.jpg"
    stat = file.stat()
    file.write_bytes(bytes(stat.st_size))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    catalog.load_splits(settings)
    with pytest.raises(DataError, match=r"cannot be decoded: row 3 \(b: Unidentified"):
        check.check(settings)
    assert sorted(cache.iterdir()) == before


def test_what_an_interrupted_check_left_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDKD_CACHE", str(tmp_path))
    left = tmp_path / f"check-{os.getpid()}"
    left.mkdir()
    seen = []

    def load(_, cache_dir):
        seen.append((cache_dir, left.exists()))
        rows = part(SOUND["train"])
        return Splits(rows, rows, rows)

    monkeypatch.setattr(check.catalog, "load_splits", load)
    check.check(LesionsConfig())
    assert seen == [(left, False)]


def test_copies_of_a_file_are_found_in_a_folder(tmp_path):
    project = Project(tmp_path)
    (tmp_path / "images" / "d.jpg").write_bytes((tmp_path / "images" / "b.jpg").read_bytes())
    project.write()
    assert check.check(project.config()).faults == (
        "1 set(s) of images with equal pixels are in both train and test: b (train, mel) = "
        "d (test, mel)",
    )


@pytest.mark.realdata
def test_ham10000_has_the_published_counts(realdata, monkeypatch):
    monkeypatch.setenv("FEDKD_DATA", str(realdata))
    found = check.check(Ham10000Config(size=32))
    assert found.faults == ()
    for table in (found.classes, found.sites):
        assert table["all"].tolist() == table["published"].tolist()
        assert table["all"].sum() == 10015
    assert "the lesion or patient is known of 10015 of 10015 images" in found.notes
    assert any("ISIC_0024366" in note and "ISIC_0029861" in note for note in found.notes)


@pytest.mark.realdata
def test_the_lesions_that_the_fed_mas_lists_share_are_notes(realdata, monkeypatch):
    monkeypatch.setenv("FEDKD_DATA", str(realdata))
    path = CONFIGS / "fed_isic2019_4sites.toml"
    settings = configs.load(Recipe, path, ["data.size=16", "data.centers=[5]"]).data
    found = check.check(settings)
    assert found.faults == ()
    assert pd.DataFrame.equals(found.classes["all"], found.classes["published"].astype("int64"))
    assert any("are in both train and test: HAM_" in note for note in found.notes)
    assert not any("both train and val" in note for note in found.notes)
