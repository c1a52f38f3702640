"""Kept features: what they equal, what names their file, and what happens to a damaged one."""

import copy
import multiprocessing
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fedkd import files, seeding
from fedkd.data.augment import AugmentationConfig, augment_, dihedral_view, dihedral_views, draw
from fedkd.data.images import LabelledImages
from fedkd.data.loading import Loader
from fedkd.data.pixels import Selection
from fedkd.errors import DataError
from fedkd.teachers import features
from fedkd.teachers.config import OneTeacherConfig
from fedkd.teachers.features import BATCH, features_of, keep_features
from fedkd.teachers.frozen import Teacher
from fedkd.teachers.loading import open_teacher

NUM = 33  # One full batch, and one image, whose batch is filled up.


def images_of(height=16, width=16, num=NUM):
    pixels = seeding.rng(0, "feature-images").integers(0, 256, (num, 3, height, width), np.uint8)
    return LabelledImages(pixels, np.zeros(num, np.int64), ("a",))


def loader_of(images, rows=None, dtype=torch.float32):
    rows = np.arange(len(images)) if rows is None else np.array(rows)
    return Loader(images, rows, torch.device("cpu"), dtype)


@pytest.fixture(scope="module")
def default():
    return open_teacher(OneTeacherConfig()).to(memory_format=torch.channels_last)


def frozen(network, **changes):
    settings = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "input_size": None, **changes}
    network = copy.deepcopy(network)
    return Teacher("tiny", network, num_features=10, head=None, head_kind="none", **settings)


def keep(teacher, loaders, folder, views="clean", **settings):
    return keep_features(
        [teacher] * len(loaders),
        [OneTeacherConfig(views=views, **settings)] * len(loaders),
        loaders,
        "dihedral",
        folder,
    )


def computed(teacher, loader, num_views):
    values = np.full((len(loader), num_views, teacher.num_features), np.nan, np.float32)
    for rows, number, part in features_of(teacher, loader, num_views):
        values[rows, number] = part
    return values


def files_in(folder):
    return sorted(folder.glob("features/*.npy"))


@pytest.mark.parametrize(("height", "width", "num_views"), [(16, 16, 8), (16, 12, 4)])
def test_the_view_of_an_image_is_its_augmentation(height, width, num_views):
    pixels = loader_of(images_of(height, width)).pixels(np.arange(NUM))
    draws = draw(np.arange(NUM), seeding.rng(0, "draws"))
    views = dihedral_views(draws, height == width)
    assert set(views) == set(range(num_views))
    augmented = augment_(pixels.clone(), draws, AugmentationConfig(name="dihedral"))
    for image, number, expected in zip(pixels, views, augmented, strict=True):
        assert torch.equal(dihedral_view(image[None], int(number))[0], expected)
    assert torch.equal(dihedral_view(pixels, 0), pixels)


@pytest.mark.parametrize("batch_size", [2, 7, 32, 64])
def test_features_of_the_default_teacher_are_those_of_any_batch_to_the_bit(default, batch_size):
    loader = loader_of(images_of())
    kept = computed(default, loader, 8)
    pixels = loader.pixels(np.arange(NUM))
    for number in (0, 3, 7):
        view = dihedral_view(pixels, number)
        # A last batch of one image, as of none in training, has bits of its own.
        parts = [part for part in view.split(batch_size) if len(part) > 1]
        plain = torch.cat([default.features(part) for part in parts])
        assert np.array_equal(kept[: len(plain), number], plain.numpy())


def test_features_are_those_of_full_batches(default):
    """A batch of one has other bits; filled up it gives its image those of any full batch."""
    loader = loader_of(images_of())
    last = default.features(loader.pixels(np.arange(NUM - BATCH, NUM)))
    assert np.array_equal(computed(default, loader, 1)[NUM - BATCH :, 0], last.numpy())


def test_a_client_gets_the_features_of_its_own_images_in_their_own_view(default, tmp_path):
    images = images_of()
    rows = [[30, 2, 17], [5, 32]]
    loaders = [loader_of(images, own) for own in rows]
    kept = keep(default, loaders, tmp_path, "dihedral")
    assert kept[0].values is kept[1].values, "one file serves both"
    assert kept[0].values.shape == (5, 8, 480), "images of no client are left out"
    positions = np.array([2, 0])
    draws = draw(positions, seeding.rng(1, "draws"))
    pixels = loaders[0].pixels(positions)
    assert torch.equal(kept[0].of(positions, None), default.features(pixels))
    augmented = augment_(pixels, draws, AugmentationConfig(name="dihedral"))
    assert torch.equal(kept[0].of(positions, draws), default.features(augmented))
    plain = keep(default, loaders, tmp_path, "clean")[0]
    assert torch.equal(plain.of(positions, draws), kept[0].of(positions, None))


def test_images_that_are_not_square_have_four_views(default, tmp_path):
    images = images_of(16, 24)
    (kept,) = keep(default, [loader_of(images)], tmp_path, "dihedral")
    assert kept.values.shape == (NUM, 4, 480)
    draws = draw(np.arange(NUM), seeding.rng(0, "draws"))
    pixels = loader_of(images).pixels(np.arange(NUM))
    expected = default.features(augment_(pixels, draws, AugmentationConfig(name="dihedral")))
    assert torch.equal(kept.of(np.arange(NUM), draws), expected)


