"""One hospital's part of a round: what it draws, trains, sends and remembers."""

import copy

import numpy as np
import pytest
import torch

from clients.node import Node
from fedkd import seeding, wire
from fedkd.data.augment import augment_, draw
from fedkd.data.loading import Loader
from fedkd.experiment import open_experiment
from fedkd.losses.distillation import feature_distillation
from fedkd.models import states
from fedkd.training import make_optimizer


@pytest.fixture
def open_node(make_recipe, hospitals, tiny_teacher):
    """A function that opens a node on the tiny hospitals."""

    def make(progress=None, **changes):
        recipe = make_recipe(**changes)
        return Node(open_experiment(recipe, **hospitals, teacher=tiny_teacher), progress)

    return make


@pytest.fixture
def positions(monkeypatch):
    """Positions of the images of every batch that is read, in order."""
    seen = []
    read = Loader.batches
    monkeypatch.setattr(Loader, "batches", lambda self, plan: seen.extend(plan) or read(self, plan))
    return seen


EKD = {"objective": {"name": "ekd"}}
UNSEEN = {"evaluation": {"personalised": False}}
SUPERVISED = {"objective": {"name": "supervised"}}


def same(first, second):
    return states.sha256(first) == states.sha256(second)


def test_the_initial_arrays_are_those_of_the_experiments_student(open_node):
    node = open_node()
    assert same(node.initial_arrays(), node.experiment.build_student().state_dict())


def test_shared_prompts_are_among_the_initial_arrays(open_node):
    arrays = open_node(prompts={"shared": "by_strategy"}).initial_arrays()
    assert any(name.startswith(wire.PROMPTS) for name in arrays)


def test_a_node_keeps_nothing_itself(open_node):
    node = open_node()
    initial = node.initial_arrays()
    reply, state = node.train(0, initial, {}, 1)
    node.train(1, reply.arrays, {}, 1)
    again, again_state = node.train(0, initial, {}, 1)
    assert same(reply.arrays, again.arrays)
    assert all(same(state[part], again_state[part]) for part in state)
    fresh, _ = open_node().train(0, initial, {}, 1)
    assert same(reply.arrays, fresh.arrays)


def test_received_arrays_are_not_changed_and_sent_ones_are_copies(open_node):
    node = open_node(**EKD)
    initial = node.initial_arrays()
    reply, state = node.train(0, initial, {}, 1)
    given = copy.deepcopy((initial, reply.arrays))
    node.train(0, reply.arrays, state, 2)
    assert same(initial, given[0])
    assert same(reply.arrays, given[1])
    assert all(tensor.is_contiguous() for tensor in reply.arrays.values())


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_the_given_state_is_not_changed(open_node, optimizer):
    explore = {"gamma": 0.3, "warm_up_steps": 0}
    node = open_node(explore=explore, training={"optimizer": optimizer})
    initial = node.initial_arrays()
    _, state = node.train(0, initial, {}, 1)
    given = copy.deepcopy(state)
    node.train(0, initial, state, 2)
    assert all(same(state[part], given[part]) for part in state)


def test_shared_prompts_that_are_received_replace_those_that_a_client_remembers(open_node):
    idle = {"warm_up_steps": 0, "steps_per_round": 0}
    node = open_node(prompts={"shared": "by_strategy"}, explore=idle)
    initial = node.initial_arrays()
    _, state = node.train(0, initial, {}, 1)
    average = {name: tensor + 1 for name, tensor in initial.items() if wire.PROMPTS in name}
    reply, _ = node.train(0, {**initial, **average}, state, 2)
    assert average
    assert all(torch.equal(reply.arrays[name], tensor) for name, tensor in average.items())


def test_a_client_trains_otherwise_in_another_round_and_as_another_client(open_node):
    node = open_node(**SUPERVISED)
    initial = node.initial_arrays()
    first, second = (node.train(0, initial, {}, number)[0].arrays for number in (1, 2))
    assert not same(first, second)


