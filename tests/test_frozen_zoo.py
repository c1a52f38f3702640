"""Every known teacher stays as its file says, whatever is done with it."""

from contextlib import suppress
from functools import partial
from importlib import import_module

import pytest
import torch
import torchvision
from torchvision.models.resnet import Bottleneck, ResNet

from fedkd import seeding
from fedkd.teachers.loading import open_teacher
from fedkd.teachers.zoo import CARDS
from tests.teacher_files import settings


@pytest.fixture
def shallow(monkeypatch):
    """Large networks have one or two blocks of each kind; random weights are made quickly.

    A pattern of 4099 numbers, a prime, so that no two rows of a matrix are the same. Files of full
    depth are opened in test_moco and test_timm_teachers.
    """
    rng = seeding.generator(0, "pattern")

    uniform, normal = torch.rand(4099, generator=rng), torch.randn(4099, generator=rng)

    def fill(tensor, values):
        flat = values.repeat(tensor.numel() // 4099 + 1)[: tensor.numel()]
        return tensor.copy_(flat.view(tensor.shape))

    def draw_uniform(tensor, low=0.0, high=1.0, generator=None):
        return fill(tensor, uniform * (high - low) + low)

    def draw_normal(tensor, mean=0.0, std=1.0, generator=None):
        return fill(tensor, normal * std + mean)

    monkeypatch.setattr(torch.Tensor, "uniform_", draw_uniform)
    monkeypatch.setattr(torch.Tensor, "normal_", draw_normal)
    get_model = torchvision.models.get_model

    def get_shallow(name, **options):
        if name == "resnet50":
            return ResNet(Bottleneck, [1, 1, 1, 1])
        return get_model(name, **options)

    monkeypatch.setattr(torchvision.models, "get_model", get_shallow)
    with suppress(ModuleNotFoundError):
        timm = import_module("timm")
        monkeypatch.setattr(timm, "create_model", partial(timm.create_model, depth=2))


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("name", CARDS)
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
