"""FedProx: supervised training with a proximal term."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch

from clients.fedprox import FedProx
from clients.node import Node
from fedkd import wire
from fedkd.errors import ConfigError
from fedkd.losses.factory import LossConfig, make_loss
from fedkd.models import states
from strategies.factory import STRATEGIES, Entry
from strategies.fedavg import FedAvg

PIXELS = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 3, 0])


@pytest.fixture
def objective():
    counts = torch.tensor([2.0, 1.0, 0.0, 1.0])
    return FedProx(make_loss("ce", LossConfig(), counts, 1, 1), mu=0.5)


@pytest.fixture
def student(opened):
    return opened(objective={"name": "fedprox"}).build_student()


def gradients(student, objective):
    student.zero_grad()
    losses = objective.loss(student.eval(), PIXELS, LABELS)
    losses.total.backward()
    return losses, {name: p.grad.clone() for name, p in student.named_parameters()}


def test_the_received_student_costs_nothing_and_has_no_gradient_of_the_term(student, objective):
    objective.start_round(student, None, 1)
    losses, proximal = gradients(student, objective)
    assert losses.terms["loss_proximal"].item() == 0
    objective.mu = 0.0
    _, plain = gradients(student, objective)
    assert all(torch.equal(proximal[name], plain[name]) for name in plain)


def test_the_term_and_its_gradient_by_hand(student, objective):
    objective.start_round(student, None, 1)
    received = copy.deepcopy(student)
    with torch.no_grad():
        student.fc.bias += torch.tensor([1.0, 0.0, -2.0, 0.0])
        student.backbone.bn1.weight *= 3  # BatchNorm's parameters count as well
        student.backbone.bn1.running_mean += 7  # its statistics do not
    moved = (student.backbone.bn1.weight - received.backbone.bn1.weight).square().sum().item()
    losses, with_term = gradients(student, objective)
    assert losses.terms["loss_proximal"].item() == pytest.approx(0.25 * (1 + 4 + moved), rel=1e-6)
    assert losses.total.item() == pytest.approx(
        losses.terms["loss_supervised"].item() + losses.terms["loss_proximal"].item()
    )
    objective.mu = 0.0
    _, plain = gradients(student, objective)
    pull = with_term["fc.bias"] - plain["fc.bias"]
    torch.testing.assert_close(pull, 0.5 * torch.tensor([1.0, 0.0, -2.0, 0.0]))


def test_zero_mu_equals_supervised_to_the_bit(run):
    prox = run(objective={"name": "fedprox"}, fedprox={"mu": 0.0})
    plain = run(objective={"name": "supervised"})
    assert prox.summary["student_sha256"] == plain.summary["student_sha256"]
    assert (
        prox.summary["student_sha256"]
        != run(objective={"name": "fedprox"}, fedprox={"mu": 1.0}).summary["student_sha256"]
    )


def test_a_large_mu_keeps_students_near_the_received_one(run, opened):
    initial = opened(objective={"name": "fedprox"}).build_student()

    def distance(mu):
        student = run(
            num_rounds=1,
            objective={"name": "fedprox"},
            fedprox={"mu": mu},
            training={"optimizer": "sgd", "learning_rate": 0.01, "local_epochs": 5},
        ).student
        pairs = zip(student.parameters(), initial.parameters(), strict=True)
        return np.sqrt(sum((a - b).square().sum().item() for a, b in pairs))

    assert distance(20.0) < 0.5 * distance(0.0)


def test_the_received_student_is_not_changed_by_training(student, objective):
    objective.start_round(student, None, 1)
    before = states.sha256(dict(enumerate_names(objective._received)))
    with torch.no_grad():
        student.fc.bias += 1
    assert states.sha256(dict(enumerate_names(objective._received))) == before


def enumerate_names(tensors):
    return ((str(number), tensor) for number, tensor in enumerate(tensors))


class Told(FedAvg):
    """FedAvg that asks clients for a proximal term."""

    mu = 0.4

    def instructions(self):
        return {wire.PROXIMAL_MU: self.mu}


@pytest.fixture
def told(monkeypatch):
    monkeypatch.setitem(STRATEGIES, "fedprox", Entry(Told, ""))
    return monkeypatch


AS_STRATEGY = {"strategy": {"name": "fedprox"}, "fedprox": {"mu": 0.4}}
KEPT = ["student_sha256", "best_student_sha256", "best_round", "val", "test"]


@pytest.mark.parametrize("centralized", [False, True])
def test_the_strategy_with_the_supervised_objective_is_the_objective(run, told, centralized):
    asked = run(objective={"name": "supervised"}, centralized=centralized, **AS_STRATEGY)
    own = run(objective={"name": "fedprox"}, fedprox={"mu": 0.4}, centralized=centralized)
    plain = run(objective={"name": "supervised"}, centralized=centralized)
    assert [asked.summary[key] for key in KEPT] == [own.summary[key] for key in KEPT]
    seconds = [name for name in asked.rounds if "seconds" in name]
    pd.testing.assert_frame_equal(
        asked.rounds.drop(columns=seconds), own.rounds.drop(columns=seconds)
    )
    assert asked.rounds["train_loss_proximal"].iloc[-1] > 0
    assert asked.summary["student_sha256"] != plain.summary["student_sha256"]


def test_the_strategy_without_mu_is_fedavg(run, told):
    told.setattr(Told, "mu", 0.0)
    asked = run(objective={"name": "ekd"}, **{**AS_STRATEGY, "fedprox": {"mu": 0.0}})
    assert asked.summary["student_sha256"] == run(objective={"name": "ekd"}).summary[KEPT[0]]
    assert "train_loss_proximal" not in asked.rounds


@pytest.mark.parametrize("name", ["moon", "ekd", "fopro", "moco"])
def test_the_strategys_term_is_added_to_any_objective(opened, name):
    changes = {"training": {"optimizer": "sgd", "momentum": 0.0, "clip_norm": 0.0}}
    experiment = opened(objective={"name": name}, moco={"queue_size": 2}, **changes)
    node = Node(experiment)
    arrays = node.initial_arrays()
    plain, _ = node.train(0, arrays, {}, 1, score_classes=name != "moco")
    held, _ = node.train(0, arrays, {}, 1, score_classes=name != "moco", proximal_mu=3.0)
    sums = held.metrics
    # Three batches; the term is 0 at the first of them and in the total at the others.
    assert sums["sum.loss_proximal"] > 0
    others = sums["sum.loss"] - sums["sum.loss_proximal"]
    assert others == pytest.approx(plain.metrics["sum.loss"], rel=0.05)
    assert "sum.loss_proximal" not in plain.metrics
    # Scores per class are of the received student: the term is 0 there, and of no class.
    if name != "moco":
        assert sums[wire.CLASS_SCORES] == plain.metrics[wire.CLASS_SCORES]
        assert sum(sums[wire.CLASS_LOSSES]) == pytest.approx(
            sum(plain.metrics[wire.CLASS_LOSSES]), rel=0.05
        )

    def moved(reply):
        return sum((reply.arrays[n] - arrays[n]).norm() for n in held_names)

    held_names = [n for n, _ in experiment.build_student().named_parameters()]
    assert moved(held) < moved(plain)


def test_the_term_is_not_added_twice(make_recipe):
    with pytest.raises(ConfigError) as caught:
        make_recipe(strategy={"name": "fedprox"}, objective={"name": "fedprox"})
    assert (
        "strategy.name and objective.name are both 'fedprox', which would add the proximal term "
        "twice; choose objective.name = 'supervised', or another strategy, such as fedavg"
    ) in str(caught.value)
