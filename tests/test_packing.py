"""Objects as bytes for other processes."""

import copy

import numpy as np
import pytest
import torch

from clients.node import Node
from fedkd.teachers.frozen import Teacher
from fedkd.teachers.sharing import places, share
from server.engines.packing import pack, sees, unpack
from tests.conftest import TinyTeacher


@pytest.fixture(autouse=True)
def _read_only_is_meant(recwarn):
    """Views of packed bytes are not writable, which torch remarks once."""


def frozen():
    return Teacher(
        "tiny", TinyTeacher(), num_features=10, mean=None, std=None, input_size=None, head=None,
        head_kind="none",
    )  # fmt: skip


def bits(tensor):
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).tolist()


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(2, 3, generator=torch.Generator().manual_seed(0)),
        torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last),
        torch.arange(12.0).reshape(3, 4).t(),
        torch.arange(12).reshape(3, 4)[:, ::2],
        torch.tensor(7),
        torch.empty(0, 3),
        torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        torch.tensor([True, False]),
        torch.tensor([float("nan"), float("inf"), -0.0]),
        torch.ones(3, requires_grad=True),
    ],
    ids=str,
)
def test_a_tensor_keeps_bits_layout_and_dtype(tensor):
    again = unpack(pack({"a": [tensor]}).pieces)["a"][0]
    assert (again.dtype, again.size(), again.requires_grad) == (
        tensor.dtype,
        tensor.size(),
        tensor.requires_grad,
    )
    # Only gaps are closed.
    dense = torch.empty_like(tensor, device="meta").stride()
    assert again.stride() == dense
    bits = [
        one.detach().contiguous().reshape(-1).view(torch.uint8).tolist() for one in (again, tensor)
    ]
    assert bits[0] == bits[1]


def test_tensors_and_arrays_are_packed_and_opened_without_a_copy():
    tensor, array = torch.zeros(1000), np.zeros(1000)
    pieces = pack([tensor, array]).pieces
    assert len(pieces) == 3
    assert len(pieces[0]) < 1000, "the values are no part of the pickle"
    tensor[5], array[6] = 1.0, 2.0
    opened = unpack(pieces)
    assert (opened[0][5], opened[1][6]) == (1.0, 2.0)


def test_a_module_comes_back_whole_and_computes_the_same(teacher):
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    again = unpack(pack(teacher).pieces)
    assert not again.training
    assert torch.equal(again(pixels), teacher(pixels))
    assert isinstance(next(again.parameters()), torch.nn.Parameter)


def test_a_gpu_becomes_the_first_one_of_the_receiver():
    devices = unpack(pack([torch.device("cuda", 3), torch.device("cpu")]).pieces)
    assert devices == [torch.device("cuda", 0), torch.device("cpu")]


def test_mapped_files_are_named_or_packed_whichever_is_asked(tmp_path):
    path = tmp_path / "images.npy"
    np.save(path, np.arange(6000, dtype=np.uint8).reshape(10, 3, 200))
    mapped = np.load(path, mmap_mode="r")
    for part in (mapped, mapped[2:5], np.asarray(mapped[2:5])):
        named, packed = pack(part, by_path=True), pack(part)
        assert list(named.files) == [str(path)]
        assert sum(map(len, named.pieces)) < 1000
        assert packed.files == {}
        assert sum(map(len, packed.pieces)) > part.nbytes
        for package in (named, packed):
            assert np.array_equal(unpack(package.pieces), part)
    scattered = mapped[:, :, ::2]
    package = pack(scattered, by_path=True)
    assert package.files == {}
    assert np.array_equal(unpack(package.pieces), scattered)
    changed = np.load(path, mmap_mode="c")
    changed[0] = 9
    assert pack(changed, by_path=True).files == {}, "what was written is not in the file"
    assert np.array_equal(unpack(pack(changed, by_path=True).pieces), changed)


def test_files_that_are_other_ones_elsewhere_are_not_taken_for_these(tmp_path):
    path = tmp_path / "images.npy"
    np.save(path, np.zeros(500))
    files = pack(np.load(path, mmap_mode="r"), by_path=True).files
    assert sees(files)
    np.save(path, np.zeros(501))
    assert not sees(files)
    path.unlink()
    assert not sees(files)
    assert sees({})


def test_a_shared_teacher_is_named_by_its_file(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDKD_CACHE", str(tmp_path))
    teacher = frozen()
    expected = {name: t.clone() for name, t in teacher.state_dict().items()}
    path = share(teacher)
    where = {pointer: (path, offset) for pointer, offset in places(teacher).items()}
    package = pack(teacher, where, by_path=True)
    assert list(package.files) == [str(path)]
    assert sum(map(len, package.pieces[1:])) == 0, "no tensor travels"
    again = unpack(package.pieces)
    assert {n: t.tolist() for n, t in again.state_dict().items()} == {
        n: t.tolist() for n, t in expected.items()
    }
    assert pack(teacher, where).files == {}


OBJECTIVES = {
    "supervised": {"objective": {"name": "supervised"}},
    "fedprox": {"objective": {"name": "fedprox"}},
    "moon": {"objective": {"name": "moon"}},
    "ekd": {"objective": {"name": "ekd"}},
    "fopro": {"explore": {"gamma": 1.0}},
    "moco": {"objective": {"name": "moco"}},
    "momentum": {"training": {"optimizer": "sgd"}},
    "kept views": {"augmentation": {"name": "none"}, "prompts": {"kept_views": 2}},
    "own layers": {"strategy": {"exchange": "without_batchnorm"}},
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_training_does_not_write_to_the_state_that_it_is_given(opened, name):
    """It lies in memory that other processes may read; and a packed state is as good as its own."""
    changes = copy.deepcopy(OBJECTIVES[name])
    node = Node(opened(num_rounds=3, **changes))
    arrays = node.initial_arrays()
    _, state = node.train(0, arrays, {}, 1)
    pieces = pack(state).pieces
    pieces = [piece.copy() for piece in pieces]
    before = [piece.tobytes() for piece in pieces]
    sent = {key: tensor.clone() for key, tensor in arrays.items()}
    first, _ = node.train(0, arrays, unpack(pieces), 2)
    assert [piece.tobytes() for piece in pieces] == before
    assert all(torch.equal(arrays[key], tensor) for key, tensor in sent.items())
    again, _ = node.train(0, arrays, state, 2)
    assert all(torch.equal(first.arrays[key], again.arrays[key]) for key in first.arrays)
