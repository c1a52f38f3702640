"""Dropout of students: the rule, its own numbers, and the same bits whoever else trains."""

import pytest
import torch
import torchvision
from torch import nn
from torchvision.ops import StochasticDepth

from clients.node import Node
from fedkd import seeding
from fedkd.models.dropout import SeededDropout, seed_dropout
from fedkd.models.factory import STUDENTS, StudentConfig, build_student

EFFICIENT = {"student": {"name": "efficientnet_b0"}, "objective": {"name": "supervised"}}


def generator():
    return torch.Generator().manual_seed(3)


def student_of(name):
    return build_student(StudentConfig(name=name), num_classes=4, num_teacher_features=None, seed=1)


def test_what_is_kept_is_divided_by_its_probability():
    dropped = SeededDropout(0.2, generator())(torch.ones(200, 300))
    assert dropped.unique().tolist() == [0.0, 1.25]
    # Five standard deviations of a mean of 60,000 draws.
    assert (dropped == 0).float().mean().item() == pytest.approx(0.2, abs=0.0082)


def test_examples_are_dropped_as_a_whole_and_so_is_a_batch():
    inputs = torch.rand(64, 3, 5, 5) + 1
    rows = SeededDropout(0.5, generator(), axes=1)(inputs)
    assert {float(one) for ratio in rows / inputs for one in ratio.unique()} == {0.0, 2.0}
    assert all(len(ratio.unique()) == 1 for ratio in rows / inputs)
    batch, drawn = SeededDropout(0.5, generator(), axes=0), set()
    for _ in range(20):
        (factor,) = (batch(inputs) / inputs).unique().tolist()
        drawn.add(factor)
    assert drawn == {0.0, 2.0}


def test_nothing_is_dropped_in_eval_mode_or_with_probability_zero_and_all_with_one():
    inputs = torch.rand(4, 5)
    assert SeededDropout(0.5, generator()).eval()(inputs) is inputs
    assert SeededDropout(0.0, generator())(inputs) is inputs
    assert torch.equal(SeededDropout(1.0, generator())(inputs), torch.zeros(4, 5))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_is_kept_and_gradients_reach_what_is_kept(dtype):
    inputs = torch.rand(8, 9, dtype=dtype).requires_grad_()
    dropped = SeededDropout(0.5, generator())(inputs)
    dropped.sum().backward()
    assert dropped.dtype == dtype
    assert torch.equal(inputs.grad, torch.where(dropped == 0, 0, 2).to(dtype))


def test_a_network_gets_the_rates_and_modes_that_it_had():
    layers = [nn.Dropout(0.1), nn.Sequential(StochasticDepth(0.2, "row"), nn.ReLU())]
    network = nn.Sequential(*layers, StochasticDepth(0.3, "batch"))
    seed_dropout(network, generator())
    found = [m for m in network.modules() if isinstance(m, SeededDropout)]
    assert [(one.p, one._axes) for one in found] == [(0.1, None), (0.2, 1), (0.3, 0)]
    assert not any(isinstance(m, nn.Dropout | StochasticDepth) for m in network.modules())


@pytest.mark.parametrize("name", STUDENTS)
def test_no_student_draws_from_the_generator_of_the_process(name):
    student, pixels = student_of(name).train(), torch.rand(2, 3, 32, 32)
    before = torch.get_rng_state()
    student(pixels)
    assert torch.equal(torch.get_rng_state(), before)


def test_names_and_predictions_are_those_of_torchvision():
    student = student_of("efficientnet_b0").eval()
    theirs = torchvision.models.efficientnet_b0()
    theirs.classifier[-1] = nn.Identity()
    theirs.load_state_dict(student.backbone.state_dict())
    pixels = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(student.backbone(pixels), theirs.eval()(pixels))


def test_a_frozen_copy_drops_other_things_and_does_not_learn():
    student = student_of("efficientnet_b0").train()
    copied = student.frozen_copy()
    assert not any(parameter.requires_grad for parameter in copied.parameters())
    pixels = torch.rand(4, 3, 32, 32)
    student.draws.manual_seed(1)
    first, second = student(pixels).features, copied(pixels).features
    student.draws.manual_seed(1)
    assert torch.equal(copied(pixels).features, first)
    assert not torch.equal(first, second)


def test_a_client_with_dropout_depends_on_round_and_client_but_not_on_who_trained_before(opened):
    def trained(experiment, order):
        node = Node(experiment)
        arrays = node.initial_arrays()
        return {key: node.train(key[0], arrays, {}, key[1])[0].arrays["fc.weight"] for key in order}

    places = [(0, 1), (2, 1)]
    torch.manual_seed(1)
    there = trained(opened(**EFFICIENT), places)
    torch.manual_seed(2)
    back = trained(opened(**EFFICIENT), places[::-1])
    assert all(torch.equal(there[key], back[key]) for key in places)


def test_dropout_is_drawn_anew_for_each_client_and_round(opened, monkeypatch):
    seeds = []
    whole = seeding.torch_seed

    def noted(seed, purpose, *keys):
        value = whole(seed, purpose, *keys)
        if purpose == "dropout":
            seeds.append(value)
        return value

    monkeypatch.setattr(seeding, "torch_seed", noted)
    node = Node(opened(objective={"name": "supervised"}))
    arrays = node.initial_arrays()
    for client, number in ((0, 1), (1, 1), (0, 2), (0, 1)):
        node.train(client, arrays, {}, number)
    assert len(seeds) == 4
    assert len(set(seeds)) == 3


@pytest.mark.slow
def test_a_student_with_dropout_is_the_same_in_every_run_on_any_number_of_threads(run):
    runs = [
        run(engine={"num_threads": 1, "num_workers": number}, num_rounds=1, **EFFICIENT)
        for number in (None, None, 2)
    ]
    assert len({one.summary["student_sha256"] for one in runs}) == 1
