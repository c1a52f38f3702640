"""No file and no message that travels is unpickled, wherever it is read."""

import io
import json
import pickle
import re
import shutil
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from flwr.app import Array, ArrayRecord
from PIL import Image
from safetensors import SafetensorError
from torch import nn

from clients.state_file import read_state as read_client_state
from fedkd import config
from fedkd.data import cache
from fedkd.data.image_files import decode_file
from fedkd.data.images import LabelledImages, Splits
from fedkd.data.site_folder import read_site_folder
from fedkd.errors import ConfigError, FedkdError, TeacherError
from fedkd.fourier.config import PromptConfig
from fedkd.fourier.kept import load_prompts
from fedkd.partitions import manifest
from fedkd.pretraining.config import PretrainConfig
from fedkd.pretraining.images import read_images
from fedkd.pretraining.training import Checkpoint
from fedkd.recipe import Recipe
from fedkd.teachers import features
from fedkd.teachers.checkpoints import read_state
from fedkd.teachers.moments_file import read_moments
from fedkd.teachers.stored import load_pretrained
from fedkd.unpacking import unpack
from server import Observer, simulate
from server.cli import main
from server.comparison.outcome import Outcome
from strategies.arrays import view
from tests import bombs
from tests.file_run import train

FAST = (
    "num_rounds=1", "num_clients=2", "partition.name=iid", "student.name=resnet8",
    "prompts.latent_dim=6", "explore.warm_up_steps=1", "explore.steps_per_round=1",
    "explore.batch_size=4", "evaluation.personalised=true",
)  # fmt: skip


@pytest.fixture
def marker(tmp_path):
    """The folder that bombs make; it must not be there in the end."""
    folder = tmp_path / "unpickled"
    yield folder
    assert not folder.exists()


@pytest.mark.parametrize("kind", bombs.KINDS)
def test_each_bomb_goes_off_where_nobody_takes_care(kind, tmp_path):
    path, folder = tmp_path / "bomb", tmp_path / "made"
    path.write_bytes(bombs.content(kind, folder))
    careless = {
        "npy": lambda: np.load(path, allow_pickle=True),
        "npz": lambda: np.load(path, allow_pickle=True)["train_images"],
        "zip": lambda: pickle.loads(path.read_bytes()[path.read_bytes().index(b"\x80\x02") :]),
        "tar": lambda: pickle.loads(path.read_bytes()[512:]),
        "pickle": lambda: pickle.loads(path.read_bytes()),
    }.get(kind, lambda: torch.load(path, weights_only=False))
    careless()
    assert folder.is_dir()


READERS = {
    "a teacher's weights": read_state,
    "a teacher that fedkd made": load_pretrained,
    "feature moments": lambda path: read_moments(path, {}),
    "a hospital's prompts": lambda path: load_prompts(path, PromptConfig(), 3, 16, 16),
    "an unfinished pre-training": lambda path: Checkpoint(path, {}, "").load(
        nn.Linear(1, 1), torch.optim.SGD([nn.Parameter(torch.zeros(1))])
    ),
    "a client's memory": read_client_state,
    "kept features": lambda path: features._read(path, (1,), np.dtype(object)),
    "an image": lambda path: decode_file(path, 16),
    "an archive": lambda path: unpack(path, path.parent / "unpacked"),
    "a manifest": manifest.read,
    "a recipe": partial(config.load, Recipe),
    "a hospital's labels": lambda path: read_site_folder(path.parent, 16, ("train",), ("train",)),
}


@pytest.mark.parametrize("kind", bombs.KINDS)
@pytest.mark.parametrize("what", READERS)
def test_nothing_unpickles_a_file(what, kind, tmp_path, marker):
    names = {"a hospital's labels": ("labels.csv", "site.json"), "kept features": ("bomb.npy",)}
    for name in names.get(what, ("bomb",)):
        (tmp_path / name).write_bytes(bombs.content(kind, marker))
    if what == "an image":
        assert isinstance(READERS[what](tmp_path / name), str), "the reason why there is none"
    elif what == "an archive" and kind not in ("pickle", "torch legacy", "npy"):
        assert READERS[what](tmp_path / name)
    else:
        # What only fedkd writes is refused in the words of safetensors or numpy.
        with pytest.raises((FedkdError, SafetensorError, ValueError)):
            READERS[what](tmp_path / name)


