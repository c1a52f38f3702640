import threading
from contextlib import closing

import numpy as np
import pytest
from PIL import Image

from fedkd.data.image_files import decode_files, find_broken
from fedkd.data.streaming import FilePixels
from fedkd.errors import DataError


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{number}.png" for number in range(12)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(path)
    return paths


def decoders():
    return [t for t in threading.enumerate() if t.name.startswith("fedkd-decode")]


PLAN = [np.array([3, 1]), np.array([0, 0, 7]), np.array([11]), np.array([2]), np.array([5, 4])]


def test_pixels_are_those_of_decode_files(files):
    stored, _ = decode_files(files, 16)
    streamed = FilePixels(files, 16, 3)
    assert (streamed.shape, streamed.dtype) == (stored.shape, stored.dtype)
    assert np.array_equal(np.asarray(streamed), stored)
    read = list(streamed.batches(PLAN))
    assert all(np.array_equal(got, stored[rows]) for got, rows in zip(read, PLAN, strict=True))
    assert decoders() == []


def test_two_batches_are_decoded_ahead_and_no_more(files):
    taken = []
    plan = (taken.append(len(rows)) or rows for rows in PLAN)
    with closing(FilePixels(files, 16, 2).batches(plan)) as read:
        next(read)
        assert len(taken) == 3
        next(read)
        assert len(taken) == 4


def test_threads_end_when_the_reader_stops(files):
    read = FilePixels(files, 16, 2).batches(PLAN)
    next(read)
    assert decoders()
    read.close()
    assert decoders() == []


def test_file_that_vanished_is_named_and_threads_end(files):
    pixels = FilePixels(files, 16, 2)
    files[7].unlink()
    read = pixels.batches(PLAN)
    next(read)
    with pytest.raises(DataError) as refused:
        next(read)
    text = str(refused.value)
    assert text.startswith(f"{files[7]} cannot be read any more (FileNotFoundError: ")
    assert text.endswith(
        "), though it could when this run started; put the file back and start again, or set "
        'data.store = "mapped", which needs the files only once'
    )
    assert decoders() == []


def test_find_broken_finds_what_decode_files_finds(files):
    content = files[4].read_bytes()
    files[4].write_bytes(content[: len(content) // 2])
    files[9].write_text("no image")
    faults = find_broken(files, 16, 2)
    assert [index for index, _ in faults] == [4, 9]
    assert faults == decode_files(files, 16)[1]
