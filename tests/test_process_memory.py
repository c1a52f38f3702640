"""What clients remember, in memory and on disk."""

import os
import resource
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from clients.process_memory import FOLDER, ProcessMemory
from clients.state_file import read_state, write_state
from fedkd.errors import DataError

AKD = {"gamma": 0.3, "warm_up_steps": 1, "steps_per_round": 2}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDKD_CACHE", str(tmp_path))
    return tmp_path / FOLDER


def node(number):
    return SimpleNamespace(node_id=number)


def state_of(value, size=250):
    return {"optimizer": {"0.step": torch.full((size,), float(value))}, "objective": {}}


def on_disk(cache):
    return sorted(path.name for path in cache.glob("*/*"))


ODD = {
    "optimizer": {
        "1.step": torch.tensor(7.0),
        "0.exp_avg": torch.tensor([[1e-40, -0.0], [float("inf"), float("nan")]]),
    },
    "objective": {
        "explorer.num_steps": torch.tensor(3),
        "half": torch.tensor([0.1, -2.0], dtype=torch.bfloat16),
        "double": torch.tensor([0.1], dtype=torch.float64),
        "queue": torch.zeros(0, 8),
        "is_full": torch.tensor([True, False]),
        "a/b": torch.arange(4, dtype=torch.int32),
    },
    "local": {},
    "trained-in": {"round": torch.tensor(5)},
}


def assert_same(found, expected):
    assert [(part, list(named)) for part, named in found.items()] == [
        (part, list(named)) for part, named in expected.items()
    ]
    for part, named in expected.items():
        for name, tensor in named.items():
            own = found[part][name]
            assert (own.dtype, own.shape, own.device) == (tensor.dtype, tensor.shape, tensor.device)
            bits = own.contiguous().view(-1).view(torch.uint8)
            assert torch.equal(bits, tensor.contiguous().view(-1).view(torch.uint8)), name


def test_a_state_comes_back_from_its_file_bit_for_bit_in_its_order(tmp_path):
    write_state(ODD, tmp_path / "state.safetensors")
    assert_same(read_state(tmp_path / "state.safetensors"), ODD)
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]


def test_tensors_that_share_memory_or_have_gaps_are_written_as_they_look(tmp_path):
    whole = torch.arange(12.0).view(3, 4)
    nested = torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)
    state = {"a": {"x": whole[:, 1], "y": whole}, "b": {"y": whole.T, "z": nested}}
    write_state(state, tmp_path / "state")
    assert_same(read_state(tmp_path / "state"), state)


def test_what_is_read_does_not_depend_on_the_file_any_more(tmp_path):
    write_state(ODD, tmp_path / "state")
    found = read_state(tmp_path / "state")
    with (tmp_path / "state").open("r+b") as file:
        file.write(bytes(os.path.getsize(tmp_path / "state")))
    assert_same(found, ODD)


def test_below_the_limit_the_very_tensors_come_back_and_nothing_is_written(cache):
    memory, state = ProcessMemory(2000), state_of(1)
    memory.save(node(1), state)
    memory.save(node(2), state_of(2))
    assert memory.load(node(1)) is state
    assert memory.load(node(3)) == {}
    assert not cache.exists()


def test_without_a_limit_nothing_is_written(cache):
    memory = ProcessMemory()
    for number in range(20):
        memory.save(node(number), state_of(number, 10_000))
    assert not cache.exists()


def test_those_that_have_waited_longest_go_to_files_and_come_back(cache):
    memory = ProcessMemory(2000)  # two states of 1000 bytes
    for number in (1, 2, 1, 3):
        memory.save(node(number), state_of(number))
    assert on_disk(cache) == ["2.safetensors"]
    memory.save(node(4), state_of(4))
    assert on_disk(cache) == ["1.safetensors", "2.safetensors"]
    for number in range(1, 5):
        assert_same(memory.load(node(number)), state_of(number))
    memory.save(node(2), state_of(20))
    assert on_disk(cache) == ["1.safetensors", "3.safetensors"]
    assert_same(memory.load(node(2)), state_of(20))


