"""mas, mas_inv and mas_drw on hand-made replies, with the arithmetic written out."""

import numpy as np
import pytest

from fedkd.errors import UpdateRefused
from strategies.mas import robust_factor
from tests.hand_made_replies import Federation, update


@pytest.mark.parametrize(
    ("scores", "losses", "factor"),
    [
        ((0.0, 0.0), (1.0, 1.0), 0.0),
        ((1.0, 1.0), (0.0, 0.0), 0.0),
        ((0.0, 2.0), (9.0, 3.0), 0.25),
        ((1.0, 1.0, 1.0), (2.0, 2.0, 2.0), 1 / 3),
        # a = (3, 1) / 4, c = (1, 3) / 4
        ((6.0, 2.0), (1.0, 3.0), 3 / 16 + 3 / 16),
    ],
)
def test_robust_factor_by_hand(scores, losses, factor):
    assert robust_factor(np.array(scores), np.array(losses)) == pytest.approx(factor)


@pytest.mark.parametrize(
    ("scores", "losses", "factor"),
    [
        # 1/c = (1, 1/3) -> (3, 1) / 4, a = (3, 1) / 4
        ((6.0, 2.0), (1.0, 3.0), 9 / 16 + 1 / 16),
        # An absent class is neither inverted nor counted: 1/c = (1/2, 1/2), a = (1, 3) / 4.
        ((1.0, 3.0, 0.0), (2.0, 2.0, 0.0), 0.5),
        # The second class was scored but never trained on: 1/c = (1/2, -, 1/2), a = (1, 2, 1) / 4.
        ((1.0, 2.0, 1.0), (2.0, 0.0, 2.0), 1 / 8 + 1 / 8),
        # The second class was trained on but not scored: c stays, (1/2, 3/2) / 2.
        ((1.0, 0.0), (2.0, 1.5), 1 / 4),
        ((0.0, 0.0), (1.0, 1.0), 0.0),
        ((1.0, 1.0), (0.0, 0.0), 0.0),
    ],
)
def test_inverted_robust_factor_by_hand(scores, losses, factor):
    with np.errstate(all="raise"):
        got = robust_factor(np.array(scores), np.array(losses), invert_losses=True)
    assert got == pytest.approx(factor)


def test_inversion_leaves_the_losses_that_it_was_given():
    losses = np.array([1.0, 4.0])
    robust_factor(np.ones(2), losses, invert_losses=True)
    assert losses.tolist() == [1.0, 4.0]


@pytest.mark.parametrize("invert", [False, True])
def test_robust_factor_is_about_one_over_the_number_of_classes(invert):
    rng = np.random.default_rng(0)
    for num in (1, 2, 5, 8):
        scores, losses = np.zeros((2, 8))
        scores[:num], losses[:num] = 2 + rng.uniform(-0.1, 0.1, (2, num))
        assert robust_factor(scores, losses, invert) == pytest.approx(1 / num, rel=0.01)


def test_mas_weighs_by_robust_factors_and_not_by_images():
    # Client 0: a = (3, 1) / 4, c = (2, 2) / 4 -> R = 0.5. Client 1 has one class -> R = 1.
    updates = [
        update(0, 3.0, 1000, scores=(6.0, 1.0), losses=(4.0, 2.0), counts=(2, 1)),
        update(1, 6.0, 1, scores=(0.0, 5.0), losses=(0.0, 2.0), counts=(0, 4)),
    ]
    assert robust_factor(np.array([3.0, 1.0]), np.array([2.0, 2.0])) == 0.5
    federation = Federation("mas", updates)
    assert federation.round()["w"].tolist() == pytest.approx([3 / 3 + 6 * 2 / 3] * 3)


def test_mas_inv_weighs_by_inverted_losses():
    # Client 0: a = (3, 1) / 4, c = (1, 3), 1/c = (3, 1) / 4 -> R = 10/16, where MAS has 6/16.
    # Client 1 lacks a class -> R = 1. Sums are of 2, 1 and of 0, 4 images.
    updates = [
        update(0, 3.0, 1000, scores=(6.0, 1.0), losses=(2.0, 3.0), counts=(2, 1)),
        update(1, 6.0, 1, scores=(0.0, 5.0), losses=(0.0, 2.0), counts=(0, 4)),
    ]
    assert Federation("mas_inv", updates).weights() == pytest.approx([10 / 26, 16 / 26])
    assert Federation("mas", updates).weights() == pytest.approx([6 / 22, 16 / 22])


def test_mas_inv_survives_a_class_that_was_scored_but_never_trained_on():
    updates = [
        # a = (1, 1) / 2, of 1/c only the first -> R = 1/2.
        update(0, 0.0, 1, scores=(2.0, 2.0), losses=(2.0, 0.0)),
        update(1, 3.0, 1, scores=(2.0, 0.0), losses=(2.0, 0.0)),
    ]
    assert Federation("mas_inv", updates).round()["w"].tolist() == pytest.approx([2.0] * 3)


