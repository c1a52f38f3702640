import math

import pytest
import torch
import torch.nn.functional as F

from fedkd.config import build
from fedkd.errors import ConfigError
from fedkd.losses.balanced_softmax import balanced_softmax, log_prior
from fedkd.losses.cross_entropy import cross_entropy
from fedkd.losses.distillation import feature_distillation
from fedkd.losses.effective_number import effective_number_weights, is_reweighted
from fedkd.losses.factory import LOSSES, LossConfig, make_loss
from fedkd.losses.focal import focal
from fedkd.losses.inverse_frequency import inverse_frequency_weights
from fedkd.losses.ldam import ldam, margins
from fedkd.losses.logit_adjustment import logit_adjustment
from fedkd.losses.logit_calibration import logit_calibration


def test_balanced_softmax_by_hand():
    # Logits 0 and counts 3:1 -> softmax of (log 3/4, log 1/4) -> probabilities 3/4 and 1/4.
    loss = balanced_softmax(torch.zeros(2, 2), torch.tensor([0, 1]), torch.tensor([3.0, 1.0]))
    assert loss.tolist() == pytest.approx([math.log(4 / 3), math.log(4)], rel=1e-6)


def test_balanced_softmax_with_equal_counts_is_cross_entropy():
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = torch.tensor([0, 1, 2, 1, 0])
    balanced = balanced_softmax(logits, targets, torch.full((3,), 7.0))
    expected = F.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(balanced, expected, rtol=1e-10, atol=0)


def test_an_absent_class_has_log_prior_minus_27_63():
    assert log_prior(torch.tensor([4.0, 0.0], dtype=torch.float64))[1] == pytest.approx(
        -27.6310211159, rel=1e-10
    )


def test_an_absent_class_does_not_change_the_loss_of_the_others():
    logits = torch.zeros(1, 3, dtype=torch.float64)
    loss = balanced_softmax(logits, torch.tensor([0]), torch.tensor([1.0, 1.0, 0.0]))
    assert loss.item() == pytest.approx(math.log(2), abs=1e-10)


COUNTS = torch.tensor([5.0, 2.0, 0.0])
CHANGED = {"focal_gamma": 0.5}
"""Powers below 1 have an infinite slope where the loss is 0."""


def loss_of(name, dtype=torch.float64, counts=COUNTS, number=5, **changes):
    """The loss in round 5 of 5, when ldam is re-weighted."""
    return make_loss(name, LossConfig(**changes), counts.to(dtype), number, 5)


@pytest.mark.parametrize("changes", [{}, CHANGED])
@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_losses_keep_dtype_and_are_finite_for_extreme_logits(name, dtype, changes):
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]], dtype=dtype, requires_grad=True)
    for targets in (torch.tensor([1, 0]), torch.tensor([0, 1])):
        loss = loss_of(name, dtype, **changes)
        per_example = loss.per_example(logits, targets)
        assert per_example.dtype == dtype
        assert per_example.shape == (2,)
        mean = loss.mean(per_example, targets)
        (gradient,) = torch.autograd.grad(mean, logits)
        assert per_example.isfinite().all()
        assert mean.isfinite()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("logits_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", list(LOSSES))
def test_the_dtype_of_the_counts_changes_nothing(name, logits_dtype):
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=logits_dtype)
    targets, known = torch.tensor([0, 1, 1, 0]), []
    for dtype in (torch.int64, torch.float32, torch.float64):
        loss = loss_of(name, dtype)
        known.append(loss.mean(loss.per_example(logits, targets), targets))
    assert [mean.dtype for mean in known] == [logits_dtype] * 3
    assert torch.equal(known[0], known[2])
    assert torch.equal(known[1], known[2])


@pytest.mark.parametrize("changes", [{}, CHANGED])
@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"focal_detached"}))
def test_gradients_of_losses_are_right(name, changes):
    logits = torch.randn(
        4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True
    )
    targets, loss = torch.tensor([0, 1, 1, 0]), loss_of(name, **changes)
    assert torch.autograd.gradcheck(
        lambda x: loss.mean(loss.per_example(x, targets), targets), logits
    )


