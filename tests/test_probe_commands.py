"""``fedkd probe``: which recipe it makes of its arguments, what it prints and leaves."""

import json
import shlex
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
import torchvision
from matplotlib.image import imread

from fedkd.data.catalog import load_splits
from fedkd.errors import ConfigError
from fedkd.fetching import hash_file
from fedkd.probing.controls import Reader
from fedkd.probing.linear import linear_probe, score
from fedkd.teachers import zoo
from fedkd.teachers.loading import open_teacher
from server.cli import build_parser, main
from server.commands.probe import probed_recipe

SMALL = [
    "size=16",
    "num_train=64",
    "num_sites=2",
    "num_val_per_class=2",
    "num_test_per_class=2",
]
DATA = "\n".join(["[data]", *SMALL])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recipe(folder, teacher):
    path = folder / "r.toml"
    path.write_text(f"{DATA}\n[teacher]\n{teacher}\n")
    return str(path)


def test_keys_without_a_dot_are_of_the_data_set():
    made = probed_recipe("default", "lesions", ["size=32", "teacher.input_size=48", "data.seed=3"])
    assert (made.data.name, made.data.size, made.data.seed) == ("lesions", 32, 3)
    assert (made.teacher.name, made.teacher.input_size) == ("default", 48)


def test_a_recipe_about_the_same_teacher_gives_its_settings(folder):
    path = recipe(folder, 'name = "dino_vits16"\ncheckpoint = "own.pth"\ninput_size = 96')
    made = probed_recipe("dino_vits16", path, ["teacher.input_size=64", "data.num_train=80"])
    assert (made.teacher.checkpoint, made.teacher.input_size) == ("own.pth", 64)
    assert (made.data.num_train, made.data.size) == (80, 16)


def test_a_recipe_about_another_teacher_gives_the_images_alone(folder):
    path = recipe(folder, 'name = "dino_vits16"\ncheckpoint = "own.pth"\ninput_size = 96')
    made = probed_recipe("default", path, ["teacher.precision=bfloat16"])
    assert (made.teacher.name, made.teacher.checkpoint) == ("default", "")
    assert (made.teacher.input_size, made.teacher.precision) == ("native", "bfloat16")
    assert made.data.size == 16


@pytest.mark.parametrize("name", ["my teacher.safetensors", "x.bin"])
def test_a_file_is_a_teacher_that_pretrain_wrote(folder, name):
    (folder / "x.bin").touch()
    made = probed_recipe(name, "lesions", [])
    assert (made.teacher.name, made.teacher.checkpoint) == ("pretrained", name)


@pytest.mark.parametrize(
    ("teacher", "dataset", "changes", "text"),
    [
        ("dinov2_vits15", "lesions", [], "did you mean dinov2_vits14"),
        ("default", "lesion", [], "lesion is no data set and no recipe; did you mean lesions?"),
        ("default", "none.toml", [], "none.toml"),
        ("default", "lesions", ["teacher.size=3"], "teacher.size"),
        ("torchvision:resnet18", "lesions", [], "teacher.checkpoint must name a file"),
    ],
)
def test_what_cannot_be_probed_is_refused(folder, teacher, dataset, changes, text):
    with pytest.raises(ConfigError) as caught:
        probed_recipe(teacher, dataset, changes)
    assert text in str(caught.value)


def test_a_probe_prints_tables_and_a_verdict_and_leaves_its_files(folder, capsys):
    assert main(["probe", "default", "lesions", *SMALL, "--output", "out", "--test"]) == 0
    out, err = capsys.readouterr()
    assert "default on lesions: val (16 images)" in out
    assert "default on lesions: test (16 images)" in out
    assert "On test (16 images, linear probe) the teacher is " in out
    assert out.splitlines()[-3:] == ["out/probe.png", "out/probe.csv", "out/probe.json"]
    assert "features of train: untrained network" in err
    assert imread(folder / "out" / "probe.png").ndim == 3
    table = pd.read_csv(folder / "out" / "probe.csv")
    assert len(table) == 12
    report = json.loads((folder / "out" / "probe.json").read_text())
    weights = zoo.WEIGHTS / "default.safetensors"
    assert report["teacher"]["sha256"] == hash_file(weights)
    assert report["teacher"]["card"]["architecture"] == "resnet10"
    assert report["data"]["num_images"] == {"train": 64, "val": 16, "test": 16}
    assert report["verdict"] in out
    assert [row["balanced_accuracy"] for row in report["table"]] == [
        row["balanced_accuracy"] for row in report["scores"]
    ]
    assert table["balanced_accuracy"].tolist() == pytest.approx(
        [row["balanced_accuracy"] for row in report["table"]]
    )