def test_every_epoch_sees_every_image_once_in_an_order_of_its_own(open_node, positions):
    node = open_node(**SUPERVISED, **UNSEEN, training={"local_epochs": 2})
    arrays = node.initial_arrays()
    orders = []
    for client, number in ((0, 1), (0, 2)):
        positions.clear()
        node.train(client, arrays, {}, number)
        rows = np.concatenate(positions)
        orders += [tuple(rows[:11]), tuple(rows[11:])]
    assert all(sorted(order) == list(range(11)) for order in orders)
    assert len(set(orders)) == 4


def test_without_shuffling_images_come_in_their_own_order(open_node, positions):
    node = open_node(**SUPERVISED, **UNSEEN, training={"shuffle": False, "local_epochs": 2})
    node.train(1, node.initial_arrays(), {}, 1)
    assert [list(rows) for rows in positions] == [[0, 1, 2, 3], [4, 5, 6, 7, 8]] * 2


def test_draws_of_an_image_depend_on_round_client_and_epoch_alone(open_node, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "clients.node.augment_", lambda pixels, draws, config: drawn.append(draws) or pixels
    )

    def draws_of(client, round_number, **training):
        drawn.clear()
        training = {"local_epochs": 2, "shuffle": False, **training}
        node = open_node(**SUPERVISED, training=training)
        node.train(client, node.initial_arrays(), {}, round_number)
        return np.concatenate(drawn)

    first = draws_of(2, 1, batch_size=6)
    assert np.array_equal(draws_of(2, 1, batch_size=2), first)
    for other in (draws_of(2, 2), draws_of(1, 1)[:12]):
        assert not np.isin(other, first).any()
    assert not np.isin(first[:6], first[6:]).any()


def test_a_step_by_hand(open_node):
    """One batch of client 2 (6 images), written out."""
    node = open_node(**EKD, training={"batch_size": 6, "optimizer": "sgd", "clip_norm": 0.0})
    experiment = node.experiment
    reply, _ = node.train(2, node.initial_arrays(), {}, 1)
    student = experiment.build_student().train()
    optimizer = make_optimizer(experiment.recipe.training, student.parameters(), 2e-3)
    order = seeding.rng(0, "order", 1, 2, 0).permutation(6)
    pixels, labels = experiment.loader(2).batch(order)
    draws = draw(order, seeding.rng(0, "augment", 1, 2, 0))
    pixels = augment_(pixels, draws, experiment.recipe.augmentation)
    out = student(pixels)
    prior = torch.log(torch.tensor([3, 0, 0, 3]) / 6 + 1e-12)
    loss = sum(
        torch.nn.functional.cross_entropy(logits + prior, labels)
        for logits in (out.logits, out.projected_logits)
    )
    distance = feature_distillation(out.projection, experiment.teacher_of(0).features(pixels))
    (loss + 3 * distance.mean()).backward()
    optimizer.step()
    for name, tensor in student.state_dict().items():
        torch.testing.assert_close(reply.arrays[name], tensor, rtol=1e-5, atol=1e-6)
    assert reply.metrics[wire.SUM + "loss_distillation"] == pytest.approx(distance.sum().item())


@pytest.mark.parametrize(
    ("changes", "num_examples", "num_seen"),
    [
        ({"local_epochs": 1}, 11, 11),
        ({"local_epochs": 3}, 11, 33),
        ({"local_epochs": 2, "drop_last": True}, 8, 16),
    ],
)
def test_counts_and_sums_travel(open_node, changes, num_examples, num_seen):
    node = open_node(**EKD, training=changes)
    metrics = node.train(0, node.initial_arrays(), {}, 1)[0].metrics
    assert metrics[wire.PARTITION_ID] == 0
    assert metrics[wire.NUM_EXAMPLES] == num_examples
    assert metrics[wire.NUM_SEEN] == num_seen
    assert metrics[wire.CLASS_COUNTS] == [5, 3, 2, 1]
    assert sum(metrics[wire.CLASS_LOSSES]) == pytest.approx(
        metrics[wire.SUM + "loss_distillation"], rel=1e-6
    )
    assert 0 < metrics[wire.SUM + "loss_distillation"] / num_seen < 4
    assert metrics[wire.SECONDS] > 0
    assert wire.CLASS_SCORES not in metrics


