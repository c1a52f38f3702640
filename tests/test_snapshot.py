"""A client that is interrupted in the middle of its training goes on with the same bits."""

import errno

import pytest

from clients import snapshot
from clients.factory import OBJECTIVES
from clients.node import Folders, Node
from clients.objective import Stateless
from fedkd.experiment import open_experiment
from fedkd.models import states

STEPS = 6  # 11 images in batches of 4, two epochs
TWO_EPOCHS = {"local_epochs": 2}
CASES = {
    "supervised": {"objective": {"name": "supervised"}},
    "dropout": {"objective": {"name": "supervised"}, "student": {"name": "efficientnet_b0"}},
    "mixed": {"objective": {"name": "supervised"}, "engine": {"mixed_precision": "bfloat16"}},
    "balanced": {
        "objective": {"name": "supervised"},
        "training": {"sampling": "balanced", "optimizer": "sgd", "clip_norm": 0.1},
    },
    "drop_last": {"objective": {"name": "supervised"}, "training": {"drop_last": True}},
    "fedprox": {"objective": {"name": "fedprox"}, "fedprox": {"mu": 0.5}},
    "moon": {"objective": {"name": "moon"}, "moon": {"mu": 1.0}},
    "moon_train": {"objective": {"name": "moon"}, "moon": {"mu": 1.0, "frozen_mode": "train"}},
    "moco": {"objective": {"name": "moco"}, "moco": {"queue_size": 6}},
    "ekd": {"objective": {"name": "ekd"}},
    "balanced_ekd": {"objective": {"name": "ekd", "balanced_distillation": True}},
    "kept_ekd": {
        "objective": {"name": "ekd"},
        "teacher": {"views": "dihedral"},
        "augmentation": {"name": "dihedral"},
    },
    "fopro": {"objective": {"name": "fopro"}, "explore": {"gamma": 0.3, "warm_up_steps": 1}},
    "bank": {
        "objective": {"name": "fopro"},
        "prompts": {"kept_views": 2, "renew_every": 1},
        "augmentation": {"name": "none"},
    },
    "mix": {"objective": {"name": "fopro"}, "prompts": {"generator": "amplitude_mix"}},
}
RULES = {"score_classes": True, "best_round": 1, "proximal_mu": 0.3}


@pytest.fixture
def opened(make_recipe, hospitals, tiny_teacher):
    """A function that opens the tiny experiment, with any section changed."""
    return lambda **changes: open_experiment(
        make_recipe(**changes), **hospitals, teacher=tiny_teacher
    )


class Interrupt:
    """Progress that interrupts after a step of the training, and counts the steps."""

    def __init__(self, after=None, error=KeyboardInterrupt):
        self.after, self.error, self.num_steps = after, error, 0

    def __call__(self, partition_id, what, done, total):
        self.num_steps += what == "training"
        if what == "training" and self.num_steps == self.after:
            raise self.error


def changed(case, every_s=600.0):
    values = {**CASES[case], "checkpoint": {"every_s": every_s}}
    return {**values, "training": {**TWO_EPOCHS, **values.get("training", {})}}


def rules_of(case):
    return {**RULES, "score_classes": case != "moco"}


def beginning(node, case):
    """What the server sends in round 2, and what the client remembers of round 1."""
    reply, state = node.train(0, node.initial_arrays(), {}, 1, **rules_of(case))
    return reply.arrays, state


def same(first, second):
    (reply, state), (other, other_state) = first, second
    assert list(reply.metrics) == list(other.metrics)
    apart = {key: reply.metrics[key] != other.metrics[key] for key in reply.metrics}
    assert [key for key, differs in apart.items() if differs] in ([], ["seconds"])
    assert states.sha256(reply.arrays) == states.sha256(other.arrays)
    assert list(state) == list(other_state)
    for part, tensors in state.items():
        assert states.sha256(tensors) == states.sha256(other_state[part]), part


def snapshot_in(tmp_path):
    return tmp_path / "0" / "training.safetensors"


def interrupt(experiment, tmp_path, after, given, error=KeyboardInterrupt, **rules):
    node = Node(experiment, Interrupt(after, error), Folders(states=tmp_path))
    with pytest.raises(error):
        node.train(0, *given, 2, **rules)