@pytest.mark.parametrize("name", ["mas", "mas_inv"])
def test_all_factors_zero_weigh_equally(name):
    updates = [update(0, 1.0, 5, scores=(0.0, 0.0)), update(1, 3.0, 9, scores=(0.0, 0.0))]
    assert Federation(name, updates).round()["w"].tolist() == [2.0] * 3


@pytest.mark.parametrize("name", ["mas", "mas_inv", "mas_drw"])
def test_scores_that_rounding_made_negative_count_as_zero(name):
    updates = [
        update(0, 1.0, 5, scores=(-1e-7, 1.0), losses=(1.0, -1e-7)),
        update(1, 3.0, 9, scores=(1.0, 0.0), losses=(1.0, 0.0)),
    ]
    assert Federation(name, updates).round(10)["w"].tolist() == [3.0] * 3


def test_mas_drw_is_fedavg_before_the_last_fifth_of_the_rounds():
    updates = [update(0, num_examples=10, scores=(1.0, 0.0)), update(1, num_examples=30)]
    for number in range(1, 9):
        assert Federation("mas_drw", updates).weights(number) == [0.25, 0.75]


@pytest.mark.parametrize("number", [9, 10])
def test_mas_drw_then_multiplies_images_by_effective_number_weights(number):
    # R = 1 * 1/2 (scored in one of two classes) and 1 (has one class): 1/R = 2, 1, u = 2/3, 1/3.
    updates = [
        update(0, num_examples=10, scores=(1.0, 0.0), losses=(1.0, 1.0)),
        update(1, num_examples=30, scores=(1.0, 0.0), losses=(1.0, 0.0)),
    ]
    e = [0.0001 / (1 - 0.9999 ** (2 / 3)), 0.0001 / (1 - 0.9999 ** (1 / 3))]
    total = 10 * e[0] + 30 * e[1]
    weights = Federation("mas_drw", updates).weights(number)
    assert weights == pytest.approx([10 * e[0] / total, 30 * e[1] / total], rel=1e-11)
    # The two inversions cancel: num_examples * R.
    assert weights == pytest.approx([5 / 35, 30 / 35], rel=1e-4)


def test_mas_drw_gives_a_factor_of_zero_no_weight():
    updates = [
        update(0, num_examples=10, scores=(0.0, 0.0)),
        update(1, num_examples=10, scores=(1.0, 0.0), losses=(1.0, 1.0)),
        update(2, num_examples=20, scores=(1.0, 0.0), losses=(1.0, 1.0)),
    ]
    weights = Federation("mas_drw", updates).weights(10)
    assert weights == pytest.approx([0, 1 / 3, 2 / 3], rel=1e-12)


def test_mas_drw_with_all_factors_zero_is_fedavg():
    updates = [
        update(0, num_examples=10, scores=(0.0, 0.0)),
        update(1, num_examples=30, losses=(0.0, 0.0)),
    ]
    assert Federation("mas_drw", updates).weights(10) == [0.25, 0.75]


def test_mas_drw_stays_finite_for_factors_far_apart():
    # R = 1e-16 beside 1: 0.9999^u rounds to 1 for the second client.
    updates = [
        update(0, num_examples=1, scores=(1e-16, 1.0), losses=(1.0, 0.0)),
        update(1, num_examples=1, scores=(1.0, 0.0), losses=(1.0, 0.0)),
    ]
    assert Federation("mas_drw", updates).weights(10) == pytest.approx([0, 1], abs=1e-6)


def test_mas_drw_without_any_images_is_refused():
    with pytest.raises(UpdateRefused, match="cannot be normalised"):
        Federation("mas_drw", [update(0, num_examples=0), update(1, num_examples=0)]).round(10)


@pytest.mark.parametrize(
    ("name", "num_rounds", "rounds"),
    [
        ("mas", 5, [1, 2, 3, 4, 5]),
        ("mas_inv", 5, [1, 2, 3, 4, 5]),
        ("mas_drw", 5, [5]),
        ("mas_drw", 10, [9, 10]),
        ("mas_drw", 2, [2]),
        ("mas_drw", 1, []),
    ],
)
def test_clients_are_asked_for_scores_only_in_rounds_that_use_them(name, num_rounds, rounds):
    federation = Federation(name, [update(0)], num_rounds=num_rounds)
    assert federation.scoring_rounds(num_rounds) == rounds


def test_mas_drw_with_a_single_round_is_fedavg():
    updates = [update(0, num_examples=10, scores=(1.0, 0.0)), update(1, num_examples=30)]
    assert Federation("mas_drw", updates, num_rounds=1).weights(1) == [0.25, 0.75]


def test_the_rounds_that_need_no_scores_run_without_them():
    arrays, metrics = update(0, num_examples=3)
    kept = {key: value for key, value in metrics.items() if "scores" not in key}
    assert Federation("mas_drw", [(arrays, kept)]).weights(1) == [1.0]