def test_class_losses_of_balanced_draws_are_means_times_the_images_of_the_class(open_node):
    """A rate of 0 keeps the student's weights, so every image has one loss per batch."""
    training = {"sampling": "balanced", "local_epochs": 40, "batch_size": 2, "learning_rate": 1e-12}
    node = open_node(**SUPERVISED, training=training)
    metrics = node.train(0, node.initial_arrays(), {}, 1)[0].metrics
    losses, counts = np.array(metrics[wire.CLASS_LOSSES]), np.array(metrics[wire.CLASS_COUNTS])
    # A sum over all draws would be 440/4 times the mean; a mean times n_c is of the size of n_c.
    assert (losses / counts < 10).all()
    uniform = {**training, "sampling": "uniform"}
    node = open_node(**SUPERVISED, training=uniform)
    metrics = node.train(0, node.initial_arrays(), {}, 1)[0].metrics
    means = np.array(metrics[wire.CLASS_LOSSES]) / 40 / counts
    np.testing.assert_allclose(losses / counts, means, rtol=0.25)


def test_the_learning_rate_is_that_of_the_round(open_node):
    schedule = {"name": "torch", "scheduler": "StepLR", "options": {"step_size": 1}}
    node = open_node(**SUPERVISED, schedule=schedule, training={"optimizer": "sgd"})
    arrays = node.initial_arrays()
    moved = []
    for number in (1, 2):
        reply, _ = node.train(0, arrays, {}, number)
        moved.append((reply.arrays["fc.bias"] - arrays["fc.bias"]).abs().max().item())
        assert reply.metrics[wire.MEAN + "learning_rate"] == pytest.approx(
            2e-3 / 10 ** (number - 1)
        )
    assert moved[1] < 0.3 * moved[0]


def test_the_optimizer_continues_from_its_state_or_starts_afresh(open_node):
    for keep in (True, False):
        node = open_node(**SUPERVISED, training={"keep_optimizer_state": keep})
        arrays = node.initial_arrays()
        _, state = node.train(0, arrays, {}, 1)
        assert bool(state["optimizer"]) == keep
        with_state, _ = node.train(0, arrays, state, 2)
        without, _ = node.train(0, arrays, {**state, "optimizer": {}}, 2)
        assert same(with_state.arrays, without.arrays) == (not keep)


def test_an_absent_class_has_no_count_loss_or_score(open_node):
    node = open_node(**EKD)
    metrics = node.train(2, node.initial_arrays(), {}, 1, score_classes=True)[0].metrics
    for key in (wire.CLASS_COUNTS, wire.CLASS_LOSSES, wire.CLASS_SCORES):
        assert metrics[key][1:3] == [0, 0]
        assert metrics[key][0] > 0


@pytest.mark.parametrize("objective", ["supervised", "ekd", "fopro"])
def test_scores_are_those_of_the_received_student_and_change_nothing(open_node, objective):
    node = open_node(objective={"name": objective})
    arrays = node.initial_arrays()
    plain, _ = node.train(1, arrays, {}, 1)
    scored, _ = node.train(1, arrays, {}, 1, score_classes=True)
    assert same(plain.arrays, scored.arrays)
    student, experiment = node.experiment.build_student().eval(), node.experiment
    pixels, labels = experiment.loader(1).batch(np.arange(9))
    with torch.no_grad():
        out = student(pixels)
    if objective == "supervised":
        counts = torch.tensor([5, 3, 1, 0.0])
        prior = torch.log(counts / counts.sum() + 1e-12)
        losses = torch.nn.functional.cross_entropy(out.logits + prior, labels, reduction="none")
    else:
        losses = feature_distillation(out.projection, experiment.teacher_of(0).features(pixels))
    expected = [losses[labels == c].sum().item() for c in range(4)]
    assert scored.metrics[wire.CLASS_SCORES] == pytest.approx(expected, rel=1e-5)


