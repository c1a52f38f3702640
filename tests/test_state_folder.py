"""What clients remember, in files from which any engine goes on."""

import errno
import logging
import shutil

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from safetensors import safe_open
from safetensors.torch import save_file

from clients import snapshot, state_folder
from clients.app import ContextMemory, make_app
from clients.node import Folders, Node
from clients.process_memory import ProcessMemory
from clients.state_file import UNREADABLE, read_state
from clients.state_folder import (
    check,
    forget_after,
    keep,
    latest,
    load,
    prune,
    recall,
    save,
)
from fedkd import wire
from fedkd.models import states
from server.engines import messages as flower
from tests.test_process_memory import ODD, assert_same

# All that a client can remember, own heads and the best of them included.
EVERYTHING = {
    "num_rounds": 3,
    "explore": {"gamma": 0.3, "warm_up_steps": 1, "steps_per_round": 2},
    "prompts": {"form": "mix"},
    "strategy": {"exchange": "without_batchnorm", "fraction_train": 0.7},
    "evaluation": {"personalised": True},
}


@pytest.mark.parametrize("layout", ["[]", "x", '{"a": {"b": "cpu"}}', '{"a": [1]}', "[" * 100_000])
def test_a_layout_that_was_made_up_is_no_state(tmp_path, layout, caplog):
    save(tmp_path, 0, 1, state_of(1))
    path = tmp_path / "0" / "round-1.safetensors"
    with safe_open(path, framework="pt") as file:
        words = {**file.metadata(), "layout": layout, "sha256": ""}
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, words)
    assert check(tmp_path, {0: 1}) == [0]
    assert load(tmp_path, 0) == {}
    assert "cannot be read" in caplog.text


def state_of(number):
    trained = {"round": torch.tensor(number)}
    return {"optimizer": {"0.step": torch.tensor(float(number))}, "trained-in": trained}


def filled(folder, rounds):
    """A folder with these rounds of each client."""
    for client, numbers in rounds.items():
        for number in numbers:
            save(folder, client, number, state_of(number))
    return folder


def rounds_in(folder):
    return {
        int(client.name): sorted(int(p.stem.removeprefix("round-")) for p in client.glob("round*"))
        for client in sorted(folder.iterdir())
    }


def damage(folder, client, number):
    path = folder / str(client) / f"round-{number}.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # of a tensor: only the checksum can tell
    path.write_bytes(data)


def test_any_state_comes_back_bit_for_bit(tmp_path):
    save(tmp_path, 3, 5, ODD)
    assert_same(load(tmp_path, 3, 6), ODD)
    assert [path.name for path in (tmp_path / "3").iterdir()] == ["round-5.safetensors"]


def test_the_latest_file_before_a_round_is_read_and_none_where_there_is_none(tmp_path):
    folder = filled(tmp_path, {0: (2, 9, 10), 1: ()})
    for before, expected in ((2, None), (3, 2), (9, 2), (10, 9), (11, 10), (None, 10)):
        found = load(folder, 0, before)
        assert (int(found["trained-in"]["round"]) if found else None) == expected
    assert load(folder, 1, 5) == load(folder / "absent", 0, 5) == {}


def test_a_file_with_any_flipped_byte_is_never_taken_for_whole(tmp_path):
    save(tmp_path, 0, 1, state_of(1))
    path = tmp_path / "0" / "round-1.safetensors"
    data = path.read_bytes()
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(UNREADABLE):
            read_state(path)


def test_a_damaged_file_is_told_and_the_one_before_is_read(tmp_path, caplog):
    folder = filled(tmp_path, {0: (1, 2)})
    damage(folder, 0, 2)
    assert int(load(folder, 0, 3)["trained-in"]["round"]) == 1
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "round-2.safetensors cannot be read (" in record.message
    assert "is damaged: its checksum is not that of what it holds" in record.message


