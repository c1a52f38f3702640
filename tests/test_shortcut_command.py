import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.image import imread
from torch import nn

from fedkd import config
from fedkd.errors import ConfigError, UpdateRefused
from fedkd.experiment import open_experiment
from fedkd.models.student import StudentOutput
from fedkd.recipe import Recipe
from server import shortcut_sweep
from server.cli import main
from server.commands.shortcut import conclusion
from server.shortcut_sweep import cells, score, tables

KEYS = ["data.size=16", "data.num_train=96", "data.imbalance_factor=2", "data.num_sites=2",
        "data.num_val_per_class=4", "data.num_test_per_class=8", "num_clients=1",
        "partition.name=iid", "num_rounds=1", "objective.name=supervised",
        "evaluation.personalised=false", "engine.num_threads=1",
        "shortcut.class=NV", "shortcut.other=MEL"]  # fmt: skip
SWEEP = ["--degradations", "0,1", "--folds", "2"]


def recipe_with(*overrides):
    return config.load(Recipe, None, [*KEYS, *overrides])


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A folder with a finished sweep, what it printed, and its recipe's file."""
    folder = tmp_path_factory.mktemp("sweep")
    file = folder / "tiny.toml"
    file.write_text(config.dump(recipe_with("name=tiny")))
    assert main(["shortcut", str(file), *SWEEP, "--output", str(folder / "out")]) == 0
    return folder


def again(swept, tmp_path, *extra):
    """The exit code of the same command on a copy of the finished sweep."""
    if not (tmp_path / "out").exists():
        shutil.copytree(swept / "out", tmp_path / "out")
    arguments = [str(swept / "tiny.toml"), *extra, *SWEEP, "--output", str(tmp_path / "out")]
    return main(["shortcut", *arguments])


def test_a_sweep_leaves_a_run_for_each_degradation_and_fold_with_tables_and_pictures(swept):
    out = swept / "out"
    runs = sorted(path.parent.name for path in out.glob("*/*/summary.json"))
    assert len(runs) == 4
    rows = pd.read_csv(out / "shortcut.csv")
    assert rows[["degradation", "fold"]].to_numpy().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert all((out / run / "best_student.safetensors").is_file() for run in rows["run"])
    plain = rows[rows["degradation"] == 0]
    assert (plain["auc_iid"] == plain["auc_clean"]).all()
    assert (plain["auc_ood"] == plain["auc_clean"]).all()
    assert (plain["alignment_excess"] == 0).all()
    assert (
        rows[["auc_iid", "auc_ood", "auc_clean", "band_share", "alignment"]].notna().all(axis=None)
    )
    summary = pd.read_csv(out / "shortcut_summary.csv")
    assert summary["n"].tolist() == [2, 2]
    assert summary["auc_ood_mean"][1] == pytest.approx(rows["auc_ood"][2:].mean())
    assert summary["auc_ood_sd"][1] == pytest.approx(np.std(rows["auc_ood"][2:], ddof=1))
    sites = pd.read_csv(out / "shortcut_sites.csv")
    assert set(sites["site"]) == {"hospital_0", "hospital_1"}
    assert (
        sites.groupby(["degradation", "fold"])["num_images"].sum().tolist()
        == rows["num_images"].tolist()
    )
    for name in ("auc", "alignment", "priority", "images"):
        assert imread(out / f"shortcut_{name}.png").std() > 0.01


def test_each_image_is_tested_once_and_students_of_a_fold_differ_by_marks_alone():
    plain, marked = cells(recipe_with(), [0.0, 1.0], 2)[:2]
    assert (plain.shortcut.fold, marked.shortcut.fold) == (0, 0)
    one, two = (open_experiment(cell) for cell in (plain, marked))
    assert one.splits.train.ids == two.splits.train.ids
    assert one.partition.hash == two.partition.hash
    a, b = (experiment.build_student().state_dict() for experiment in (one, two))
    assert all(torch.equal(a[name], b[name]) for name in a)
    ids = [set(open_experiment(c).splits.test.ids) for c in cells(recipe_with(), [0.0], 2)]
    assert not ids[0] & ids[1]


