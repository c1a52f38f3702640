"""MoCo-v2 teachers, from files in the format of its authors (random weights here)."""

from dataclasses import replace

import pytest
import torch
import torchvision
from torch import nn

from fedkd import seeding
from fedkd.errors import TeacherError
from fedkd.teachers.config import TeacherConfig
from fedkd.teachers.layouts.moco_v2 import open_moco
from fedkd.teachers.loading import open_teacher
from fedkd.teachers.zoo import CARDS
from tests.test_zoo import digest, refusal

SMALL = replace(CARDS["moco_v2_r50"], architecture="resnet18")


@pytest.fixture(scope="module")
def network():
    """ResNet-50 with MoCo-v2's head."""
    with seeding.isolated(0, "moco"):
        net = torchvision.models.resnet50(weights=None)
        net.fc = nn.Sequential(nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 128))
    return net.eval()


@pytest.fixture(scope="module")
def checkpoint(network, tmp_path_factory):
    """Query encoder, another key encoder, the queue, and what else the authors' file holds."""
    state = {f"module.encoder_q.{name}": tensor for name, tensor in network.state_dict().items()}
    state |= {name.replace("_q.", "_k."): torch.zeros_like(t) for name, t in state.items()}
    state |= {"module.queue": torch.zeros(128, 16), "module.queue_ptr": torch.zeros(1)}
    path = tmp_path_factory.mktemp("moco") / "moco_v2_800ep_pretrain.pth.tar"
    torch.save({"epoch": 800, "arch": "resnet50", "state_dict": state, "optimizer": {}}, path)
    return path


def test_features_and_embeddings_are_those_of_the_query_encoder(network, checkpoint):
    config = TeacherConfig(
        name="moco_v2_r50",
        checkpoint=str(checkpoint),
        sha256=digest(checkpoint),
        input_size="as_is",
    )
    teacher = open_teacher(config)
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    seen = teacher.observe(pixels)
    assert seen.features.shape == (2, teacher.num_features) == (2, 2048)
    assert teacher.head_kind == "contrastive"
    assert not any(p.requires_grad for p in teacher.parameters())
    with torch.no_grad():
        torch.testing.assert_close(seen.head_output, network((pixels - mean) / std))


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"state_dict": {"fc.weight": torch.zeros(1)}}, path)
    text = refusal(TeacherConfig(name="moco_v2_r50", checkpoint=str(path), sha256=digest(path)[:8]))
    assert "does not fit resnet50" in text
    assert "missing conv1.weight" in text


def of_authors(prefix="module.encoder_q."):
    """A small network with a head, by the authors' names."""
    with seeding.isolated(0, "moco"):
        net = torchvision.models.resnet18(weights=None)
    net.fc = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 128))
    return {f"{prefix}{name}": tensor for name, tensor in net.state_dict().items()}


def test_without_the_head_of_the_query_encoder_there_is_none(tmp_path, caplog):
    path = tmp_path / "moco.pth"
    state = {key: t for key, t in of_authors("encoder_q.").items() if ".fc." not in key}
    torch.save(state, path)
    parts = open_moco(SMALL, path, 224)
    assert (parts.head, parts.num_features, parts.input_size) == (None, 512, 224)
    assert caplog.messages[-1].startswith(f"{path} holds no head")


def test_half_a_head_is_refused(tmp_path):
    path = tmp_path / "moco.pth"
    state = of_authors()
    del state["module.encoder_q.fc.2.bias"]
    torch.save({"state_dict": state}, path)
    with pytest.raises(TeacherError) as caught:
        open_moco(SMALL, path, 224)
    assert str(caught.value) == f"{path} does not fit resnet18: 1 problem(s): missing fc.2.bias"
