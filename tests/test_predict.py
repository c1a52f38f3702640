"""``fedkd predict``: the run's own predictions from files, and what it refuses."""

import io
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors.torch import load_file

from fedkd.data.catalog import load_splits
from server.cli import main
from server.opened_run import open_run
from server.whole_student import open_whole_student
from tests.file_run import CLASSES, train, write_images


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run on image files: its directory, and the folder of all images."""
    folder = tmp_path_factory.mktemp("predict")
    write_images(folder / "images")
    return train(folder, images=folder / "images"), folder / "images"


@pytest.fixture
def predict(capsys):
    """A function that runs the command: exit code, table or None, lines on stderr."""

    def run(*arguments):
        capsys.readouterr()
        code = main(["predict", *map(str, arguments)])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        table = pd.read_csv(io.StringIO(out)) if out.startswith("image,") else None
        return code, table, err.splitlines()

    return run


def error(predict, *arguments):
    code, _, lines = predict(*arguments)
    assert code == 2
    return lines[-1]


def test_image_files_are_predicted_as_the_run_did(made, predict):
    run, images = made
    own = pd.read_csv(run / "predictions_test.csv")
    paths = [images / name for name in own["id"]]
    # A file of every kind is among them.
    assert {path.suffix for path in paths} == {".jpg", ".png", ".TIF", ".jpeg"}
    code, table, _ = predict(run, *paths)
    assert code == 0
    assert table.columns.tolist() == ["image", "prediction", *(f"p_{c}" for c in CLASSES)]
    assert table["image"].tolist() == list(map(str, paths))
    assert table["prediction"].tolist() == own["prediction"].tolist()
    columns = [f"p_{name}" for name in CLASSES]
    np.testing.assert_allclose(table[columns], own[columns], rtol=0, atol=1e-6)


def test_a_folder_is_searched_with_its_subfolders_in_batches(made, predict, tmp_path):
    run, images = made
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    recipe = (copy / "config.toml").read_text()
    (copy / "config.toml").write_text(recipe.replace("batch_size = 256", "batch_size = 5"))
    (images / "notes.txt").write_text("no image")
    (images / ".hidden.jpg").write_text("nor this")
    code, table, lines = predict(copy, images, "--output", tmp_path / "out.csv")
    assert (code, table) == (0, None)
    assert f"{images}: 1 of 61 files do not end as images do and are left out" in lines
    table = pd.read_csv(tmp_path / "out.csv")
    assert table["image"].tolist() == sorted(str(p) for p in images.glob("*/*"))
    _, whole, _ = predict(run, images)
    np.testing.assert_allclose(whole.iloc[:, 2:], table.iloc[:, 2:], rtol=0, atol=1e-6)
    np.testing.assert_allclose(table.iloc[:, 2:].sum(axis=1), 1)


def test_broken_files_are_all_named_and_the_others_are_written(made, predict, tmp_path):
    run, images = made
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    (tmp_path / "empty.png").write_bytes(b"")
    good = sorted((images / "nv").glob("*"))[:2]
    code, table, lines = predict(run, tmp_path / "bad.jpg", *good, tmp_path / "empty.png")
    assert code == 2
    assert table["image"].tolist() == list(map(str, good))
    assert lines[-3] == (
        "fedkd: 2 of 4 images cannot be read and have no row in the output; the rows of the 2 "
        "others are there. Replace or leave out:"
    )
    assert lines[-2].startswith(f"fedkd: {tmp_path}/bad.jpg: UnidentifiedImageError: ")
    assert lines[-1].startswith(f"fedkd: {tmp_path}/empty.png: ")
    code, _, lines = predict(run, tmp_path / "bad.jpg", *good, "--output", tmp_path / "t.csv")
    assert code == 2
    assert f"have no row in {tmp_path}/t.csv; the rows of the 2 others" in lines[-2]
    assert len(pd.read_csv(tmp_path / "t.csv")) == 2


def test_embedded_images_saved_as_files_are_predicted_as_the_run_did(tmp_path, predict):
    run = train(tmp_path, images=False)
    test = load_splits(open_run(run).recipe.data).test
    for row, pixels in enumerate(np.asarray(test.images)):
        Image.fromarray(pixels.transpose(1, 2, 0)).save(tmp_path / f"{row}.png")
    own = pd.read_csv(run / "predictions_test.csv")
    code, table, lines = predict(run, *(tmp_path / f"{row}.png" for row in range(len(test))))
    assert code == 0
    columns = [f"p_{name}" for name in test.class_names]
    np.testing.assert_allclose(table[columns], own[columns], rtol=0, atol=1e-6)
    assert lines[0] == (
        "the training images (data.name = 'lesions') were no files: yours are treated as fedkd "
        "treats image files, resized to 16 px without keeping the aspect ratio; unless they look "
        "like the training images, the predictions mean nothing"
    )


def test_the_run_directory_alone_is_enough(made, predict, tmp_path, monkeypatch):
    run, images = made
    kept = next((images / "mel").glob("*"))
    _, before, _ = predict(run, kept)
    shutil.copytree(run, tmp_path / "run")
    shutil.copy(kept, tmp_path / kept.name)
    text = (tmp_path / "run/config.toml").read_text()
    (tmp_path / "run/config.toml").write_text(text.replace(str(images), "/nowhere"))
    code, table, _ = predict(tmp_path / "run", tmp_path / kept.name)
    assert code == 0
    assert table.iloc[0, 2:].tolist() == before.iloc[0, 2:].tolist()


@pytest.mark.parametrize(
    "changes",
    [
        ("objective.name=moon",),
        ("objective.loss=ldam",),
        ("training.dtype=float64",),
        ("objective.name=ekd",),
        ("objective.name=ekd", "strategy.exchange=without_projector"),
    ],
)
def test_students_of_other_objectives_are_built_from_their_file(changes, tmp_path, predict):
    run = train(tmp_path, *changes, images=False)
    opened = open_run(run)
    whole = open_whole_student(opened)
    kept = {k: v for k, v in load_file(whole.path).items() if not k.startswith(("p_free", "fc_f"))}
    assert kept.keys() == whole.network.state_dict().keys()
    assert whole.sha256 == opened.summary["best_student_sha256"]
    image = tmp_path / "one.png"
    pixels = np.asarray(load_splits(opened.recipe.data).test.images)[3]
    Image.fromarray(pixels.transpose(1, 2, 0)).save(image)
    _, table, _ = predict(run, image)
    own = pd.read_csv(run / "predictions_test.csv").iloc[3]
    assert table["p_NV"][0] == pytest.approx(own["p_NV"], abs=1e-6)


def test_student_names_best_last_a_kept_round_or_a_file(made, predict, tmp_path):
    run, images = made
    opened = open_run(run)
    hashes = {
        which: open_whole_student(opened, which).sha256
        for which in ("best", "last", "round:0", "round:1", "round:2")
    }
    assert hashes["last"] == hashes["round:2"] == opened.summary["student_sha256"]
    assert hashes["best"] == hashes[f"round:{opened.summary['best_round']}"]
    assert len({hashes[f"round:{n}"] for n in range(3)}) == 3
    file = tmp_path / "mine.safetensors"
    shutil.copy(run / "student.safetensors", file)
    image = next((images / "nv").glob("*"))
    _, named, _ = predict(run, image, "--student", "last")
    _, given, _ = predict(run, image, "--student", file)
    assert named.equals(given)
    assert error(predict, run, image, "--student", "round:7") == (
        f"fedkd: --student is 'round:7', but of the students by round {run} has those of rounds "
        "0, 1, 2; a run keeps them with keep_students_every=1"
    )
    assert error(predict, run, image, "--student", "first") == (
        "fedkd: --student is 'first'; it must be best, last, round:N or a file of a student of "
        "this run's kind (.safetensors)"
    )
    (tmp_path / "junk").write_text("junk")
    assert error(predict, run, image, "--student", tmp_path / "junk").startswith(
        f"fedkd: cannot read the student {tmp_path}/junk: "
    )


def test_what_is_no_image_is_refused(made, predict, tmp_path):
    run, images = made
    image = next((images / "nv").glob("*"))
    assert error(predict, run, tmp_path / "gone.jpg") == (
        f"fedkd: there is no file or folder {tmp_path}/gone.jpg; check the path"
    )
    assert error(predict, run, tmp_path) == (
        f"fedkd: there is no image in {tmp_path}; images end in .jpg, .png, .tif ..."
    )
    assert error(predict, run, images / "nv", image) == (
        f"fedkd: 1 image(s) are named twice: {image}; name each once, by itself or by its folder"
    )
    assert error(predict, tmp_path, image).startswith(
        f"fedkd: {tmp_path} is no run directory, as it has no config.toml"
    )


def test_an_output_that_cannot_be_is_refused_before_the_work(made, predict, tmp_path):
    run, images = made
    image = next((images / "nv").glob("*"))
    before = image.read_bytes()
    assert error(predict, run, image, "--output", image) == (
        f"fedkd: --output {image} is one of the images; name a file to write the CSV to"
    )
    assert image.read_bytes() == before
    assert error(predict, run, image, "--output", tmp_path) == (
        f"fedkd: --output {tmp_path} is a folder; name a file to write the CSV to"
    )
    nowhere = tmp_path / "no" / "t.csv"
    assert error(predict, run, image, "--output", nowhere).startswith(
        f"fedkd: cannot write {nowhere}: "
    )


def test_a_name_that_is_not_utf8_is_refused(made, predict, tmp_path):
    run, images = made
    bad = tmp_path / b"\xff.jpg".decode(errors="surrogateescape")
    shutil.copy(next((images / "nv").glob("*.jpg")), bad)
    text = error(predict, run, tmp_path)
    assert text == f"fedkd: 1 file name(s) are not UTF-8: '{tmp_path}/\\udcff.jpg'; rename them"


def test_runs_without_a_whole_student_are_refused(made, predict, tmp_path, run):
    _, images = made
    image = next((images / "nv").glob("*"))
    moco = train(tmp_path, images=False, objective="moco")
    assert error(predict, moco, image) == (
        f"fedkd: {moco} has objective.name = 'moco', which trains no classifier but makes the "
        "teacher teacher.safetensors; distil from it, and use the run that does"
    )
    local = train(tmp_path, "strategy.exchange=without_classifier", images=False)
    assert error(predict, local, image) == (
        f"fedkd: {local}/best_student.safetensors is no whole student: with strategy.exchange = "
        "'without_classifier' 2 of its 56 tensors stayed with each hospital (fc.weight, fc.bias); "
        "use a run whose classifier and backbone travel"
    )
    other = tmp_path / "other"
    write_images(other / "images")
    mine = train(other, "student.name=resnet10", images=other / "images")
    text = error(predict, mine, image, "--student", local / "student.safetensors")
    assert f"{local}/student.safetensors is no student of {mine}/config.toml: " in text
    assert "missing backbone.layer4.0.bn2.weight" in text
    given = run(output=tmp_path, objective={"name": "supervised"}).path
    assert error(predict, given, image) == (
        f"fedkd: {given} was given its own images in Python (simulate), which its config.toml does "
        "not name; it can only be looked at there"
    )


@pytest.mark.realdata
def test_real_images_are_predicted_as_the_run_did(realdata, tmp_path, predict):
    table = pd.read_csv(realdata / "ham10000/metadata.csv")
    few = table.groupby(["dx", "split"]).head(6)
    few.to_csv(tmp_path / "few.csv", index=False)
    recipe = tmp_path / "real.toml"
    recipe.write_text(
        f'name = "real"\nnum_rounds = 1\nnum_clients = 1\noutput = "{tmp_path}"\n[data]\n'
        f'name = "folder"\nimages = "{realdata}/ham10000/images"\ncsv = "{tmp_path}/few.csv"\n'
        'label_column = "dx"\nsize = 32\n[objective]\nname = "supervised"\n'
    )
    assert main(["run", str(recipe)]) == 0
    (run,) = (tmp_path / "real").iterdir()
    own = pd.read_csv(run / "predictions_test.csv")
    _, found, _ = predict(run, *(f"{realdata}/ham10000/images/{name}.jpg" for name in own["id"]))
    columns = [name for name in own.columns if name.startswith("p_")]
    assert len(own) == 42
    np.testing.assert_allclose(found[columns], own[columns], rtol=0, atol=1e-6)
