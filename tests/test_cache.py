import errno
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedkd.data import cache
from fedkd.data.cache import load_or_build, load_or_fill
from fedkd.data.images import SPLITS, LabelledImages, Splits
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
            groups=("g", ""),
        )
        return Splits(data, data.subset([1]), data.subset([0]))


def parts_of(splits):
    return [getattr(splits, name) for name in SPLITS]


def same(one, other):
    return all(
        np.array_equal(a.images, b.images)
        and a.images.dtype == b.images.dtype
        and np.array_equal(a.labels, b.labels)
        and np.array_equal(a.sites, b.sites)
        and (a.ids, a.class_names, a.site_names) == (b.ids, b.class_names, b.site_names)
        and a.groups == b.groups
        for a, b in zip(parts_of(one), parts_of(other), strict=True)
    )


def visible(folder):
    return [path for path in folder.iterdir() if path.suffix != ".lock"]


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_second_load_maps_the_file_and_returns_the_same(tmp_path, dtype):
    build = Builder()

    def as_dtype():
        parts = parts_of(build())
        return Splits(*(replace(p, images=np.asarray(p.images, dtype)) for p in parts))

    first = load_or_build("toy", "key", as_dtype, tmp_path)
    second = load_or_build("toy", "key", as_dtype, tmp_path)
    assert same(first, second)
    assert same(first, as_dtype())
    assert build.calls == 2
    assert all(isinstance(s.images, np.memmap) for s in (*parts_of(first), second.test))
    assert not second.train.images.flags.writeable


def test_another_key_builds_anew(tmp_path):
    build = Builder()
    load_or_build("toy", "key", build, tmp_path)
    load_or_build("toy", "other key", build, tmp_path)
    assert build.calls == 2


def test_nothing_but_the_store_and_its_lock_is_left(tmp_path):
    load_or_build("toy", "key", Builder(), tmp_path / "new" / "folder")
    (path,) = visible(tmp_path / "new" / "folder")
    assert path.name.startswith("toy-")
    assert sorted(p.name for p in path.iterdir()) == ["pixels.npy", "rows.npz"]
    assert len(list(path.parent.iterdir())) == 2


def test_default_folder_is_named_by_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDKD_CACHE", str(tmp_path / "here"))
    load_or_build("toy", "key", Builder())
    assert len(visible(tmp_path / "here")) == 1


def test_pixels_are_filled_in_place(tmp_path):
    seen = []

    def fill(allocate):
        pixels = allocate((4, 3, 4, 4))
        seen.append(pixels)
        whole = Builder()()
        pixels[:2], pixels[2:3], pixels[3:] = (s.images for s in parts_of(whole))
        parts = (pixels[:2], pixels[2:3], pixels[3:])
        splits = zip(parts_of(whole), parts, strict=True)
        return Splits(*(replace(split, images=part) for split, part in splits))

    assert same(load_or_fill("toy", "key", fill, tmp_path), Builder()())
    assert isinstance(seen[0], np.memmap)


DAMAGES = {
    "truncated": lambda content: content[:-40],
    "longer": lambda content: content + b"more",
    "empty": lambda _: b"",
    "text": lambda _: b"no store",
    "flipped pixel": lambda content: content[:-40] + bytes([content[-40] ^ 1]) + content[-39:],
    "flipped name": lambda content: content.replace(b"Z\0\0\0", b"S\0\0\0"),
}


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        *(("pixels.npy", name) for name in ("truncated", "longer", "empty", "text")),
        ("pixels.npy", "flipped pixel"),
        *(("rows.npz", name) for name in ("truncated", "empty", "text", "flipped name")),
        ("pixels.npy", None),
        ("rows.npz", None),
    ],
)
def test_damaged_or_missing_file_is_said_and_made_again(tmp_path, caplog, file, damage):
    build = Builder()
    # Nothing may map the file while it is damaged: what was cut off would end the process.
    load_or_build("toy", "key", build, tmp_path)
    (path,) = visible(tmp_path)
    before = (path / file).read_bytes()
    if damage is None:
        (path / file).unlink()
    else:
        assert DAMAGES[damage](before) != before
        (path / file).write_bytes(DAMAGES[damage](before))
    with caplog.at_level(logging.WARNING):
        assert same(Builder()(), load_or_build("toy", "key", build, tmp_path))
    assert build.calls == 2
    assert f"{path} is damaged" in caplog.text
    load_or_build("toy", "key", build, tmp_path)
    assert build.calls == 2


def test_store_with_another_time_is_checked_and_used(tmp_path):
    build = Builder()
    load_or_build("toy", "key", build, tmp_path)
    (path,) = visible(tmp_path)
    os.utime(path / "pixels.npy", ns=(0, 0))
    load_or_build("toy", "key", build, tmp_path)
    assert build.calls == 1


def test_untouched_store_is_opened_without_reading_its_pixels(tmp_path, monkeypatch):
    load_or_build("toy", "key", Builder(), tmp_path)
    monkeypatch.setattr(cache, "hash_file", lambda _: pytest.fail("reads all pixels"))
    load_or_build("toy", "key", Builder(), tmp_path)


