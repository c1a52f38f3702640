"""Teachers by name: the shipped default, pretrained files, their config and reference moments."""

import hashlib
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fedkd import config
from fedkd.errors import ConfigError, TeacherError
from fedkd.models import states
from fedkd.teachers import zoo
from fedkd.teachers.config import TeacherConfig
from fedkd.teachers.frozen import Teacher
from fedkd.teachers.loading import open_teacher

DEFAULT = zoo.WEIGHTS / "default.safetensors"


def pixels(size=32, num=4):
    return torch.rand(num, 3, size, size, generator=torch.Generator().manual_seed(0))


def refusal(settings, error=TeacherError):
    with pytest.raises(error) as caught:
        open_teacher(settings)
    return str(caught.value)


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


# The default


def test_the_default_teacher_is_frozen_and_needs_no_setting():
    teacher = open_teacher(TeacherConfig())
    assert isinstance(teacher, Teacher)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not any(module.training for module in teacher.modules())
    features = teacher.features(pixels())
    assert features.shape == (4, teacher.num_features)
    assert features.isfinite().all()


def test_the_default_teacher_has_a_contrastive_head_and_true_batchnorm_statistics():
    teacher = open_teacher(TeacherConfig())
    assert teacher.head_kind == "contrastive"
    assert teacher.has_reference
    seen = teacher.observe(pixels())
    assert set(seen.moments) == set(teacher.reference)
    last = teacher.head(seen.features[:, -256:])
    assert torch.equal(seen.head_output, last), "the head takes the last stage"


def test_the_shipped_weights_are_small_and_their_card_names_their_hash():
    card = json.loads((zoo.WEIGHTS / "default.json").read_text())
    assert card["sha256"] == digest(DEFAULT)
    assert DEFAULT.stat().st_size <= 4 * 2**20
    assert card["num_features"] == open_teacher(TeacherConfig()).num_features


def test_damaged_shipped_weights_are_refused(tmp_path, monkeypatch):
    content = bytearray(DEFAULT.read_bytes())
    content[-1] ^= 1
    (tmp_path / "default.safetensors").write_bytes(content)
    (tmp_path / "default.json").write_text((zoo.WEIGHTS / "default.json").read_text())
    monkeypatch.setattr(zoo, "WEIGHTS", tmp_path)
    assert "the file is damaged or another one" in refusal(TeacherConfig())


def test_a_hash_given_for_the_shipped_weights_is_checked():
    assert "expected 00000000... (a beginning)" in refusal(TeacherConfig(sha256="0" * 8))


# Files that `fedkd pretrain` wrote


def pretrained(path, **values):
    return TeacherConfig(name="pretrained", checkpoint=str(path), **values)


def test_a_pretrained_file_gives_the_same_teacher(tmp_path):
    path = tmp_path / "mine.safetensors"
    path.write_bytes(DEFAULT.read_bytes())
    teacher = open_teacher(pretrained(path, sha256=digest(path).upper(), input_size=24))
    default = open_teacher(TeacherConfig(input_size=24))
    assert states.sha256(teacher.state_dict()) == states.sha256(default.state_dict())
    assert torch.equal(teacher.features(pixels()), default.features(pixels()))
    plain = open_teacher(TeacherConfig())
    assert not torch.equal(teacher.features(pixels()), plain.features(pixels())), "input_size"


def test_a_safetensors_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    assert "is not a teacher that `fedkd pretrain` wrote (format None" in refusal(pretrained(path))


def test_a_pretrained_file_without_a_tensor_is_refused_by_its_name(tmp_path):
    with safe_open(DEFAULT, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(DEFAULT)
    del tensors["backbone.conv1.weight"]
    path = tmp_path / "part.safetensors"
    save_file(tensors, path, metadata)
    text = refusal(pretrained(path))
    assert "does not fit resnet10: 1 problem(s): missing backbone.conv1.weight" in text


def test_a_pretrained_file_that_is_no_safetensors_is_refused(tmp_path):
    path = tmp_path / "broken.safetensors"
    path.write_bytes(b"nothing of the kind")
    assert f"cannot read the teacher {path}" in refusal(pretrained(path))


# The config


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (
            {"name": "torchvision:resnet18"},
            "teacher.checkpoint must name a file when teacher.name is torchvision:resnet18",
        ),
        (
            {"name": "pretrained"},
            "teacher.checkpoint must name a file when teacher.name is pretrained",
        ),
        (
            {"checkpoint": "mine.pth"},
            "teacher.checkpoint is 'mine.pth', but teacher.name = 'default' is the shipped teacher",
        ),
        *(
            ({"input_size": size}, "input_size: it is .*; it must be 'native', 'as_is' or px >= 16")
            for size in (15, True, 20.5, "small")
        ),
        ({"std": (0.1, 0.0, 0.1)}, r"teacher.std is \(0.1, 0.0, 0.1\); every value must be > 0"),
        ({"reference_images": 31}, "reference_images is 31 in .* greater than or equal to 32"),
        (
            {"sha256": "abc"},
            "teacher.sha256 is 'abc'; it must be 8 to 64 hexadecimal digits, as `sha256sum FILE`",
        ),
        ({"name": "dino"}, "teacher.name is 'dino'; did you mean dino_vits16"),
    ],
)
def test_incomplete_settings_are_refused(values, text):
    with pytest.raises(ConfigError, match=text):
        config.build(TeacherConfig, values)


@pytest.mark.parametrize(
    ("model", "side", "mean"),
    [("resnet18", 224, 0.485), ("efficientnet_b4", 380, 0.485), ("efficientnet_v2_l", 480, 0.5)],
)
def test_a_model_of_torchvision_has_the_input_of_torchvisions_own_weights(model, side, mean):
    card = zoo.card_of(f"torchvision:{model}")
    assert (card.input_size, card.mean[0]) == (side, mean)


def test_the_card_of_the_default_says_what_stands_beside_its_weights():
    beside = json.loads(DEFAULT.with_suffix(".json").read_text())
    card = zoo.CARDS["default"]
    for key in ("name", "architecture", "num_features", "head", "method", "data", "licence"):
        assert getattr(card, key) == beside[key], key
    assert [list(card.mean), list(card.std)] == [beside["mean"], beside["std"]]
