"""What the intervals cover, and the bootstrap of test images."""

import numpy as np
import pandas as pd
import pytest

from fedkd import seeding
from fedkd.errors import DataError
from fedkd.metrics import balanced_accuracy, confusion_matrix, group_recall, mcc
from server.comparison.image_bootstrap import resampled_scores, stored_predictions, two_level
from server.comparison.paired import half_width
from server.comparison.statistics import analyse
from tests.comparison_cells import cells_of

CLASSES = ("a", "b", "c")


@pytest.mark.parametrize(("num_seeds", "covered"), [(3, 0.75), (5, 0.84), (10, 0.91)])
def test_student_covers_95_percent_and_the_bootstrap_over_few_seeds_does_not(num_seeds, covered):
    values = seeding.rng(0, "coverage", num_seeds).standard_normal((2000, num_seeds))
    half = np.array([half_width(row) for row in values])
    assert np.mean(np.abs(values.mean(axis=1)) < half) == pytest.approx(0.95, abs=0.015)
    drawn = seeding.rng(1, "coverage", num_seeds).integers(num_seeds, size=(1000, num_seeds))
    low, high = np.quantile(values[:, drawn].mean(axis=2), [0.025, 0.975], axis=1)
    assert np.mean((low < 0) & (high > 0)) == pytest.approx(covered, abs=0.025)


def predicted(rng, num, group_of=None, right=0.7, classes=CLASSES, share=(0.6, 0.3, 0.1)):
    labels = rng.choice(len(classes), size=num, p=share)
    other = rng.integers(len(classes), size=num)
    predictions = np.where(rng.random(num) < right, labels, other)
    groups = [""] * num if group_of is None else [f"g{group_of(row)}" for row in range(num)]
    frame = pd.DataFrame(
        {
            "id": [str(row) for row in range(num)],
            "group": groups,
            "site": "x",
            "label": np.array(classes)[labels],
            "prediction": np.array(classes)[predictions],
        }
    )
    return frame.assign(**{f"p_{name}": 0.0 for name in classes})


def own_scores(frame, rows=slice(None)):
    labels, predictions = (
        frame[name].map(CLASSES.index).to_numpy()[rows] for name in ("label", "prediction")
    )
    confusion = confusion_matrix(labels, predictions, len(CLASSES))
    return balanced_accuracy(confusion), mcc(confusion), group_recall(confusion, [1, 2])


def test_resamples_have_the_scores_of_fedkd_metrics():
    rng = np.random.default_rng(0)
    frame = predicted(rng, 60)
    found = resampled_scores(
        {("fedavg", 0): "r"}, lambda run: frame, lambda run: ("b", "c"), seed=3, num_resamples=20
    )["fedavg", 0]
    names = ("balanced_accuracy", "mcc", "recall_tail")
    assert [found[name][0] for name in names] == pytest.approx(own_scores(frame))
    # The same draws, image by image: groups are sorted by name, classes by name.
    draws = seeding.rng(3, "bootstrap-images")
    order = frame.assign(unit="image " + frame["id"]).sort_values("unit").index.to_numpy()
    labels = frame["label"].to_numpy()[order]
    weights = np.zeros((20, 60), int)
    for name in CLASSES:
        here = np.flatnonzero(labels == name)
        weights[:, here] = draws.multinomial(len(here), np.full(len(here), 1 / len(here)), 20)
    for number, row in enumerate(weights, start=1):
        rows = np.repeat(order, row)
        assert [found[name][number] for name in names] == pytest.approx(own_scores(frame, rows))


def test_images_of_one_lesion_are_drawn_together():
    # ten lesions of ten images, each all right or all wrong: sd of recall is sqrt(p q / 10)
    frame = pd.DataFrame(
        {
            "id": [str(row) for row in range(100)],
            "group": [f"g{row // 10}" for row in range(100)],
            "label": "a",
            "prediction": ["a" if row < 50 else "b" for row in range(100)],
            "p_a": 0.0,
            "p_b": 0.0,
        }
    )
    runs = {("fedavg", 0): "r"}
    alone = frame.assign(group="")
    by_group, by_image = (
        resampled_scores(runs, lambda run, one=one: one, None, seed=0)["fedavg", 0]
        for one in (frame, alone)
    )
    assert by_group["balanced_accuracy"][1:].std() == pytest.approx((0.25 / 10) ** 0.5, rel=0.1)
    assert by_image["balanced_accuracy"][1:].std() == pytest.approx((0.25 / 100) ** 0.5, rel=0.1)
    assert "recall_tail" not in by_group


