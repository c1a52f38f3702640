"""Teachers from torchvision: their head, and files that do not fit."""

from pathlib import Path

import pytest
import torch
import torchvision

from fedkd import config, seeding
from fedkd.errors import ConfigError, TeacherError
from fedkd.recipe import Recipe
from fedkd.teachers.config import TeacherConfig
from fedkd.teachers.layouts import from_torchvision as from_torchvision_module
from fedkd.teachers.loading import open_teacher
from fedkd.teachers.opening import open_teachers
from tests.test_zoo import digest, refusal

SMALL = "shufflenet_v2_x0_5"


def pixels(size=32, num=4):
    return torch.rand(num, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def network():
    """A small torchvision classifier with random weights."""
    with seeding.isolated(0, "zoo"):
        return torchvision.models.get_model(SMALL, weights=None).eval()


@pytest.fixture
def checkpoint(network, tmp_path):
    """Its weights in a file."""
    path = tmp_path / "weights.pth"
    torch.save(network.state_dict(), path)
    return path


def from_torchvision(path, **values):
    values = {
        "name": f"torchvision:{SMALL}",
        "input_size": "as_is",
        "checkpoint": str(path),
        **values,
    }
    return TeacherConfig(**values)


def test_a_torchvision_teacher_gives_the_features_and_logits_of_its_network(network, checkpoint):
    teacher = open_teacher(from_torchvision(checkpoint, sha256=digest(checkpoint)))
    x = pixels()
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    seen = teacher.observe(x)
    assert seen.features.shape == (4, teacher.num_features)
    with torch.no_grad():
        torch.testing.assert_close(seen.head_output, network((x - mean) / std))
    assert teacher.head_kind == "supervised"
    assert teacher.name == f"torchvision:{SMALL}"


def test_mean_std_and_input_size_belong_to_the_teacher(checkpoint):
    first = open_teacher(from_torchvision(checkpoint))
    second = open_teacher(
        from_torchvision(checkpoint, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), input_size=64)
    )
    assert torch.equal(second.prepare(pixels(64)), pixels(64))
    assert second.prepare(pixels(32)).shape == (4, 3, 64, 64)
    assert not torch.equal(first.prepare(pixels(64)), pixels(64))


def test_variables_in_the_path_are_filled_in(checkpoint, monkeypatch):
    monkeypatch.setenv("FEDKD_HERE", str(checkpoint.parent))
    assert open_teacher(from_torchvision("${FEDKD_HERE}/weights.pth")).name.endswith(SMALL)


def test_an_unset_variable_is_named(monkeypatch):
    monkeypatch.delenv("FEDKD_HERE", raising=False)
    text = refusal(from_torchvision("${FEDKD_HERE}/weights.pth"), ConfigError)
    assert text.startswith("teacher.checkpoint is '${FEDKD_HERE}/weights.pth' but the environment")
    assert "FEDKD_HERE is not set" in text


@pytest.mark.parametrize("name", [f"torchvision:{SMALL}", "pretrained"])
def test_a_missing_checkpoint_is_named(tmp_path, name):
    path = tmp_path / "absent.pth"
    text = refusal(from_torchvision(path, name=name))
    assert text == (
        f"teacher.checkpoint is {path}, but there is no such file; put it there or change the key"
    )


def test_a_folder_as_checkpoint_is_refused(tmp_path):
    assert "there is no such file" in refusal(from_torchvision(tmp_path))


def test_a_wrong_hash_shows_both(checkpoint):
    text = refusal(from_torchvision(checkpoint, sha256="00" * 32))
    assert text.startswith(
        f"{checkpoint} has sha256 {digest(checkpoint)}, expected {'00' * 32}; the file is damaged"
    )


def test_the_hash_is_checked_before_the_file_is_read(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"rubbish")
    assert "has sha256" in refusal(from_torchvision(path, sha256="00" * 32))


def test_keys_and_shapes_that_do_not_fit_are_listed(network, checkpoint):
    state = network.state_dict()
    del state["fc.bias"]
    state["head.bias"] = torch.zeros(3)
    state["fc.weight"] = torch.zeros(2, 2)
    state["conv1.0.weight"] = torch.zeros(1)
    torch.save(state, checkpoint)
    text = refusal(from_torchvision(checkpoint))
    assert text.startswith(f"{checkpoint} does not fit {SMALL}: 4 problem(s): missing fc.bias")
    assert "unexpected head.bias" in text
    assert "conv1.0.weight has shape (1,), expected (24, 3, 3, 3)" in text
    assert "fc.weight has shape (2, 2), expected (2, 1024)" in text


@pytest.mark.parametrize("weight", [torch.tensor(1.0), torch.zeros(0, 1024)])
def test_a_head_without_classes_is_refused(network, checkpoint, weight):
    torch.save({**network.state_dict(), "fc.weight": weight}, checkpoint)
    text = refusal(from_torchvision(checkpoint))
    assert f"fc.weight has shape {tuple(weight.shape)}, expected (1000, 1024)" in text


