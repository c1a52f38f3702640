"""``fedkd export``: the file agrees with the student, says what it is, and is refused otherwise."""

import json
import re
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from fedkd.data.catalog import load_splits
from fedkd.data.image_files import decode_file
from fedkd.errors import StudentError
from fedkd.models.factory import STUDENTS, StudentConfig, build_student
from server import exporting
from server.cli import main
from server.exporting import FORMATS, Inference, write_checked
from server.opened_run import open_run
from server.whole_student import open_whole_student
from tests.file_run import train, write_images

ROOT = Path(__file__).parents[1]
needs_onnx = pytest.mark.skipif(
    any(find_spec(name) is None for name in exporting._EXTRA),
    reason="the extra export (onnx, onnxruntime, onnxscript) is not installed",
)
ALL_FORMATS = [pytest.param("onnx", marks=needs_onnx), "torchscript", "safetensors"]
LARGE = ("resnet18", "resnet50", "efficientnet_b0")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run on image files: its directory, and the folder of all images."""
    folder = tmp_path_factory.mktemp("export")
    write_images(folder / "images")
    return train(folder, "student.name=resnet10", images=folder / "images"), folder / "images"


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    """The directory of a run on embedded images of 32 px."""
    return train(tmp_path_factory.mktemp("embedded"), "data.size=32", images=False)


@pytest.fixture
def export(capsys):
    """A function that runs the command: exit code, lines on stdout, lines on stderr."""

    def run(*arguments):
        capsys.readouterr()
        code = main(["export", *map(str, arguments)])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out.splitlines(), err.splitlines()

    return run


def opened(form, path, model):
    """What somebody else's program sees of the file: pixels 0..255 to probabilities and logits."""
    if form == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        assert [i.name for i in session.get_inputs()] == ["pixels"]
        return lambda pixels: session.run(["probabilities", "logits"], {"pixels": pixels})
    if form == "torchscript":
        loaded = torch.jit.load(path)
        return lambda pixels: [t.numpy() for t in loaded(torch.from_numpy(pixels))]
    model.student.load_state_dict(load_file(path))
    return lambda pixels: [t.numpy() for t in model(torch.from_numpy(pixels))]


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize("form", ALL_FORMATS)
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in LARGE else n for n in STUDENTS]
)
def test_every_architecture_agrees_in_batches_of_1_and_7(name, form, tmp_path):
    student = build_student(
        StudentConfig(name=name), num_classes=5, num_teacher_features=None, seed=1
    ).eval()
    images = np.random.default_rng(0).integers(0, 256, (8, 3, 32, 32)).astype(np.uint8)
    with torch.no_grad():
        expected = student(torch.from_numpy(images) / 255).logits
    path = tmp_path / f"student{FORMATS[form].suffix}"
    truth = expected.double().softmax(1).numpy()
    assert write_checked(student, path, form, {"a": "b"}, images, truth) <= 1e-4
    blank = build_student(
        StudentConfig(name=name), num_classes=5, num_teacher_features=None, seed=2
    )
    run = opened(form, path, Inference(blank))
    for batch, rows in ((1, slice(0, 1)), (7, slice(1, 8))):
        probabilities, logits = run(images[rows].astype(np.float32))
        assert probabilities.shape == logits.shape == (batch, 5)
        np.testing.assert_allclose(probabilities, truth[rows], rtol=0, atol=1e-4)
        np.testing.assert_allclose(logits, expected[rows], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "change", ["objective.name=moon", "objective.loss=ldam", "training.dtype=float64"]
)
def test_every_kind_of_student_is_exported(change, tmp_path, export):
    run = train(tmp_path, change, images=False)
    for form in ("torchscript", "safetensors"):
        code, out, _ = export(run, "--format", form)
        assert code == 0
        assert out[0].startswith("agrees with the original on 16 val images of the run: class pro")


