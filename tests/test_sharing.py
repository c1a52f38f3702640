"""Weights that the processes of a machine share: the same bits, one file, never written to."""

import copy
import hashlib
import logging
import os
import stat
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fedkd import seeding
from fedkd.errors import ConfigError
from fedkd.models.small_resnet import SmallResNet
from fedkd.teachers import sharing
from fedkd.teachers.config import TeacherConfig
from fedkd.teachers.frozen import Teacher
from fedkd.teachers.opening import open_teachers
from fedkd.teachers.sharing import share

PIXELS = torch.rand(3, 3, 32, 32, generator=seeding.generator(0, "pixels"))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Where shared weights go; nothing is there at first."""
    monkeypatch.setenv("FEDKD_CACHE", str(tmp_path))
    return tmp_path / "teachers-shared"


def frozen(network):
    return Teacher(
        "t",
        network,
        num_features=1,
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.25, 0.3),
        input_size=None,
        head=None,
        head_kind="none",
    )


def convolutional(dtype=torch.float32):
    with seeding.isolated(0, "network"):
        network = SmallResNet((8, 16), all_stages=True)
        network.train()(PIXELS)
    return frozen(network).to(dtype).to(memory_format=torch.channels_last)


def transformer(dtype=torch.float32):
    timm = pytest.importorskip("timm", reason="the extra timm is not installed")
    with seeding.isolated(0, "network"):
        network = timm.create_model("deit_tiny_patch16_224", num_classes=0, img_size=32, depth=2)
    return frozen(network).to(dtype).to(memory_format=torch.channels_last)


class Odd(nn.Module):
    """Tensors as torch allows them: tied, transposed, expanded, strided, empty, 0-d, not floats."""

    def __init__(self):
        super().__init__()
        base = torch.arange(24.0).view(4, 6)
        self.first, self.second = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
        self.second.weight = self.first.weight
        self.transposed = nn.Parameter(base.t())
        self.register_buffer("sliced", base[:, ::2])
        self.register_buffer("expanded", torch.ones(1, 5).expand(3, 5))
        self.register_buffer("empty", torch.zeros(0, 3))
        self.register_buffer("count", torch.tensor(7))
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.register_buffer("rounded", torch.tensor([1.5, -0.0, float("nan")]).bfloat16())


def tensors_of(teacher):
    return {**dict(teacher.named_parameters()), **dict(teacher.named_buffers())}


def bits(tensor):
    return tensor.detach().contiguous().flatten().view(torch.uint8).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", [convolutional, transformer])
def test_features_and_gradients_are_those_of_the_teacher_that_is_not_shared(make, dtype):
    results = []
    for shares in (False, True):
        teacher = make(dtype)
        assert not shares or share(teacher) is not None
        pixels = PIXELS.to(dtype, copy=True).requires_grad_()
        seen = teacher.observe(pixels)
        (seen.features.sum() + sum(m.var.sum() for m in seen.moments.values())).backward()
        results.append((seen.features.detach(), pixels.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_every_tensor_keeps_its_identity_bits_and_memory_layout():
    teacher = convolutional()
    before = {name: (id(t), bits(t), t.stride()) for name, t in tensors_of(teacher).items()}
    assert share(teacher) is not None
    for name, tensor in tensors_of(teacher).items():
        assert (id(tensor), bits(tensor), tensor.stride()) == before[name], name
        assert not tensor.requires_grad
        assert tensor.data_ptr() % 64 == 0, name
    assert teacher.backbone.conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_tied_strided_and_tiny_tensors_are_shared_as_they_are():
    network = Odd()
    before = {name: (bits(t), t.shape, t.dtype) for name, t in tensors_of(network).items()}
    path = share(frozen(network))
    after = {name: (bits(t), t.shape, t.dtype) for name, t in tensors_of(network).items()}
    assert after == before
    assert network.second.weight is network.first.weight
    assert network.transposed.stride() == (1, 6), "dense: as it was"
    assert network.sliced.is_contiguous()
    # In bytes: first 144, transposed 96, sliced 48, expanded 60, and five smaller ones with mean
    # and std; each from a multiple of 64. A tied weight is there once, an empty one not at all.
    assert path.stat().st_size == 192 + 128 + 64 + 64 + 5 * 64


def test_the_file_is_named_by_what_it_holds_and_written_once(folder, monkeypatch):
    path = share(convolutional())
    assert path == folder / f"{hashlib.sha256(path.read_bytes()).hexdigest()}.bin"
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    monkeypatch.setattr(sharing, "_write", None)
    assert share(convolutional()) == path
    assert os.listdir(folder) == [path.name]


def test_another_dtype_or_memory_layout_is_another_file(folder):
    plain = convolutional().to(memory_format=torch.contiguous_format)
    assert len({share(convolutional()), share(convolutional(torch.float64)), share(plain)}) == 3


def test_writing_to_a_tensor_changes_neither_the_file_nor_another_teacher():
    first, second = convolutional(), convolutional()
    path = share(first)
    assert share(second) == path
    before = path.read_bytes()
    with torch.no_grad():
        first.backbone.conv1.weight.zero_()
        first.backbone.bn1.num_batches_tracked.add_(1)
    assert path.read_bytes() == before
    assert second.backbone.conv1.weight.abs().sum() > 0
    assert torch.equal(second.features(PIXELS), convolutional().features(PIXELS))


@pytest.mark.parametrize("damage", [lambda b: b[:-64], lambda b: b[:99] + b"\xff" + b[100:]])
def test_a_damaged_file_is_written_anew(damage, caplog):
    path = share(convolutional())
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(damage(whole))
    assert path.read_bytes() != whole
    teacher = convolutional()
    with caplog.at_level(logging.WARNING):
        assert share(teacher) == path
    assert caplog.messages == [f"{path} is damaged; it is written anew"]
    assert path.read_bytes() == whole
    assert torch.equal(teacher.features(PIXELS), convolutional().features(PIXELS))


def test_the_file_may_be_deleted_while_a_teacher_uses_it():
    teacher = convolutional()
    share(teacher).unlink()
    assert torch.equal(teacher.features(PIXELS), convolutional().features(PIXELS))


def test_without_a_folder_to_write_to_the_teacher_stays_in_memory_and_says_so(folder, caplog):
    folder.touch()
    teacher = convolutional()
    before = teacher.backbone.conv1.weight.data_ptr()
    with caplog.at_level(logging.WARNING):
        assert share(teacher) is None
    assert teacher.backbone.conv1.weight.data_ptr() == before
    (text,) = caplog.messages
    assert text.startswith("teacher 't' is not shared, each process has a copy of its own: cannot")
    assert text.endswith("(File exists); set FEDKD_CACHE to a folder with room")


def test_a_teacher_on_another_device_is_left_alone(folder):
    assert share(convolutional().to("meta")) is None
    assert not folder.exists()


def test_a_copy_or_a_saved_part_is_no_larger_than_it_is(tmp_path):
    teacher = convolutional()
    share(teacher)
    weight = copy.deepcopy(teacher.backbone.conv1).weight
    assert weight.untyped_storage().nbytes() == weight.nbytes
    torch.save(teacher.backbone.conv1.state_dict(), tmp_path / "part.pt")
    assert (tmp_path / "part.pt").stat().st_size < 5000


def opened(given=None, pixels=PIXELS, **values):
    teachers = open_teachers(TeacherConfig(**values), given, ["a", "b"], pixels, False)
    assert teachers[0] is teachers[1]
    return teachers[0]


def test_opening_shares_the_configs_teacher_but_not_a_given_module(folder):
    opened(given=nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    assert not folder.exists()
    opened()
    assert len(os.listdir(folder)) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_all_tensors_lie_in_the_mapped_file(folder):
    teacher = opened()
    (file,) = folder.iterdir()
    lines = Path("/proc/self/maps").read_text().splitlines()
    spans = [line.split("-", 1) for line in lines if line.endswith(str(file))]
    spans = [(int(start, 16), int(rest.split()[0], 16)) for start, rest in spans]
    for name, tensor in tensors_of(teacher).items():
        assert any(a <= tensor.data_ptr() < b for a, b in spans), name


def test_mixed_precision_of_float64_is_refused():
    with pytest.raises(ConfigError) as error:
        opened(pixels=PIXELS.double(), precision="bfloat16")
    assert str(error.value) == (
        "teacher.precision is 'bfloat16' with training.dtype = 'float64', which mixed precision "
        "does not round; set teacher.precision = 'full', or training.dtype = 'float32'"
    )


@pytest.mark.parametrize("given", [None, nn.Sequential(nn.Conv2d(3, 2, 32), nn.Flatten())])
def test_opening_passes_the_precision_on(given):
    full, rounded = opened(given).features(PIXELS), opened(given, precision="bfloat16")
    assert rounded.precision == "bfloat16"
    assert not torch.equal(rounded.features(PIXELS), full)
    torch.testing.assert_close(rounded.features(PIXELS), full, rtol=0.05, atol=0.05)
