"""Objective moco: the loss by hand, what a client keeps, that no label is read, the teacher."""

import copy
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clients.factory import make_objective
from clients.moco import MoCo
from clients.node import Node
from fedkd import seeding, wire
from fedkd.errors import ConfigError, DataError
from fedkd.models import states
from fedkd.models.factory import StudentConfig, build_student
from fedkd.pretraining.simclr import random_views
from fedkd.probing.neighbours import knn_probabilities
from fedkd.recipe import MoCoConfig
from server import simulate
from server.evaluation import on_the_server
from strategies.base import UpdateRefused

MOCO = {"objective": {"name": "moco"}, "augmentation": {"name": "none"}}
LABELS = torch.zeros(5, dtype=torch.int64)


@pytest.fixture
def moco(opened):
    """A function that gives the objective of client 0 after its start, student and pixels."""

    def make(number=1, state=None, **changes):
        experiment = opened(**{**MOCO, **changes})
        objective, student = make_objective(experiment, 0, number), experiment.build_student()
        if state:
            objective.load_state(state)
        objective.start_round(student, experiment.loader(0), number)
        return objective, student.train(), experiment.loader(0).pixels(np.arange(5))

    return make


def same(first, second):
    return states.sha256(first) == states.sha256(second)


def test_the_student_has_a_plain_contrastive_head_and_a_classifier_that_does_not_read_it(moco):
    _, student, pixels = moco()
    heads = {n: tuple(t.shape) for n, t in student.state_dict().items() if "backbone" not in n}
    assert heads == {
        "fc.weight": (4, 64), "fc.bias": (4,),
        "p_free.0.weight": (64, 64), "p_free.0.bias": (64,),
        "p_free.2.weight": (128, 64), "p_free.2.bias": (128,),
    }  # fmt: skip
    out = student.eval()(pixels)
    torch.testing.assert_close(out.logits, student.fc(out.features))
    hidden = torch.relu(student.p_free[0](out.features))
    torch.testing.assert_close(out.projection, student.p_free[2](hidden))
    assert out.projected_logits is None


def test_the_head_takes_the_features_of_the_last_stage_alone(opened):
    student = opened(**MOCO, student={"name": "resnet10"}).build_student().eval()
    assert student.p_free[0].in_features == 256
    features = torch.rand(2, 480, requires_grad=True)
    student.backbone = torch.nn.Identity()
    student.mean = torch.empty(0)
    student.project(features).sum().backward()
    assert not features.grad[:, :-256].any()
    assert features.grad[:, -256:].any()


def test_the_head_changes_no_initial_bit_of_what_other_students_have():
    build = partial(
        build_student, StudentConfig(), num_classes=3, num_teacher_features=None, seed=0
    )
    plain, ours = (build(momentum_contrast=has).state_dict() for has in (False, True))
    assert all(torch.equal(ours[name], tensor) for name, tensor in plain.items())


@pytest.mark.parametrize("view_size", [None, 8])
def test_the_loss_by_hand(moco, view_size):
    objective, student, pixels = moco(moco={"temperature": 0.5, "view_size": view_size})
    queue = objective.state()["queue"]
    draws = seeding.generator(0, "moco-views", 1, 0)
    first, second = (random_views(pixels, view_size or 16, draws) for _ in range(2))
    with torch.no_grad():
        q = F.normalize(copy.deepcopy(student)(first).projection, dim=1)
        k = F.normalize(copy.deepcopy(student)(second).projection, dim=1)
    losses = objective.loss(student, pixels, LABELS)
    for row in range(5):
        own = math.exp(q[row] @ k[row] / 0.5)
        others = sum(math.exp(q[row] @ key / 0.5) for key in queue)
        assert losses.per_example[row].item() == pytest.approx(
            -math.log(own / (own + others)), rel=1e-4
        )
    assert losses.total.item() == pytest.approx(losses.per_example.mean().item())
    assert set(losses.terms) == {"loss", "loss_contrastive"}
    # Half of the client's 11 images: five keys, all of which are now those of this batch.
    torch.testing.assert_close(objective.state()["queue"], k)
    assert objective.state()["position"] == 0


def test_the_keys_come_from_an_encoder_that_starts_as_received_and_follows(moco):
    objective, student, pixels = moco(moco={"momentum": 0.75})
    received = {name: p.detach().clone() for name, p in student.named_parameters()}
    objective.loss(student, pixels, LABELS)
    assert all(torch.equal(p, received[n]) for n, p in objective._key.named_parameters())
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 1
    objective.loss(student, pixels, LABELS)
    for name, parameter in objective._key.named_parameters():
        torch.testing.assert_close(parameter, received[name] + 0.25)


