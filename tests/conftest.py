"""Fixtures for tests that need a federation: tiny hospitals, a tiny teacher, a tiny recipe."""

import copy
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import nn

from fedkd import config, seeding
from fedkd.data.images import LabelledImages
from fedkd.experiment import open_experiment
from fedkd.recipe import Recipe
from fedkd.teachers.frozen import Teacher
from server import simulate, terminal
from server.pictures import (
    curves,
    feature_space,
    page,
    partition,
    prompt_curves,
    prompts,
    spectrum,
)

CLASSES = ("a", "b", "c", "d")
SITES = ("north", "south", "west")
TINY = {
    "num_rounds": 2,
    "training": {"batch_size": 4, "learning_rate": 2e-3},
    "prompts": {"latent_dim": 6},
    "explore": {"warm_up_steps": 2, "steps_per_round": 1, "batch_size": 4},
}


@pytest.fixture(scope="session", autouse=True)
def _one_thread_and_a_cache_of_its_own(tmp_path_factory):
    """Bits do not depend on the machine's cores, and the user's cache is left alone."""
    patch = pytest.MonkeyPatch()
    patch.setenv("FEDKD_CACHE", str(tmp_path_factory.mktemp("cache")))
    patch.delenv("FEDKD_TEACHERS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    patch.undo()


@pytest.fixture(autouse=True)
def _the_log_as_it_was():
    """Commands show the log from INFO on; the next test's log does not depend on that.

    Nor on a command that a fixture of a whole module has run, before this one begins.
    """
    root = logging.getLogger()
    yield
    root.setLevel(logging.WARNING)
    root.handlers[:] = [h for h in root.handlers if type(h).__module__ != terminal.__name__]


@pytest.fixture(autouse=True)
def _drawn_only_where_asked(request, monkeypatch):
    """Drawing takes most of the time of a page, and every run of the command line writes one."""
    if "with_drawings" not in request.fixturenames:
        monkeypatch.setattr(page, "_svg", lambda drawing, theme: ("data:,", 1, 1))


@pytest.fixture
def with_drawings():
    """Asks for the drawings of pages."""


@pytest.fixture(scope="session")
def make_recipe():
    """A function that gives the tiny recipe with some values or sections changed."""

    def make(**changes):
        values = {key: dict(v) if isinstance(v, dict) else v for key, v in TINY.items()}
        for key, change in changes.items():
            if isinstance(change, dict):
                values.setdefault(key, {}).update(change)
            else:
                values[key] = change
        return config.build(Recipe, values)

    return make


def draw_images(purpose, labels, sites=(), site_names=("all",), size=16):
    """Noise on a class-dependent colour, uint8, dark and reddish as a whole."""
    rng = seeding.rng(0, purpose)
    labels = np.asarray(labels)
    colours = np.array([[60, 20, 20], [90, 40, 20], [110, 60, 50], [70, 60, 30]])
    pixels = colours[labels][:, :, None, None] + rng.normal(0, 15, (len(labels), 3, size, size))
    return LabelledImages(
        images=pixels.clip(0, 255).astype(np.uint8),
        labels=labels,
        class_names=CLASSES,
        sites=np.asarray(sites, np.int64),
        site_names=site_names,
    )


@pytest.fixture(scope="session")
def hospitals():
    """Three hospitals, a val and a test split at 16 px, as keyword arguments of ``simulate``.

    Numbers are odd and classes are missing: south has no "d", west has neither "b" nor "c".
    """
    labels = ([0, 1, 2, 3, 0, 1, 0, 0, 2, 0, 1], [0, 1, 2, 0, 1, 0, 1, 0, 0], [3, 0, 3, 0, 0, 3])
    held_out = [0, 1, 2, 3] * 3
    return {
        "sites": [
            draw_images(f"train/{name}", own, site_names=(name,))
            for name, own in zip(SITES, labels, strict=True)
        ],
        "val": draw_images("val", held_out, [0, 1, 1, 2] * 3, SITES),
        "test": draw_images("test", held_out + [0, 3], [0, 0, 1, 2] * 3 + [0, 2], SITES),
    }


class TinyTeacher(nn.Module):
    """Two convolutions with BatchNorm, 10 features."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 10, 3, 2, 1), nn.BatchNorm2d(10)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(x))).mean((2, 3))


@pytest.fixture(scope="session")
def tiny_teacher():
    """A small network whose BatchNorm statistics are those of smooth grey noise."""
    with seeding.isolated(0, "tiny teacher"):
        network = TinyTeacher()
        coarse = torch.rand(64, 3, 5, 5)
        for norm in (network.bn1, network.bn2):
            norm.momentum = None
        with torch.no_grad():
            for batch in F.interpolate(coarse, size=16, mode="bilinear").split(32):
                network(batch)
    return network.eval()


@pytest.fixture
def teacher(tiny_teacher):
    """A copy of the tiny teacher that a test may spoil."""
    return copy.deepcopy(tiny_teacher)


@pytest.fixture
def opened(make_recipe, hospitals, tiny_teacher):
    """A function that opens the tiny experiment."""

    def make(data=None, teacher=tiny_teacher, initial_student=None, **changes):
        return open_experiment(
            make_recipe(**changes),
            **{**hospitals, **(data or {})},
            teacher=teacher,
            initial_student=initial_student,
        )

    return make


@pytest.fixture
def run(make_recipe, hospitals, teacher):
    """A function that simulates the tiny recipe with changes on the tiny hospitals."""

    def simulated(centralized=False, output=None, observers=(), **changes):
        return simulate(
            make_recipe(**changes),
            **hospitals,
            teacher=teacher,
            centralized=centralized,
            output=output,
            observers=observers,
        )

    return simulated


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory):
    """Where tests share the large files of ``tests/teacher_files.py``; removed at the end."""
    folder = tmp_path_factory.mktemp("teachers")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def realdata():
    """The folder of real data sets, or a skip that says where it was sought."""
    given = os.environ.get("FEDKD_DATA")
    beside = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    folders = [*([Path(given).expanduser()] if given else []), beside]
    for folder in folders:
        if (folder / "ham10000" / "metadata.csv").is_file():
            return folder
    pytest.skip(f"no ham10000/metadata.csv in {' or '.join(map(str, folders))}; set FEDKD_DATA")


@pytest.fixture
def passes(monkeypatch):
    """Images of each pass of a teacher."""
    seen = []
    ask = Teacher.features
    monkeypatch.setattr(
        Teacher, "features", lambda self, pixels: seen.append(len(pixels)) or ask(self, pixels)
    )
    return seen


@pytest.fixture
def drawn(monkeypatch):
    """The figures instead of their files, laid out as there."""
    figures = []

    def keep(figure, path):
        FigureCanvasAgg(figure).draw()
        figures.append(figure)

    for module in (curves, partition, feature_space, prompts, prompt_curves, spectrum):
        monkeypatch.setattr(module, "write_figure", keep)
    return figures