@pytest.mark.parametrize("case", CASES)
def test_an_interrupted_training_ends_with_the_bits_of_an_uninterrupted_one(opened, tmp_path, case):
    experiment, rules = opened(**changed(case)), rules_of(case)
    node = Node(experiment)
    given = beginning(node, case)
    whole = node.train(0, *given, 2, **rules)
    num_steps = int(whole[0].metrics["num-steps"])
    moments = (1, num_steps // 2, num_steps)
    for after in moments if case != "dropout" else moments[1:2]:  # a large network
        interrupt(experiment, tmp_path, after, given, **rules)
        progress = Interrupt()
        again = Node(experiment, progress, Folders(states=tmp_path))
        same(again.train(0, *given, 2, **rules), whole)
        assert progress.num_steps == num_steps - after
        snapshot_in(tmp_path).unlink()


def test_every_objective_is_interrupted_here():
    assert {case["objective"]["name"] for case in CASES.values()} == set(OBJECTIVES)


def test_a_training_may_be_interrupted_again_and_again(opened, tmp_path):
    experiment = opened(**changed("fopro"))
    node = Node(experiment)
    given = beginning(node, "fopro")
    whole = node.train(0, *given, 2)
    for _ in range(STEPS):
        interrupt(experiment, tmp_path, 1, given)
    progress = Interrupt()
    same(Node(experiment, progress, Folders(states=tmp_path)).train(0, *given, 2), whole)
    assert progress.num_steps == 0


def test_a_snapshot_is_written_when_its_time_has_come_and_holds_the_steps_so_far(
    opened, tmp_path, monkeypatch
):
    now = [0.0]
    monkeypatch.setattr(snapshot.time, "monotonic", lambda: now[0])
    written = []
    write = snapshot.write_state
    monkeypatch.setattr(
        snapshot,
        "write_state",
        lambda state, path, notes: (
            written.append((notes["num_steps"], notes["seconds"]))
            or write(state, path, notes=notes)
        ),
    )

    def progress(partition_id, what, done, total):
        now[0] += 1.0

    experiment = opened(**changed("supervised", every_s=2.0))
    given = beginning(Node(experiment), "supervised")
    node = Node(experiment, progress, Folders(states=tmp_path))
    whole = node.train(0, *given, 2)
    assert written == [(3, 2.0), (5, 4.0)]
    # Killed after its last snapshot.
    silent = Node(experiment, None, Folders(states=tmp_path))
    again = silent.train(0, *given, 2)
    same(again, whole)
    assert again[0].metrics["seconds"] > 4.0


def test_a_thread_that_is_stopped_between_two_steps_leaves_a_snapshot(opened, tmp_path):
    experiment = opened(**changed("supervised"))
    given = beginning(Node(experiment), "supervised")
    interrupt(experiment, tmp_path, 2, given, error=RuntimeError)
    progress = Interrupt()
    Node(experiment, progress, Folders(states=tmp_path)).train(0, *given, 2)
    assert progress.num_steps == STEPS - 2


@pytest.mark.parametrize("what", ["arrays", "state", "round", "rules"])
def test_the_snapshot_of_another_training_is_ignored(opened, tmp_path, caplog, what):
    experiment = opened(**changed("moon"))
    node = Node(experiment)
    arrays, state = beginning(node, "moon")
    interrupt(experiment, tmp_path, 2, (arrays, state))
    number, mu = 2 + (what == "round"), 0.5 * (what == "rules")
    if what == "arrays":
        arrays = {**arrays, "fc.bias": arrays["fc.bias"] + 1}
    if what == "state":
        state = {**state, "objective": {k: t + 1 for k, t in state["objective"].items()}}
    config = {**changed("moon"), "num_rounds": 3}
    fresh = Node(opened(**config)).train(0, arrays, state, number, proximal_mu=mu)
    progress = Interrupt()
    node = Node(experiment if number == 2 else opened(**config), progress, Folders(states=tmp_path))
    again = node.train(0, arrays, state, number, proximal_mu=mu)
    assert progress.num_steps == STEPS
    assert states.sha256(again[0].arrays) == states.sha256(fresh[0].arrays)
    assert not caplog.records


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text"])
def test_a_damaged_snapshot_is_told_and_the_training_begins_anew(opened, tmp_path, caplog, damage):
    experiment = opened(**changed("ekd"))
    node = Node(experiment)
    given = beginning(node, "ekd")
    whole = node.train(0, *given, 2)
    interrupt(experiment, tmp_path, 2, given)
    path = snapshot_in(tmp_path)
    bytes_ = path.read_bytes()
    flipped = bytearray(bytes_)
    flipped[-100] ^= 1
    path.write_bytes({"cut": bytes_[:-1], "flipped": flipped, "empty": b"", "text": b"{}"}[damage])
    progress = Interrupt()
    same(Node(experiment, progress, Folders(states=tmp_path)).train(0, *given, 2), whole)
    assert progress.num_steps == STEPS
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert f"{path} cannot be read (" in record.message
    assert "this client begins round 2 from the start" in record.message


def test_a_full_disk_is_told_once_and_ends_no_training(opened, tmp_path, caplog, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(snapshot, "write_state", full)
    experiment = opened(**changed("supervised", every_s=1e-9))
    node = Node(experiment, None, Folders(states=tmp_path))
    node.train(0, node.initial_arrays(), {}, 1)
    (record,) = caplog.records
    assert "cannot write what resuming needs" in record.message
    assert "No space left on device" in record.message
    assert "make room there, or set checkpoint.every=0" in record.message


@pytest.mark.parametrize(("every_s", "given"), [(0, True), (600, False)])
def test_without_a_folder_or_a_time_nothing_is_written_read_or_copied(
    opened, tmp_path, monkeypatch, every_s, given
):
    def never(*_, **__):
        raise AssertionError("nothing is asked for")

    monkeypatch.setattr(Stateless, "step_state", never)
    monkeypatch.setattr(states, "sha256", never)
    experiment = opened(**changed("supervised", every_s=every_s))
    interrupted = Node(experiment, Interrupt(2), Folders(states=tmp_path if given else None))
    with pytest.raises(KeyboardInterrupt):
        interrupted.train(0, interrupted.initial_arrays(), {}, 1)
    assert list(tmp_path.iterdir()) == []
