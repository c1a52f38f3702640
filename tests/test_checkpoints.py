"""Files of weights: what is read, and every way in which one is refused."""

import argparse
import os
import pickle
import re

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fedkd import seeding
from fedkd.data.card import Download
from fedkd.errors import TeacherError
from fedkd.fetching import KnownHash
from fedkd.teachers.checkpoints import (
    check_hash,
    load_strictly,
    published_hash,
    read_state,
    without,
)

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.count": torch.tensor(3)}


@pytest.fixture
def path(tmp_path):
    """Where a test writes its file; the name says nothing about the content."""
    return tmp_path / "weights.bin"


def refusal(path):
    with pytest.raises(TeacherError) as caught:
        read_state(path)
    return str(caught.value)


def same(state):
    return list(state) == list(STATE) and all(torch.equal(state[key], STATE[key]) for key in STATE)


# What is read


@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_torch_are_read_in_both_formats(path, zipped):
    torch.save(STATE, path, _use_new_zipfile_serialization=zipped)
    assert same(read_state(path))


def test_safetensors_are_told_by_their_content(path):
    save_file(STATE, path)
    state = read_state(path)
    assert same({key: state[key] for key in STATE})


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_the_state_dict_in_a_training_checkpoint_is_found(path, key):
    torch.save({"epoch": 3, key: STATE, "optimizer": {"state": {}}}, path)
    assert same(read_state(path))


@pytest.mark.parametrize("wrapper", ["module.", "model.", "backbone.", "module.model.backbone."])
def test_wrappers_around_all_names_are_taken_off(path, wrapper):
    torch.save({f"{wrapper}{key}": tensor for key, tensor in STATE.items()}, path)
    assert same(read_state(path))


def test_a_prefix_of_some_names_stays(path):
    torch.save({"module.a": torch.zeros(1), "b": torch.zeros(1)}, path)
    assert list(read_state(path)) == ["module.a", "b"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_becomes_float32_and_integers_stay(path, dtype):
    torch.save({"w": torch.tensor([0.5, 1 / 3]).to(dtype), "n": torch.tensor(3)}, path)
    state = read_state(path)
    assert torch.equal(state["w"], torch.tensor([0.5, 1 / 3]).to(dtype).to(torch.float32))
    assert (state["w"].dtype, state["n"].dtype) == (torch.float32, torch.int64)


# What is refused


@pytest.mark.parametrize(
    "value",
    [
        [torch.zeros(1)],
        torch.zeros(1),
        {"net": {"a": torch.zeros(1)}, "epoch": 3},
        {0: torch.zeros(1)},
    ],
    ids=["a list", "a tensor", "another checkpoint", "numbers for names"],
)
def test_what_is_no_state_dict_is_refused(path, value):
    torch.save(value, path)
    text = refusal(path)
    assert text == f"{path} holds no state dict of tensors; save model.state_dict() instead"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "make",
    [
        lambda t: t.to_sparse(),
        lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
        lambda t: t.to("meta"),
        lambda t: t[:1, :1].clone().expand(10**9, 512),
    ],
    ids=["sparse", "quantised", "without data", "larger than its data"],
)
def test_tensors_that_are_not_plain_are_refused(path, make):
    torch.save({**STATE, "odd": make(STATE["a.weight"])}, path)
    assert refusal(path) == (
        f"{path} holds tensors that are sparse, quantised, without data or larger than their data: "
        "odd; save a state dict of plain tensors"
    )


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
def test_executable_content_is_refused_by_the_name_of_what_it_calls_and_not_run(path, how):
    executed = path.with_name("executed")
    if how == "pickle":
        path.write_bytes(pickle.dumps(Payload(executed), protocol=2))
    else:
        content = {"a": Payload(executed)}
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    text = refusal(path)
    assert re.match(
        rf"{path} holds more than tensors: reading it would call (posix|nt)\.mkdir\. Pickle files "
        "can run any command when they are read, so files with executable pickle content are "
        "refused; get a plain state dict, or ",
        text,
    )
    assert text.endswith("open it with its authors' code and torch.save(model.state_dict(), "
                         "NEW_FILE)")  # fmt: skip
    assert not executed.exists()
    assert "weights_only" not in text, "torch's own advice is to read it nevertheless"


def test_harmless_objects_are_refused_as_well(path):
    torch.save({"state_dict": STATE, "args": argparse.Namespace(arch="resnet50")}, path)
    assert "reading it would call argparse.Namespace" in refusal(path)


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_torchscript_is_refused_as_a_program(path):
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), path)
    text = refusal(path)
    assert text.startswith(f"{path} is a TorchScript archive, a program with its weights (OpenAI's")
    assert text.endswith("torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE)")


