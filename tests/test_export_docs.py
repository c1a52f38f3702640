"""The code of docs/export.md runs as it stands there, and gives what ``fedkd predict`` gives."""

import io
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from server.cli import main
from server.exporting import _EXTRA
from tests.file_run import train, write_images

PAGE = (Path(__file__).parents[1] / "docs/export.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
FORMATS = {"student.onnx": "onnx", "student.pt": "torchscript"}


@pytest.fixture(scope="module")
def made(request, tmp_path_factory):
    """A run of the student that is asked for, and a folder with one of its images as image.jpg."""
    folder = tmp_path_factory.mktemp("docs")
    write_images(folder / "images")
    changes = (f"student.name={request.param}", "num_rounds=1")
    run = train(folder, *changes, images=folder / "images")
    # Turned by EXIF, so that a block without that step fails.
    shutil.copy(next((folder / "images/nv").glob("*.jpeg")), folder / "image.jpg")
    return run, folder


def block_for(file):
    (block,) = [text for text in BLOCKS if f'"{file}"' in text]
    return block


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize(
    ("made", "file"),
    [
        ("resnet8", "student.onnx"),
        ("resnet8", "student.pt"),
        ("resnet8", "student.safetensors"),
        ("resnet18", "resnet18.safetensors"),
    ],
    indirect=["made"],
)
def test_each_block_gives_the_probabilities_of_predict(made, file, monkeypatch, capsys):
    run, folder = made
    if file.endswith(".onnx") and any(find_spec(package) is None for package in _EXTRA):
        pytest.skip("the extra export (onnx, onnxruntime, onnxscript) is not installed")
    monkeypatch.chdir(folder)
    form = FORMATS.get(file, "safetensors")
    assert main(["export", str(run), "--format", form, "--output", file]) == 0
    names = {}
    exec(block_for(file), names)
    capsys.readouterr()
    assert main(["predict", str(run), "image.jpg"]) == 0
    expected = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert [f"p_{one}" for one in names["classes"]] == expected.columns[2:].tolist()
    np.testing.assert_allclose(
        np.asarray(names["probabilities"]), expected.iloc[:, 2:], rtol=0, atol=1e-5
    )


def test_every_block_of_the_page_is_run():
    assert len(BLOCKS) == 4
