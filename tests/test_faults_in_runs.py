"""Simulated trouble in whole federations: who is asked, what is aggregated, what a reader sees."""

import json
import logging
from collections import defaultdict

import numpy as np
import pandas as pd
import pytest
import torch

from clients import node
from fedkd import wire
from fedkd.errors import ConfigError
from fedkd.models import states
from fedkd.partitions import manifest
from fedkd.site import open_site
from server import simulate
from server.reporting.report import write_report
from server.scoreboard import Observer
from tests.conftest import CLASSES, draw_images
from tests.failing_clients import CONTINUE, PLAIN, broken
from tests.failing_clients import failing as failing

SLOW = {"stragglers": 0.6, "delay_mean": 2.0}


def sha(result):
    return result.summary["student_sha256"]


@pytest.fixture
def train(opened):
    """A client's training with some faults; returns the reply."""

    def once(client=0, number=1, **changes):
        made = node.Node(opened(**{**PLAIN, **changes}))
        return made.train(client, made.initial_arrays(), {}, number)[0]

    return once


# Stragglers


def test_a_straggler_sends_its_student_as_it_was_after_its_last_step(train, opened, monkeypatch):
    """North has 11 images, batches of 4, 4 and 3; two epochs are 6 steps."""
    changes = {
        "training": {"local_epochs": 2},
        "faults": {"stragglers": 1.0, "delay_mean": 1.5},
        "num_rounds": 99,
    }
    faults = opened(**PLAIN, **changes).faults
    number = next(n for n in range(1, 99) if 1 < faults.num_steps(6, faults.delay(n, 0)) < 6)
    done = faults.num_steps(6, faults.delay(number, 0))
    reply = train(number=number, **changes)
    make = node.make_optimizer

    def stopping(*arguments):
        optimizer = make(*arguments)
        step, steps = optimizer.step, []

        def limited():
            steps.append(None)
            if len(steps) <= done:
                step()

        optimizer.step = limited
        return optimizer

    monkeypatch.setattr(node, "make_optimizer", stopping)
    expected = train(number=number, training={"local_epochs": 2}, num_rounds=99)
    parameters = [n for n in reply.arrays if n.endswith(("weight", "bias"))]
    assert len(parameters) > 5
    for name in parameters:
        assert torch.equal(reply.arrays[name], expected.arrays[name]), name
    seen = [4, 8, 11, 15, 19][done - 1]
    assert reply.metrics[wire.NUM_STEPS] == done
    assert reply.metrics[wire.NUM_SEEN] == seen
    assert reply.metrics[wire.NUM_EXAMPLES] == 11, "its weight is that of its images"
    assert reply.metrics[wire.WORK] == done / 6
    assert reply.metrics[wire.DELAY] == faults.delay(number, 0)


def test_class_losses_of_a_straggler_are_means_of_what_it_saw_times_its_images(train, opened):
    whole = train(client=1)
    slow = {"faults": {"stragglers": 1.0, "delay_mean": 50.0}}
    part = train(client=1, **slow)
    assert part.metrics[wire.NUM_STEPS] == 1
    assert part.metrics[wire.NUM_SEEN] == 4
    counts, total = np.array(part.metrics[wire.CLASS_COUNTS]), part.metrics[wire.SUM + "loss"]
    losses = np.array(part.metrics[wire.CLASS_LOSSES])
    made = opened(**PLAIN, **slow)
    rows = node.epoch_order(made.loader(1).labels, made.recipe.training, rng_of(made))[:4]
    seen = np.bincount(made.loader(1).labels[rows], minlength=4)
    means = np.divide(losses, counts, out=np.zeros(4), where=counts > 0)
    assert (means @ seen) == pytest.approx(total, rel=1e-5)
    assert (losses[seen == 0] == 0).all()
    assert whole.metrics[wire.CLASS_COUNTS] == part.metrics[wire.CLASS_COUNTS]


def rng_of(experiment):
    return node.seeding.rng(experiment.recipe.seed, "order", 1, 1, 0)


