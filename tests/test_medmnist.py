import builtins
import os

import numpy as np
import pytest

from fedkd import config as configs
from fedkd.data.check import check
from fedkd.data.sets import medmnist
from fedkd.data.sets.medmnist import FLAGS, MedMnistConfig, downloads
from fedkd.errors import ConfigError, DataError, DependencyError

INFO = pytest.importorskip("medmnist.info", reason="the extra medmnist is not installed").INFO
NUM = {"train": 9, "val": 4, "test": 5}


def arrays(flag="dermamnist", size=28):
    """What a file of the package holds; the first row and column of an image is its number."""
    colour = (3,) if INFO[flag]["n_channels"] == 3 else ()
    made = {}
    for split, num in NUM.items():
        images = np.full((num, size, size, *colour), 200, np.uint8)
        for row in range(num):
            images[row, 0, :] = row
            images[row, :, 0] = 100 + row
        made[f"{split}_images"] = images
        made[f"{split}_labels"] = (np.arange(num, dtype=np.uint8) % len(INFO[flag]["label"]))[
            :, None
        ]
    return made


@pytest.fixture
def root(tmp_path):
    return tmp_path / "medmnist"


def save(root, name="dermamnist.npz", **changes):
    root.mkdir(exist_ok=True)
    made = {**arrays(), **changes}
    path = root / name
    np.savez_compressed(path, **{key: value for key, value in made.items() if value is not None})
    return path


def load(root, **changes):
    return medmnist.load(MedMnistConfig(root=str(root), **changes), root.parent / "cache")


def error(root, **changes):
    with pytest.raises(DataError) as caught:
        load(root, **changes)
    return str(caught.value)


def test_official_splits_are_untouched(root):
    save(root)
    splits = load(root)
    for name, num in NUM.items():
        split = getattr(splits, name)
        assert split.images.shape == (num, 3, 28, 28)
        assert split.images.dtype == np.uint8
        assert split.labels.tolist() == [row % 7 for row in range(num)]
        assert split.ids[1] == f"{name}-000001"
        # Rows stay rows: the first row of an image holds its number.
        assert split.images[2, :, 0, 5].tolist() == [2, 2, 2]
        assert split.images[2, :, 5, 0].tolist() == [102, 102, 102]
    assert splits.train.class_names[5] == "melanocytic nevi"
    assert splits.train.site_names == ("all",)


def test_colours_keep_their_order(root):
    images = arrays()["train_images"]
    images[:] = (10, 20, 30)
    save(root, train_images=images)
    assert load(root).train.images[0, :, 3, 4].tolist() == [10, 20, 30]


def test_grey_is_repeated_and_other_sizes_have_files_of_their_own(root):
    save(root, "bloodmnist_64.npz", **arrays("bloodmnist", 64))
    save(root, "breastmnist.npz", **arrays("breastmnist"))
    assert load(root, flag="bloodmnist", size=64).train.images.shape == (9, 3, 64, 64)
    grey = load(root, flag="breastmnist").train
    assert grey.images[4, :, 0, 9].tolist() == [4, 4, 4]
    assert grey.class_names == ("malignant", "normal, benign")


def test_a_changed_file_is_read_anew(root):
    save(root)
    assert load(root).train.labels[0] == 0
    save(root, train_labels=np.full((9, 1), 6, np.uint8))
    assert load(root).train.labels[0] == 6


def test_the_flags_are_all_2d_sets_of_the_package_with_one_label():
    single = {
        flag
        for flag, entry in INFO.items()
        if not flag.endswith("3d") and "multi-label" not in entry["task"]
    }
    assert set(FLAGS) == single
    for flag in FLAGS:
        names = [INFO[flag]["label"][str(label)] for label in range(len(INFO[flag]["label"]))]
        assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        ("chestmnist", "'chestmnist' has several labels per image, which fedkd cannot train on"),
        ("organmnist3d", "'organmnist3d' is 3-D; fedkd trains on 2-D images; allowed are path"),
        ("dermanist", "'dermanist' is unknown; allowed are pathmnist, dermamnist, octmnist"),
    ],
)
def test_sets_that_cannot_be_used_are_refused_by_name(flag, text):
    with pytest.raises(ConfigError) as caught:
        configs.build(MedMnistConfig, {"flag": flag})
    assert text in str(caught.value)


