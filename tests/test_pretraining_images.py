"""Where the images of a pre-training come from."""

import numpy as np
import pytest
import torchvision
from PIL import Image

from fedkd import config, seeding
from fedkd.data.catalog import load_splits
from fedkd.data.sets.lesions import LesionsConfig
from fedkd.errors import ConfigError, DataError
from fedkd.pretraining.config import PretrainConfig
from fedkd.pretraining.images import content_hash, read_images


def recipe(images, **changes):
    return config.build(PretrainConfig, {"images": images, "source_size": 16, **changes})


def picture(level, mode="RGB"):
    return Image.new(mode, (20, 10), level)


@pytest.fixture
def folder(tmp_path):
    """Three pictures at different depths, and files that are none."""
    root = tmp_path / "pictures"
    (root / "a" / "deep").mkdir(parents=True)
    (root / ".hidden").mkdir()
    picture((10, 20, 30)).save(root / "b.png")
    picture(40, "L").save(root / "a" / "deep" / "c.TIF", format="TIFF")
    picture((50, 50, 50)).save(root / "a" / "d.bmp")
    picture((9, 9, 9)).save(root / ".hidden" / "e.png")
    (root / "notes.txt").write_text("no picture")
    return root


def test_a_folder_gives_all_its_pictures_by_path_and_says_what_it_leaves_out(folder, caplog):
    images = read_images(recipe({"source": "folder", "folder": str(folder)}))
    assert (images.shape, images.dtype) == ((3, 3, 16, 16), np.uint8)
    assert images[:, :, 0, 0].tolist() == [[50, 50, 50], [40, 40, 40], [10, 20, 30]]
    assert "1 of 4 files are left out" in caplog.text
    assert isinstance(images, np.memmap)


def test_a_broken_picture_is_named(folder):
    (folder / "a" / "broken.jpg").write_bytes(b"no jpeg")
    with pytest.raises(DataError, match=r"cannot be decoded: .*a/broken\.jpg: UnidentifiedImage"):
        read_images(recipe({"source": "folder", "folder": str(folder)}))


def test_a_folder_without_pictures_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(DataError, match=r"holds no image file \(1 others\); endings such as"):
        read_images(recipe({"source": "folder", "folder": str(tmp_path)}))


def test_a_folder_with_one_picture_is_refused(tmp_path):
    picture((1, 2, 3)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a folder of image files has 1 image\(s\); at least 2"):
        read_images(recipe({"source": "folder", "folder": str(tmp_path)}))


def test_a_folder_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"images\.folder is .*nowhere, which is not a folder"):
        read_images(recipe({"source": "folder", "folder": str(tmp_path / "nowhere")}))


def test_a_data_set_gives_its_training_images_only():
    data = {"name": "lesions", "size": 16, "num_train": 20, "num_val_per_class": 1}
    images = read_images(recipe({"source": "data", "data": data}))
    assert len(images) == 20
    assert np.array_equal(images, load_splits(LesionsConfig(**data)).train.images)


class Small(torchvision.datasets.VisionDataset):
    """Stands for a data set of torchvision; its one file holds grey levels."""

    base_folder = "small-files"

    def __init__(self, root, split="train", download=True):
        super().__init__(root)
        assert (split, download) == ("train", False)
        try:
            with open(f"{root}/small-files/levels") as file:
                self.levels = [int(line) for line in file]
        except FileNotFoundError:
            raise RuntimeError("Dataset not found.") from None

    def __len__(self):
        return len(self.levels)

    def __getitem__(self, row):
        return picture(self.levels[row], "L"), 0


@pytest.fixture
def small(monkeypatch, tmp_path):
    monkeypatch.setattr(torchvision.datasets, "Small", Small, raising=False)
    return {"source": "torchvision", "torchvision": "Small", "folder": str(tmp_path)}


def test_a_torchvision_set_is_read_from_its_files_and_anew_when_they_change(small, tmp_path):
    (tmp_path / "small-files").mkdir()
    levels = tmp_path / "small-files" / "levels"
    levels.write_text("7\n8\n9\n")
    images = read_images(recipe(small))
    assert images.shape == (3, 3, 16, 16)
    assert images[:, 1, 5, 5].tolist() == [7, 8, 9]
    levels.write_text("1\n2\n")
    assert read_images(recipe(small))[:, 0, 0, 0].tolist() == [1, 2]


def test_a_torchvision_set_that_is_not_there_says_where_its_files_belong(small, tmp_path):
    text = rf"cannot open Small in .*Dataset not found.*belong in {tmp_path}/small-files, where"
    with pytest.raises(DataError, match=text):
        read_images(recipe(small))


def test_a_link_to_nothing_among_torchvisions_files_is_no_matter(small, tmp_path):
    (tmp_path / "small-files").mkdir()
    (tmp_path / "small-files" / "levels").write_text("7\n8\n")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert len(read_images(recipe(small))) == 2


@pytest.mark.parametrize("name", ["VisionDataset", "FakeData"])
def test_what_torchvision_cannot_count_is_refused(tmp_path, name):
    source = {"source": "torchvision", "torchvision": name, "folder": str(tmp_path)}
    with pytest.raises(DataError, match=f"torchvision cannot open {name} in "):
        read_images(recipe(source))


def test_a_broken_image_of_torchvision_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    picture(1).save(tmp_path / "a" / "1.png")
    (tmp_path / "a" / "2.png").write_bytes(b"no png")
    source = {"source": "torchvision", "torchvision": "ImageFolder", "folder": str(tmp_path)}
    with pytest.raises(
        DataError, match=r"torchvision cannot read image 1 of ImageFolder: .*2\.png"
    ):
        read_images(recipe(source))


def test_cifar10_that_is_not_there_says_where_its_files_belong(tmp_path):
    source = {"source": "torchvision", "torchvision": "CIFAR10", "folder": str(tmp_path)}
    with pytest.raises(DataError, match=r"files belong in .*/cifar-10-batches-py, where"):
        read_images(recipe(source))


def test_an_unknown_torchvision_set_names_the_nearest(tmp_path):
    source = {"source": "torchvision", "torchvision": "Cifar10", "folder": str(tmp_path)}
    with pytest.raises(ConfigError, match=r"'Cifar10', no data set .*; did you mean CIFAR10\?"):
        read_images(recipe(source))


def test_content_hash_follows_pixels_and_shape():
    images = seeding.rng(0, "hash").integers(0, 256, (4, 3, 8, 8), dtype=np.uint8)
    assert content_hash(images) == content_hash(images.copy())
    assert content_hash(images) != content_hash(images[::-1])
    assert content_hash(images) != content_hash(images.reshape(4, 3, 4, 16))


@pytest.mark.parametrize(
    ("images", "text"),
    [
        ({"source": "folder"}, "images.source is 'folder', which needs images.folder"),
        ({"source": "data"}, "images.source is 'data', which needs images.data"),
        ({"source": "torchvision", "folder": "x"}, "which needs images.torchvision"),
        ({"folder": "x"}, "images.folder is given but images.source is 'dead_leaves'"),
    ],
)
def test_keys_that_do_not_fit_the_source_are_refused(images, text):
    with pytest.raises(ConfigError, match=text):
        recipe(images)


def test_files_at_less_than_16_px_are_refused():
    with pytest.raises(ConfigError, match=r"source_size is 8; image files are resized to 16\.\."):
        recipe({"source": "folder", "folder": "x"}, source_size=8)
