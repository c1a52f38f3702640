"""Where images are kept (``data.store``) changes what is read when, and nothing else."""

import threading

import numpy as np
import pytest
from PIL import Image

from fedkd import config, seeding
from fedkd.data import labelled_files
from fedkd.data.sets import folder
from fedkd.data.sets.folder import FolderConfig
from fedkd.data.streaming import FilePixels
from fedkd.errors import ConfigError, DataError
from fedkd.experiment import open_experiment
from fedkd.recipe import Recipe
from server import simulate

STORES = ("mapped", "memory", "stream")


@pytest.fixture
def make_data(tmp_path):
    """A function that gives a ``data`` section with a store; 24 images in two hospitals."""
    rng = seeding.rng(0, "files")
    (tmp_path / "images").mkdir()
    lines = ["image_id,label,site,split"]
    for number in range(24):
        pixels = rng.integers(0, 256, (18, 22, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
        split = ("train", "train", "val", "train", "test", "train")[number % 6]
        lines.append(f"{number}.png,{'ab'[number % 4 // 2]},{'ns'[number // 12]},{split}")
    (tmp_path / "table.csv").write_text("\n".join(lines))

    def make(store, **changes):
        return {
            "name": "folder",
            "images": str(tmp_path / "images"),
            "csv": str(tmp_path / "table.csv"),
            "site_column": "site",
            "size": 16,
            "store": store,
            **changes,
        }

    return make


def load(data, tmp_path):
    return folder.load(FolderConfig(**data), tmp_path / "cache")


def decoders():
    return [t for t in threading.enumerate() if t.name.startswith("fedkd-decode")]


def test_pixels_are_the_same_wherever_they_are_kept(make_data, tmp_path):
    mapped, memory, stream = (load(make_data(store), tmp_path) for store in STORES)
    for name in ("train", "val", "test"):
        one, two, three = (getattr(splits, name) for splits in (mapped, memory, stream))
        assert isinstance(one.images, np.memmap)
        assert type(two.images) is np.ndarray
        assert isinstance(three.images.pixels, FilePixels)
        assert np.array_equal(one.images, two.images)
        assert np.array_equal(one.images, three.images)
        assert one.ids == two.ids == three.ids


@pytest.mark.parametrize("objective", ["supervised", "fopro"])
def test_a_run_gives_the_same_bits_wherever_images_are_kept(
    make_data, make_recipe, teacher, objective
):
    def run(store):
        recipe = make_recipe(
            data=make_data(store, num_workers=2), objective={"name": objective},
            prompts={"form": "mix"}, strategy={"name": "mas"},
        )  # fmt: skip
        return simulate(recipe, teacher=teacher if objective == "fopro" else None)

    summaries = [run(store).summary for store in STORES]
    assert len({summary["student_sha256"] for summary in summaries}) == 1
    assert decoders() == []


def test_streaming_writes_nothing_and_reads_every_file_before_training(make_data, tmp_path):
    (tmp_path / "images" / "3.png").write_text("no image")
    with pytest.raises(DataError, match=r"cannot be decoded.*3\.png"):
        load(make_data("stream"), tmp_path)
    Image.new("RGB", (16, 16)).save(tmp_path / "images" / "3.png")
    load(make_data("stream"), tmp_path)
    assert not (tmp_path / "cache").exists()


def test_stores_and_workers_share_one_cache_and_one_hash(make_data, tmp_path, monkeypatch):
    load(make_data("mapped"), tmp_path)
    monkeypatch.setattr(labelled_files, "decode_files", lambda *_: pytest.fail("decoded again"))
    load(make_data("memory", num_workers=3), tmp_path)
    recipes = [
        config.build(Recipe, {"data": make_data(store, num_workers=n)})
        for store, n in (("mapped", 1), ("stream", 2))
    ]
    assert recipes[0].hash() == recipes[1].hash()
    other = config.build(Recipe, {"data": make_data("mapped", size=32)})
    assert other.hash() != recipes[0].hash()


def test_file_that_vanishes_stops_the_run_with_its_name_and_no_thread_is_left(
    make_data, make_recipe, tmp_path
):
    recipe = make_recipe(data=make_data("stream"), objective={"name": "supervised"})
    experiment = open_experiment(recipe)
    (tmp_path / "images" / "0.png").unlink()
    loader = experiment.loader(0)
    with pytest.raises(DataError, match=r"0\.png cannot be read any more"):
        list(loader.batches([np.arange(len(loader))]))
    assert decoders() == []


@pytest.mark.parametrize("change", [{"store": "disk"}, {"num_workers": 0}])
def test_other_stores_and_no_worker_are_refused(make_data, change):
    with pytest.raises(ConfigError, match=f"data.*{next(iter(change))}"):
        config.build(Recipe, {"data": {**make_data("mapped"), **change}})
