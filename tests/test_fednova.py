"""fednova: the normaliser against torch's SGD, hand-made replies, degenerate cases."""

import numpy as np
import pytest
import torch

from fedkd.training import TrainingConfig, make_optimizer
from server.federation import _setup
from strategies.fednova import accumulated
from tests.hand_made_replies import Federation, update


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_the_normaliser_is_how_far_the_clients_sgd_goes_on_a_constant_gradient(num_steps, momentum):
    weight = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))
    config = TrainingConfig(optimizer="sgd", momentum=momentum)
    optimizer = make_optimizer(config, iter([weight]), 1.0)
    for _ in range(num_steps):
        weight.grad = torch.ones((), dtype=torch.float64)
        optimizer.step()
    assert -weight.item() == pytest.approx(accumulated(num_steps, momentum))


def test_normalisers_by_hand():
    assert accumulated(5) == 5
    # Nesterov, rho = 0.5: 1.5, and 1.75 for the gradient that acts for another step.
    assert accumulated(1, 0.5) == 1.5
    assert accumulated(2, 0.5) == 1.5 + 1.75
    assert accumulated(0, 0.5) == 0


UPDATES = [update(0, 1.0, 10, steps=2), update(1, 4.0, 30, steps=6)]


def test_updates_per_step_are_averaged_and_the_step_is_that_of_an_average_client():
    # p = 1/4, 3/4; tau_eff = 2/4 + 18/4 = 5; 5 x (1/4 x 1/2 + 3/4 x 4/6) = 3.125.
    federation = Federation("fednova", UPDATES)
    assert federation.round()["w"] == pytest.approx([3.125] * 3)
    # 1/4 / 2 and 3/4 / 6 are both 1/8.
    assert federation.weights() == pytest.approx([0.5, 0.5])


def test_momentum_enters_by_its_normaliser():
    # rho = 0.5: a = 3.25 for 2 steps; for 6, (6 - 0.25 (1 - 1/64) / 0.5) / 0.5 = 11.015625.
    a = (3.25, 11.015625)
    tau = 0.25 * a[0] + 0.75 * a[1]
    expected = tau * (0.25 * 1 / a[0] + 0.75 * 4 / a[1])
    out = Federation("fednova", UPDATES, momentum=0.5).round()["w"]
    assert out == pytest.approx([expected] * 3)
    assert expected != pytest.approx(3.125, rel=1e-3)


def test_steps_start_at_the_received_student():
    federation = Federation("fednova", UPDATES)
    federation.received = update(0, 2.0)[0]
    # 2 + 5 x (1/4 x (1 - 2) / 2 + 3/4 x (4 - 2) / 6)
    assert federation.round()["w"] == pytest.approx([2 + 5 * (-1 / 8 + 1 / 4)] * 3)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_equal_steps_are_fedavg_to_the_bit(momentum):
    rng = np.random.default_rng(0)
    updates = [update(i, rng.normal(size=3), 3 + 4 * i, steps=7) for i in range(3)]
    out = Federation("fednova", updates, momentum=momentum).round()
    expected = Federation("fedavg", updates).round()
    assert all(out[key].tobytes() == expected[key].tobytes() for key in out)


def test_buffers_are_averaged_by_images():
    assert Federation("fednova", UPDATES).round()["running_var"].tolist() == [3.25] * 2


@pytest.mark.parametrize(
    ("training", "momentum"),
    [
        ({"optimizer": "sgd", "momentum": 0.8, "keep_optimizer_state": False}, 0.8),
        ({"optimizer": "sgd", "momentum": 0.8}, 0.0),
        ({"optimizer": "adam", "keep_optimizer_state": False}, 0.0),
    ],
)
def test_it_is_told_the_momentum_of_sgd_that_starts_afresh(opened, training, momentum):
    experiment = opened(training=training, objective={"name": "supervised"})
    assert _setup(experiment).momentum == momentum


def test_clients_send_their_steps_and_a_federation_runs(run):
    changes = {"objective": {"name": "supervised"}, "strategy": {"name": "fednova"}}
    fednova, fedavg = run(**changes), run(objective={"name": "supervised"})
    # 11, 9 and 6 images in batches of 4: 3, 2 (a last single image joins) and 2 steps.
    weights = fednova.clients["weight"][:3].tolist()
    total = 11 / 3 + 9 / 2 + 6 / 2
    assert weights == pytest.approx([11 / 3 / total, 9 / 2 / total, 6 / 2 / total])
    assert fednova.rounds["train_loss"][1] != fedavg.rounds["train_loss"][1]