def test_stragglers_weigh_as_ever_and_their_work_and_delay_are_in_the_tables(run):
    plain = run(**PLAIN, num_rounds=3)
    slow = run(**PLAIN, num_rounds=3, faults=SLOW)
    assert slow.clients["weight"].tolist() == plain.clients["weight"].tolist()
    assert "work" not in plain.clients
    assert "simulated_duration" not in plain.rounds
    work, delay = slow.clients["work"], slow.clients["delay"]
    planned = slow.clients["client"].map({"north": 3, "south": 2, "west": 2})
    expected = np.maximum(1, planned // (1 + delay)) / planned
    assert work.tolist() == pytest.approx(expected.where(delay > 0, 1.0).tolist())
    assert 0 < (delay > 0).sum() < 9
    late = (work * (1 + delay)).groupby(slow.clients["round"]).max().clip(lower=1)
    assert slow.rounds["simulated_duration"].tolist() == pytest.approx(late.tolist())
    assert sha(slow) != sha(plain)


def test_a_straggler_that_is_waited_for_changes_the_duration_and_no_student(run):
    plain = run(**PLAIN)
    slow = run(**PLAIN, faults={**SLOW, "partial_work": False})
    assert sha(slow) == sha(plain)
    assert (slow.clients["work"] == 1).all()
    longest = slow.clients.groupby("round")["delay"].max() + 1
    assert slow.rounds["simulated_duration"].tolist() == pytest.approx(longest.tolist())
    assert longest.max() > 1


def test_fednova_reckons_with_the_steps_that_were_done(run):
    slow = {"faults": {**SLOW, "stragglers": 0.8}, "num_rounds": 1}
    clients = run(**PLAIN, strategy={"name": "fednova"}, **slow).clients
    steps = clients["work"] * clients["client"].map({"north": 3, "south": 2, "west": 2})
    share = clients["num_examples"] / steps
    assert len(set(steps)) > 1
    assert clients["weight"].tolist() == pytest.approx((share / share.sum()).tolist())


# Wrong labels


def test_noisy_labels_are_what_the_hospital_has_and_nobody_else(run, opened, hospitals, tmp_path):
    noise = {"faults": {"label_noise": {"north": 0.7}}}
    clean, noisy = opened(**PLAIN), opened(**PLAIN, **noise)
    same = clean.splits.train.labels == noisy.splits.train.labels
    assert not same[:11].all()
    assert same[11:].all()
    assert (noisy.splits.val.labels == hospitals["val"].labels).all()
    assert (noisy.splits.test.labels == hospitals["test"].labels).all()
    result = run(**PLAIN, **noise, num_rounds=1, output=tmp_path)
    counts = noisy.loader(0).class_counts()
    assert counts.tolist() != clean.loader(0).class_counts().tolist()
    table = pd.read_csv(result.path / "partition.csv")
    assert table.loc[0, list(CLASSES)].tolist() == counts.tolist()
    written = manifest.read(result.path / "partition.json")
    assert written.data_sha256 == manifest.data_sha256(clean.splits.train)
    assert result.summary["partition_hash"] == clean.partition.hash
    reply, _ = node.Node(noisy).train(0, node.Node(noisy).initial_arrays(), {}, 1)
    assert reply.metrics[wire.CLASS_COUNTS] == counts.tolist()


def test_tail_classes_and_whose_val_images_are_whose_do_not_hang_on_wrong_labels(opened):
    """All of west's "d", and other labels elsewhere: "d" would be the largest class."""
    noise = {"faults": {"label_noise": {"0": 1.0, "1": 1.0, "2": 1.0}}}
    clean, noisy = opened(**PLAIN), opened(**PLAIN, **noise)
    assert (clean.splits.train.class_counts() != noisy.splits.train.class_counts()).any()
    groups = [{k: v.tolist() for k, v in e.groups().items()} for e in (clean, noisy)]
    assert groups[0] == groups[1]
    for split in ("val", "test"):
        pairs = zip(clean.held_out_rows[split], noisy.held_out_rows[split], strict=True)
        assert all((a == b).all() for a, b in pairs)


# Clients that are away


def test_a_dropped_client_is_sent_nothing_and_noted_as_failed(run, failing, tmp_path, caplog):
    asked = failing({})
    changes = {"num_rounds": 6, "faults": {"dropout": 0.4}}
    allowed = {"failures": {"policy": "continue", "max_fraction": 0.9}}
    with caplog.at_level(logging.WARNING):
        result = run(**PLAIN, **changes, **allowed, output=tmp_path)
    failures = pd.read_csv(result.path / "failures.csv")
    gone = list(zip(failures["round"], failures["partition_id"], strict=True))
    assert 3 < len(gone) < 12
    everybody = {(number, client) for number in range(1, 7) for client in range(3)}
    assert set(asked) == everybody - set(gone)
    assert set(failures["doing"]) == {"train"}
    assert set(failures["reason"]) == {"it dropped out, as faults.dropout = 0.4 simulates"}
    assert result.rounds["num_failed"].tolist() == [
        sum(number == n for n, _ in gone) for number in range(1, 7)
    ]
    faults = result.board.experiment.faults
    assert set(gone) == {keys for keys in everybody if faults.drops_out(*keys)}
    assert caplog.messages[0] == (
        "simulated trouble: a client drops out of a round with probability 0.4"
    )


def test_hospitals_train_from_the_round_they_join_until_they_leave(run, failing):
    asked = failing({})
    away = {"joins": {"south": 2}, "leaves": {"0": 3}}
    result = run(**PLAIN, num_rounds=4, faults=away)
    assert asked == [(1, 0), (1, 2), (2, 0), (2, 1), (2, 2), (3, 1), (3, 2), (4, 1), (4, 2)]
    rows = result.clients.set_index(["round", "client"])["weight"]
    assert rows[1].to_dict() == {"north": pytest.approx(11 / 17), "west": pytest.approx(6 / 17)}
    assert rows[3].to_dict() == {"south": pytest.approx(9 / 15), "west": pytest.approx(6 / 15)}
    assert result.rounds["num_failed"].tolist() == [0] * 4, "who is not there has not failed"


class Aggregates(Observer):
    def __init__(self):
        self.found = []

    def round_finished(self, board):
        self.found.append({n: t.numpy().copy() for n, t in board.latest.items()})


def test_twenty_rounds_of_trouble_end_and_each_aggregate_is_that_of_its_survivors_by_hand(
    make_recipe, failing, monkeypatch
):
    """30 % dropout, stragglers, and two clients that crash again and again."""
    sizes = (4, 5, 6, 7, 8, 9, 10, 11)
    names = [f"h{number}" for number in range(8)]
    data = {
        "sites": [
            draw_images(f"train/{name}", np.arange(size) % 4, site_names=(name,))
            for name, size in zip(names, sizes, strict=True)
        ],
        "val": draw_images("val", [0, 1, 2, 3]),
        "test": draw_images("test", [0, 1, 2, 3]),
    }
    crashes = {(number, 2): [broken()] for number in range(1, 21, 2)}
    crashes |= {(number, 5): [broken()] for number in range(3, 21, 3)}
    planned_crashes = set(crashes)
    failing(crashes)
    replies, crashing = defaultdict(dict), node.Node.train

    def train(self, partition_id, arrays, state, round_number, *rest, **options):
        reply, new = crashing(self, partition_id, arrays, state, round_number, *rest, **options)
        replies[round_number][partition_id] = reply
        return reply, new

    monkeypatch.setattr(node.Node, "train", train)
    recipe = make_recipe(
        **PLAIN,
        num_rounds=20,
        training={"dtype": "float64", "local_epochs": 2},
        evaluation={"personalised": False},
        failures={"policy": "continue", "max_fraction": 0.9},
        faults={"dropout": 0.3, "stragglers": 0.4, "delay_mean": 2.0},
    )
    watched = Aggregates()
    result = simulate(recipe, **data, observers=[watched])
    faults = result.board.experiment.faults
    everybody = {(number, client) for number in range(1, 21) for client in range(8)}
    dropped = {keys for keys in everybody if faults.drops_out(*keys)}
    lost = dropped | planned_crashes
    assert 0.2 < len(dropped) / 160 < 0.4
    assert len(planned_crashes - dropped) > 6
    assert {(n, c) for n, found in replies.items() for c in found} == everybody - lost
    assert len(result.rounds) == len(watched.found) == 20
    rows = result.clients.set_index(["round", "partition_id"])["weight"]
    assert set(rows.index) == everybody - lost
    assert 5 < (result.clients["work"] < 1).sum() < len(result.clients) / 2
    for number, aggregate in enumerate(watched.found, 1):
        survivors = sorted(replies[number])
        total = sum(sizes[client] for client in survivors)
        for client in survivors:
            assert rows[number, client] == pytest.approx(sizes[client] / total, rel=1e-15)
        for name, values in aggregate.items():
            sent = [replies[number][client].arrays[name].numpy() for client in survivors]
            if np.issubdtype(values.dtype, np.integer):
                assert values == max(sent), name
                continue
            shares = [sizes[client] / total for client in survivors]
            mean = sum(share * array for share, array in zip(shares, sent, strict=True))
            np.testing.assert_allclose(values, mean, rtol=1e-12, atol=1e-15, err_msg=name)
    final = {n: torch.from_numpy(v) for n, v in watched.found[-1].items()}
    assert states.sha256(final) == sha(result)


ALL = {
    "num_rounds": 3,
    "failures": {"policy": "continue", "max_fraction": 0.9},
    "faults": {
        **SLOW, "dropout": 0.2, "joins": {"south": 2}, "label_noise": {"north": 0.5},
        "byzantine": ["west"], "attack": "noise",
    },
}  # fmt: skip


def test_the_same_trouble_with_any_number_of_threads(run):
    runs = [run(**ALL, engine={"num_workers": n, "num_threads": 1}) for n in (1, 2)]
    assert sha(runs[0]) == sha(runs[1])
    same = [r.clients.drop(columns="seconds") for r in runs]
    pd.testing.assert_frame_equal(*same)
    assert sha(run(**{**ALL, "seed": 1})) != sha(runs[0])


# Wrong updates


def test_nan_is_refused_in_every_round_and_never_enters(run):
    liar = {"faults": {"byzantine": ["south"], "attack": "nan"}}
    result = run(**PLAIN, **CONTINUE, **liar, num_rounds=3)
    assert result.rounds["num_failed"].tolist() == [1, 1, 1]
    assert set(result.clients["client"]) == {"north", "west"}
    assert all(t.isfinite().all() for t in result.student.state_dict().values())
    assert {f.client for f in result.board.failures} == {"south"}
    assert "values of" in result.board.failures[0].reason


def test_a_liar_sends_its_update_reversed_and_remembers_its_own(train, opened):
    honest = train(client=1)
    wrong = train(client=1, faults={"byzantine": ["1"], "attack_scale": 2.0})
    made = node.Node(opened(**PLAIN))
    before = made.initial_arrays()
    buffers = {name for name, _ in made.experiment.build_student().named_buffers()}
    assert buffers & set(before)
    for name, received in before.items():
        if name in buffers:
            assert torch.equal(wrong.arrays[name], honest.arrays[name]), name
        else:
            expected = received - 2 * (honest.arrays[name] - received)
            assert torch.allclose(wrong.arrays[name], expected, atol=1e-6), name
    same = [wire.NUM_EXAMPLES, wire.NUM_STEPS, wire.SUM + "loss", wire.CLASS_LOSSES]
    assert [wrong.metrics[key] for key in same] == [honest.metrics[key] for key in same]


def test_shared_prompts_of_a_liar_are_wrong_as_well(opened):
    shared = {"prompts": {"shared": "by_strategy"}}
    arrays = []
    for faults in ({}, {"byzantine": ["1"], "attack": "scale", "attack_scale": 3.0}):
        made = node.Node(opened(**shared, faults=faults))
        before = made.initial_arrays()
        arrays.append(made.train(1, before, {}, 1)[0].arrays)
    names = [name for name in before if name.startswith(wire.PROMPTS)]
    assert names
    for name in names:
        expected = before[name] + 3 * (arrays[0][name] - before[name])
        assert torch.allclose(arrays[1][name], expected, atol=1e-5), name


# What a reader sees, and where nothing is simulated


def test_summary_and_page_say_that_trouble_is_simulated(run, tmp_path):
    result = run(**PLAIN, faults=SLOW, num_rounds=1, output=tmp_path)
    words = result.board.experiment.recipe.faults.in_words()
    assert json.loads((result.path / "summary.json").read_text())["faults"] == words
    page = write_report(result.path).read_text()
    assert f"Simulated trouble (faults in the config): {words}." in page
    clean = run(**PLAIN, num_rounds=1, output=tmp_path)
    assert "faults" not in clean.summary
    assert "Simulated trouble" not in write_report(clean.path).read_text()


def test_centralized_training_refuses_trouble_that_only_clients_have(run):
    trouble = {"dropout": 0.3, "byzantine": ["0"]}
    with pytest.raises(ConfigError) as caught:
        run(centralized=True, **PLAIN, **CONTINUE, faults=trouble)
    assert str(caught.value) == (
        "faults.dropout, faults.byzantine is given, but centralized training has no clients that "
        "could be away or send anything; leave it out"
    )


def test_centralized_training_with_wrong_labels_is_a_federation_of_one(run):
    trouble = {"label_noise": {"all": 0.5}, **SLOW}
    alone = run(**PLAIN, num_clients=1, faults=trouble)
    assert sha(run(centralized=True, **PLAIN, faults=trouble)) == sha(alone)
    assert sha(alone) != sha(run(**PLAIN, num_clients=1))


def test_hospitals_with_their_own_images_refuse_simulated_trouble(make_recipe, tmp_path):
    with pytest.raises(ConfigError) as caught:
        open_site(make_recipe(faults={"label_noise": {"0": 0.2}}), 0, 3, tmp_path)
    assert str(caught.value) == (
        "faults simulates trouble (client 0 has other labels with probability 0.2), but where "
        "hospitals have their own images nothing is simulated; leave the section out, or "
        "simulate all"
    )