@pytest.mark.parametrize("name", list(LOSSES))
def test_the_mean_is_the_sum_over_the_sum_of_weights(name):
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    targets, loss = torch.tensor([0, 1, 1, 0]), loss_of(name)
    weights = torch.ones(3).double() if loss.class_weights is None else loss.class_weights
    per_example = loss.per_example(logits, targets)
    expected = per_example.sum() / weights[targets].sum()
    torch.testing.assert_close(loss.mean(per_example, targets), expected)
    assert (name in ("ldam", "cb", "rw")) == (loss.class_weights is not None)


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("ce", {}, lambda x, y: cross_entropy(x, y, COUNTS)),
        ("bsm", {}, lambda x, y: balanced_softmax(x, y, COUNTS)),
        ("focal", {"focal_gamma": 3.0}, lambda x, y: focal(x, y, COUNTS, gamma=3.0)),
        ("focal_detached", {"focal_gamma": 3.0}, lambda x, y: focal(x, y, COUNTS, gamma=3.0)),
        (
            "ldam",
            {"max_margin": 0.2, "scale": 7.0, "beta": 0.5},
            lambda x, y: (
                effective_number_weights(COUNTS.double(), 0.5)[y]
                * ldam(x, y, COUNTS, max_margin=0.2, scale=7.0)
            ),
        ),
        (
            "cb",
            {"beta": 0.5},
            lambda x, y: (
                effective_number_weights(COUNTS.double(), 0.5)[y] * cross_entropy(x, y, COUNTS)
            ),
        ),
        (
            "rw",
            {},
            lambda x, y: (
                inverse_frequency_weights(COUNTS.double())[y] * cross_entropy(x, y, COUNTS)
            ),
        ),
        ("lcc", {"calibration": 2.0}, lambda x, y: logit_calibration(x, y, COUNTS, calibration=2)),
        ("logit_adjustment", {"tau": 3.0}, lambda x, y: logit_adjustment(x, y, COUNTS, tau=3.0)),
    ],
)
def test_a_name_and_its_settings_choose_the_loss(name, changes, expected):
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    targets = torch.tensor([0, 1, 1, 0])
    per_example = loss_of(name, **changes).per_example(logits, targets)
    torch.testing.assert_close(per_example, expected(logits, targets))
    if changes:
        assert (per_example != loss_of(name).per_example(logits, targets)).any()


@pytest.mark.parametrize("name", list(LOSSES))
def test_only_ldam_depends_on_the_round(name):
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    targets = torch.tensor([0, 1, 1, 0])
    early, late = (loss_of(name, number=n).per_example(logits, targets) for n in (4, 5))
    assert torch.equal(early, late) == (name != "ldam")


@pytest.mark.parametrize("number", [4, 5])
@pytest.mark.parametrize("name", ["ldam", "cb", "rw"])
def test_an_example_of_an_absent_class_has_no_weight(name, number):
    logits = torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    targets, loss = torch.tensor([0, 1, 2]), loss_of(name, number=number)
    per_example = loss.per_example(logits, targets)
    assert per_example[2] == 0
    torch.testing.assert_close(
        loss.mean(per_example, targets), loss.mean(per_example[:2], targets[:2])
    )


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("focal_gamma", -0.1, "greater than or equal to 0"),
        ("focal_gamma", math.inf, "a finite number"),
        ("beta", 1.0, "less than 1"),
        ("beta", -0.1, "greater than or equal to 0"),
        ("tau", -1.0, "greater than or equal to 0"),
        ("max_margin", 0.0, "greater than 0"),
        ("scale", 0.0, "greater than 0"),
        ("calibration", -0.5, "greater than or equal to 0"),
        ("calibration", math.nan, "a finite number"),
    ],
)
def test_a_setting_out_of_range_is_refused(field, value, allowed):
    with pytest.raises(ConfigError, match=f"{field} is {value} .*; it must be {allowed}"):
        build(LossConfig, {field: value})


