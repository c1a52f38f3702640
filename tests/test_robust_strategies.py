"""Medians, trimmed means and Krum's kin on hand-made replies, and against Flower's classes."""

import logging

import flwr.serverapp.strategy as flower
import numpy as np
import pytest
from flwr.serverapp.strategy.multikrum import compute_distances

from fedkd.aggregation import StrategyConfig
from fedkd.errors import ConfigError, UpdateRefused
from strategies.base import Setup
from strategies.factory import make_strategy
from strategies.krum_scores import nearest
from tests.hand_made_replies import Federation, record, update

NAMES = ("w", "running_var")
KRUMS = ("krum", "multikrum", "bulyan")


def federate(name, values, **options):
    updates = [update(i, value, 1 + 10 * i, count=7 + i) for i, value in enumerate(values)]
    return Federation(name, updates, options=options)


def test_a_median_by_hand_buffers_included():
    out = federate("fedmedian", (1.0, 900.0, 3.0)).round()
    assert [out[name][0] for name in NAMES] == [3.0, 3.0]
    assert out["num_batches_tracked"] == 9
    assert federate("fedmedian", (1.0, 900.0, 3.0, 4.0)).round()["w"][0] == 3.5


def test_a_trimmed_mean_by_hand_buffers_included():
    out = federate("fedtrimmedavg", (1.0, 900.0, 3.0, 4.0), trim=0.25).round()
    assert [out[name][0] for name in NAMES] == [3.5, 3.5]
    assert out["num_batches_tracked"] == 10


def test_medians_and_trimmed_means_go_entry_by_entry():
    values = ([1.0, 20.0, 3.0], [2.0, 10.0, 1.0], [3.0, 30.0, 2.0])
    for name, options in (("fedmedian", {}), ("fedtrimmedavg", {"trim": 0.4})):
        assert federate(name, values, **options).round()["w"].tolist() == [2.0, 20.0, 2.0]


@pytest.mark.parametrize("name", ["fedmedian", "fedtrimmedavg", "bulyan"])
def test_reported_weights_are_equal_votes(name):
    assert federate(name, (1.0, 900.0, 3.0)).weights() == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize(
    ("trim", "fraction", "warns"), [(0.2, 1.0, True), (0.25, 1.0, False), (0.25, 0.5, True)]
)
def test_a_trim_that_leaves_nobody_out_is_told(caplog, trim, fraction, warns):
    config = StrategyConfig(name="fedtrimmedavg", trim=trim)
    with caplog.at_level(logging.WARNING):
        make_strategy(config, Setup(4, 10, 0, fraction))
    assert bool(caplog.messages) == warns
    if fraction == 1 and warns:
        assert caplog.messages == [
            "strategy.trim = 0.2 of 4 clients leaves nobody out, so that fedtrimmedavg is uniform; "
            "0.25 would leave out one at each end"
        ]


@pytest.mark.parametrize("num_clients", range(3, 60))
def test_the_trim_that_is_proposed_leaves_somebody_out(caplog, num_clients):
    setup = Setup(num_clients, 10, 0)
    make_strategy(StrategyConfig(name="fedtrimmedavg", trim=1e-6), setup)
    proposed = float(caplog.messages.pop().split("; ")[1].split(" ")[0])
    caplog.clear()
    make_strategy(StrategyConfig(name="fedtrimmedavg", trim=proposed), setup)
    assert not caplog.messages


def test_nothing_can_be_trimmed_of_two_clients(caplog):
    make_strategy(StrategyConfig(name="fedtrimmedavg", trim=0.4), Setup(2, 10, 0))
    assert caplog.messages[0].endswith(
        "so that fedtrimmedavg is uniform; it takes 3 clients a round to leave out one at each end"
    )


def test_krum_takes_one_client_whole_by_hand():
    # f = 1 of 5: squared distances (x 3 entries) to the 2 nearest others are
    # 0: 1 + 4, 1: 1 + 1, 2: 1 + 4 (3 is 2 away), 4: 2^2 + 3^2, 100: far.
    values = (0.0, 1.0, 2.0, 4.0, 100.0)
    federation = federate("krum", values, num_malicious=1)
    out = federation.round()
    assert [out[name][0] for name in NAMES] == [1.0, 1.0]
    assert out["num_batches_tracked"] == 11
    assert federation.weights() == [0, 1, 0, 0, 0]


def test_multikrum_averages_the_nearest_with_equal_weights_by_hand():
    # f = 1: scores 0: 1 + 4 = 5, 1: 1 + 1 = 2, 2: 1 + 4 = 5, 4: 4 + 9 = 13.
    federation = federate("multikrum", (0.0, 1.0, 2.0, 4.0, 100.0), num_malicious=1, num_selected=3)
    out = federation.round()
    assert [out[name][0] for name in NAMES] == pytest.approx([1.0, 1.0])
    assert federation.weights() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0, 0])


def test_bulyan_by_hand():
    # f = 1 of 7: scores are over the 4 nearest others; the 5 lowest leave out -50 and 100. Of
    # 0, 1, 2, 4, 9 the 3 nearest to the median 2 are 0 or 4 (2 away each), 1 and 2.
    values = (0.0, 1.0, -50.0, 2.0, 3.5, 9.0, 100.0)
    out = federate("bulyan", values, num_malicious=1).round()
    assert [out[name][0] for name in NAMES] == pytest.approx([(1 + 2 + 3.5) / 3] * 2)