def test_gradients_reach_all_but_the_classifier_and_the_momentum_encoder(moco):
    objective, student, pixels = moco()
    objective.loss(student, pixels, LABELS).total.backward()
    without = {name for name, p in student.named_parameters() if p.grad is None}
    assert without == {"fc.weight", "fc.bias"}
    assert all(p.grad is None for p in objective._key.parameters())


# Client 0 has 11 images.
@pytest.mark.parametrize(("queue_size", "num_keys"), [(3, 3), (5, 5), (512, 5)])
def test_a_queue_has_at_most_half_as_many_keys_as_the_client_has_images(moco, queue_size, num_keys):
    objective, *_ = moco(moco={"queue_size": queue_size})
    assert objective.state()["queue"].shape == (num_keys, 128)


def test_views_differ_by_round_client_and_seed_and_repeat_otherwise(opened):
    def loss(client=0, number=1, **changes):
        experiment = opened(**MOCO, **changes)
        objective = make_objective(experiment, client, number)
        student = experiment.build_student()
        objective.start_round(student, experiment.loader(client), number)
        # One image's queue and student for all: only the views differ.
        objective.load_state({"queue": torch.eye(5, 128), "position": torch.tensor(0)})
        pixels = opened(**MOCO).loader(0).pixels(np.arange(5))
        with torch.no_grad():
            student.load_state_dict(opened(**MOCO).build_student().state_dict())
            return objective.loss(student, pixels, LABELS).total.item()

    assert loss() == loss()
    assert len({loss(), loss(client=1), loss(number=2), loss(seed=1)}) == 4


def test_the_queue_stays_with_the_client_and_never_travels(opened):
    node = Node(opened(**MOCO))
    arrays = node.initial_arrays()
    reply, state = node.train(0, arrays, {}, 1)
    assert set(reply.arrays) == set(arrays)
    assert set(state["objective"]) == {"queue", "position"}
    given = copy.deepcopy(state)
    again, _ = node.train(0, arrays, state, 2)
    assert all(same(state[part], given[part]) for part in state)
    # The queue matters, so that losing it would be seen.
    fresh, _ = node.train(0, arrays, {**state, "objective": {}} | {"objective": {
        "queue": torch.eye(5, 128), "position": torch.tensor(0)}}, 2)  # fmt: skip
    assert not same(again.arrays, fresh.arrays)


def test_continuing_from_state_equals_never_stopping(moco):
    objective, student, pixels = moco()
    objective.loss(student, pixels[:3], LABELS[:3])
    whole, state = copy.deepcopy(objective), objective.state()
    assert state["position"] == 3
    start = copy.deepcopy(student)
    loader = type("Loader", (), {"device": torch.device("cpu"), "dtype": torch.float32})
    whole.start_round(start, loader, 2)
    expected = whole.loss(start, pixels, LABELS).per_example
    second = MoCo(MoCoConfig(), 0, 0)
    second.load_state(state)
    second.start_round(student, loader, 2)
    assert torch.equal(second.loss(student, pixels, LABELS).per_example, expected)
    assert same(second.state(), whole.state())


def test_a_state_does_not_change_while_training_goes_on(moco):
    objective, student, pixels = moco()
    state = objective.state()
    before = copy.deepcopy(state)
    second, *_ = moco(2, state)
    for one in (objective, second):
        one.loss(student, pixels, LABELS)
    assert same(state, before)


def test_labels_of_training_images_change_no_bit_of_student_or_scores(make_recipe, hospitals):
    shuffled = [replace(site, labels=np.roll(site.labels, 1)) for site in hospitals["sites"]]
    assert all((site.labels != np.roll(site.labels, 1)).any() for site in hospitals["sites"])
    one, other = (
        simulate(make_recipe(**MOCO), **{**hospitals, "sites": sites})
        for sites in (hospitals["sites"], shuffled)
    )
    assert one.summary["student_sha256"] == other.summary["student_sha256"]
    assert one.summary["best_student_sha256"] == other.summary["best_student_sha256"]
    keys = ("balanced_accuracy", "mcc", "macro_auroc")
    assert all(one.summary["test"][key] == other.summary["test"][key] for key in keys)


