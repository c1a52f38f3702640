"""Every known teacher stays as its file says, whatever is done with it."""

import pytest
import torch

from fedkd import seeding
from fedkd.teachers.loading import open_teacher
from fedkd.teachers.zoo import CARDS
from tests.teacher_files import settings


def cases():
    """Every name; ViT-B is marked slow."""
    large = ("dinov2_vitb14", "clip_vitb32", "clip_vitb16")
    return [pytest.param(n, marks=[pytest.mark.slow] if n in large else []) for n in CARDS]


@pytest.mark.parametrize("name", cases())
def test_a_teacher_of_the_zoo_is_frozen_and_serves_any_batch(name, teacher_folder):
    card, config = CARDS[name], settings(name, teacher_folder)
    teacher = open_teacher(config)
    before = {key: tensor.clone() for key, tensor in teacher.state_dict().items()}
    rng = seeding.generator(0, "pixels")
    pixels = torch.rand(2, 3, 64, 64, generator=rng)

    side = card.input_size or 64
    prepared = teacher.prepare(pixels)
    assert prepared.shape == (2, 3, side, side)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (card.mean, card.std))
    torch.testing.assert_close(
        (prepared * std + mean).mean((2, 3)), pixels.mean((2, 3)), atol=0.03, rtol=0
    )

    assert teacher.train() is teacher
    teacher.features(pixels[:1])
    x = pixels[:1].requires_grad_()
    seen = teacher.observe(x)
    assert seen.features.shape == (1, teacher.num_features) == (1, card.num_features)
    assert teacher.head_kind == card.head
    assert (seen.head_output is None) == (card.head == "none")
    outputs = [seen.features] if seen.head_output is None else [seen.features, seen.head_output]
    # Not their sum, which behind a LayerNorm is the same for every image.
    sum((out * torch.rand(out.shape, generator=rng)).sum() for out in outputs).backward()
    assert x.grad.isfinite().all()
    assert x.grad.abs().sum() > 0

    assert not any(module.training for module in teacher.modules())
    assert all(not p.requires_grad and p.grad is None for p in teacher.parameters())
    after = teacher.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