@pytest.mark.parametrize("name", ["cb", "rw"])
def test_weighted_losses_are_torchs_weighted_cross_entropy(name):
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    targets, loss = torch.tensor([0, 1, 1, 0, 0, 0]), loss_of(name)
    expected = F.cross_entropy(logits, targets, weight=loss.class_weights)
    torch.testing.assert_close(loss.mean(loss.per_example(logits, targets), targets), expected)


def test_inverse_frequency_weights_by_hand():
    # 7 images, 3 classes: 7 / (3 * 5), 7 / (3 * 2), and 0 for the absent class.
    assert inverse_frequency_weights(COUNTS).tolist() == pytest.approx([7 / 15, 7 / 6, 0.0])


def test_effective_number_weights_by_hand():
    # beta 1/2: 1 - (1/2)^1 = 1/2 and 1 - (1/2)^2 = 3/4, so 1 and 2/3, scaled to a sum of 2.
    weights = effective_number_weights(torch.tensor([1.0, 2.0, 0.0]), 0.5)
    assert weights.tolist() == pytest.approx([1.2, 0.8, 0.0])


def test_effective_number_weights_go_from_equal_to_inverse_counts():
    counts = torch.tensor([100.0, 10.0, 0.0, 1.0], dtype=torch.float64)
    assert effective_number_weights(counts, 0.0).tolist() == [1.0, 1.0, 0.0, 1.0]
    weights = effective_number_weights(counts, 1 - 1e-12)
    assert (weights * counts)[[0, 1, 3]].tolist() == pytest.approx([3 / 1.11] * 3, rel=1e-6)


@pytest.mark.parametrize(
    ("num_rounds", "first"), [(1, None), (2, 2), (3, 3), (4, 4), (5, 5), (10, 9), (100, 81)]
)
def test_deferred_reweighting_begins_after_four_fifths_of_the_rounds(num_rounds, first):
    begun = [n for n in range(1, num_rounds + 1) if is_reweighted(n, num_rounds)]
    assert begun == ([] if first is None else list(range(first, num_rounds + 1)))


def test_focal_by_hand():
    # Probabilities 3/4 and 1/4 of the true class.
    logits = torch.tensor([[math.log(3), 0.0], [math.log(3), 0.0]], dtype=torch.float64)
    targets = torch.tensor([0, 1])
    expected = [math.log(4 / 3) / 16, 9 / 16 * math.log(4)]
    assert focal(logits, targets, COUNTS, gamma=2.0).tolist() == pytest.approx(expected)
    assert focal(logits, targets, COUNTS, gamma=0.0).tolist() == pytest.approx(
        F.cross_entropy(logits, targets, reduction="none").tolist()
    )


def test_detached_focal_has_the_value_of_focal_and_a_scaled_gradient_of_cross_entropy():
    logits = torch.tensor([[math.log(3), 0.0]], dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0])
    true = focal(logits, targets, COUNTS, gamma=2.0)
    detached = focal(logits, targets, COUNTS, gamma=2.0, detach=True)
    assert true.item() == detached.item()
    (own,) = torch.autograd.grad(detached.sum(), logits)
    (plain,) = torch.autograd.grad(F.cross_entropy(logits, targets), logits)
    torch.testing.assert_close(own, plain / 16)
    (full,) = torch.autograd.grad(true.sum(), logits)
    assert full[0, 0] < own[0, 0] < 0, "the true gradient also lowers the factor"


def test_ldam_by_hand():
    counts = torch.tensor([16.0, 1.0, 0.0])
    # n^(-1/4) is 1/2 and 1, so margins 0.25 and 0.5; the absent class has none.
    assert margins(counts, 0.5).tolist() == [0.25, 0.5, 0.0]
    cosines = torch.tensor([[0.25, 0.0, 0.0]], dtype=torch.float64)
    # The margin takes the lead of class 0 away: three equal logits.
    loss = ldam(cosines, torch.tensor([0]), counts, max_margin=0.5, scale=30.0)
    assert loss.item() == pytest.approx(math.log(3))
    other = ldam(cosines, torch.tensor([1]), counts, max_margin=0.5, scale=2.0)
    exps = [math.exp(0.5), math.exp(-1.0), 1.0]
    assert other.item() == pytest.approx(math.log(sum(exps) / exps[1]))


