import logging

import numpy as np
import pytest

from fedkd.data.cache import load_or_build
from fedkd.data.images import LabelledImages, Splits
from fedkd.errors import DataError


class Builder:
    """Builds one small data set and counts how often."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        data = LabelledImages(
            images=np.arange(96, dtype=np.uint8).reshape(2, 3, 4, 4),
            labels=np.array([1, 0]),
            class_names=("naevus", "mélanome"),
            sites=np.array([0, 1]),
            site_names=("Zürich", "all"),
            ids=("first", "2"),
        )
        return Splits(data, data.subset([1]), data.subset([0]))


def same(one, other):
    return all(
        np.array_equal(a.images, b.images)
        and a.images.dtype == b.images.dtype
        and np.array_equal(a.labels, b.labels)
        and np.array_equal(a.sites, b.sites)
        and (a.ids, a.class_names, a.site_names) == (b.ids, b.class_names, b.site_names)
        for a, b in zip(vars(one).values(), vars(other).values(), strict=True)
    )


def test_second_load_reads_the_file_and_returns_the_same(tmp_path):
    build = Builder()
    first = load_or_build("toy", "key", build, tmp_path)
    assert same(first, load_or_build("toy", "key", build, tmp_path))
    assert build.calls == 1


def test_another_key_builds_anew(tmp_path):
    build = Builder()
    load_or_build("toy", "key", build, tmp_path)
    load_or_build("toy", "other key", build, tmp_path)
    assert build.calls == 2


def test_nothing_but_the_finished_file_is_left(tmp_path):
    load_or_build("toy", "key", Builder(), tmp_path / "new" / "folder")
    names = [path.name for path in (tmp_path / "new" / "folder").iterdir()]
    assert len(names) == 1
    assert names[0].startswith("toy-")
    assert names[0].endswith(".npz")


def test_default_folder_is_named_by_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDKD_CACHE", str(tmp_path / "here"))
    load_or_build("toy", "key", Builder())
    assert len(list((tmp_path / "here").iterdir())) == 1


@pytest.mark.parametrize("damage", ["flip a pixel", "truncate", "empty", "text"])
def test_damaged_file_is_said_and_made_again(tmp_path, caplog, damage):
    build = Builder()
    whole = load_or_build("toy", "key", build, tmp_path)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    if damage == "flip a pixel":
        content[content.index(bytes(range(60, 90)))] ^= 1
    changed = {"flip a pixel": content, "truncate": content[:-40], "empty": b"", "text": b"no"}
    path.write_bytes(changed[damage])
    with caplog.at_level(logging.WARNING):
        assert same(whole, load_or_build("toy", "key", build, tmp_path))
    assert build.calls == 2
    assert f"{path} is damaged" in caplog.text
    load_or_build("toy", "key", build, tmp_path)
    assert build.calls == 2


def test_file_with_other_contents_is_made_again(tmp_path, caplog):
    build = Builder()
    load_or_build("toy", "key", build, tmp_path)
    (path,) = tmp_path.iterdir()
    np.savez(path, something=np.zeros(3))
    load_or_build("toy", "key", build, tmp_path)
    assert build.calls == 2
    assert "is damaged" in caplog.text


def test_folder_that_cannot_be_written_only_warns(tmp_path, caplog):
    (tmp_path / "file").touch()
    build = Builder()
    load_or_build("toy", "key", build, tmp_path / "file" / "cache")
    assert build.calls == 1
    assert "cannot cache the data set in" in caplog.text
    assert "Set FEDKD_CACHE" in caplog.text
    assert "is damaged" not in caplog.text


def test_error_of_the_builder_passes_and_leaves_no_file(tmp_path):
    def fail():
        raise DataError("row 3 is broken")

    with pytest.raises(DataError, match="row 3 is broken"):
        load_or_build("toy", "key", fail, tmp_path)
    assert list(tmp_path.iterdir()) == []