def test_what_is_finished_is_not_run_again_and_prints_the_same(
    swept, tmp_path, monkeypatch, capsys
):
    def never(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(shortcut_sweep, "run", never)
    assert again(swept, tmp_path) == 0
    assert (tmp_path / "out/shortcut.csv").read_bytes() == (swept / "out/shortcut.csv").read_bytes()
    said = capsys.readouterr().out
    assert "NV against MEL, mean ± sd over folds" in said
    assert "d = 1: AUC" in said
    assert said.strip().endswith("shortcut_images.png")


def test_a_run_that_was_not_scored_is_scored_without_training(swept, tmp_path, monkeypatch):
    shutil.copytree(swept / "out", tmp_path / "out")
    (scores,) = (tmp_path / "out/d1-fold0").glob("*/shortcut.json")
    before = json.loads(scores.read_text())
    scores.unlink()
    monkeypatch.setattr(shortcut_sweep, "run", None)
    assert again(swept, tmp_path) == 0
    assert json.loads(scores.read_text()) == before


def test_a_failed_run_is_said_and_the_others_go_on(swept, tmp_path, monkeypatch, capsys):
    shutil.copytree(swept / "out", tmp_path / "out")
    shutil.rmtree(tmp_path / "out/d1-fold0")

    def refuse(*_, **__):
        raise UpdateRefused("values are not finite")

    monkeypatch.setattr(shortcut_sweep, "run", refuse)
    assert again(swept, tmp_path) == 1
    assert "d1-fold0: values are not finite" in capsys.readouterr().err
    assert len(pd.read_csv(tmp_path / "out/shortcut.csv")) == 3


class ReadsTheMark(nn.Module):
    """Says NV (class 1 of MEL, NV) by the energy of the highest frequencies."""

    def forward(self, pixels):
        fine = pixels[..., 1:] - pixels[..., :-1]
        energy = 40 * fine.square().mean((1, 2, 3)) - 1
        logits = torch.stack([-energy, energy], 1)
        return StudentOutput(energy[:, None], logits, None, None)


def test_a_student_that_reads_the_mark_alone_has_auc_one_and_zero_when_it_moves():
    # Per-image marks of full strength drown the lesions' own detail.
    marks = ["shortcut.strength=0.5", "shortcut.degradation=1", "shortcut.band=[0.6,0.9]"]
    experiment = open_experiment(recipe_with(*marks))
    found = score(experiment, ReadsTheMark())
    assert found["auc_iid"] == 1
    assert found["auc_ood"] == 0
    assert 0.1 < found["auc_clean"] < 0.9
    assert sum(found["priority"]) == pytest.approx(1)
    assert found["alignment"] > 0.5


def test_the_auc_is_by_the_pair_alone_where_other_classes_are_trained_too():
    class Fixed(nn.Module):
        def forward(self, pixels):
            logits = torch.zeros(len(pixels), 8) + 0 * pixels.sum((1, 2, 3))[:, None]
            logits[:, 1] = logits[:, 0] + pixels.mean((1, 2, 3))  # NV over MEL by brightness
            logits[:, 2] = 50  # a third class that would have nearly all probability
            return StudentOutput(logits, logits, None, None)

    experiment = open_experiment(recipe_with("shortcut.pair_only=false", "shortcut.degradation=0"))
    test = experiment.splits.test
    bright = np.asarray(test.images).mean((1, 2, 3))
    ours, others = bright[test.labels == 1], bright[test.labels == 0]
    by_hand = np.mean(ours[:, None] > others) + 0.5 * np.mean(ours[:, None] == others)
    found = score(experiment, Fixed())
    assert found["num_images"] == len(ours) + len(others)
    assert found["auc_clean"] == pytest.approx(by_hand, abs=0.02)


def scores_of(auc, alignment=0.5):
    return {"num_images": 4, **{f"auc_{v}": auc for v in ("iid", "ood", "clean")},
            "band_share": 0.25, "alignment": alignment, "sites": {}, "priority": [0.5, 0.5],
            "best_round": 1, "val_balanced_accuracy": 0.5, "run": "x"}  # fmt: skip


def test_the_summary_by_hand():
    (zero, one, zero2, one2) = cells(recipe_with(), [0.0, 1.0], 2)
    found = tables([(zero, scores_of(0.8, 0.2)), (one, scores_of(0.4, 0.5)),
                    (zero2, scores_of(None, 0.3)), (one2, scores_of(0.6, 0.7))], {})  # fmt: skip
    last = found.summary.iloc[1]
    assert last["auc_iid_mean"] == pytest.approx(0.5)
    assert last["auc_iid_sd"] == pytest.approx(math.sqrt(0.02))
    assert last["alignment_excess_mean"] == pytest.approx((0.3 + 0.4) / 2)
    assert found.summary.iloc[0]["auc_iid_mean"] == pytest.approx(0.8)
    assert found.priorities[1.0].tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((0.95, 0.2, 0.8), "the mark outweighs the lesion"),
        ((0.95, 0.7, 0.8), "the students use the mark besides the lesion"),
        ((0.81, 0.79, 0.8), "the mark makes no difference beyond the spread of the folds"),
    ],
)
def test_the_sentence_says_what_the_table_says(values, text):
    row = {"degradation": 1.0, "n": 3}
    for name, value in zip(("iid", "ood", "clean"), values, strict=True):
        row |= {f"auc_{name}_mean": value, f"auc_{name}_sd": 0.05}
    assert text in conclusion(pd.DataFrame([row]))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--degradations", "0,x"], "--degradations is '0,x'; it must be numbers from 0 to 1"),
        (["--degradations", "0,1.5"], "--degradations is 0,1.5; it must be numbers from 0 to 1"),
        (["--degradations", "1,1"], "each once, such as 0,0.5,1"),
        (["--folds", "1"], "--folds is 1; it must be 2 or more"),
        (["objective.name=moco"], "objective.name is 'moco', which trains no classifier"),
        (["strategy.exchange=backbone"], "strategy.exchange is 'backbone'; one student is scored"),
        (["shortcut.class="], "shortcut.other is given without shortcut.class"),
        (["shortcut.class=NVX"], "shortcut.class names 'NVX', which the data set does not have"),
    ],
)
def test_what_cannot_be_swept_is_one_line_and_code_2(swept, tmp_path, capsys, arguments, text):
    command = ["shortcut", str(swept / "tiny.toml"), "--output", str(tmp_path / "out"), *arguments]
    assert main(command) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fedkd:")]
    assert len(lines) == 1
    assert text in lines[0]
    assert not list(tmp_path.glob("out/*/*/config.toml"))


def test_a_recipe_without_a_class_is_told_to_name_one(tmp_path):
    with pytest.raises(ConfigError, match=r"shortcut\.class is not given; name the class"):
        shortcut_sweep.sweep(Recipe(), [0.0], 2, tmp_path, None)


def test_a_supervised_student_can_start_from_a_teacher(swept):
    keys = ["student.name=resnet10", "student.init=teacher"]
    experiment = open_experiment(recipe_with(*keys))
    student, teacher = experiment.build_student(), experiment.first_teacher
    assert experiment.teachers == ()
    assert student.p_free is None
    for name, tensor in teacher.backbone.state_dict().items():
        assert torch.equal(student.backbone.state_dict()[name], tensor), name
