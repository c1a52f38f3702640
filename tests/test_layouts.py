"""Known teachers' layouts, each on a small network of its family; test_frozen_zoo opens all."""

from dataclasses import replace

import pytest
import torch
import torchvision

from fedkd import seeding
from fedkd.errors import TeacherError
from fedkd.teachers.config import OneTeacherConfig
from fedkd.teachers.layouts.from_timm import open_timm
from fedkd.teachers.layouts.radimagenet import open_radimagenet
from fedkd.teachers.loading import open_teacher, weights_path
from fedkd.teachers.zoo import CARDS
from tests.teacher_files import settings, state_of, write_teacher_file
from tests.test_zoo import digest, refusal

PIXELS = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
RADIOLOGY = replace(CARDS["radimagenet_r50"], architecture="resnet18")
CAPTIONS = replace(CARDS["clip_vitb16"], architecture="vit_xsmall_patch16_clip_224")
TINY = "vit_tiny_patch16_224"


@pytest.fixture
def saved(tmp_path):
    """A function that writes the content of a file and gives its path."""

    def save(state):
        torch.save(state, tmp_path / "weights.pth")
        return tmp_path / "weights.pth"

    return save


@pytest.fixture(scope="module")
def timm():
    """timm, or a skip."""
    return pytest.importorskip("timm", reason="the extra timm is not installed")


# RadImageNet


@pytest.fixture(scope="module")
def radiology():
    """The content of a file in RadImageNet's layout."""
    return state_of(RADIOLOGY)


@pytest.fixture(scope="module")
def resnet(radiology):
    """torchvision's network with the same weights, by the order of its tensors alone."""
    network = torchvision.models.get_model(RADIOLOGY.architecture, weights=None)
    network.fc = torch.nn.Identity()
    network.load_state_dict(dict(zip(network.state_dict(), radiology.values(), strict=True)))
    return network.eval()


@pytest.mark.parametrize("prefix", ["", "module."])
def test_radimagenets_numbered_children_are_those_of_resnet(saved, radiology, resnet, prefix):
    assert {"backbone.0.weight", "backbone.1.bias", "backbone.7.1.conv2.weight"} < set(radiology)
    path = saved({prefix + name: tensor for name, tensor in radiology.items()})
    parts = open_radimagenet(RADIOLOGY, path, 96)
    with torch.no_grad():
        assert torch.equal(parts.backbone.eval()(PIXELS), resnet(PIXELS))
    assert (parts.head, parts.num_features, parts.input_size) == (None, 512, 96)


def test_radimagenet_is_read_with_torchvisions_names_too_without_a_classifier(
    saved, resnet, caplog
):
    caplog.set_level("INFO")
    path = saved({**resnet.state_dict(), "fc.weight": torch.zeros(165, 512)})
    parts = open_radimagenet(RADIOLOGY, path, None)
    with torch.no_grad():
        assert torch.equal(parts.backbone.eval()(PIXELS), resnet(PIXELS))
    assert caplog.messages == [f"{path} also holds a classifier, which is ignored: fc.weight"]


def test_another_extra_tensor_is_refused(saved, radiology):
    path = saved({**radiology, "backbone.10.weight": torch.zeros(1)})
    with pytest.raises(TeacherError, match=r"1 problem\(s\): unexpected 10.weight"):
        open_radimagenet(RADIOLOGY, path, None)


# CLIP


@pytest.fixture(scope="module")
def captions(timm):
    """The content of a file of OpenAI's, float16 and with their sizes beside."""
    sizes = {"input_resolution": 224, "context_length": 77, "vocab_size": 49408}
    state = {key: tensor.half() for key, tensor in state_of(CAPTIONS).items()}
    return {**state, **{key: torch.tensor(value) for key, value in sizes.items()}}


def test_clip_gives_features_before_its_projection_which_is_the_head(timm, captions, saved):
    with seeding.isolated(0, CAPTIONS.name):  # as the file was made
        network = timm.create_model(CAPTIONS.architecture, pretrained=False).eval()
    network.load_state_dict({key: t.half() for key, t in network.state_dict().items()})
    parts = open_timm(CAPTIONS, saved(captions), None)
    pixels = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = parts.backbone.eval()(pixels)
        expected = network.forward_head(network.forward_features(pixels), pre_logits=True)
        assert torch.equal(features, expected)
        assert torch.equal(parts.head(features), network(pixels))
    assert parts.num_features == features.shape[1] == 256
    assert parts.head.out_features == 512
    assert parts.input_size == 224


