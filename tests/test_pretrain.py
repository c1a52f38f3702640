import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from fedkd import config
from fedkd.data.dead_leaves import dead_leaves
from fedkd.errors import ConfigError, TeacherError
from fedkd.pretraining.config import PretrainConfig
from fedkd.pretraining.images import normalize
from fedkd.pretraining.pretrain import pretrain
from fedkd.teachers.stored import load_pretrained

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ROOT / "fedkd" / "teachers" / "weights" / "default.safetensors"
TINY = PretrainConfig(
    name="tiny",
    seed=5,
    num_images=16,
    source_size=16,
    view_size=8,
    reading_size=16,
    steps=3,
    warm_up_steps=1,
    batch_size=8,
    statistics_batches=2,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A tiny run: the path of its file and what it told while it ran."""
    told = []
    path = pretrain(TINY, tmp_path_factory.mktemp("made"), lambda *args: told.append(args))
    return path, told


@pytest.fixture
def card():
    return json.loads(SHIPPED.with_suffix(".json").read_text(encoding="utf-8"))


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def rewrite(path, target, metadata=None, **changes):
    """Copy a teacher's file with tensors replaced, or left out where the change is None."""
    with safe_open(path, framework="pt") as file:
        own = file.metadata()
    tensors = load_file(path) | changes
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, target, own if metadata is None else metadata)
    return target


def batchnorm_gaps(backbone, pixels):
    """Per BatchNorm layer, mean over channels of KL(batch moments || running statistics)."""
    gaps = {}

    def watch(name):
        def hook(module, inputs):
            mean, var = inputs[0].mean((0, 2, 3)), inputs[0].var((0, 2, 3))
            ratio = (var + (mean - module.running_mean) ** 2) / module.running_var
            logarithm = torch.log(module.running_var / var)
            gaps[name] = float((0.5 * (logarithm + ratio - 1)).mean())

        return hook

    hooks = [
        module.register_forward_pre_hook(watch(name))
        for name, module in backbone.named_modules()
        if isinstance(module, nn.BatchNorm2d)
    ]
    with torch.no_grad():
        backbone(normalize(torch.from_numpy(pixels) / 255))
    for hook in hooks:
        hook.remove()
    return gaps


def test_every_step_is_told_with_its_loss(made):
    assert [(step, total) for step, total, _ in made[1]] == [(1, 3), (2, 3), (3, 3)]
    assert all(0 < values["loss"] < 100 for _, _, values in made[1])


def test_same_recipe_gives_the_same_file_whatever_its_name(made, tmp_path):
    again = pretrain(TINY.model_copy(update={"name": "other"}), tmp_path)
    assert again == tmp_path / "other.safetensors"
    assert sha256(again) == sha256(made[0])


def test_another_seed_gives_another_file(made, tmp_path):
    other = pretrain(TINY.model_copy(update={"seed": 6}), tmp_path)
    assert sha256(other) != sha256(made[0])


def test_only_the_file_and_its_card_are_left(made):
    names = sorted(path.name for path in made[0].parent.iterdir())
    assert names == ["tiny.json", "tiny.safetensors"]


def test_weights_are_stored_as_float16_and_batchnorm_as_it_is(made):
    for name, tensor in load_file(made[0]).items():
        if name.endswith("num_batches_tracked"):
            assert tensor.dtype == torch.int64, name
        elif "bn" in name or "downsample.1" in name or "projector.1" in name:
            assert tensor.dtype == torch.float32, name
        else:
            assert tensor.dtype == torch.float16, name


def test_loading_gives_the_stored_values_in_float32_ready_to_read(made):
    teacher = load_pretrained(made[0])
    backbone, projector = teacher.backbone, teacher.head
    stored = load_file(made[0])
    for prefix, network in (("backbone.", backbone), ("projector.", projector)):
        assert not network.training
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, stored.pop(prefix + name).to(tensor.dtype)), name
    assert not stored
    assert all(tensor.dtype == torch.float32 for tensor in backbone.parameters())
    with safe_open(made[0], framework="pt") as file:
        metadata = file.metadata()
    assert metadata["architecture"] == teacher.architecture == "resnet10"
    assert metadata["reading_size"] == "16"
    assert teacher.mean == (0.5, 0.5, 0.5)
    assert json.loads(metadata["config"])["seed"] == 5


def test_loading_leaves_the_global_random_stream_alone(made):
    before = torch.random.get_rng_state()
    load_pretrained(made[0])
    assert torch.equal(before, torch.random.get_rng_state())


def test_card_describes_the_file(made):
    card = json.loads(made[0].with_suffix(".json").read_text(encoding="utf-8"))
    assert card["sha256"] == sha256(made[0])
    assert card["size_bytes"] == made[0].stat().st_size
    assert card["config"] == TINY.record()
    assert (card["num_features"], card["head"], card["licence"]) == (
        480,
        "contrastive",
        "Apache-2.0",
    )


