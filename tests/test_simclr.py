import math

import pytest
import torch

from fedkd import seeding
from fedkd.models.small_resnet import SmallResNet
from fedkd.pretraining.config import PretrainConfig
from fedkd.pretraining.simclr import SimCLR, decoupled_nt_xent, random_views
from fedkd.pretraining.training import make_optimizer, train
from fedkd.teachers.stored import build_head


def draws(*shape, key=0, dtype=torch.float32):
    return torch.randn(*shape, generator=seeding.generator(key, "simclr"), dtype=dtype)


def pixels(num=64, size=16, key=0):
    return torch.rand(num, 3, size, size, generator=seeding.generator(key, "pixels"))


def views(images, size=8, key=0):
    return random_views(images, size, seeding.generator(key, "views"))


def loss_by_loops(first, second, temperature):
    every = [row / row.norm() for row in [*first, *second]]
    half, total = len(first), 0.0
    for i, one in enumerate(every):
        partner = (i + half) % len(every)
        others = sum(
            math.exp(float(one @ other) / temperature)
            for k, other in enumerate(every)
            if k not in (i, partner)
        )
        total += -float(one @ every[partner]) / temperature + math.log(others)
    return total / len(every)


@pytest.mark.parametrize("temperature", [0.1, 0.2, 1.0])
def test_loss_equals_two_plain_loops(temperature):
    first, second = draws(5, 7, key=1), draws(5, 7, key=2)
    expected = loss_by_loops(first, second, temperature)
    assert float(decoupled_nt_xent(first, second, temperature)) == pytest.approx(expected, rel=1e-5)


def test_loss_of_aligned_orthogonal_pairs_is_written_out_by_hand():
    # Four images, each pair equal, all else orthogonal: 6 others of similarity 0, so log 6 - 1 / T.
    axes = torch.eye(4)
    assert float(decoupled_nt_xent(axes, axes, 0.2)) == pytest.approx(math.log(6) - 5, rel=1e-5)


def test_positive_pair_is_not_in_the_denominator():
    # With it, log(e^5 + 6) - 5 > 0: the coupled loss never falls below 0.
    axes = torch.eye(4)
    coupled = math.log(math.exp(5) + 6) - 5
    assert float(decoupled_nt_xent(axes, axes, 0.2)) < 0 < coupled


def test_loss_ignores_the_lengths_of_projections():
    first, second = draws(5, 7, key=1), draws(5, 7, key=2)
    scaled = decoupled_nt_xent(1000 * first, second / 1000, 0.2)
    torch.testing.assert_close(scaled, decoupled_nt_xent(first, second, 0.2))


def test_loss_is_finite_at_a_tiny_temperature():
    assert math.isfinite(float(decoupled_nt_xent(draws(5, 7, key=1), draws(5, 7, key=2), 1e-3)))


def test_loss_has_the_right_gradient():
    first = draws(3, 4, key=1, dtype=torch.float64).requires_grad_()
    second = draws(3, 4, key=2, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: decoupled_nt_xent(a, b, 0.5), (first, second))


def test_views_have_the_size_and_stay_within_zero_and_one():
    seen = views(pixels(), size=12)
    assert seen.shape == (64, 3, 12, 12)
    assert seen.min() >= 0
    assert seen.max() <= 1


def test_views_follow_their_generator_only():
    assert torch.equal(views(pixels(), key=1), views(pixels(), key=1))
    assert not torch.equal(views(pixels(), key=1), views(pixels(), key=2))


def test_no_two_views_of_equal_images_are_equal():
    seen = views(pixels(num=1).expand(64, -1, -1, -1))
    assert len(torch.unique(seen.flatten(1), dim=0)) == 64


def test_view_of_a_flat_image_is_flat_so_crops_bring_in_no_border():
    seen = views(torch.full((64, 3, 16, 16), 0.5))
    assert (seen.amax((2, 3)) - seen.amin((2, 3))).max() < 1e-5


def test_about_one_view_in_five_is_grey():
    seen = views(pixels(num=1000), size=4)
    grey = (seen.amax(1) - seen.amin(1)).amax((1, 2)) < 1e-5
    assert 0.15 < grey.float().mean() < 0.25


def test_crops_magnify_and_flips_happen():
    # A ramp from left to right: its slope in the view tells magnification and flip.
    ramp = torch.linspace(0.3, 0.7, 64).expand(400, 3, 64, 64)
    seen = views(ramp, size=16).mean(1)
    slopes = (seen[..., -1] - seen[..., 0]).mean(1)
    assert 0.4 < (slopes > 0).float().mean() < 0.6
    assert slopes.abs().quantile(0.1) < 0.5 * slopes.abs().quantile(0.9)


def trained(steps, bfloat16=False):
    config = PretrainConfig(steps=steps, warm_up_steps=2, weight_decay=1e-4)
    with seeding.isolated(0, "simclr"):
        learner = SimCLR(
            SmallResNet((8, 16), all_stages=True), build_head("batchnorm", 16, 16, 8), 0.2, bfloat16
        )
    images, losses = pixels(num=32), []

    def draw(step):
        return [2 * views(images, key=2 * step + n) - 1 for n in range(2)]

    train(
        learner,
        make_optimizer(learner, config),
        draw,
        config,
        0,
        lambda step, loss: losses.append((step, loss)),
    )
    return learner, losses


def test_training_lowers_the_loss_and_tells_every_step():
    _, losses = trained(steps=30)
    assert [step for step, _ in losses] == list(range(1, 31))
    values = [loss for _, loss in losses]
    assert sum(values[-5:]) / 5 < sum(values[:5]) / 5 - 0.2


def test_training_twice_gives_the_same_losses():
    assert trained(steps=3)[1] == trained(steps=3)[1]


def test_bfloat16_computes_nearly_the_same_and_keeps_float32_weights():
    full, half = trained(steps=3), trained(steps=3, bfloat16=True)
    assert half[1] != full[1]
    assert half[1][0][1] == pytest.approx(full[1][0][1], rel=0.02)
    assert all(value.dtype == torch.float32 for value in half[0].parameters())