def test_clip_without_its_projection_has_no_head(captions, saved, caplog):
    path = saved({key: tensor for key, tensor in captions.items() if key != "visual.proj"})
    parts = open_timm(CAPTIONS, path, None)
    assert (parts.head, parts.num_features) == (None, 256)
    assert caplog.messages == [
        f"{path} holds no head, so that the teacher has none; prompts compare its features instead"
    ]


# DINO and DINOv2


def test_timms_normalisation_can_be_changed_and_its_classifier_is_ignored(timm, saved, caplog):
    caplog.set_level("INFO")
    path = saved(timm.create_model(TINY, pretrained=False, num_classes=5).state_dict())
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    values = {"checkpoint": str(path), "input_size": 64, "mean": mean, "std": std}
    teacher = open_teacher(OneTeacherConfig(name=f"timm:{TINY}", **values))
    assert f"{path} also holds a classifier, which is ignored: head.weight, head.bias" in (
        caplog.messages
    )
    mean, std = (torch.tensor(channels).view(3, 1, 1) for channels in (mean, std))
    torch.testing.assert_close(teacher.prepare(PIXELS), (PIXELS - mean) / std)
    assert teacher.features(PIXELS).shape == (2, 192)


def test_a_transformer_of_one_size_takes_its_cards_where_images_come_as_they_are(timm, saved):
    card = replace(CARDS["dinov2_vits14"], architecture=TINY, input_size=64)
    state = {key: t for key, t in state_of(card).items() if not key.startswith("head.")}
    assert {"mask_token", "pos_embed"} < set(state), "the authors' names"
    parts = open_timm(card, saved(state), None)
    assert parts.input_size == 64
    assert parts.backbone.pos_embed.shape == (1, 1 + 4 * 4, 192)
    assert torch.equal(parts.backbone.cls_token, state["cls_token"])


def test_what_timm_cannot_convert_is_refused(timm, saved):
    path = saved({"pos_embed": torch.zeros(3)})
    text = refusal(OneTeacherConfig(name=f"timm:{TINY}", checkpoint=str(path)))
    assert text.startswith(f"{path} does not fit {TINY}: timm cannot convert its names (")
    assert text.endswith("it must be a checkpoint of this very model")


# Files that are not there, and hashes


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """An empty folder of teachers."""
    monkeypatch.setenv("FEDKD_TEACHERS", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", [name for name in CARDS if CARDS[name].fetchable])
def test_a_missing_file_is_named_with_its_place_address_and_hash(empty, name):
    download = CARDS[name].download
    algorithm, digits = ("sha256", download.sha256) if download.sha256 else ("md5", download.md5)
    whole = {"sha256": 64, "md5": 32}[algorithm]
    known = f"{algorithm} {digits}" if digits else "no hash is published"
    if digits and len(digits) < whole:
        known += "... (a beginning)"
    assert refusal(OneTeacherConfig(name=name)) == (
        f"the teacher {name} is not here; its file belongs at {empty / download.path}: run `fedkd "
        f"teachers fetch {name}`, or offline, get {download.url} ({known}) elsewhere and put it "
        "there"
    )


def test_without_a_download_the_steps_are_shown(empty):
    text = refusal(OneTeacherConfig(name="radimagenet_r50"))
    assert text == (
        f"the teacher radimagenet_r50 is not here; its file belongs at "
        f"{empty / 'radimagenet_r50.pt'} (sha256 {CARDS['radimagenet_r50'].download.sha256}): "
        f"{CARDS['radimagenet_r50'].steps}"
    )


def test_a_file_without_a_published_hash_must_be_the_one_that_was_fetched(empty):
    path = empty / CARDS["dino_vits16"].download.path
    path.write_bytes(b"changed since")
    path.with_name(f"{path.name}.sha256").write_text(f"{'ab' * 32}  {path.name}\n")
    text = refusal(OneTeacherConfig(name="dino_vits16"))
    assert text.startswith(f"{path} has sha256 {digest(path)}, expected {'ab' * 32}; the file is")


def test_the_published_hash_is_checked_unless_another_is_given(empty):
    path = write_teacher_file("resnet18_imagenet_v1", empty)
    config = OneTeacherConfig(name="resnet18_imagenet_v1")
    assert weights_path(config) == path
    text = refusal(config)
    assert text.startswith(f"{path} has sha256 {digest(path)}, expected f37072fd")
    assert text.endswith("or set teacher.sha256 to that of a file that you trust")
    assert open_teacher(settings("resnet18_imagenet_v1", empty)).head_kind == "supervised"
