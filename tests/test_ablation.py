"""benchmarks/ablation.py: cells, resuming, paired statistics, tables."""

import json
import math
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from clients.factory import make_objective
from fedkd.experiment import open_experiment
from fedkd.fourier.generators.factory import make_generator

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import ablation  # noqa: E402
import ablation_report as report  # noqa: E402
from ablation_cells import (  # noqa: E402
    METHODS,
    SETTINGS,
    TEACHERS,
    Scale,
    make_recipe,
    plan,
    plan_pilots,
)
from ablation_statistics import Comparison  # noqa: E402

from server.comparison.paired import holm  # noqa: E402

FEW = {
    "name": "lesions",
    "size": 16,
    "num_train": 24,
    "num_sites": 1,
    "num_val_per_class": 2,
    "num_test_per_class": 2,
}


@pytest.fixture
def pool():
    with ThreadPoolExecutor(1) as one:
        yield one


def write(cell, folder, **found):
    cell.path(folder).parent.mkdir(parents=True, exist_ok=True)
    cell.path(folder).write_text(json.dumps(found))


def runnable(folder, num_seeds=2):
    return [cell for cell in plan(Scale(), num_seeds, folder) if cell.recipe]


def frame_of(values, setting="single"):
    """Finished cells: {(method, teacher): scores by seed}."""
    rows = [
        {"setting": setting, "method": method, "teacher": teacher, "seed": seed,
         "status": "finished", **dict.fromkeys(report.METRICS, value), "commit": "abc"}
        for (method, teacher), scores in values.items()
        for seed, value in enumerate(scores)
        if value is not None
    ]  # fmt: skip
    return pd.DataFrame(rows).reindex(columns=list(report.COLUMNS))


def test_a_second_start_runs_nothing_that_has_finished(tmp_path, pool):
    cells, ran = runnable(tmp_path), []

    def do(cell, folder):
        ran.append(cell.name)
        write(cell, folder, mcc=0.0)
        return ""

    assert ablation.run(cells[:3], tmp_path, pool, do) == 0
    assert ablation.run(cells[:5], tmp_path, pool, do) == 0
    assert ran == [cell.name for cell in cells[:5]]


def test_a_failed_cell_is_noted_stops_no_other_and_is_tried_again(tmp_path, pool, monkeypatch):
    def train(recipe):
        if recipe.seed == 0:
            raise ValueError("no luck")
        return {"mcc": 0.5}

    monkeypatch.setattr(ablation, "train", train)
    cells = [cell for cell in runnable(tmp_path) if cell.method == "bsm"]
    assert ablation.run(cells, tmp_path, pool) == 2  # both settings of seed 0
    bad, good = cells[0].result(tmp_path), cells[-1].result(tmp_path)
    assert (cells[0].seed, bad["error"]) == (0, "ValueError: no luck")
    assert (cells[-1].seed, good["mcc"]) == (1, 0.5)
    assert good["recipe_hash"] == cells[-1].recipe.hash()
    statuses = ablation.collect(cells, tmp_path).groupby("seed").status.unique().to_dict()
    assert {seed: list(found) for seed, found in statuses.items()} == {
        0: ["failed"],
        1: ["finished"],
    }
    monkeypatch.setattr(ablation, "train", lambda recipe: {"mcc": 0.1})
    assert ablation.run(cells, tmp_path, pool) == 0
    assert cells[0].result(tmp_path)["mcc"] == 0.1
    assert cells[-1].result(tmp_path)["mcc"] == 0.5


def test_another_recipe_is_another_cell(tmp_path):
    short, long = (plan(Scale(num_rounds=n), 1, tmp_path)[2] for n in (12, 13))
    write(short, tmp_path, mcc=0.0)
    assert short.name == long.name
    assert long.result(tmp_path) is None


def test_cells_come_seed_by_seed_and_have_every_method_once(tmp_path):
    cells = plan(Scale(), 3, tmp_path)
    assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells)
    # two probes; per setting CE, BSM and six methods with each of two teachers
    assert len(cells) == len({cell.name for cell in cells}) == 3 * (2 + 2 * (2 + 6 * 2))


@pytest.mark.parametrize("setting", SETTINGS)
def test_all_methods_of_a_seed_share_images_student_and_order(setting):
    about = {"objective", "teacher", "prompts", "explore"}
    alike = [
        make_recipe(setting, method, teacher, 3, Scale()).model_dump(exclude=about)
        for method in METHODS
        for teacher in TEACHERS
    ]
    assert all(one == alike[0] for one in alike)
    assert alike[0]["seed"] == alike[0]["long_tail"]["seed"] == 3


def test_jitter_waits_for_its_pilot_and_takes_its_magnitude(tmp_path):
    pilots = plan_pilots(Scale())
    for number, pilot in enumerate(pilots[:3]):
        write(pilot, tmp_path, magnitude=0.5 + number / 10)
    jitters = [cell for cell in plan(Scale(), 1, tmp_path) if "jitter" in cell.method]
    found = {
        (cell.setting, cell.teacher): cell.recipe and cell.recipe.prompts.magnitude
        for cell in jitters
    }
    assert found == {
        ("single", "mobilenet_v2"): 0.5,
        ("single", "default"): 0.6,
        ("sites", "mobilenet_v2"): 0.7,
        ("sites", "default"): None,
    }
    assert len(jitters) == 8
    assert len({pilot.seed for pilot in pilots} & set(range(100))) == 0
    assert jitters[-1].result(tmp_path) is None