def test_the_classifier_keeps_its_initial_bits(run, opened):
    final = run(**MOCO, num_clients=1).student.state_dict()
    initial = opened(**MOCO).build_student().state_dict()
    assert torch.equal(final["fc.weight"], initial["fc.weight"])
    assert not torch.equal(final["p_free.2.weight"], initial["p_free.2.weight"])


def test_batches_of_two_images_train(run):
    losses = run(**MOCO, training={"batch_size": 2}).clients["loss_contrastive"]
    assert losses.map(math.isfinite).all()


def test_students_that_are_not_finite_are_refused(run):
    with pytest.raises(UpdateRefused, match="finite"):
        run(**MOCO, training={"optimizer": "sgd", "learning_rate": 1e30})


def test_val_is_predicted_without_the_image_itself_and_test_by_val(opened):
    experiment = opened(**MOCO, evaluation={"batch_size": 5})
    student, splits = experiment.build_student().eval(), experiment.splits
    predict = on_the_server(experiment)
    with torch.no_grad():
        val, test = (
            student(torch.from_numpy(split.images) / 255).features
            for split in (splits.val, splits.test)
        )
    labels = torch.from_numpy(splits.val.labels)
    expected = knn_probabilities(val, labels, val, 4, leave_out=np.arange(len(val)))
    np.testing.assert_allclose(predict("val", student.state_dict(), 1), expected, rtol=1e-4)
    expected = knn_probabilities(val, labels, test, 4)
    np.testing.assert_allclose(predict("test", student.state_dict(), 1), expected, rtol=1e-4)


def test_images_of_one_lesion_do_not_predict_each_other(opened, hospitals):
    """Nearest to a picture is another one of the same lesion, which is no merit of the features."""
    # Few enough that all of them are neighbours: twice the same votes have the same mean.
    val = hospitals["val"].subset([*range(8)])
    twice = replace(
        val.subset([*range(len(val))] * 2),
        groups=tuple(f"lesion {row}" for row in range(len(val))) * 2,
        ids=(),
    )
    single, double = (opened({"val": split}, **MOCO) for split in (val, twice))
    student = single.build_student().state_dict()
    alone = on_the_server(single)("val", student, 1)
    np.testing.assert_allclose(on_the_server(double)("val", student, 1)[: len(val)], alone)


def test_clients_tell_nothing_of_classes(opened):
    """Nor do they predict with a classifier that nobody trained."""
    reply, _ = (node := Node(opened(**MOCO))).train(0, node.initial_arrays(), {}, 1)
    per_class = {wire.CLASS_COUNTS, wire.CLASS_LOSSES, wire.CLASS_SCORES, wire.PROBABILITIES}
    assert not per_class & set(reply.metrics)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"strategy": {"name": "mas"}},
            "strategy.name is 'mas', which reads .* classes.*choose another strategy",
        ),
        ({"strategy": {"exchange": "backbone"}}, "strategy.exchange is 'backbone'.*'all' only"),
        ({"training": {"sampling": "balanced"}}, "training.sampling is 'balanced'.*no label"),
    ],
)
def test_what_needs_labels_or_makes_several_teachers_is_refused(make_recipe, changes, message):
    with pytest.raises(ConfigError, match=message):
        make_recipe(**{**MOCO, **changes})
    assert make_recipe(**{**changes, "objective": {"name": "ekd"}})


def test_val_images_of_one_lesion_or_class_and_colours_out_of_range_are_refused(opened, hospitals):
    two, alike = hospitals["val"].subset([0, 1]), hospitals["val"].subset([0, 4])
    for val, what in (
        (hospitals["val"].subset([0]), "show one lesion"),
        (replace(two, groups=("lesion", "lesion")), "show one lesion"),
        (alike, "are of one class"),
    ):
        with pytest.raises(DataError, match=f"all val images {what}.*needs two of each at least"):
            opened({"val": val}, **MOCO)
    wide = {
        name: replace(hospitals[name], images=hospitals[name].images / np.float32(100))
        for name in ("val", "test")
    }
    sites = [replace(site, images=site.images / np.float32(100)) for site in hospitals["sites"]]
    with pytest.raises(DataError, match="floats from 0 to .*views of objective.name = 'moco'"):
        opened({**wide, "sites": sites}, **MOCO)


def test_colours_that_are_changed_twice_are_noted(opened, caplog):
    caplog.set_level("INFO")
    opened(**MOCO)
    assert "scored by nearest neighbours (kNN)" in caplog.text
    assert "augmentation.name" not in caplog.text
    opened(objective={"name": "moco"})
    assert "augmentation.name is 'dihedral_jitter', but moco's views change" in caplog.text