def test_the_number_of_classes_is_that_of_the_file(checkpoint):
    with seeding.isolated(0, "classes"):
        mine = torchvision.models.get_model(SMALL, weights=None, num_classes=7).eval()
    torch.save(mine.state_dict(), checkpoint)
    teacher = open_teacher(from_torchvision(checkpoint, mean=(0, 0, 0), std=(1, 1, 1)))
    with torch.no_grad():
        assert torch.equal(teacher.observe(pixels()).head_output, mine(pixels()))


def test_without_a_head_in_the_file_the_teacher_has_none_and_says_so(network, checkpoint, caplog):
    state = {key: t for key, t in network.state_dict().items() if not key.startswith("fc.")}
    whole = open_teacher(from_torchvision(checkpoint)).features(pixels())
    torch.save(state, checkpoint)
    teacher = open_teacher(from_torchvision(checkpoint))
    assert (teacher.head, teacher.head_kind) == (None, "none")
    assert torch.equal(teacher.features(pixels()), whole)
    assert caplog.messages == [
        f"{checkpoint} holds no head, so that the teacher has none; prompts compare its features "
        "instead"
    ]


def test_files_older_than_batchnorms_count_of_batches_fit(network, checkpoint):
    old = {k: t for k, t in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    expected = open_teacher(from_torchvision(checkpoint)).features(pixels())
    torch.save(old, checkpoint)
    assert torch.equal(open_teacher(from_torchvision(checkpoint)).features(pixels()), expected)


def test_the_state_dict_in_a_training_checkpoint_is_found(network, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": network.state_dict(), "epoch": 3}, path)
    assert open_teacher(from_torchvision(path)).name.endswith(SMALL)


@pytest.mark.parametrize("architecture", ["resnet-50", "fasterrcnn_resnet50_fpn", "raft_large"])
def test_an_unknown_architecture_is_refused(checkpoint, architecture):
    text = refusal(from_torchvision(checkpoint, name=f"torchvision:{architecture}"))
    assert text.startswith(f"teacher.name is 'torchvision:{architecture}', but torchvision has no")
    assert text.endswith(("did you mean resnet50 or resnet152 or resnet101?", "lists them"))


@pytest.fixture
def untrained(monkeypatch):
    """A function that opens an architecture with random weights, without a checkpoint."""

    def make(name, **values):
        network = torchvision.models.get_model(name, weights=None)
        monkeypatch.setattr(from_torchvision_module, "read_state", lambda _: network.state_dict())
        return from_torchvision(__file__, name=f"torchvision:{name}", **values)

    return make


HEADS = {
    "mobilenet_v2": "classifier: dropout, linear",
    "resnet18": "fc: linear",
    "densenet121": "classifier: linear",
    "mobilenet_v3_small": "classifier: two linear layers",
    "alexnet": "classifier: three linear layers",
    "convnext_tiny": "classifier: norm, flatten, linear",
    "vit_b_16": "heads: linear",
    "swin_t": "head: linear",
}


@pytest.mark.slow
@pytest.mark.parametrize("architecture", list(HEADS))
def test_the_last_linear_layer_is_taken_off_whatever_it_is_called(untrained, architecture):
    teacher = open_teacher(untrained(architecture, input_size=224))
    seen = teacher.observe(pixels(num=2))
    assert seen.features.shape == (2, teacher.num_features)
    assert seen.head_output.shape == (2, 1000)


def test_an_input_size_that_a_network_cannot_take_is_refused(untrained):
    text = refusal(untrained("densenet121", input_size=16))
    assert text.startswith("the teacher torchvision:densenet121 cannot take images of 16 px (")


def test_images_that_a_network_cannot_take_as_they_come_are_refused(untrained):
    settings = untrained("densenet121")
    with pytest.raises(TeacherError, match="densenet121 cannot take images of 16 px"):
        open_teachers(settings, None, ["a"], pixels(16), with_reference=False)


def test_an_architecture_without_a_last_linear_layer_is_refused(untrained):
    text = refusal(untrained("squeezenet1_1"))
    assert text.startswith(
        "teacher.name is 'torchvision:squeezenet1_1': SqueezeNet does not end in"
    )


@pytest.mark.realdata
def test_the_real_mobilenet_opens_from_the_ham10000_recipe(realdata, monkeypatch):
    monkeypatch.setenv("FEDKD_DATA", str(realdata))
    path = Path(__file__).parents[1] / "configs" / "ham10000_sites.toml"
    settings = config.load(Recipe, path).teacher
    teacher = open_teacher(settings)
    assert teacher.features(pixels(64, 2)).shape == (2, 1280)
    assert teacher.name == settings.name