def test_a_pilot_makes_jitter_as_large_as_what_fpg_learns(make_recipe):
    recipe = make_recipe(data=FEW, num_clients=1)
    found = ablation.pilot(recipe)
    experiment = open_experiment(recipe)
    objective = make_objective(experiment, 0, 1)
    for number in (1, 2):
        objective.start_round(experiment.build_student(), experiment.loader(0), number)
    size = experiment.splits.train.images.shape[1:]
    rng = torch.Generator().manual_seed(0)
    latents = torch.randn(2000, 6, generator=rng)
    learned = objective._explorer.generator(latents).abs().mean().item()
    assert found["mean_abs_log_gain"] == pytest.approx(learned, rel=0.05)
    config = recipe.prompts.model_copy(
        update={"generator": "jitter", "magnitude": found["magnitude"]}
    )
    jitter = make_generator(config, *size)
    gains = jitter(torch.randn(2000, jitter.latent_dim, generator=rng)).abs().mean().item()
    assert gains == pytest.approx(learned, rel=0.05)


def test_train_reports_the_test_of_the_round_that_is_best_on_val(make_recipe):
    found = ablation.train(make_recipe(data=FEW, num_clients=1))
    assert set(report.METRICS) <= set(found)
    assert 1 <= found["best_round"] <= 2
    assert found["prior_clean"] > 0


def test_differences_are_paired_by_seed_as_scipy_has_it():
    bsm, ekd = [0.40, 0.44, 0.41, 0.47, None], [0.43, 0.45, 0.46, 0.49, 0.90]
    frame = frame_of({("bsm", "none"): bsm, ("ekd", "default"): ekd})
    found = next(
        one
        for one in report.compare(report.arms_of(frame.sample(frac=1, random_state=1)), "mcc")
        if (one.first, one.second) == (("ekd", "default"), ("bsm", "none"))
    )
    # points: 3, 1, 5, 2; mean 2.75, sd 1.7078, t(0.975, 3) = 3.1824
    assert found.differences == pytest.approx([3, 1, 5, 2])
    assert found.mean == pytest.approx(2.75)
    assert found.detectable() == pytest.approx(3.1824 * 1.7078 / 2, rel=1e-4)
    oracle = stats.ttest_rel(ekd[:4], bsm[:4])
    assert found.p == pytest.approx(oracle.pvalue)
    low, high = oracle.confidence_interval()
    assert found.mean - found.detectable() == pytest.approx(100 * low)
    assert found.mean + found.detectable() == pytest.approx(100 * high)


@pytest.mark.parametrize(
    ("differences", "p"), [((), math.nan), ((3.0,), math.nan), ((2.0, 2.0), 0), ((0.0, 0.0), 1)]
)
def test_p_values_without_a_spread(differences, p):
    one = Comparison("single", ("ekd", "default"), ("bsm", "none"), differences)
    assert one.p == pytest.approx(p, nan_ok=True)


def test_holm_by_hand():
    # sorted 0.01 x3, 0.03 x2, 0.04 x1 (raised to the one before)
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([math.nan, 0.6, 0.9]) == pytest.approx([math.nan, 1, 1], nan_ok=True)


def test_a_large_difference_is_called_separable_and_a_small_one_is_not():
    rng = np.random.default_rng(0)
    base = 0.4 + 0.01 * rng.standard_normal(5)
    noise = 0.01 * np.array([1, -1, 0.5, -0.5, 0.1])
    frame = frame_of(
        {
            ("ce", "none"): base - 0.2 + noise / 10,
            ("bsm", "none"): base,
            ("fpg", "default"): base + noise,
        }
    )
    text = report.tables(frame)
    assert "Of 2 comparisons of balanced accuracy, 1 are separable" in text
    assert "CE minus BSM, single client: -20.0 [" in text
    assert "The other 1 are not separable" in text


def test_missing_and_failed_cells_are_said(tmp_path):
    cells = [cell for cell in runnable(tmp_path) if cell.method in ("ce", "bsm")]
    for cell in cells[1:]:
        write(cell, tmp_path, **dict.fromkeys(report.METRICS, 0.25), seconds=1.0)
    write(cells[1], tmp_path, error="ValueError: no luck")
    text = report.tables(ablation.collect(cells, tmp_path))
    assert (
        "2 cells are missing or failed:** single.bsm.none.0 (failed), single.ce.none.0 (miss"
        in text
    )
    assert "| CE |  | 1 | 25.0 | 25.0 | 25.0 |" in text
    assert "| EKD | default | 0 | - | - | - |" in text


def test_the_order_of_cells_changes_no_table(tmp_path):
    cells = [cell for cell in runnable(tmp_path) if cell.method in ("ce", "bsm", "ekd")]
    for number, cell in enumerate(cells[:-2]):
        write(cell, tmp_path, **dict.fromkeys(report.METRICS, 0.2 + 0.01 * (number % 7)))
    tables = [report.tables(ablation.collect(some, tmp_path)) for some in (cells, cells[::-1])]
    assert tables[0] == tables[1]


def test_a_page_without_markers_is_refused_and_left_alone(tmp_path):
    page = tmp_path / "results.md"
    page.write_text("no markers")
    with pytest.raises(SystemExit, match="lacks the markers"):
        report.write_report(frame_of({("ce", "none"): [0.1, 0.2]}), tmp_path)
    assert page.read_text() == "no markers"


def test_the_page_says_what_the_csv_says():
    page = (ROOT / "docs/results.md").read_text()
    between = page.partition(report.BEGIN)[2].partition(report.END)[0]
    assert between.strip() == report.tables(report.read(ROOT / "docs/results.csv")).strip()