def test_a_file_of_another_client_or_round_is_damaged(tmp_path):
    folder = filled(tmp_path, {0: (1,), 1: (1,)})
    shutil.copy(folder / "0/round-1.safetensors", folder / "0/round-2.safetensors")
    shutil.copy(folder / "0/round-1.safetensors", folder / "1/round-1.safetensors")
    assert check(folder, {0: 1, 1: 1}) == [1]
    assert check(folder, {0: 2}) == [0]


def test_pruning_keeps_what_each_checkpoint_needs_and_all_that_is_newer(tmp_path):
    folder = filled(tmp_path, {0: range(1, 8), 1: (1, 2), 2: (1, 6), 3: (7,)})
    prune(folder, [3, 5])
    assert rounds_in(folder) == {0: [3, 5, 6, 7], 1: [2], 2: [1, 6], 3: [7]}
    prune(folder, [5])
    assert rounds_in(folder) == {0: [5, 6, 7], 1: [2], 2: [1, 6], 3: [7]}
    prune(folder, [])
    prune(folder / "absent", [5])
    assert rounds_in(folder) == {0: [5, 6, 7], 1: [2], 2: [1, 6], 3: [7]}


def test_pruning_keeps_trainings_that_are_under_way_alone(tmp_path):
    folder = filled(tmp_path, {0: (1,), 1: (1,), 2: (1,)})
    for client, number in ((0, 1), (1, 2)):
        notes = {"round": number}
        snapshot.write_state({}, state_folder.snapshot_of(folder, client), notes=notes)
    state_folder.snapshot_of(folder, 2).write_bytes(b"cut")
    prune(folder, [1])
    left = [client for client in range(3) if state_folder.snapshot_of(folder, client).exists()]
    assert left == [1]


def test_later_files_are_forgotten_but_those_of_stored_replies(tmp_path):
    folder = filled(tmp_path, {0: (1, 2, 3, 4), 1: (3, 4), 2: (1,)})
    left = folder / "0" / ".round-5.safetensors.123.part.safetensors"
    left.write_bytes(b"killed while it was written")
    forget_after(folder, 2, but=[1])
    assert rounds_in(folder) == {0: [1, 2], 1: [3], 2: [1]}
    assert not left.exists()
    forget_after(folder, 0)
    assert rounds_in(folder) == {0: [], 1: [], 2: []}
    forget_after(folder / "absent", 0)


def test_checking_names_clients_whose_file_is_damaged_or_missing(tmp_path):
    folder = filled(tmp_path, {0: (1, 2), 1: (1, 2), 2: (1, 2), 4: (3,)})
    damage(folder, 1, 1)
    damage(folder, 2, 2)
    assert check(folder, dict.fromkeys(range(5), 2)) == [2, 3, 4]
    assert check(folder, {0: 1, 1: 1, 2: 1}) == [1]
    assert latest(folder, 2) == {0: 2, 1: 2, 2: 2}
    assert latest(folder, 3) == {0: 2, 1: 2, 2: 2, 4: 3}
    assert latest(folder / "absent", 3) == {}


