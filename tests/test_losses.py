import math

import pytest
import torch
import torch.nn.functional as F

from fedkd.losses.balanced_softmax import balanced_softmax, log_prior
from fedkd.losses.cross_entropy import cross_entropy
from fedkd.losses.distillation import feature_distillation
from fedkd.losses.factory import LOSSES


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


@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_losses_keep_dtype_and_are_finite_for_extreme_logits(name, dtype):
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]], dtype=dtype, requires_grad=True)
    loss = LOSSES[name].compute(logits, torch.tensor([1, 0]), torch.tensor([5.0, 2.0, 0.0]))
    assert loss.dtype == dtype
    assert loss.shape == (2,)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("name", list(LOSSES))
def test_gradients_of_losses_are_right(name):
    logits = torch.randn(
        4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True
    )
    targets, counts = torch.tensor([0, 1, 1, 0]), torch.tensor([5.0, 2.0, 0.0])
    assert torch.autograd.gradcheck(lambda x: LOSSES[name].compute(x, targets, counts), logits)


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