def test_ldam_is_reweighted_in_the_last_fifth():
    before, after = (loss_of("ldam", number=number).class_weights for number in (4, 5))
    assert before.tolist() == [1.0, 1.0, 0.0]
    assert after.tolist() == pytest.approx(effective_number_weights(COUNTS, 0.9999).tolist())


def test_logit_calibration_by_hand():
    counts = torch.tensor([16.0, 1.0, 0.0], dtype=torch.float64)
    # Minus 0.5 / 2, 0.5 / 1 and 0.5 * 100.
    logits = torch.tensor([[0.25, 0.5, 50.0]], dtype=torch.float64)
    loss = logit_calibration(logits, torch.tensor([1]), counts, calibration=0.5)
    assert loss.item() == pytest.approx(math.log(3))
    assert logit_calibration(logits, torch.tensor([1]), counts, calibration=0.0).item() == (
        pytest.approx(F.cross_entropy(logits, torch.tensor([1])).item())
    )


def test_logit_adjustment_is_bsm_at_tau_1_and_cross_entropy_at_0():
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    targets = torch.tensor([0, 1, 1, 0])
    assert torch.equal(
        logit_adjustment(logits, targets, COUNTS, tau=1.0),
        balanced_softmax(logits, targets, COUNTS),
    )
    assert torch.equal(
        logit_adjustment(logits, targets, COUNTS, tau=0.0),
        F.cross_entropy(logits, targets, reduction="none"),
    )
    # Twice the log odds of 5 to 2.
    two = logit_adjustment(torch.zeros(1, 3).double(), torch.tensor([1]), COUNTS, tau=2.0)
    assert two.item() == pytest.approx(math.log((25 + 4) / 4))


@pytest.mark.parametrize("name", ["bsm", "ldam", "cb", "rw", "lcc", "logit_adjustment"])
def test_an_absent_class_is_as_if_it_were_not_there_where_the_loss_shifts_its_logit(name):
    """Elsewhere the softmax counts it like any other."""
    logits = torch.zeros(2, 3, dtype=torch.float64)
    targets = torch.tensor([0, 1])
    with_absent = loss_of(name).per_example(logits, targets)
    without = loss_of(name, counts=COUNTS[:2]).per_example(logits[:, :2], targets)
    if name in ("bsm", "lcc", "logit_adjustment"):
        torch.testing.assert_close(with_absent, without, rtol=1e-10, atol=1e-10)
    else:
        assert (with_absent != without).all()


def test_cross_entropy_ignores_the_counts():
    logits, targets = torch.tensor([[1.0, 2.0]]), torch.tensor([0])
    assert torch.equal(
        cross_entropy(logits, targets, torch.tensor([9.0, 1.0])),
        cross_entropy(logits, targets, torch.tensor([1.0, 1.0])),
    )


def test_distillation_is_0_2_4_for_same_orthogonal_and_opposite_directions():
    student = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0], [0.0, 0.0]])
    teacher = torch.tensor([[5.0, 0.0]]).expand(4, 2)
    assert feature_distillation(student, teacher).tolist() == [0.0, 2.0, 4.0, 2.0]


def test_distillation_does_not_depend_on_lengths():
    generator = torch.Generator().manual_seed(2)
    a, b = (torch.randn(3, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    torch.testing.assert_close(feature_distillation(a, b), feature_distillation(7 * a, 0.1 * b))


def test_gradient_of_the_distillation_is_right():
    generator = torch.Generator().manual_seed(3)
    a, b = (torch.randn(3, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    assert torch.autograd.gradcheck(lambda x: feature_distillation(x, b), a.requires_grad_())