def test_training_moves_weights_and_statistics(made):
    teacher = load_pretrained(made[0])
    backbone, projector = teacher.backbone, teacher.head
    for network in (backbone, projector):
        for module in network.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                assert not torch.equal(module.weight, torch.ones_like(module.weight))
                assert not torch.equal(module.running_var, torch.ones_like(module.running_var))
                assert module.num_batches_tracked == TINY.statistics_batches


def test_missing_tensor_is_named(made, tmp_path):
    path = rewrite(made[0], tmp_path / "a.safetensors", **{"backbone.conv1.weight": None})
    with pytest.raises(TeacherError, match=r"a\.safetensors does not fit.*missing backbone\.conv1"):
        load_pretrained(path)


def test_tensor_of_wrong_shape_is_named(made, tmp_path):
    change = {"projector.0.weight": torch.zeros(2, 2)}
    path = rewrite(made[0], tmp_path / "a.safetensors", **change)
    with pytest.raises(TeacherError, match=r"projector\.0\.weight has shape \(2, 2\)"):
        load_pretrained(path)


def test_a_tensor_too_many_is_named(made, tmp_path):
    path = rewrite(made[0], tmp_path / "a.safetensors", more=torch.zeros(1))
    with pytest.raises(TeacherError, match="does not fit resnet10: .* unexpected more"):
        load_pretrained(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("architecture", None),
        ("architecture", "resnet9"),
        ("projector", None),
        ("projector", "x"),
        ("mean", "[0, 1]"),
        ("mean", "[NaN, 0, 0]"),
        ("std", "[0, 1, 1]"),
    ],
)
def test_a_damaged_header_is_refused(made, tmp_path, key, value):
    with safe_open(made[0], framework="pt") as file:
        own = file.metadata()
    changed = {name: text for name, text in {**own, key: value}.items() if text is not None}
    path = rewrite(made[0], tmp_path / "a.safetensors", metadata=changed)
    with pytest.raises(TeacherError, match=f"cannot read the teacher {path}: its header is dam"):
        load_pretrained(path)


def test_file_of_another_kind_is_refused(made, tmp_path):
    path = rewrite(made[0], tmp_path / "a.safetensors", metadata={"format": "pt"})
    with pytest.raises(TeacherError, match=r"not a teacher that `fedkd pretrain` wrote.*'pt'"):
        load_pretrained(path)


def test_damaged_file_is_refused(made, tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(made[0].read_bytes()[:1000])
    with pytest.raises(TeacherError, match=r"cannot read the teacher .*a\.safetensors"):
        load_pretrained(path)


def test_warm_up_as_long_as_training_is_refused():
    with pytest.raises(ConfigError, match="warm_up_steps is 5; it must be below steps = 5"):
        config.build(PretrainConfig, {"steps": 5, "warm_up_steps": 5})


def test_shipped_file_is_the_one_of_its_card(card):
    assert card["sha256"] == sha256(SHIPPED)
    assert card["size_bytes"] == SHIPPED.stat().st_size <= 4_000_000
    teacher = load_pretrained(SHIPPED)
    backbone = teacher.backbone
    assert card["num_features"] == backbone.num_features == 480
    assert card["num_parameters"] == sum(value.numel() for value in backbone.parameters())
    assert card["mean"] == list(teacher.mean)
    assert card["std"] == list(teacher.std)


def test_shipped_recipe_is_the_one_of_the_card(card):
    recipe = config.load(PretrainConfig, ROOT / "configs" / "pretrain_default.toml")
    assert card["config"] == recipe.record()
    assert card["name"] == recipe.name == "default"


def test_shipped_card_shows_the_probe_on_val_and_test(card):
    rows = {(row["features"], row["split"]): row for row in card["probe"]["table"]}
    for split in ("val", "test"):
        ours, raw = rows["teacher", split], rows["raw 16x16 pixels", split]
        assert ours["seeds"] == 3
        assert ours["balanced_accuracy"] > raw["balanced_accuracy"]
        assert ours["macro_auroc"] > raw["macro_auroc"]


def test_shipped_statistics_are_those_of_dead_leaves_at_the_reading_size(card):
    backbone = load_pretrained(SHIPPED).backbone
    size = card["reading_size"]
    natural = batchnorm_gaps(backbone, dead_leaves(64, size, seed=1000))
    flat = batchnorm_gaps(backbone, np.full((8, 3, size, size), 128, np.uint8))
    assert len(natural) == 12
    assert max(natural.values()) < 0.02
    assert sum(flat.values()) > 20 * sum(natural.values())


def test_shipped_features_are_finite_and_tell_images_apart():
    teacher = load_pretrained(SHIPPED)
    backbone, projector = teacher.backbone, teacher.head
    with torch.no_grad():
        features = backbone(normalize(torch.from_numpy(dead_leaves(16, 64, seed=1)) / 255))
        outputs = projector(features[:, -256:])
    assert torch.isfinite(features).all()
    assert torch.isfinite(outputs).all()
    similarity = nn.functional.cosine_similarity(outputs[:, None], outputs[None], dim=2)
    assert similarity.fill_diagonal_(0).max() < 0.95