@pytest.mark.parametrize("what", ["file", "folder", "other arrays", "pixels of another store"])
def test_what_is_no_store_gives_way_to_one(tmp_path, caplog, what):
    build = Builder()
    load_or_build("toy", "key", build, tmp_path)
    (path,) = visible(tmp_path)
    if what == "other arrays":
        np.savez(path / "rows.npz", something=np.zeros(3))
    elif what == "pixels of another store":
        np.save(path / "pixels.npy", np.zeros((5, 3, 4, 4), np.uint8))
    else:
        cache._remove(path)
        path.touch() if what == "file" else (path / "sub").mkdir(parents=True)
    whole = load_or_build("toy", "key", build, tmp_path)
    assert same(whole, load_or_build("toy", "key", build, tmp_path))
    assert build.calls == 2
    assert "is damaged" in caplog.text


def test_folder_that_cannot_be_written_only_warns(tmp_path, caplog):
    (tmp_path / "file").touch()
    build = Builder()
    load_or_build("toy", "key", build, tmp_path / "file" / "cache")
    assert build.calls == 1
    assert "cannot cache the data set in" in caplog.text
    assert "set FEDKD_CACHE" in caplog.text
    assert "is damaged" not in caplog.text


def test_store_in_a_folder_that_cannot_be_written_is_read(tmp_path, monkeypatch):
    build = Builder()
    load_or_build("toy", "key", build, tmp_path)
    monkeypatch.setattr(cache, "FileLock", lambda _: pytest.fail("wants to write"))
    load_or_build("toy", "key", build, tmp_path)
    assert build.calls == 1


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="no room can be claimed here")
def test_full_disk_only_warns_and_leaves_nothing(tmp_path, caplog, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    got = []

    def fill(allocate):
        got.append(allocate((4, 3, 4, 4)))
        return Builder()()

    assert same(load_or_fill("toy", "key", fill, tmp_path), Builder()())
    assert type(got[0]) is np.ndarray
    assert caplog.text.count("No space left on device") == 1
    assert visible(tmp_path) == []


@pytest.mark.parametrize("error", [DataError, KeyboardInterrupt])
def test_error_of_the_builder_passes_and_leaves_no_store(tmp_path, error):
    def fail(allocate):
        allocate((2, 3, 4, 4))
        raise error("row 3 is broken")

    with pytest.raises(error, match="row 3 is broken"):
        load_or_fill("toy", "key", fail, tmp_path)
    assert visible(tmp_path) == []


def killed_build(folder):
    def fill(allocate):
        allocate((2, 3, 4, 4))
        os.kill(os.getpid(), signal.SIGKILL)

    load_or_fill("toy", "key", fill, folder)


def test_what_a_killed_build_left_goes_with_the_next_build_of_any_store(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=killed_build, args=(tmp_path,))
    process.start()
    process.join()
    assert [path.suffix for path in visible(tmp_path)] == [".part"]
    load_or_build("toy", "other key", Builder(), tmp_path)
    assert [path.name[:4] for path in visible(tmp_path)] == ["toy-"]


def test_of_two_builders_one_waits_and_reads(tmp_path, caplog):
    calls, begun, may_end, results = [], threading.Event(), threading.Event(), []

    def build():
        calls.append(1)
        begun.set()
        assert may_end.wait(30)
        return Builder()()

    def load():
        results.append(load_or_build("toy", "key", build, tmp_path))

    threads = [threading.Thread(target=load) for _ in range(2)]
    with caplog.at_level(logging.INFO):
        threads[0].start()
        assert begun.wait(30)
        # Neither waits for another data set, nor takes what is being built for a leftover.
        load_or_build("toy", "other key", Builder(), tmp_path)
        threads[1].start()
        while "another process is building" not in caplog.text:
            assert threads[1].is_alive()
        may_end.set()
        for thread in threads:
            thread.join()
    assert calls == [1]
    assert same(*results)


READER = """
import sys
from pathlib import Path
from fedkd.data.cache import load_or_build
splits = load_or_build("toy", "key", lambda: sys.exit("built again"), Path(sys.argv[1]))
print(int(splits.train.images.sum()))
mapping = Path("/proc/self/smaps").read_text().split("pixels.npy")[1]
counts = dict(line.split(":", 1) for line in mapping.splitlines()[1:20] if ":" in line)
print(counts["Rss"].split()[0], counts["Pss"].split()[0])
"""


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="shared pages are not counted")
def test_another_process_shares_the_pages(tmp_path):
    images = np.full((256, 3, 64, 64), 7, np.uint8)
    data = LabelledImages(images, np.zeros(len(images), int), ("a",))
    splits = load_or_build("toy", "key", lambda: Splits(data, data, data), tmp_path)
    assert splits.train.images.sum() == images.sum(dtype=np.int64)
    output = subprocess.run(
        [sys.executable, "-c", READER, str(tmp_path)], check=True, capture_output=True, text=True
    ).stdout
    total, rss, pss = map(int, output.split())
    assert total == images.sum(dtype=np.int64)
    # Each page that both have read counts half for each of them.
    assert rss >= images.nbytes / 1024
    assert pss <= rss - images.nbytes / 1024 / 2
