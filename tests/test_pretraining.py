"""Methods, checkpoints, probe and card of a pre-training."""

import hashlib
import json

import numpy as np
import pytest
import torch
from torch import nn

from fedkd import config
from fedkd.data.catalog import load_splits
from fedkd.data.images import Splits
from fedkd.data.sets.lesions import LesionsConfig
from fedkd.errors import ConfigError, TeacherError
from fedkd.pretraining import training
from fedkd.pretraining.config import PretrainConfig
from fedkd.pretraining.pretrain import pretrain
from fedkd.probing import worth
from fedkd.probing.controls import Reader
from fedkd.teachers.config import TeacherConfig
from fedkd.teachers.loading import open_teacher
from fedkd.teachers.stored import load_pretrained
from fedkd.teachers.zoo import WEIGHTS
from server.commands.probe import probed_recipe

TINY = {
    "name": "tiny", "seed": 5, "num_images": 16, "source_size": 16, "view_size": 8,
    "reading_size": 16, "steps": 4, "warm_up_steps": 1, "batch_size": 8, "num_hidden": 6,
    "num_outputs": 4, "statistics_batches": 2, "queue_size": 12, "checkpoint_minutes": 0,
}  # fmt: skip
LESIONS = {
    "name": "lesions", "size": 16, "num_train": 60, "imbalance_factor": 4, "num_val_per_class": 2,
    "num_test_per_class": 1,
}  # fmt: skip


def recipe(**changes):
    return config.build(PretrainConfig, TINY | changes)


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def card_of(path):
    return json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))