def test_the_teacher_looks_once_at_the_images_that_are_scored_in_every_round(open_node):
    node = open_node(**EKD)
    arrays = node.initial_arrays()
    seen = []
    hook = node.experiment.teacher_of(0).register_forward_hook(lambda *_: seen.append(1))
    scores = []
    for number in (1, 2):
        reply, _ = node.train(0, arrays, {}, number, score_classes=True)
        scores.append(reply.metrics[wire.CLASS_SCORES])
    hook.remove()
    # Three batches of client 0, in training twice and in scoring once.
    assert len(seen) == 3 * 3
    assert scores[0] == scores[1]
    fresh, _ = open_node(**EKD).train(0, arrays, {}, 2, score_classes=True)
    assert fresh.metrics[wire.CLASS_SCORES] == scores[1]


@pytest.mark.parametrize(
    ("objective", "clip_norm", "used"),
    [
        ("supervised", None, set()),
        ("supervised", 2.0, {2.0}),
        ("fedprox", None, set()),
        ("moon", None, {5.0}),
        ("ekd", None, {5.0}),
        ("fopro", None, {5.0}),
        ("ekd", 2.0, {2.0}),
        ("ekd", 0.0, set()),
    ],
)
def test_gradients_are_clipped_as_the_config_or_else_the_method_says(
    open_node, monkeypatch, objective, clip_norm, used
):
    norms = set()
    monkeypatch.setattr(
        "fedkd.training.nn.utils.clip_grad_norm_", lambda _, norm, **__: norms.add(norm)
    )
    training = {} if clip_norm is None else {"clip_norm": clip_norm}
    # Exploration clips by a norm of its own.
    explore = {"warm_up_steps": 0, "steps_per_round": 0}
    node = open_node(objective={"name": objective}, training=training, explore=explore)
    node.train(2, node.initial_arrays(), {}, 1)
    assert norms == used


def test_progress_is_told_after_every_step(open_node):
    told = []
    node = open_node(**SUPERVISED, progress=lambda *step: told.append(step))
    node.train(0, node.initial_arrays(), {}, 1)
    assert told == [(0, "training", done, 11) for done in (4, 8, 11)]


def test_initial_arrays_come_before_any_training(open_node):
    node = open_node(**SUPERVISED)
    node.train(0, node.initial_arrays(), {}, 1)
    with pytest.raises(AssertionError, match="trained already"):
        node.initial_arrays()


def test_scores_leave_out_only_what_every_epoch_leaves_out(open_node):
    """Client 0 has 11 images; the last three, of classes 2, 0 and 1, are in no full batch of 4."""
    for shuffle, counts in ((True, [5, 3, 2, 1]), (False, [4, 2, 1, 1])):
        node = open_node(**SUPERVISED, training={"drop_last": True, "shuffle": shuffle})
        metrics = node.train(0, node.initial_arrays(), {}, 1, score_classes=True)[0].metrics
        student = node.experiment.build_student().eval()
        pixels, labels = node.experiment.loader(0).batch(np.arange(sum(counts)))
        with torch.no_grad():
            logits = student(pixels).logits
        prior = torch.log(torch.tensor([5, 3, 2, 1]) / 11)
        losses = torch.nn.functional.cross_entropy(logits + prior, labels, reduction="none")
        expected = [losses[labels == c].sum().item() for c in range(4)]
        assert np.bincount(labels, minlength=4).tolist() == counts
        assert metrics[wire.CLASS_SCORES] == pytest.approx(expected, rel=1e-5)