def test_a_size_that_does_not_exist_is_refused():
    with pytest.raises(ConfigError, match="size is 32 in .*; it must be"):
        configs.build(MedMnistConfig, {"size": 32})


def test_nothing_is_downloaded_unasked(root):
    assert error(root, flag="bloodmnist", size=64) == (
        f"bloodmnist_64.npz is not in data.root {root}; get it with `fedkd data fetch medmnist "
        "flag=bloodmnist size=64`, or change data.root"
    )


def test_a_pipe_is_not_read(root):
    root.mkdir(exist_ok=True)
    os.mkfifo(root / "bloodmnist_64.npz")
    assert "is a pipe or a device, no file" in error(root, flag="bloodmnist", size=64)


def test_downloads_are_the_packages_addresses_and_check_sums():
    (small,) = downloads("dermamnist", 28)
    assert small.url == "https://zenodo.org/records/10519652/files/dermamnist.npz?download=1"
    assert (small.path, small.md5) == (
        "medmnist/dermamnist.npz",
        "0744692d530f8e62ec473284d019b0c7",
    )
    for flag in FLAGS:
        for size in (64, 128, 224):
            (large,) = downloads(flag, size)
            assert large.path == f"medmnist/{flag}_{size}.npz"
            assert f"/{flag}_{size}.npz?" in large.url
            assert len(large.md5) == 32


@pytest.mark.parametrize("kept", [0, 100, -30])
def test_a_truncated_file_is_refused(root, kept):
    path = save(root)
    path.write_bytes(path.read_bytes()[:kept])
    text = error(root)
    assert text.startswith(f"{path} is damaged (")
    assert text.endswith(
        "; delete it and get it anew with `fedkd data fetch medmnist flag=dermamnist size=28`"
    )


def test_a_changed_byte_is_noticed(root):
    path = save(root)
    content = bytearray(path.read_bytes())
    content[content.index(b"train_images") + 100] ^= 255
    path.write_bytes(bytes(content))
    assert "is damaged (" in error(root)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"val_labels": None}, "it has no val_labels"),
        (
            {"test_images": np.zeros((5, 64, 64, 3), np.uint8)},
            "test_images are uint8 (5, 64, 64, 3), not uint8 (n, 28, 28, 3) with n > 0",
        ),
        (
            {"train_images": np.zeros((9, 28, 28, 3), np.float32)},
            "train_images are float32 (9, 28, 28, 3), not uint8",
        ),
        ({"val_images": np.zeros((0, 28, 28, 3), np.uint8)}, "val_images are uint8 (0, 28, 28, 3)"),
        (
            {"val_labels": np.zeros((3, 1), np.uint8)},
            "val_labels are uint8 (3, 1), not integers (4, 1)",
        ),
        (
            {"val_labels": np.zeros((4, 14), np.uint8)},
            "val_labels are uint8 (4, 14), not integers (4, 1)",
        ),
        ({"val_labels": np.zeros((4, 1))}, "val_labels are float64 (4, 1), not integers (4, 1)"),
        (
            {"test_labels": np.array([[0], [7], [1], [9], [2]], np.uint8)},
            "2 of test_labels are outside 0..6, the first is 7 at index 1",
        ),
    ],
)
def test_a_file_of_another_kind_is_refused(root, changes, text):
    path = save(root, **changes)
    found = error(root)
    assert found.startswith(f"{path} is not dermamnist of 28 px: {text}")
    assert found.endswith("get it with `fedkd data fetch medmnist flag=dermamnist size=28`")


def test_without_the_package_the_extra_is_named(root, monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **keywords):
        if name.startswith("medmnist"):
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DependencyError) as caught:
        load(root)
    assert str(caught.value) == (
        "data.name is 'medmnist' but medmnist is not installed; pip install 'fedkd[medmnist]'"
    )


def test_a_part_of_the_published_images_is_a_fault_and_shared_images_are_known(root):
    changes = {f"{split}_images": images for split, images in (
        ("train", arrays()["train_images"]), ("test", arrays()["test_images"]))}  # fmt: skip
    changes["test_images"] = changes["test_images"].copy()
    changes["test_images"][0] = changes["train_images"][0]
    save(root, **changes)
    report = check(MedMnistConfig(root=str(root)))
    assert "train has 9 images, 7007 are published" in report.faults
    assert not [text for text in report.faults if "equal pixels" in text]
    assert [text for text in report.notes if "in both train and test" in text]