def test_without_test_nothing_is_said_of_the_test_split(folder, capsys):
    assert main(["probe", "default", "lesions", *SMALL]) == 0
    out = capsys.readouterr().out
    assert ": test (" not in out
    assert (folder / "runs" / "probe-default-lesions" / "probe.json").is_file()
    assert set(pd.read_csv("runs/probe-default-lesions/probe.csv")["split"]) == {"val"}


def test_a_folder_that_cannot_be_made_is_found_before_any_work(folder, capsys):
    Path("out").touch()
    assert main(["probe", "default", "lesions", *SMALL, "--output", "out"]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("fedkd: cannot make the folder out: ")
    assert error.endswith("; choose another --output")


def test_a_missing_file_of_weights_is_found_before_any_image_is_read(folder, capsys):
    assert main(["probe", "none.safetensors", "lesions", "size=16"]) == 2
    error = capsys.readouterr().err
    assert "teacher.checkpoint is none.safetensors, but there is no such file" in error
    assert "drawing" not in error


def test_a_damaged_card_beside_the_weights_is_one_line_before_any_image_is_read(folder, capsys):
    shutil.copy(zoo.WEIGHTS / "default.safetensors", "mine.safetensors")
    Path("mine.json").write_text("{nope")
    assert main(["probe", "mine.safetensors", "lesions", "size=16"]) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("fedkd: cannot read the card mine.json: ")
    assert "drawing" not in error


def test_a_size_that_the_teacher_cannot_take_is_one_line(folder, capsys):
    torch.save(torchvision.models.densenet121(weights=None).state_dict(), "d.pth")
    teacher = ["teacher.checkpoint=d.pth", "teacher.input_size=as_is"]
    assert main(["probe", "torchvision:densenet121", "lesions", *SMALL, *teacher]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("fedkd: the teacher torchvision:densenet121 cannot take images of 16 px")


def test_the_command_of_the_embedded_teachers_card_can_be_given():
    card = json.loads((zoo.WEIGHTS / "default.json").read_text(encoding="utf-8"))
    program, *arguments = shlex.split(card["probe_ham10000"]["command"])
    options = build_parser().parse_args(arguments)
    made = probed_recipe(options.teacher, options.dataset, options.overrides)
    assert (program, options.test) == ("fedkd", True)
    assert (made.teacher.name, made.data.name, made.data.size) == ("default", "ham10000", 64)
    assert card["probe_ham10000"]["teacher_sha256"] == card["sha256"]


@pytest.mark.slow
@pytest.mark.realdata
def test_the_real_mobilenet_reaches_half_of_the_balanced_accuracy(realdata, monkeypatch):
    """0.541 with half of the training images of HAM10000 at 97 px, 0.581 with all of them."""
    monkeypatch.setenv("FEDKD_DATA", str(realdata))
    recipe = Path(__file__).parents[1] / "configs" / "ham10000_sites.toml"
    changes = ["data.size=97", "teacher.input_size=97", "data.store=stream"]
    made = probed_recipe("torchvision:mobilenet_v2", str(recipe), changes)
    splits, teacher = load_splits(made.data), open_teacher(made.teacher)
    train = splits.train.subset(range(0, len(splits.train), 2))
    reader = Reader(torch.device("cpu"), 128, lambda *_: None)
    compute = teacher.to(memory_format=torch.channels_last).features
    own, val, test = (reader.features("", compute, x) for x in (train, splits.val, splits.test))
    fitted = linear_probe(own, train.labels, val, splits.val.labels, test, (1e-3, 1e-2))
    assert score(fitted.test, splits.test.labels).balanced_accuracy >= 0.5