def test_a_torchscript_archive_as_a_teacher_is_not_run(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bombs.torchscript(tmp_path / "program.pt")
    with pytest.raises(TeacherError, match="is a TorchScript archive, a program with its weights"):
        read_state(tmp_path / "program.pt")


@pytest.mark.parametrize("kind", bombs.KINDS)
def test_a_store_of_decoded_images_is_made_again(kind, tmp_path, marker):
    pixels = np.zeros((3, 3, 2, 2), np.uint8)
    one = [LabelledImages(pixels[n : n + 1], np.zeros(1, np.int64), ("a",)) for n in range(3)]
    opened = partial(cache.load_or_build, "bombs", "key", lambda: Splits(*one), tmp_path / "cache")
    opened()
    (store,) = (tmp_path / "cache").glob("bombs-*")
    for file in sorted(store.iterdir()):
        good = file.read_bytes()
        file.write_bytes(bombs.content(kind, marker))
        assert opened().train.images.tolist() == pixels[:1].tolist()
        assert file.read_bytes()[:6] == good[:6]


@pytest.mark.parametrize("kind", ["npz", "pickle"])
def test_medmnist_is_not_unpickled(kind, tmp_path, marker, capsys):
    pytest.importorskip("medmnist")
    (tmp_path / "dermamnist.npz").write_bytes(bombs.content(kind, marker))
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'num_clients = 1\n[data]\nname = "medmnist"\nflag = "dermamnist"\nsize = 28\n'
        f'root = "{tmp_path}"\n'
    )
    assert main(["partition", str(recipe)]) == 2
    assert "dermamnist.npz is " in capsys.readouterr().err


def test_torchvisions_pickles_are_read_with_a_known_check_sum_only(tmp_path, marker):
    cifar = torchvision.datasets.CIFAR10
    folder = tmp_path / cifar.base_folder
    folder.mkdir()
    for name, _ in (*cifar.train_list, *cifar.test_list, (cifar.meta["filename"], "")):
        (folder / name).write_bytes(bombs.content("pickle", marker))
    with pytest.raises(FedkdError, match="torchvision cannot open CIFAR10 in"):
        read_images(pretrain_recipe(tmp_path, "CIFAR10"))
    with pytest.raises(ConfigError) as refused:
        read_images(pretrain_recipe(tmp_path, "LSUN"))
    assert str(refused.value) == (
        "images.torchvision is 'LSUN', for which torchvision reads a pickle file of unknown "
        "origin, which can run any command; name a folder of its images in images.folder"
    )


def pretrain_recipe(folder, name):
    images = {"source": "torchvision", "folder": str(folder), "torchvision": name}
    return config.build(PretrainConfig, {"images": images})


# The code

UNSAFE = re.compile(
    r"(?<!\w)(cloud)?pickle\.loads?\(|Unpickler|np\.load\((?!.*allow_pickle=False)|jit\.load\(|"
    r"(joblib|shelve|marshal|yaml|dill)\b(?!\w)|torch\.package|(?<![\w.])(eval|exec)\("
)
ALLOWED = {
    "server/engines/packing.py",  # between a run and the Ray workers of its own
    "server/engines/flower.py",  # likewise, by a file in a folder of mode 0700
    "server/exporting.py",  # the TorchScript file that it has just written itself
}


def test_what_could_unpickle_is_where_engines_talk_to_their_own_workers():
    root = Path(__file__).parents[1]
    found = {
        path.relative_to(root).as_posix()
        for package in ("fedkd", "clients", "strategies", "server", "configs")
        for path in (root / package).rglob("*.py")
        for line in path.read_text().splitlines()
        if UNSAFE.search(line) and not line.lstrip().startswith(("#", '"'))
    }
    assert found == ALLOWED


# Messages


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0), "pickle", "zip"])
def test_arrays_in_messages_are_not_unpickled_at_either_end(version, marker):
    if isinstance(version, tuple):
        file = io.BytesIO()
        value = np.array([bombs.Bomb(marker)], dtype=object)
        np.lib.format.write_array(file, value, version, allow_pickle=True)
        data = file.getvalue()
    else:
        data = bombs.content({"zip": "npz"}.get(version, version), marker)
    array = Array(dtype="object", shape=(1,), stype="numpy.ndarray", data=data)
    with pytest.raises(Exception, match=r"[Pp]ickle|OBJECT|magic|numpy|ndarray|NpzFile|attribute"):
        view(array)  # the server's end
    with pytest.raises(Exception, match=r"[Pp]ickle|NpzFile|ndarray|numpy"):
        ArrayRecord({"a": array}).to_torch_state_dict()  # the client's end