def test_what_is_there_is_read_and_the_teacher_does_not_run(default, tmp_path, monkeypatch):
    (first,) = keep(default, [loader_of(images_of())], tmp_path)
    monkeypatch.setattr(features, "features_of", None)
    (second,) = keep(default, [loader_of(images_of())], tmp_path)
    assert isinstance(second.values, np.memmap)
    assert np.array_equal(first.values, second.values)


def test_another_number_has_another_file(tiny_teacher, tmp_path):
    images, network = images_of(), copy.deepcopy(tiny_teacher)
    with torch.no_grad():
        network.conv1.weight[0, 0, 0, 0] += 1e-3
    changed = images.images.copy()
    changed[3, 0, 0, 0] ^= 1
    teacher, loaders = frozen(tiny_teacher), [loader_of(images)]

    def changed_images(pixels):
        return [loader_of(LabelledImages(pixels, images.labels, ("a",)))]

    def same_file(*args, **settings):
        before = files_in(tmp_path)
        keep(*args[:2], tmp_path, *args[2:], **settings)
        return files_in(tmp_path) == before

    assert not same_file(teacher, loaders)
    assert same_file(teacher, loaders)
    assert same_file(teacher, changed_images(Selection(images.images, np.arange(NUM))))
    assert not same_file(frozen(network), loaders)
    assert not same_file(frozen(tiny_teacher, input_size=32), loaders)
    assert not same_file(frozen(tiny_teacher, mean=(0.4,) * 3), loaders)
    assert not same_file(frozen(tiny_teacher, precision="bfloat16"), loaders)
    assert not same_file(teacher, loaders, "dihedral")
    assert not same_file(teacher, changed_images(changed))
    assert not same_file(teacher, changed_images(images.images[::-1]))
    assert not same_file(teacher, [loader_of(images, np.arange(NUM - 1))])
    assert not same_file(copy.deepcopy(teacher).double(), [loader_of(images, dtype=torch.float64)])


def test_a_module_whose_code_alone_differs_has_another_file(tiny_teacher, tmp_path):
    class Doubled(type(tiny_teacher)):
        def forward(self, x):
            return 2 * super().forward(x)

    doubled = Doubled()
    doubled.load_state_dict(tiny_teacher.state_dict())
    for network in (tiny_teacher, doubled):
        keep(frozen(network), [loader_of(images_of())], tmp_path)
    one, other = (np.load(path) for path in files_in(tmp_path))
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("damage", ["truncated", "empty", "header", "shape"])
def test_a_damaged_file_is_said_and_made_again(damage, default, tmp_path, caplog):
    (kept,) = keep(default, [loader_of(images_of())], tmp_path)
    expected = np.array(kept.values)
    del kept
    (path,) = files_in(tmp_path)
    content = path.read_bytes()
    path.unlink()
    if damage == "shape":
        np.save(path, expected[:-1])
    else:
        path.write_bytes({"truncated": content[:-1], "empty": b"", "header": b"x" * 99}[damage])
    (again,) = keep(default, [loader_of(images_of())], tmp_path)
    assert "is damaged" in caplog.text
    assert path.read_bytes() == content
    assert np.array_equal(again.values, expected)


def test_an_interrupted_computation_leaves_nothing(default, tmp_path, monkeypatch):
    def interrupted(*_):
        yield slice(0, 1), 0, np.zeros((1, 480), np.float32)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(features, "features_of", interrupted)
        with pytest.raises(KeyboardInterrupt):
            keep(default, [loader_of(images_of())], tmp_path)
    assert [path.suffix for path in (tmp_path / "features").iterdir()] in ([], [".lock"])
    (kept,) = keep(default, [loader_of(images_of())], tmp_path)
    assert np.all(np.abs(kept.values).sum(2) > 0)


def test_a_cache_that_cannot_be_written_is_an_error_that_says_what_to_do(default, tmp_path):
    (tmp_path / "features").write_text("a file in the way")
    with pytest.raises(DataError, match=r"cannot keep the teacher's features in .*FEDKD_CACHE"):
        keep(default, [loader_of(images_of())], tmp_path)


def compute_slowly(teacher, folder, computing, go_on):
    compute = features.features_of

    def slow(*args):
        computing.set()
        assert go_on.wait(60)
        return compute(*args)

    features.features_of = slow
    keep(teacher, [loader_of(images_of(num=4))], folder)


def test_a_second_process_waits_and_reads(default, tmp_path, monkeypatch):
    context = multiprocessing.get_context("fork")
    computing, go_on = context.Event(), context.Event()
    process = context.Process(target=compute_slowly, args=(default, tmp_path, computing, go_on))
    process.start()
    assert computing.wait(60)
    # Here nothing is computed, and the other goes on when this one has said that it waits.
    monkeypatch.setattr(features, "features_of", None)

    def info(text, *values):
        if (text % values).startswith("another process is computing"):
            go_on.set()

    monkeypatch.setattr(files, "logger", SimpleNamespace(info=info))
    (kept,) = keep(default, [loader_of(images_of(num=4))], tmp_path)
    process.join()
    assert go_on.is_set()
    assert (process.exitcode, kept.values.shape) == (0, (4, 1, 480))


def test_long_work_is_told(default, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(features, "_REPORT_EVERY_S", 0.0)
    keep(default, [loader_of(images_of())], tmp_path, "dihedral")
    assert "check sums of the images: 50 %, about" in caplog.text
    assert "computing features of teacher 'default', 33 images in 8 views ..." in caplog.text
    assert "33 images in 8 views: 12 %, about" in caplog.text, "2 of 16 passes"
    assert "33 images in 8 views: 100 %, about 0 s left" in caplog.text