def test_a_limit_of_zero_keeps_nothing_in_memory(cache):
    memory = ProcessMemory(0)
    memory.save(node(1), ODD)
    memory.save(node(2), state_of(2))
    assert on_disk(cache) == ["1.safetensors", "2.safetensors"]
    assert_same(memory.load(node(1)), ODD)
    assert_same(memory.load(node(1)), ODD)


def test_files_go_with_their_memory_whatever_ends_it(cache):
    def be_interrupted(other):
        with ProcessMemory(0) as memory:
            memory.save(node(1), state_of(1))
            other.save(node(1), state_of(2))
            assert on_disk(cache) == ["1.safetensors"] * 2
            raise KeyboardInterrupt

    with ProcessMemory(0) as other:
        with pytest.raises(KeyboardInterrupt):
            be_interrupted(other)
        assert on_disk(cache) == ["1.safetensors"]
        assert_same(other.load(node(1)), state_of(2))
    assert list(cache.iterdir()) == []


CHILD = """
import torch
from types import SimpleNamespace
from clients.process_memory import ProcessMemory
memory = ProcessMemory(0)
memory.save(SimpleNamespace(node_id=1), {"a": {"b": torch.zeros(3)}})
raise ValueError("crash")
"""


def test_no_file_is_left_by_a_process_that_crashes(cache):
    ended = subprocess.run(
        [sys.executable, "-c", CHILD], capture_output=True, text=True, timeout=300
    )
    assert "ValueError: crash" in ended.stderr
    assert list(cache.iterdir()) == []


def test_what_a_killed_process_left_goes_with_the_next_but_not_what_is_in_use(cache):
    mine, theirs = ProcessMemory(0), ProcessMemory(0)
    mine.save(node(1), state_of(1))
    child = os.fork()
    if not child:
        try:
            theirs.save(node(2), state_of(2))
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert on_disk(cache) == ["1.safetensors", "2.safetensors"]
    other = ProcessMemory(0)
    other.save(node(7), state_of(7))
    assert on_disk(cache) == ["1.safetensors", "7.safetensors"]
    assert_same(mine.load(node(1)), state_of(1))


def test_a_full_disk_is_told_with_what_to_do(cache):
    memory = ProcessMemory(0)
    memory.save(node(1), state_of(1))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(DataError) as raised:
            memory.save(node(1), state_of(2, 1_000_000))
        with pytest.raises(DataError):
            memory.save(node(2), state_of(2, 1_000_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    text = str(raised.value)
    assert text.startswith(f"cannot keep what clients remember in {cache}")
    assert "File too large" in text
    assert text.endswith(
        "make room there, set FEDKD_CACHE to another folder, or raise engine.max_state_mb (it is "
        "0) so that fewer states go to files"
    )
    assert on_disk(cache) == ["1.safetensors"]
    assert_same(memory.load(node(1)), state_of(1))
    assert memory.load(node(2)) == {}
    memory.save(node(3), state_of(3))
    assert_same(memory.load(node(3)), state_of(3))


def test_a_cache_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("FEDKD_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match="cannot keep what clients remember .*Not a directory"):
        ProcessMemory(0).save(node(1), state_of(1))


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize(
    "changes",
    [
        {"explore": AKD, "prompts": {"form": "mix"}, "strategy": {"fraction_train": 0.7}},
        {"objective": {"name": "moon"}, "strategy": {"exchange": "without_projector"}},
    ],
    ids=["fopro", "moon-predicts-locally"],
)
def test_states_on_disk_give_the_bits_of_states_in_memory(
    run, cache, changes, num_workers, monkeypatch
):
    in_memory = run(num_rounds=3, **changes)
    written = []
    monkeypatch.setattr(
        "clients.process_memory.write_state",
        lambda state, path, **more: written.append(path) or write_state(state, path, **more),
    )
    engine = {"max_state_mb": 0, "num_workers": num_workers, "num_threads": 1}
    on_file = run(num_rounds=3, engine=engine, **changes)
    assert len(written) == len(on_file.clients)
    assert on_file.summary["student_sha256"] == in_memory.summary["student_sha256"]
    assert on_file.summary["test"] == in_memory.summary["test"]
    assert list(cache.iterdir()) == []