@pytest.mark.parametrize("how", ["zip", "legacy", "safetensors"])
def test_a_truncated_file_is_refused(path, how):
    state = {"a": torch.zeros(1000)}
    if how == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=how == "zip")
    path.write_bytes(path.read_bytes()[:-1000])
    text = refusal(path)
    assert text.startswith(f"cannot read the checkpoint {path}: ")
    assert "It is damaged, incomplete or of another kind; get it again." in text


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("content", [b"", b"rubbish", b"<!DOCTYPE html>", pickle.dumps(3), b"PK"])
def test_other_files_are_refused(path, content):
    path.write_bytes(content)
    text = refusal(path)
    assert text.startswith(f"cannot read the checkpoint {path}: ")
    assert "weights_only" not in text


@pytest.mark.parametrize("how", ["zip", "legacy", "safetensors"])
def test_a_damaged_file_is_read_or_refused_and_nothing_else(path, how):
    if how == "safetensors":
        save_file(STATE, path)
    else:
        torch.save(STATE, path, _use_new_zipfile_serialization=how == "zip")
    whole, rng, num_refused = path.read_bytes(), seeding.rng(0, f"damage/{how}"), 0
    for _ in range(60):
        content = bytearray(whole)
        for place in rng.integers(len(content), size=3):
            content[place] = rng.integers(256)
        path.write_bytes(content)
        try:
            assert all(isinstance(tensor, torch.Tensor) for tensor in read_state(path).values())
        except TeacherError:
            num_refused += 1
    assert num_refused > 10


# The hash


def test_a_hash_may_be_whole_or_a_beginning(path):
    path.write_bytes(b"abc")
    # FIPS 180-2, appendix B.1, and RFC 1321, appendix A.5.
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    md5 = "900150983cd24fb0d6963f7d28e17f72"
    for known in (sha256, sha256[:8]):
        check_hash(path, KnownHash("sha256", known))
    for known in (md5, md5[:8]):
        check_hash(path, KnownHash("md5", known))
    check_hash(path, None)


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        (KnownHash("md5", "0" * 32), f"expected {'0' * 32}; the"),
        (KnownHash("md5", "0" * 8), "expected 00000000... (a beginning); the"),
    ],
)
def test_another_hash_shows_both(path, known, expected):
    path.write_bytes(b"abc")
    with pytest.raises(TeacherError) as caught:
        check_hash(path, known)
    assert str(caught.value) == (
        f"{path} has md5 900150983cd24fb0d6963f7d28e17f72, {expected} file is damaged or another "
        "one: get it again, or set teacher.sha256 to that of a file that you trust"
    )


def test_sha256_is_known_before_md5_and_nothing_may_be():
    assert published_hash(Download("u", "p", "ab" * 4, "cd" * 4)) == ("sha256", "ab" * 4)
    assert published_hash(Download("u", "p", None, "cd" * 4)) == ("md5", "cd" * 4)
    assert published_hash(Download("u", "p")) is None
    assert published_hash(None) is None


# Names and shapes


def test_the_first_ten_problems_are_listed_and_all_are_counted(path):
    network = nn.Sequential(*[nn.Linear(1, 1) for _ in range(6)])
    with pytest.raises(TeacherError) as caught:
        load_strictly(network, {"x": torch.zeros(1)}, path, "six")
    names = ", ".join(f"missing {i}.{kind}" for i in range(5) for kind in ("weight", "bias"))
    assert str(caught.value) == f"{path} does not fit six: 13 problem(s): {names}, ..."


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64])
def test_other_numbers_do_not_stand_for_fractions(path, dtype):
    network = nn.Linear(1, 1)
    state = {**network.state_dict(), "weight": torch.ones(1, 1, dtype=dtype)}
    with pytest.raises(
        TeacherError, match=rf"1 problem\(s\): weight is {dtype}, expected torch.fl"
    ):
        load_strictly(network, state, path, "one")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused_by_name(path, value):
    network = nn.Linear(1, 1)
    state = {**network.state_dict(), "bias": torch.tensor([value])}
    with pytest.raises(TeacherError, match=f"{path} holds weights that are not finite in bias; it"):
        load_strictly(network, state, path, "one")


def test_a_classifier_that_is_not_used_is_logged(path, caplog):
    caplog.set_level("INFO")
    state = {"head.weight": torch.zeros(1), "norm.weight": torch.zeros(1)}
    assert list(without(state, ("head.",), path)) == ["norm.weight"]
    assert list(without({"norm.weight": torch.zeros(1)}, ("head.",), path)) == ["norm.weight"]
    assert caplog.messages == [f"{path} also holds a classifier, which is ignored: head.weight"]