@pytest.mark.parametrize("form", ALL_FORMATS)
def test_the_command_compares_and_says_where_the_file_is(made, form, export):
    run, _ = made
    code, out, err = export(run, "--format", form)
    suffix = FORMATS[form].suffix
    path = run / f"export/best_student{suffix}"
    assert code == 0
    assert out[1:] == [f"{path}.json", str(path)]
    assert re.fullmatch(
        r"agrees with the original on \d+ val images of the run: class probabilities differ by "
        r"\d\.\de[-+]\d\d at most \(allowed: 0\.0001\)",
        out[0],
    )
    # Neither the exporter's steps nor that TorchScript is deprecated.
    assert err == [f"writing {run}/best_student.safetensors as {form} ..."]
    assert sorted(p.name for p in path.parent.glob(".*")) == []


@pytest.mark.parametrize("form", ALL_FORMATS)
def test_file_and_card_say_what_the_student_is(made, form, export):
    run, _ = made
    export(run, "--format", form)
    path, summary = run / f"export/best_student{FORMATS[form].suffix}", open_run(run).summary
    card = json.loads(Path(f"{path}.json").read_text())
    assert card["classes"] == ["mel", "nv", "x,y"]
    assert card["intended_use"] == "research use only; this is no medical device"
    assert card["test"] == summary["test"]
    assert card["student_sha256"] == summary["best_student_sha256"]
    assert card["training"]["config_hash"] == summary["config_hash"]
    assert card["preprocessing"]["mean"] == [0.485, 0.456, 0.406]
    assert card["compared_with_the_original"]["largest_difference_of_a_probability"] <= 1e-4
    assert (card["input"] is None) == (form == "safetensors")
    if form == "onnx":
        import onnx

        inside = {p.key: p.value for p in onnx.load(path).metadata_props}
    elif form == "torchscript":
        extra = {"fedkd.json": ""}
        torch.jit.load(path, _extra_files=extra)
        inside = json.loads(extra["fedkd.json"])
    else:
        with safe_open(path, "pt") as file:
            inside = file.metadata()
    assert json.loads(inside["classes"]) == card["classes"]
    assert json.loads(inside["size"]) == 16
    for key in ("intended_use", "student_sha256", "fedkd_version"):
        assert inside[key] == card[key]
    assert inside["config_hash"] == summary["config_hash"]


def test_a_student_that_was_not_tested_has_no_test_figures(made, export):
    run, _ = made
    assert export(run, "--format", "safetensors", "--student", "round:0")[0] == 0
    card = json.loads((run / "export/round-0000.safetensors.json").read_text())
    assert card["test"] is None
    assert card["round"] is None
    assert card["test_note"] == (
        "this student was not tested; the run's test figures are of another one"
    )


def test_without_the_images_it_compares_on_procedural_ones_and_says_so(made, export, tmp_path):
    run, images = made
    shutil.copytree(run, tmp_path / "run")
    text = (tmp_path / "run/config.toml").read_text()
    (tmp_path / "run/config.toml").write_text(text.replace(str(images), "/nowhere"))
    code, out, err = export(tmp_path / "run", "--format", "torchscript")
    assert code == 0
    assert out[0].startswith("agrees with the original on 32 procedural images: ")
    assert err[0] == (
        "the run's images are not here (data.root is /nowhere, which is not a folder; check the "
        "path); the file is compared with the student on procedural images instead"
    )


@pytest.mark.parametrize("wrong", ["other", "nan"])
def test_a_file_that_disagrees_is_not_left(made, export, monkeypatch, tmp_path, wrong):
    run, _ = made
    write = FORMATS["safetensors"].write

    def spoilt(model, path, size, metadata):
        model = Inference(model.student)
        model.student.fc.bias[0] += 1e-2 if wrong == "other" else np.nan
        write(model, path, size, metadata)

    monkeypatch.setitem(FORMATS, "safetensors", FORMATS["safetensors"]._replace(write=spoilt))
    code, out, err = export(run, "--format", "safetensors", "--output", tmp_path / "s.safetensors")
    assert (code, out) == (2, [])
    assert re.fullmatch(
        r"fedkd: the safetensors file disagrees with the student: a class probability differs by "
        r"(0\.00\d+|nan), allowed are 0\.0001; no file is left: use another --format, and tell the "
        r"authors of fedkd",
        err[-1],
    )
    assert list(tmp_path.iterdir()) == []


