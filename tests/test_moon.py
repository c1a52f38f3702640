"""MOON: the contrastive term, its frozen students, and what a client keeps."""

import math

import pytest
import torch

from clients.factory import make_objective
from clients.node import Node
from fedkd.models import states

MOON = {"objective": {"name": "moon", "loss": "ce"}}
PIXELS = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 3, 0])


@pytest.fixture
def moon(opened):
    """A function that gives the objective of client 0 and a student."""

    def make(**changes):
        experiment = opened(**{**MOON, **changes})
        return make_objective(experiment, 0, 1), experiment.build_student()

    return make


def shifted(student, amount):
    """A state in which the projection is another one."""
    state = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    state["p2.bias"] += amount * torch.linspace(-1, 1, 256)
    return state


def test_the_student_has_moons_projector_and_classifies_the_projection(moon):
    _, student = moon()
    heads = {n: tuple(t.shape) for n, t in student.state_dict().items() if "backbone" not in n}
    assert heads == {
        "p1.weight": (64, 64), "p1.bias": (64,), "p2.weight": (256, 64), "p2.bias": (256,),
        "fc.weight": (4, 256), "fc.bias": (4,),
    }  # fmt: skip
    out = student.eval()(PIXELS)
    hidden = torch.relu(student.p1(out.features))
    torch.testing.assert_close(out.projection, student.p2(hidden))
    torch.testing.assert_close(out.logits, student.fc(out.projection))
    assert out.projected_logits is None


def test_in_the_first_round_the_term_is_mu_log_2(moon):
    objective, student = moon(moon={"mu": 0.7})
    objective.start_round(student, None, 1)
    terms = objective.loss(student.eval(), PIXELS, LABELS).terms
    assert terms["loss_contrastive"].item() == pytest.approx(math.log(2), rel=1e-6)
    assert terms["loss"].item() == pytest.approx(
        terms["loss_supervised"].item() + 0.7 * math.log(2), rel=1e-6
    )


def test_the_term_by_hand(moon):
    objective, student = moon(moon={"mu": 1.0, "temperature": 0.2})
    objective.load_state(shifted(student, 5.0))
    objective.start_round(student, None, 2)
    with torch.no_grad():
        student.p2.bias += torch.linspace(1, -1, 256)
    out = student.eval()(PIXELS)
    losses = objective.loss(student, PIXELS, LABELS)
    expected = []
    for z, received, previous in zip(
        out.projection,
        objective._received.eval().project(PIXELS),
        objective._previous.eval().project(PIXELS),
        strict=True,
    ):
        to_received, to_previous = (
            (z @ other / (z.norm() * other.norm()) / 0.2).item() for other in (received, previous)
        )
        expected.append(math.log(1 + math.exp(to_previous - to_received)))
    mean = sum(expected) / 4
    assert losses.terms["loss_contrastive"].item() == pytest.approx(mean, rel=1e-5)
    assert mean != pytest.approx(math.log(2), rel=1e-2)


def test_the_frozen_students_get_no_gradient_and_keep_every_bit(moon):
    objective, student = moon()
    objective.start_round(student, None, 1)
    frozen = (objective._received, objective._previous)
    before = [states.sha256(net.state_dict()) for net in frozen]
    objective.loss(student.train(), PIXELS, LABELS).total.backward()
    assert all(p.grad is None for net in frozen for p in net.parameters())
    assert [states.sha256(net.state_dict()) for net in frozen] == before
    assert all(p.grad is not None for p in student.parameters())


def test_in_train_mode_the_frozen_students_use_the_statistics_of_the_batch(moon):
    losses = {}
    for mode in ("eval", "train"):
        objective, student = moon(moon={"frozen_mode": mode})
        objective.load_state(shifted(student, 5.0))
        objective.start_round(student, None, 2)
        statistics = objective._received.backbone.bn1.running_mean.clone()
        loss = objective.loss(student.train(), PIXELS, LABELS).terms["loss_contrastive"]
        drifted = not torch.equal(objective._received.backbone.bn1.running_mean, statistics)
        assert drifted == (mode == "train")
        losses[mode] = loss.item()
    assert losses["eval"] != pytest.approx(losses["train"], rel=1e-4)


def test_the_previous_student_is_the_clients_own_after_its_last_training(opened):
    node = Node(opened(**MOON))
    arrays = node.initial_arrays()
    reply, state = node.train(0, arrays, {}, 1)
    assert states.sha256(state["objective"]) == states.sha256(reply.arrays)
    # The next round contrasts with it, whatever the server sends.
    other, _ = node.train(0, arrays, state, 2)
    fresh, _ = node.train(0, arrays, {**state, "objective": arrays}, 2)
    assert states.sha256(other.arrays) != states.sha256(fresh.arrays)


def test_zero_mu_is_the_supervised_loss_of_moons_student(run):
    without = run(**MOON, moon={"mu": 0.0})
    weighed = run(**MOON, moon={"mu": 5.0})
    assert without.summary["student_sha256"] != weighed.summary["student_sha256"]
    terms = without.clients
    assert terms["loss"].tolist() == pytest.approx(terms["loss_supervised"].tolist())
    # In round 1 the term is a constant: only later rounds differ.
    first = run(**MOON, moon={"mu": 0.0}, num_rounds=1)
    again = run(**MOON, moon={"mu": 5.0}, num_rounds=1)
    for name, tensor in first.student.state_dict().items():
        torch.testing.assert_close(again.student.state_dict()[name], tensor, rtol=0, atol=2e-2)