def test_every_class_keeps_its_number_of_groups():
    frame = predicted(np.random.default_rng(1), 300, share=(0.97, 0.02, 0.01))
    found = resampled_scores({("a", 0): "r"}, lambda run: frame, lambda run: ["c"], seed=0)
    assert np.isfinite(found["a", 0]["recall_tail"]).all()


def test_two_level_covers_images_and_seeds_where_seeds_alone_do_not():
    # 200 images of two classes; an image is right with probability 0.7 whatever the seed, and a
    # seed shifts all by little. Seeds alone see none of the images' luck.
    hits, seeds_only = 0, 0
    for number in range(40):
        rng = seeding.rng(number, "cover-images")
        easy = rng.random(200) < 0.7
        frames = {}
        for seed in range(5):
            right = easy ^ (rng.random(200) < 0.02)
            label = np.array(["a", "b"])[np.arange(200) % 2]
            frames[f"r{seed}"] = pd.DataFrame(
                {"id": np.arange(200).astype(str), "group": "", "label": label,
                 "prediction": np.where(right, label, "c"), "p_a": 0.0, "p_b": 0.0, "p_c": 0.0}
            )  # fmt: skip
        runs = {("x", seed): f"r{seed}" for seed in range(5)}
        found = resampled_scores(runs, frames.__getitem__, None, seed=number, num_resamples=200)
        values = np.stack([found["x", seed]["balanced_accuracy"] for seed in range(5)])
        truth = 0.7 * 0.98 + 0.3 * 0.02
        low, high = two_level(values[:, 1:], number, 0.05)
        hits += low < truth < high
        seeds_only += abs(values[:, 0].mean() - truth) < half_width(values[:, 0])
    assert hits >= 35  # of 40
    assert seeds_only <= 20


def test_a_paired_difference_is_free_of_the_luck_that_arms_share():
    rng = np.random.default_rng(2)
    frame = predicted(rng, 400)
    better = frame.copy()
    wrong = np.flatnonzero(better["label"] != better["prediction"])[::4]
    better.loc[wrong, "prediction"] = better.loc[wrong, "label"]
    frames = {f"{arm}-{seed}": one for arm, one in (("fedavg", frame), ("x", better))
              for seed in range(3)}  # fmt: skip
    scores = {arm: [own_scores(one)[0]] * 3 for arm, one in (("fedavg", frame), ("x", better))}
    found = analyse(cells_of(scores), "fedavg", predictions=frames.__getitem__)
    score = found.scores.iloc[1]
    gap = found.differences.iloc[0]
    assert gap["image_low"] < gap["mean"] < gap["image_high"]
    assert gap["image_low"] > 0
    assert gap["image_high"] - gap["image_low"] < score["image_high"] - score["image_low"]


def test_predictions_of_another_run_are_refused(tmp_path):
    frame = predicted(np.random.default_rng(0), 30)
    for seed in range(2):
        (tmp_path / f"fedavg-{seed}").mkdir()
        frame.to_csv(tmp_path / f"fedavg-{seed}" / "predictions_test.csv", index=False)
    read = stored_predictions(tmp_path)
    right = own_scores(frame)[0]
    fine = analyse(cells_of({"fedavg": [right, right]}), "fedavg", predictions=read)
    assert fine.scores["image_low"].notna().all()
    with pytest.raises(
        DataError, match=r"of fedavg-1 gives balanced accuracy .*, its summary 0\.1"
    ):
        analyse(cells_of({"fedavg": [right, 0.1]}), "fedavg", predictions=read)


def test_broken_predictions_are_named():
    frame = predicted(np.random.default_rng(0), 30)
    runs = {("fedavg", 0): "one/two"}
    with pytest.raises(DataError, match="of one/two lacks the columns group, label; it has id"):
        resampled_scores(runs, lambda run: frame.drop(columns=["label", "group"]), None, 0)
    with pytest.raises(DataError, match="has the classes b but no column p_<class> for them"):
        resampled_scores(runs, lambda run: frame.drop(columns="p_b"), None, 0)
