"""Teachers from timm (random weights here)."""

import re
import sys

import pytest
import torch

from fedkd import seeding
from fedkd.errors import DependencyError
from fedkd.teachers.config import TeacherConfig
from fedkd.teachers.loading import open_teacher
from tests.test_zoo import refusal

PIXELS = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
RESNET, DINO = "resnet10t", "vit_small_patch14_dinov2"


@pytest.fixture(scope="module")
def timm():
    """timm, or a skip."""
    return pytest.importorskip("timm", reason="the extra timm is not installed")


def of_timm(architecture, path, **values):
    values = {"name": f"timm:{architecture}", "checkpoint": str(path), **values}
    return TeacherConfig(**values)


@pytest.mark.parametrize("model", [RESNET, "convnext_atto"])
def test_a_convolutional_model_gives_its_pooled_features(timm, tmp_path, model):
    with seeding.isolated(0, "timm"):
        network = timm.create_model(model, pretrained=False).eval()
    path = tmp_path / "weights.pth"
    torch.save(network.state_dict(), path)
    teacher = open_teacher(of_timm(model, path, input_size="as_is"))
    assert teacher.name == f"timm:{model}"
    card = timm.get_pretrained_cfg(model)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (card.mean, card.std))
    with torch.no_grad():
        expected = network.forward_head(
            network.forward_features((PIXELS - mean) / std), pre_logits=True
        )
    torch.testing.assert_close(teacher.features(PIXELS), expected)
    assert expected.shape == (2, teacher.num_features)


@pytest.mark.parametrize(
    "name", ["mobilenetv3_small_050", "deit_tiny_distilled_patch16_224", "levit_128s"]
)
def test_heads_of_several_layers_or_several_heads_are_taken_off(timm, tmp_path, name):
    path = tmp_path / "weights.pth"
    torch.save(timm.create_model(name, pretrained=False).state_dict(), path)
    teacher = open_teacher(of_timm(name, path))
    pixels = torch.zeros(2, 3, 64, 64)
    assert teacher.features(pixels).shape == (2, teacher.num_features)


@pytest.mark.parametrize(("name", "size"), [("test_vit", 17), ("test_convnext", 17)])
def test_an_input_size_that_a_model_cannot_take_is_refused(timm, tmp_path, name, size):
    path = tmp_path / "weights.pth"
    torch.save(timm.create_model(name, pretrained=False).state_dict(), path)
    text = refusal(of_timm(name, path, input_size=size))
    assert re.match(rf"the teacher timm:{name} cannot .* images of {size} px \(.+\); set", text)
    assert "\n" not in text


def test_dinov2_is_read_with_its_authors_names_and_resampled_to_the_input_size(timm, tmp_path):
    with seeding.isolated(0, "timm"):
        network = timm.create_model(DINO, pretrained=False, num_classes=0).eval()
    # The authors' file has the positions of 518 px, and a token that only pre-training uses.
    state = {**network.state_dict(), "mask_token": torch.zeros(1, 384)}
    path = tmp_path / "dinov2_vits14_pretrain.pth"
    torch.save(state, path)
    teacher = open_teacher(of_timm(DINO, path, input_size=56))
    assert teacher.backbone.pos_embed.shape == (1, 1 + 4 * 4, 384)
    assert teacher.features(PIXELS).shape == (2, 384)
    assert teacher.features(PIXELS).isfinite().all()
    assert torch.equal(teacher.backbone.blocks[3].ls1.gamma, network.blocks[3].ls1.gamma)


def test_a_file_of_another_model_is_refused(timm, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(timm.create_model(RESNET, pretrained=False).state_dict(), path)
    text = refusal(of_timm("resnet18", path))
    assert text.startswith(f"{path} does not fit resnet18: ")


def test_an_unknown_model_is_named_with_near_ones(timm, tmp_path):
    path = tmp_path / "weights.pth"
    path.touch()
    text = refusal(of_timm("vit_small_patch14_dinov3", path))
    assert (
        "but timm has no model 'vit_small_patch14_dinov3'; did you mean vit_small_patch16_dinov3"
        in text
    )


def test_without_timm_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "timm", None)
    path = tmp_path / "weights.pth"
    path.touch()
    text = refusal(of_timm(RESNET, path), DependencyError)
    assert "pip install 'fedkd[timm]'" in text