def test_a_difference_up_to_the_limit_passes(tmp_path):
    student = build_student(StudentConfig(), num_classes=2, num_teacher_features=None, seed=0)
    images = np.zeros((1, 3, 16, 16), np.uint8)
    with torch.no_grad():
        truth = Inference(student)(torch.zeros(1, 3, 16, 16))[0].double().numpy()
    path = tmp_path / "a.safetensors"
    found = write_checked(student.eval(), path, "safetensors", {}, images, truth + 0.9e-4)
    assert found == pytest.approx(0.9e-4, abs=1e-6)
    with pytest.raises(StudentError, match="differs by 0.00011, allowed are 0.0001"):
        write_checked(student, path, "safetensors", {}, images, truth + 1.1e-4)


def test_a_missing_package_names_the_extra(made, export, monkeypatch, tmp_path):
    run, _ = made
    for name in exporting._EXTRA:
        monkeypatch.setitem(sys.modules, name, None)
    code, _, err = export(run, "--format", "onnx", "--output", tmp_path / "s.onnx")
    assert code == 2
    assert err[-1] == (
        "fedkd: --format onnx needs onnx, onnxruntime, onnxscript, and onnx is not installed; "
        "pip install 'fedkd[export]', or use --format torchscript"
    )
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be_is_refused(made, export, tmp_path):
    run, _ = made
    student = run / "best_student.safetensors"
    before = student.read_bytes()
    code, _, err = export(run, "--format", "safetensors", "--output", student)
    assert (code, err[-1]) == (2, f"fedkd: --output {student} is the student itself; name another "
                                  "file")  # fmt: skip
    assert student.read_bytes() == before
    code, _, err = export(run, "--format", "safetensors", "--output", tmp_path)
    assert (code, err[-1]) == (2, f"fedkd: --output {tmp_path} is a folder; name another file")


def test_an_exported_file_is_a_student_that_predict_takes(made, export, tmp_path, capsys):
    run, images = made
    file = tmp_path / "s.safetensors"
    export(run, "--format", "safetensors", "--output", file)
    outputs = []
    for which in ("best", str(file)):
        assert main(["predict", str(run), str(images / "nv"), "--student", which]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]


def test_torchscript_warns_of_nothing(made, export, tmp_path, recwarn):
    export(made[0], "--format", "torchscript", "--output", tmp_path / "s.pt")
    assert [str(one.message) for one in recwarn] == []


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize("form", ALL_FORMATS)
def test_embedded_images_agree(form, tmp_path, export, embedded):
    images = np.asarray(load_splits(open_run(embedded).recipe.data).test.images)
    assert_agrees(embedded, form, images, tmp_path, export)


@pytest.mark.realdata
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize("form", ALL_FORMATS)
def test_real_images_agree(form, tmp_path, export, embedded, realdata):
    files = sorted((realdata / "ham10000/images").glob("*.jpg"))[:40]
    images = np.stack([decode_file(file, 32) for file in files])
    assert_agrees(embedded, form, images, tmp_path, export)


def assert_agrees(run, form, images, folder, export):
    """Batches of 1, 7 and the rest give what the run's own student gives."""
    path = folder / f"exported{FORMATS[form].suffix}"
    assert export(run, "--format", form, "--output", path)[0] == 0
    whole = open_whole_student(open_run(run))
    with torch.no_grad():
        truth = whole.network(torch.from_numpy(images) / 255).logits.double().softmax(1).numpy()
    infer = opened(form, path, Inference(whole.network))
    for part, expected in zip(np.split(images, [1, 8]), np.split(truth, [1, 8]), strict=True):
        if len(part):
            found = infer(part.astype(np.float32))[0]
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    assert truth.std() > 0
