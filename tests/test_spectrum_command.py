"""``fedkd spectrum``: what its arguments mean, what it prints and leaves, and its pictures."""

import itertools
import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread
from safetensors.torch import load_file

from fedkd.fourier.priority_curve import priority_curve
from fedkd.models import states
from server.cli import main
from server.commands import spectrum as command
from server.kept_students import kept_rounds
from server.opened_run import open_run
from server.pictures.spectrum import Measured, plot_heat_maps, plot_spectra

SMALL = [
    "data.size=16", "data.num_train=40", "data.num_sites=2", "data.num_val_per_class=3",
    "data.num_test_per_class=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """The run directory of three rounds of EKD, which kept every second student."""
    folder = tmp_path_factory.mktemp("spectrum")
    recipe = folder / "tiny.toml"
    recipe.write_text('name = "tiny"\n[objective]\nname = "ekd"\n[partition]\nname = "by_site"\n')
    changes = ["num_rounds=3", "keep_students_every=2", f"output={folder}", *SMALL]
    assert main(["run", str(recipe), *changes]) == 0
    (path,) = (folder / "tiny").iterdir()
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def last_error(capsys):
    return capsys.readouterr().err.splitlines()[-1]


def test_a_run_keeps_the_initial_student_and_those_of_every_nth_round(kept):
    assert kept_rounds(kept) == [0, 2]
    names = sorted(path.name for path in (kept / "students").iterdir())
    assert names == ["round-0000.safetensors", "round-0002.safetensors"]
    run = open_run(kept)
    initial = run.experiment().build_student().state_dict()
    stored = load_file(kept / "students" / "round-0000.safetensors")
    assert states.sha256(stored) == states.sha256(dict(initial))
    if run.summary["best_round"] == 2:
        second = load_file(kept / "students" / "round-0002.safetensors")
        assert states.sha256(second) == run.summary["best_student_sha256"]


def test_keeping_students_changes_neither_the_numbers_nor_the_hash(run, tmp_path):
    plain, keeping = (
        run(
            output=tmp_path / str(n),
            num_rounds=1,
            keep_students_every=n,
            objective={"name": "supervised"},
        )
        for n in (0, 1)
    )
    for key in ("student_sha256", "config_hash"):
        assert plain.summary[key] == keeping.summary[key]
    assert not (plain.path / "students").exists()
    assert kept_rounds(plain.path) == []
    kept = load_file(keeping.path / "students" / "round-0001.safetensors")
    assert states.sha256(kept) == keeping.summary["student_sha256"]


def test_student_teacher_and_initial_student_share_a_picture_and_tables(kept, folder, capsys):
    before = {path: path.read_bytes() for path in kept.rglob("*.safetensors")}
    models = [str(kept), f"{kept}:teacher", f"{kept}:initial"]
    assert main(["spectrum", *models, "--images", "10", "--output", "out"]) == 0
    out, err = capsys.readouterr()
    best = json.loads((kept / "summary.json").read_text())["best_round"]
    assert "learning priority on lesions, val split" in out
    assert "random projections of the features" in out
    paths = ["out/spectrum.png", "out/spectrum.csv", "out/spectrum_summary.csv"]
    assert out.splitlines()[-3:] == paths
    assert "teacher default" in err
    assert imread("out/spectrum.png").ndim == 3
    curves, summary = (pd.read_csv(path) for path in paths[1:])
    names = [f"tiny, student of round {best}", "teacher default", "tiny, initial student"]
    assert summary["model"].tolist() == names
    assert summary["round"].tolist()[::2] == [best, 0]
    assert summary["round"].isna().tolist() == [False, True, False]
    assert set(curves["group"]) == {"all"}
    assert set(curves["num_images"]) == {10}
    assert curves.columns.tolist() == [
        "model", "round", "group", "frequency", "priority", "sd", "low", "high", "num_images"
    ]  # fmt: skip
    assert curves.groupby("model")["priority"].sum().tolist() == pytest.approx([1, 1, 1])
    bands = summary[["lowest", "low", "middle", "high"]].sum(axis=1)
    assert bands.tolist() == pytest.approx([1, 1, 1])
    assert before == {path: path.read_bytes() for path in kept.rglob("*.safetensors")}


def test_students_alone_are_measured_by_their_loss_round_by_round(kept, folder, capsys):
    assert main(["spectrum", str(kept), "--rounds", "--output", "out"]) == 0
    assert "cross-entropy of the true label" in capsys.readouterr().out
    summary = pd.read_csv("out/spectrum_summary.csv")
    assert summary["round"].tolist() == [0, 2]
    assert set(summary["score"]) == {"ce"}
    assert imread("out/spectrum_rounds.png").ndim == 3


@pytest.mark.parametrize(("by", "groups"), [("class", 8), ("hospital", 2)])
def test_groups_have_a_row_each_and_few_images_are_marked(kept, folder, capsys, by, groups):
    assert main(["spectrum", str(kept), "--by", by, "--score", "top", "--output", "out"]) == 0
    out = capsys.readouterr().out
    summary = pd.read_csv("out/spectrum_summary.csv")
    assert len(summary) == groups
    assert summary["num_images"].sum() == 24
    assert summary["unsure"].all()
    assert "? = fewer than 20 lesions, patients or images" in out
    assert imread(f"out/spectrum_{by}.png").ndim == 3


def test_a_teacher_by_name_needs_data_and_takes_its_settings(folder, capsys):
    small = [text.removeprefix("data.") for text in SMALL]
    arguments = ["spectrum", "default", "--data", "lesions", *small, "teacher.input_size=24"]
    assert main([*arguments, "--output", "out", "--split", "test"]) == 0
    assert "lesions, test split" in capsys.readouterr().out
    # 16 px of the data, not 24 of the teacher: eight rings.
    assert len(pd.read_csv("out/spectrum.csv")) == 8


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["defualt", "--data", "lesions"], "defualt is no run directory and no teacher; did you "
         "mean default? `fedkd run`"),
        (["qqq", "--data", "lesions"], "qqq is no run directory and no teacher; `fedkd run`"),
        (["nowhere:teacher"], "nowhere is no run directory, as it has no config.toml"),
        (["."], ". is no run directory, as it has no config.toml"),
        (["default"], "default is no run, which would say on which images; add --data NAME"),
        (["default", "--data", "lesion"], "lesion is no data set and no recipe; did you mean"),
        (["default", "--data", "lesions", "--images", "1"], "--images is 1; it must be 2 or more"),
        (["default", "--data", "lesions", "--rounds"], "--rounds needs a run, but no MODEL is one"),
        (["default", "--data", "lesions", "--score", "ce"], "default has no classifier that was "
         "trained for these classes; use --score features"),
        (["default", "--data", "lesions", "--by", "class", "--rounds"], "ask for one at a time"),
        (["size=3"], "no MODEL is given; name a run directory or a teacher"),
        (["none.safetensors", "--data", "lesions", *SMALL], "there is no such file"),
        (["default", "--data", "lesions", "num_sites=1", *SMALL[:2], *SMALL[3:], "--by",
          "hospital"], "--by hospital: all 24 val images are of one hospital, 'hospital_0'"),
        (["default", "--data", "lesions", "--score", "top", *SMALL], "--score is 'top', but "
         "default has no classifier; use --score features"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(folder, capsys, arguments, text):
    assert main(["spectrum", *arguments]) == 2
    error = last_error(capsys)
    assert error.startswith("fedkd: ")
    assert text in error


def test_what_does_not_fit_a_run_is_one_line(kept, folder, capsys, monkeypatch):
    assert main(["spectrum", str(kept), "teacher.input_size=32"]) == 2
    assert "teacher.input_size=32 is given, but no MODEL is a teacher by" in last_error(capsys)
    monkeypatch.setattr(command, "kept_rounds", lambda _: [])
    assert main(["spectrum", str(kept), "--rounds"]) == 2
    assert last_error(capsys).endswith("run it again with keep_students_every=1")


def test_a_student_is_not_scored_on_other_classes(kept, folder, capsys, hospitals, monkeypatch):
    class Splits:
        val = hospitals["val"]

    monkeypatch.setattr(command, "open_splits", lambda _: Splits)
    assert main(["spectrum", str(kept)]) == 2
    assert last_error(capsys).endswith("images have a, b, c, d; use its own data, or --score top")
    assert main(["spectrum", str(kept), "--score", "top", "--output", "out"]) == 0


def test_an_unknown_group_is_refused_by_the_parser(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["spectrum", "default", "--data", "lesions", "--by", "site"])
    assert caught.value.code == 2
    assert "choose from" in last_error(capsys)


def some_lines(num, num_images=30, rings=24):
    rng = np.random.default_rng(0)
    shown = [str(number) for number in range(num_images)]
    return [
        Measured(
            f"run {number}", "runs/x", number, "all",
            priority_curve(rng.random((num_images, rings)), shown, 2 * rings, 2 * rings, 0),
        )
        for number in range(num)
    ]  # fmt: skip


def test_curves_show_the_priorities(drawn, tmp_path):
    lines = some_lines(3)
    plot_spectra(lines, tmp_path / "s.png", "title", "subtitle")
    (axes,) = drawn[0].axes
    for line, shown in zip(lines, axes.get_lines(), strict=False):
        assert np.array_equal(shown.get_ydata(), line.curve.priority)
    assert list(axes.get_lines()[-1].get_ydata()) == [1 / 24, 1 / 24]
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.get_lines()}) == 4


@pytest.mark.parametrize("num", [1, 4, 20])
def test_heat_maps_show_multiples_of_flat_and_no_name_covers_another(drawn, tmp_path, num):
    lines = some_lines(num, num_images=10)
    rows = [(f"a hospital of a rather long name {n}", line) for n, line in enumerate(lines)]
    plot_heat_maps({"first": rows, "second": rows}, tmp_path / "h.png", "title", "subtitle")
    figure = drawn[0]
    heat = figure.axes[0]
    values = heat.collections[0].get_array()
    np.testing.assert_allclose(values, [line.curve.priority * 24 for line in lines])
    labels = [text.get_window_extent() for text in heat.get_yticklabels()]
    assert not any(one.overlaps(other) for one, other in itertools.pairwise(labels))
    width, height = figure.canvas.get_width_height()
    others = [*figure.texts, *(axes.xaxis.label for axes in figure.axes)]
    for box in (*labels, *(text.get_window_extent() for text in others)):
        assert min(box.x0, box.y0) >= 0
        assert box.x1 <= width
        assert box.y1 <= height
    title, subtitle = (text.get_window_extent() for text in sorted(figure.texts, key=_length))
    assert not heat.title.get_window_extent().overlaps(subtitle)
    assert heat.get_tightbbox().y1 < title.y1


def _length(text):
    return text.get_position()[1] * -1


def test_many_rounds_name_only_some_rows(drawn, tmp_path):
    rows = [(f"round {line.round_number}", line) for line in some_lines(100)]
    plot_heat_maps({"": rows}, tmp_path / "h.png", "title", "subtitle")
    heat = drawn[0].axes[0]
    assert len(heat.get_yticklabels()) == 34
    assert heat.collections[0].get_array().shape == (100, 24)


def test_a_run_on_marked_images_is_measured_on_those(folder, capsys, monkeypatch):
    (folder / "m.toml").write_text(
        'name = "m"\nnum_rounds = 1\nnum_clients = 2\n[partition]\nname = "iid"\n'
        '[objective]\nname = "supervised"\n'
        '[shortcut]\nclass = "NV"\nother = "MEL"\ndegradation = 1.0\nnum_folds = 2\n'
    )
    assert main(["run", "m.toml", "output=runs", *SMALL]) == 0
    (path,) = (folder / "runs" / "m").iterdir()
    seen = []

    def note(network, score, images, *_):
        seen.append(images)

    monkeypatch.setattr(command, "_check", note)
    assert main(["spectrum", str(path), "--split", "test", "--output", "out"]) == 0
    own = open_run(path).experiment().splits.test
    assert seen[0].ids == own.ids
    assert np.array_equal(seen[0].images[:], own.images[:])


def test_what_was_given_in_python_is_not_taken_from_the_config(run, folder, capsys):
    given = run(output=folder, num_rounds=1).path
    assert json.loads((given / "summary.json").read_text())["given"] == ["images", "teacher"]
    assert main(["spectrum", str(given), "--data", "lesions"]) == 2
    assert "was given its own images in Python (simulate)" in last_error(capsys)


@pytest.mark.parametrize(("what", "model"), [("teacher", ":teacher"),
                                             ("initial_student", ":initial")])  # fmt: skip
def test_a_network_that_the_config_does_not_name_is_refused(kept, folder, capsys, what, model):
    own = shutil.copytree(kept, folder / "own")
    summary = json.loads((own / "summary.json").read_text())
    (own / "summary.json").write_text(json.dumps({**summary, "given": [what]}))
    small = ["--images", "2", "--output", "out"]
    assert main(["spectrum", str(own), f"{own}{model}", *small]) == 2
    assert f"was given its own {what.replace('_', ' ')} in Python" in last_error(capsys)
    assert main(["spectrum", str(own), *small]) == 0


def test_a_run_that_broke_off_as_it_wrote_its_results_is_refused(kept, folder, capsys):
    own = shutil.copytree(kept, folder / "own")
    summary = json.loads((own / "summary.json").read_text())
    del summary["best_round"]
    (own / "summary.json").write_text(json.dumps({**summary, "status": "failed"}))
    assert main(["spectrum", str(own)]) == 2
    assert last_error(capsys).endswith("is: the run's status is 'failed'")


def test_teachers_whose_files_bear_one_name_are_told_apart_by_their_folders():
    (line,) = some_lines(1)
    given = [replace(line, label="teacher teacher", source=source) for source in ("x/a", "b", ".")]
    labels = [one.label for one in command._told_apart(given)]
    assert labels == ["teacher teacher (a)", "teacher teacher (b)", "teacher teacher"]