def interrupt_at(step):
    def progress(done, total, values):
        if done == step:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize(
    ("method", "optimizer"), [("simclr", "adamw"), ("moco_v2", "adamw"), ("moco_v2", "sgd")]
)
def test_an_interrupted_pre_training_ends_with_the_bits_of_one_that_was_not(
    tmp_path, method, optimizer
):
    settings = recipe(method=method, optimizer=optimizer, precision="float32")
    whole = pretrain(settings, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        pretrain(settings, tmp_path / "parts", interrupt_at(3))
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["tiny.checkpoint.pt"]
    told = []
    parts = pretrain(settings, tmp_path / "parts", lambda *args: told.append(args[0]))
    assert told == [4]  # what was interrupted after step 3 has left a checkpoint
    assert sha256(parts) == sha256(whole)
    assert sorted(path.name for path in parts.parent.iterdir()) == ["tiny.json", "tiny.safetensors"]


def test_an_interruption_after_training_repeats_no_step(tmp_path, monkeypatch):
    settings = recipe()

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("fedkd.pretraining.pretrain.measure_statistics", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pretrain(settings, tmp_path)
    monkeypatch.undo()
    told = []
    path = pretrain(settings, tmp_path, lambda *args: told.append(args))
    assert told == []
    assert sha256(path) == sha256(pretrain(settings, tmp_path / "whole"))


def test_another_recipe_does_not_go_on(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        pretrain(recipe(), tmp_path, interrupt_at(2))
    text = (
        r"the unfinished pre-training .*tiny\.checkpoint\.pt is another one \(batch_size was "
        r"8, is 4; learning_rate was 0.004, is 0.001; method was default, is moco_v2\); "
        "finish it with its own config, choose another name, or delete it"
    )
    with pytest.raises(TeacherError, match=text):
        pretrain(recipe(batch_size=4, method="moco_v2"), tmp_path)


def test_other_images_do_not_go_on(tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        pretrain(recipe(), tmp_path, interrupt_at(2))
    monkeypatch.setattr("fedkd.pretraining.pretrain.content_hash", lambda images: "other")
    with pytest.raises(TeacherError, match=r"images \(their content\) was [0-9a-f]{64}, is other"):
        pretrain(recipe(), tmp_path)


def test_a_checkpoint_of_other_contents_is_refused(tmp_path):
    path = tmp_path / "tiny.checkpoint.pt"
    for content in ({"identity": "[1]"}, {"identity": "{}"}, [1]):
        torch.save(content, path)
        with pytest.raises(
            TeacherError, match=r"cannot read the checkpoint .*; delete it to start"
        ):
            pretrain(recipe(), tmp_path)


def test_a_teacher_that_will_be_replaced_is_warned_of(tmp_path, caplog):
    (tmp_path / "tiny.safetensors").write_bytes(b"of last night")
    pretrain(recipe(), tmp_path)
    assert "tiny.safetensors is there already; it will be replaced at the end" in caplog.text


def test_a_damaged_checkpoint_is_refused(tmp_path):
    (tmp_path / "tiny.checkpoint.pt").write_bytes(b"PK nonsense")
    with pytest.raises(TeacherError, match=r"cannot read the checkpoint .*; delete it to start"):
        pretrain(recipe(), tmp_path)


def test_a_checkpoint_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(training.torch, "save", full)
    with pytest.raises(TeacherError, match=r"cannot write the checkpoint .*No space.*--output"):
        pretrain(recipe(), tmp_path)


def test_a_loss_that_is_not_finite_is_refused(tmp_path):
    with pytest.raises(TeacherError, match=r"the loss is nan in step [23]; .*learning_rate"):
        pretrain(recipe(learning_rate=1e38, warm_up_steps=0, optimizer="sgd"), tmp_path)


def test_weights_that_are_not_finite_after_the_last_step_are_refused(tmp_path):
    settings = recipe(steps=1, warm_up_steps=0, optimizer="sgd")
    with pytest.raises(TeacherError, match="weights are not finite after step 1, first .*float32"):
        pretrain(settings.model_copy(update={"learning_rate": float("inf")}), tmp_path)
    assert not (tmp_path / "tiny.safetensors").exists()


def test_views_that_leave_the_last_stages_a_single_pixel_are_refused():
    with pytest.raises(ConfigError, match="view_size is 16; it must be at least 32 with arch"):
        recipe(architecture="resnet50", view_size=16)


def test_learning_rate_rises_linearly_and_falls_along_a_cosine():
    settings = recipe(steps=6, warm_up_steps=2, learning_rate=1.0)
    rates = [training.learning_rate(step, settings) for step in range(6)]
    half = 0.5**0.5 / 2
    assert rates == pytest.approx([0.5, 1, 1, 0.5 + half, 0.5, 0.5 - half])


def test_moco_writes_a_teacher_with_a_plain_head_that_opens(tmp_path):
    path = pretrain(recipe(method="moco_v2"), tmp_path)
    stored = load_pretrained(path)
    assert [type(layer) for layer in stored.head] == [nn.Linear, nn.ReLU, nn.Linear]
    teacher = open_teacher(TeacherConfig(name="pretrained", checkpoint=str(path)))
    assert teacher(torch.rand(2, 3, 16, 16)).shape == (2, 480)
    card = card_of(path)
    assert card["method"].startswith("MoCo v2 on one machine, without shuffled BatchNorm")
    assert (card["config"]["method"], card["licence"]) == ("moco_v2", "Apache-2.0")


def test_a_queue_is_at_most_half_as_long_as_there_are_images(tmp_path, caplog):
    caplog.set_level("INFO")
    pretrain(recipe(method="moco_v2", queue_size=4096), tmp_path)
    assert "queue: 8 keys" in caplog.text


def test_a_batch_larger_than_the_images_is_warned_of(tmp_path, caplog):
    pretrain(recipe(batch_size=20), tmp_path)
    assert "batch_size is 20, but there are 16 images" in caplog.text


def test_torchvision_architectures_are_trained_and_open(tmp_path):
    settings = recipe(
        architecture="resnet18", method="moco_v2", batch_size=4, steps=1, warm_up_steps=0,
        view_size=32,
    )  # fmt: skip
    path = pretrain(settings, tmp_path)
    teacher = open_teacher(TeacherConfig(name="pretrained", checkpoint=str(path)))
    assert teacher(torch.rand(2, 3, 32, 32)).shape == (2, 512)
    assert card_of(path)["architecture"] == "resnet18"


def test_probe_looks_at_val_every_so_often_changes_no_weight_and_stands_in_the_card(tmp_path):
    plain = pretrain(recipe(precision="float32"), tmp_path)
    settings = recipe(precision="float32", probe={"data": LESIONS, "every": 2})
    path = pretrain(settings, tmp_path / "probed")
    assert sha256(path) == sha256(plain)
    history = card_of(path)["probe_history"]
    assert (history["data"], history["size"]) == ("lesions", 16)
    assert [row["step"] for row in history["rows"]] == [2, 4]
    knn = {"knn_balanced_accuracy", "knn_macro_auroc"}
    assert set(history["rows"][0]) == {"step", *knn}
    linear = {"linear_balanced_accuracy", "linear_macro_auroc"}
    assert set(history["rows"][1]) == {"step", *knn, *linear}
    assert "probe_history" not in card_of(plain)


def test_the_last_probe_is_what_fedkd_probe_says_of_the_file(tmp_path):
    path = pretrain(recipe(probe={"data": LESIONS}), tmp_path)
    made = probed_recipe(
        str(path), "lesions", [f"{k}={v}" for k, v in LESIONS.items() if k != "name"]
    )
    splits, teacher = load_splits(made.data), open_teacher(made.teacher)
    reader = Reader(torch.device("cpu"), 256, lambda *_: None)
    read = worth.read_features(made.teacher, teacher, splits, reader, 0, with_test=False)
    for row in worth.judge(splits, read, reader, 0):
        if row.features == worth.TEACHER:
            last = card_of(path)["probe_history"]["rows"][-1]
            expected = last[f"{row.method}_balanced_accuracy"]
            assert row.scores.balanced_accuracy == pytest.approx(expected, abs=1e-4)


def test_a_probe_of_val_images_of_one_class_leaves_valid_json(tmp_path, monkeypatch):
    splits = load_splits(config.build(LesionsConfig, LESIONS))
    val = splits.val.subset(np.flatnonzero(splits.val.labels == 0))
    one = Splits(splits.train, val, splits.test)
    monkeypatch.setattr("fedkd.pretraining.probing.load_splits", lambda _: one)
    rows = card_of(pretrain(recipe(probe={"data": LESIONS}), tmp_path))["probe_history"]["rows"]
    assert rows[0]["knn_macro_auroc"] is None
    assert rows[0]["linear_macro_auroc"] is None


def test_probe_history_survives_an_interruption(tmp_path):
    settings = recipe(probe={"data": LESIONS, "every": 1})
    with pytest.raises(KeyboardInterrupt):
        pretrain(settings, tmp_path, interrupt_at(3))
    path = pretrain(settings, tmp_path)
    assert [row["step"] for row in card_of(path)["probe_history"]["rows"]] == [1, 2, 3, 4]


def test_card_says_how_many_images_and_their_hash_but_no_place(tmp_path):
    settings = recipe(images={"source": "data", "data": LESIONS}, device="cpu")
    card = card_of(pretrain(settings, tmp_path))
    assert card["data"] == "60 images of the training split of lesions"
    assert len(card["images_sha256"]) == 64
    assert card["licence"] == "that of your images"
    assert card["config"]["images"]["data"]["num_train"] == 60
    assert "num_images" not in card["config"]
    assert card["device"] == "cpu"
    assert card["seconds"] > 0


def test_a_recipe_that_is_older_than_the_keys_records_what_it_always_did():
    values = PretrainConfig(device="cpu", checkpoint_minutes=1).record()
    assert list(values) == [
        "name", "seed", "num_images", "source_size", "view_size", "reading_size", "steps",
        "warm_up_steps", "batch_size", "temperature", "learning_rate", "weight_decay", "precision",
        "num_hidden", "num_outputs", "statistics_batches",
    ]  # fmt: skip
    assert PretrainConfig(momentum=0.99).record()["momentum"] == 0.99


def test_moco_has_a_learning_rate_of_its_own_unless_one_is_given():
    assert PretrainConfig().learning_rate == 4e-3
    assert PretrainConfig(method="moco_v2").record()["learning_rate"] == 1e-3
    assert PretrainConfig(method="moco_v2", learning_rate=0.03).learning_rate == 0.03


def test_an_unknown_device_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="device is 'tpu'; it must be auto, cpu, cuda"):
        pretrain(recipe(device="tpu"), tmp_path)


def convolutions(network):
    return {n: m.weight for n, m in network.named_modules() if isinstance(m, nn.Conv2d)}


@pytest.mark.parametrize("method", ["simclr", "moco_v2"])
def test_it_can_begin_with_the_embedded_teacher(tmp_path, method):
    still = {"init": "default", "learning_rate": 1e-12, "num_hidden": 256, "num_outputs": 128}
    path = pretrain(recipe(method=method, **still), tmp_path)
    made, embedded = load_pretrained(path), load_pretrained(WEIGHTS / "default.safetensors")
    ours, theirs = convolutions(made.backbone), convolutions(embedded.backbone)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    # The embedded teacher's own head has BatchNorm, as simclr's, and moco_v2's has none.
    same_head = method == "simclr" and torch.equal(made.head[0].weight, embedded.head[0].weight)
    assert same_head == (method == "simclr")
    assert card_of(path)["method"].endswith(", from the embedded teacher's weights")
    assert card_of(path)["config"]["init"] == "default"


def test_a_head_of_other_widths_is_drawn(tmp_path):
    path = pretrain(recipe(init="default", learning_rate=1e-12), tmp_path)
    assert load_pretrained(path).head[0].weight.shape == (6, 256)


def test_only_its_own_network_begins_with_the_embedded_teacher():
    with pytest.raises(ConfigError) as caught:
        recipe(init="default", architecture="resnet18", view_size=32)
    assert "init is 'default' but architecture is 'resnet18'; the embedded" in str(caught.value)