def test_buffers_decide_nothing_in_krum():
    """The client that krum takes above, now with variances far from all others."""
    values = (0.0, 1.0, 2.0, 4.0, 100.0)
    updates = [update(i, w, variance=1e6 if i == 1 else 1.0) for i, w in enumerate(values)]
    federation = Federation("krum", updates, options={"num_malicious": 1})
    assert federation.weights() == [0, 1, 0, 0, 0]
    assert federation.round()["running_var"].tolist() == [1e6] * 2


@pytest.mark.parametrize(
    ("name", "options", "flowers"),
    [
        ("fedmedian", {}, flower.FedMedian()),
        ("fedtrimmedavg", {"trim": 0.3}, flower.FedTrimmedAvg(beta=0.3)),
        ("krum", {"num_malicious": 1}, flower.Krum(num_malicious_nodes=1)),
        (
            "multikrum",
            {"num_malicious": 1, "num_selected": 4},
            flower.MultiKrum(num_malicious_nodes=1, num_nodes_to_select=4),
        ),
        ("bulyan", {"num_malicious": 1}, flower.Bulyan(num_malicious_nodes=1)),
    ],
)
def test_a_round_is_that_of_flowers_own_class(name, options, flowers):
    rng = np.random.default_rng(5)
    # Whole weights of moderate size, on which Flower's float32 distances are good enough; as many
    # images each, as Flower's MultiKrum weighs by them.
    updates = [
        update(i, rng.normal(size=3) * (9 if i in (2, 5) else 1), variance=1.0) for i in range(8)
    ]
    federation = Federation(name, updates, options=options)
    expected = federation.by_flower(flowers, names=NAMES)
    out = federation.round()
    for key in NAMES:
        assert out[key] == pytest.approx(expected[key], rel=1e-6)
    assert not np.allclose(out["w"], np.mean([arrays["w"] for arrays, _ in updates], axis=0))


def test_distances_between_whole_students_cancel_in_float32_and_ours_do_not():
    """Students of norm 300 that differ by about 0.01 to 0.1, as after a round of training."""
    rng = np.random.default_rng(0)
    received = rng.normal(size=100_000).astype(np.float32)
    updates = [rng.normal(scale=scale / 316, size=100_000) for scale in (0.01, 0.02, 0.04, 0.1)]
    students = [(received + u).astype(np.float32) for u in updates]
    exact = [[float(((a.astype(float) - b) ** 2).sum()) for b in students] for a in students]
    whole = compute_distances([record({"w": student}) for student in students])
    differences = compute_distances(
        [record({"w": student.astype(np.float64) - received}) for student in students]
    )
    assert differences == pytest.approx(np.array(exact), rel=1e-9, abs=1e-12)
    errors = np.abs(whole - exact)[~np.eye(4, dtype=bool)] / np.array(exact)[~np.eye(4, dtype=bool)]
    assert np.median(errors) > 1, "Flower's own distances are worse than none"


def test_positions_are_ascending_whatever_the_scores():
    values = [np.full(3, value) for value in (5.0, 1.0, 0.0, 2.0, 50.0)]
    assert nearest(values, 0, 3) == [1, 2, 3]


@pytest.mark.parametrize(
    ("name", "num_clients", "num_malicious", "needed", "factor"),
    [("krum", 2, 0, 3, 2), ("multikrum", 4, 1, 5, 2), ("bulyan", 6, 1, 7, 4)],
)
def test_too_few_clients_a_round_are_refused_before_training(
    name, num_clients, num_malicious, needed, factor
):
    config = StrategyConfig(name=name, num_malicious=num_malicious)
    make_strategy(config, Setup(needed, 10, 0))
    for setup in (Setup(num_clients, 10, 0), Setup(2 * num_clients, 10, 0, 0.5)):
        with pytest.raises(ConfigError) as caught:
            make_strategy(config, setup)
        assert str(caught.value) == (
            f"strategy.num_malicious is {num_malicious} and {num_clients} clients train in a "
            f"round, but {name} needs {factor} x num_malicious + 3 = {needed} of them; raise "
            "num_clients or strategy.fraction_train, lower num_malicious, or choose another "
            "strategy, such as fedmedian"
        )


def test_more_selected_than_are_honest_are_refused():
    config = StrategyConfig(name="multikrum", num_malicious=1, num_selected=5)
    with pytest.raises(ConfigError) as caught:
        make_strategy(config, Setup(5, 10, 0))
    assert str(caught.value) == (
        "strategy.num_selected is 5; it must be at most 4, as 5 clients train in a round and "
        "strategy.num_malicious is 1"
    )


@pytest.mark.parametrize("name", KRUMS)
def test_a_round_in_which_too_few_have_images_is_refused(name):
    updates = [update(i, float(i), 0 if i else 5) for i in range(3)]
    with pytest.raises(UpdateRefused) as caught:
        Federation(name, updates).round()
    assert str(caught.value) == (
        f"1 clients of the round have trained on images, but {name} needs 3; raise "
        "partition.min_examples, or lower training.batch_size where training.drop_last leaves "
        "clients without a batch; where clients failed, set failures.policy = 'retry'"
    )


def test_the_simulation_refuses_before_any_client_trains(run):
    with pytest.raises(ConfigError, match="bulyan needs 4 x num_malicious"):
        run(strategy={"name": "bulyan", "num_malicious": 1}, objective={"name": "supervised"})