def test_long_checking_says_how_far_it_is(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(state_folder, "_SILENCE_S", -1.0)
    caplog.set_level(logging.INFO)
    check(filled(tmp_path, {0: (1,)}), {0: 1})
    assert caplog.messages == ["reading what clients remember: 1 of 1 ..."]


def test_a_full_disk_is_told_once_the_run_goes_on_and_checking_finds_it(
    tmp_path, caplog, monkeypatch
):
    folder = filled(tmp_path, {0: (1,), 1: (1,)})
    assert check(folder, latest(folder, 2)) == []

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(state_folder, "write_state", full)
        for client in (0, 1):
            keep(folder, client, 2, state_of(2))
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    path = folder / "0" / "round-2.safetensors"
    assert record.message == (
        f"cannot write what resuming needs, {path} ([Errno 28] No space left on device); the run "
        "goes on, but it cannot be resumed from here, nor where that happens again, of which "
        "nothing more is said; make room there, or set checkpoint.every=0"
    )
    assert check(folder, latest(folder, 2)) == [0, 1]
    assert check(folder, latest(folder, 1)) == []
    keep(folder, 0, 3, state_of(3))
    assert check(folder, latest(folder, 3)) == [1]


def test_a_folder_that_cannot_be_made_ends_no_client(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    keep(tmp_path / "file", 0, 1, state_of(1))
    keep(None, 0, 1, state_of(1))
    assert "cannot write what resuming needs" in caplog.text
    assert "Not a directory" in caplog.text


def test_what_a_memory_holds_is_taken_unless_it_is_of_the_asked_round_or_later(tmp_path):
    folder = filled(tmp_path, {0: (1, 2, 3)})
    held = state_of(3)
    assert recall(folder, 0, held, 4) is recall(folder, 0, held) is recall(None, 0, held, 3) is held
    assert int(recall(folder, 0, held, 3)["trained-in"]["round"]) == 2
    assert recall(folder, 0, state_of(1), 1) == {}
    assert int(recall(folder, 0, {})["trained-in"]["round"]) == 3
    assert recall(None, 0, {}, 3) == {}


def results(run, path):
    seconds = [name for name in run.rounds if "seconds" in name]
    clients = run.clients.drop(columns=[name for name in run.clients if "seconds" in name])
    own = (path / "predictions_clients.csv").read_bytes()
    found = {key: run.summary[key] for key in ("student_sha256", "best_student_sha256", "test")}
    return found, run.rounds.drop(columns=seconds).to_csv(), clients.to_csv(), own


class Forgetful(ProcessMemory):
    """Holds nothing: as if the run were resumed before every message."""

    def save(self, context, state):
        """Drop it."""


def test_clients_whose_memory_is_lost_go_on_from_their_files_to_the_same_rows(
    run, monkeypatch, tmp_path
):
    whole = run(**EVERYTHING, output=tmp_path / "whole")
    monkeypatch.setattr("server.engines.inprocess.ProcessMemory", Forgetful)
    again = run(**EVERYTHING, output=tmp_path / "again")
    assert results(again, again.path) == results(whole, whole.path)
    lost = run(**EVERYTHING)
    assert lost.summary["student_sha256"] != whole.summary["student_sha256"]


def test_a_run_without_checkpoints_writes_no_states(run, tmp_path):
    short = {"num_rounds": 1, "objective": {"name": "supervised"}, "checkpoint": {"every": 0}}
    assert not (run(**short, output=tmp_path).path / "checkpoint").exists()


@pytest.fixture
def ask(opened, tmp_path):
    """A function that asks client 0 to train, as the server of any engine does."""
    folders = Folders(states=tmp_path / "states")
    node = Node(opened(objective={"name": "moon"}, num_rounds=4), None, folders)
    arrays = node.initial_arrays()
    app = make_app(lambda _: node, ContextMemory())
    flower.introduce_process()
    context = flower.client_context(0, 3)

    def asked(number):
        values = {wire.ROUND: number, wire.SCORE_CLASSES: False, wire.BEST_ROUND: 0}
        content = {wire.ARRAYS: ArrayRecord(arrays), wire.CONFIG: ConfigRecord(values)}
        message = Message(RecordDict(content), dst_node_id=context.node_id, message_type="train")
        reply = app(message, context).content.array_records[wire.ARRAYS]
        return states.sha256(reply.to_torch_state_dict())

    return asked


def test_a_client_that_is_asked_again_after_it_has_finished_replies_the_same(ask):
    first = [ask(number) for number in (1, 2, 3)]
    assert ask(3) == first[2]
    assert [ask(number) for number in (1, 2, 3)] == first


def test_a_snapshot_goes_when_the_state_of_its_round_is_saved(ask, tmp_path):
    place = state_folder.snapshot_of(tmp_path / "states", 0)
    place.parent.mkdir(parents=True)
    place.write_bytes(b"of a training that was interrupted")
    ask(1)
    assert [path.name for path in place.parent.iterdir()] == ["round-1.safetensors"]
