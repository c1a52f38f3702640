"""What a teacher has to beat: how images are read, raw pixels, the untrained network."""

import copy

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from fedkd.probing.controls import Reader, raw_pixels, untrained
from fedkd.teachers.config import TeacherConfig
from fedkd.teachers.frozen import Teacher
from fedkd.teachers.loading import open_teacher
from tests.conftest import draw_images


@pytest.fixture
def told():
    return []


@pytest.fixture
def reader(told):
    return Reader(torch.device("cpu"), 4, lambda *step: told.append(step))


def test_features_come_in_the_order_of_the_images_and_progress_is_told(reader, told):
    images = draw_images("read", [0, 1, 2, 3, 0, 1, 2, 3, 0])
    seen = reader.features("means", lambda pixels: pixels.mean((2, 3)).double(), images)
    assert seen.dtype == np.float32
    np.testing.assert_allclose(seen, images.images.mean((2, 3)) / 255, rtol=1e-5)
    assert told == [("means", 0, 9), ("means", 4, 9), ("means", 8, 9), ("means", 9, 9)]


def test_raw_pixels_are_means_of_areas_of_any_image_size():
    pixels = torch.rand(2, 3, 32, 64, generator=torch.Generator().manual_seed(0))
    seen = raw_pixels(pixels)
    assert seen.shape == (2, 768)
    assert torch.isclose(seen[1, 0], pixels[1, 0, :2, :4].mean())
    assert raw_pixels(pixels[:, :, :5, :5]).shape == (2, 768)


def test_the_untrained_network_is_the_teachers_own_without_its_weights():
    config = TeacherConfig()
    teacher = open_teacher(config)
    control = untrained(config, teacher, seed=0)
    own, theirs = control.backbone.state_dict(), teacher.backbone.state_dict()
    assert {k: v.shape for k, v in own.items()} == {k: v.shape for k, v in theirs.items()}
    assert not any(torch.equal(own[k], theirs[k]) for k in own if "conv" in k)
    again, other = untrained(config, teacher, seed=0), untrained(config, teacher, seed=1)
    weight = control.backbone.conv1.weight
    assert torch.equal(again.backbone.conv1.weight, weight)
    assert not torch.equal(other.backbone.conv1.weight, weight)
    pixels = torch.rand(1, 3, 16, 16)
    assert torch.equal(control.prepare(pixels), teacher.prepare(pixels))
    assert control(pixels).shape == teacher(pixels).shape
    assert not any(p.requires_grad for p in control.parameters())


def test_a_torchvision_teachers_control_has_its_architecture_size_and_normalisation(tmp_path):
    name = "shufflenet_v2_x0_5"
    torch.save(
        torchvision.models.get_model(name, weights=None).state_dict(), tmp_path / "weights.pth"
    )
    config = TeacherConfig(
        name=f"torchvision:{name}", checkpoint=str(tmp_path / "weights.pth"), input_size=40
    )
    teacher = open_teacher(config)
    control = untrained(config, teacher, seed=0)
    assert type(control.backbone) is type(teacher.backbone)
    pixels = torch.rand(2, 3, 16, 16)
    assert torch.equal(control.prepare(pixels), teacher.prepare(pixels))
    assert control(pixels).shape == (2, teacher.num_features)


def test_a_transformers_control_takes_the_teachers_image_size(tmp_path):
    timm = pytest.importorskip("timm")
    name = "vit_tiny_patch16_224"
    torch.save(timm.create_model(name).state_dict(), tmp_path / "weights.pth")
    config = TeacherConfig(
        name=f"timm:{name}", checkpoint=str(tmp_path / "weights.pth"), input_size=32
    )
    teacher = open_teacher(config)
    control = untrained(config, teacher, seed=0)
    assert control(torch.rand(2, 3, 32, 32)).shape == (2, teacher.num_features)


def plain(backbone):
    return Teacher("plain", backbone, num_features=3, mean=None, std=None, input_size=None,
                   head=None, head_kind="none")  # fmt: skip


def test_batchnorm_statistics_are_those_of_the_images(reader):
    images = draw_images("statistics", [0, 1, 2, 3] * 2)  # two batches of four
    norm = nn.BatchNorm2d(3)
    norm.running_mean += 7
    teacher = plain(norm)
    reader.measure_batchnorm(teacher, images, seed=0)
    pixels = torch.from_numpy(np.asarray(images.images)).float() / 255
    torch.testing.assert_close(norm.running_mean, pixels.mean((0, 2, 3)))
    assert norm.num_batches_tracked == 2
    assert not any(module.training for module in teacher.modules())


def test_a_network_without_batchnorm_is_left_as_it_is(reader, told):
    network = nn.Conv2d(3, 3, 1)
    before = copy.deepcopy(network.state_dict())
    reader.measure_batchnorm(plain(network), draw_images("statistics", [0, 1]), seed=0)
    assert told == []
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