# Run directories


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of fopro with all that a run may leave, and an image."""
    folder = tmp_path_factory.mktemp("finished")
    image = folder / "image.png"
    Image.new("RGB", (16, 16)).save(image)
    return train(folder, *FAST, images=False, objective="fopro"), image


def files_of(run):
    return sorted(path for path in run.rglob("*") if path.is_file())


def test_no_command_unpickles_a_file_of_a_run_directory(finished, tmp_path, marker):
    run, image = finished
    # What each kind of file is read by.
    of_all = [["predict", run, image], ["evaluate", run, "--output", tmp_path / "evaluated"]]
    of_students = [
        *of_all,
        ["export", run, "--format", "safetensors", "--output", tmp_path / "exported"],
        ["predict", run, image, "--student", "round:1"],
        ["predict", run, image, "--student", "last"],
    ]
    of_tables = [*of_all, ["report", run]]
    assert {"config.toml", "summary.json", "best_student.safetensors", "rounds.csv"} <= {
        path.name for path in files_of(run)
    }
    refused = set()
    for file in files_of(run):
        commands = of_students if file.suffix == ".safetensors" else of_tables
        if file.name == "best_student.safetensors":
            commands = [*commands, ["spectrum", run, "--output", tmp_path / "spectrum"]]
        if file.parent.name == "prompts":
            commands = [["prompts", run, "--output", tmp_path / "prompts"]]
        good = file.read_bytes()
        for kind in ("pickle", "torch zip") if file.suffix == ".safetensors" else ("pickle",):
            file.write_bytes(bombs.content(kind, marker))
            for command in commands:
                code = main([str(word) for word in command])
                assert not marker.exists(), (file, command)
                if code:
                    refused.add((file.relative_to(run).as_posix(), command[0]))
        file.write_bytes(good)
    # The files were read, and refused.
    assert {
        ("config.toml", "report"), ("summary.json", "predict"), ("rounds.csv", "report"),
        ("best_student.safetensors", "evaluate"), ("best_student.safetensors", "spectrum"),
        ("prompts/client-0.safetensors", "prompts"),
    } <= refused  # fmt: skip


def test_resuming_a_run_unpickles_nothing(make_recipe, tmp_path, marker):
    recipe = make_recipe(
        num_rounds=2, num_clients=2, objective={"name": "supervised"},
        data={"name": "lesions", "size": 16, "num_train": 24, "num_sites": 1,
              "num_val_per_class": 2, "num_test_per_class": 1}, partition={"name": "iid"},
        student={"name": "resnet8"},
    )  # fmt: skip

    class Stop(Observer):
        """Ctrl-C in round 2, when one client has replied and the other has begun."""

        def client_progress(self, partition_id, what, done, total):
            if partition_id == 1 and (run / "checkpoint/round-1.json").exists():
                raise KeyboardInterrupt

        def run_started(self, *_):
            nonlocal run
            (run,) = (tmp_path / recipe.name).iterdir()

    run = tmp_path
    with pytest.raises(KeyboardInterrupt):
        simulate(recipe, output=tmp_path, observers=[Stop()])
    kept = files_of(run / "checkpoint")
    assert {"round-1.json", "round-1.safetensors", "best-1.safetensors", "rows.jsonl",
            "round-2-client-0.safetensors", "training.safetensors"} <= {
        path.name for path in kept
    }  # fmt: skip
    for file in [*kept, run / "config.toml", run / "summary.json"]:
        copy = tmp_path / "copy"
        shutil.copytree(run, copy)
        (copy / file.relative_to(run)).write_bytes(bombs.content("pickle", marker))
        main(["resume", str(copy)])
        assert not marker.exists(), file
        shutil.rmtree(copy)


def test_a_file_of_a_student_is_not_unpickled(finished, tmp_path, marker, capsys):
    run, image = finished
    for number, kind in enumerate(bombs.KINDS):
        path = tmp_path / f"{number}.safetensors"
        path.write_bytes(bombs.content(kind, marker))
        for command in (["predict", run, image], ["evaluate", run]):
            assert main([*map(str, command), "--student", str(path)]) == 2
            assert "cannot read the student" in capsys.readouterr().err


def test_a_comparison_names_no_run_outside_its_folder(tmp_path):
    for run in ("../elsewhere", "/etc"):
        record = {"cells": [{"run": run}]}
        (tmp_path / "comparison.json").write_text(json.dumps(record))
        with pytest.raises(ConfigError, match=r"is damaged \(ValueError: the run .* leads out of"):
            Outcome.load(tmp_path)
