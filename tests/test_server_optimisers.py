"""Optimisers on the server: hand-made replies, Flower's own classes, buffers."""

import flwr.serverapp.strategy as flower
import numpy as np
import pytest

from fedkd.errors import UpdateRefused
from tests.hand_made_replies import BUFFERS, GLOBAL, Federation, record, update

ADAPTIVE = {
    "fedadagrad": (flower.FedAdagrad, {}),
    "fedadam": (flower.FedAdam, {"beta_1": 0.8, "beta_2": 0.95}),
    "fedyogi": (flower.FedYogi, {"beta_1": 0.8, "beta_2": 0.95}),
}
OPTIMISERS = [*ADAPTIVE, "fedavgm"]


def two_rounds(federation, first, second):
    """w after each of two rounds, in which the clients are at first and second."""
    out = []
    for number, values in enumerate((first, second), 1):
        federation.updates = [
            update(i, value, num)
            for i, (value, num) in enumerate(zip(values, (10, 30), strict=True))
        ]
        federation.received = federation.round(number)
        out.append(float(federation.received["w"][0]))
    return out


def start(name, **options):
    return Federation(name, [update(0), update(1)], options=options)


# Round 1: 0.25 x 1 + 0.75 x 4 = 3.25 from 0. In round 2 the clients are 1 above and 1 below what
# they received, so that the average update is 0.25 - 0.75 = -0.5.
DELTA_1, DELTA_2 = 3.25, -0.5


def by_hand(name, eta, tau=0.5, b1=0.8, b2=0.95):
    m, v, w, out = 0.0, 0.0, 0.0, []
    for number, delta in enumerate((DELTA_1, DELTA_2), 1):
        if name == "fedadagrad":
            m, v, rate = delta, v + delta**2, eta
        elif name == "fedadam":
            m, v = b1 * m + (1 - b1) * delta, b2 * v + (1 - b2) * delta**2
            rate = eta * np.sqrt(1 - b2 ** (number + 1)) / (1 - b1 ** (number + 1))
        else:
            m, rate = b1 * m + (1 - b1) * delta, eta
            v -= (1 - b2) * delta**2 * np.sign(v - delta**2)
        w += rate * m / (np.sqrt(v) + tau)
        out.append(w)
    return out


@pytest.mark.parametrize("name", ADAPTIVE)
def test_two_rounds_of_adaptive_steps_by_hand(name):
    _, betas = ADAPTIVE[name]
    federation = start(name, server_learning_rate=0.3, tau=0.5, **betas)
    expected = by_hand(name, 0.3)
    got = two_rounds(federation, (1.0, 4.0), (expected[0] + 1, expected[0] - 1))
    assert got == pytest.approx(expected, rel=1e-5)


def test_yogi_shrinks_its_mean_square_by_a_fixed_share_of_the_new_one():
    # v: 0 -> 0.05 x 3.25^2 = 0.528125, and then, as it is above 0.5^2, minus 0.05 x 0.25.
    federation = start("fedyogi", server_learning_rate=0.3, tau=0.5, beta_1=0.8, beta_2=0.95)
    w1, _ = two_rounds(federation, (1.0, 4.0), by_hand("fedyogi", 0.3)[:1] * 2)
    federation = start("fedyogi", server_learning_rate=0.3, tau=0.5, beta_1=0.8, beta_2=0.95)
    two_rounds(federation, (1.0, 4.0), (w1 + 1, w1 - 1))
    assert federation.strategy._optimizer.v_t["w"] == pytest.approx(0.528125 - 0.0125)


def test_two_rounds_of_momentum_by_hand():
    # v = 3.25, w = 0.5 x 3.25 = 1.625; v = 0.9 x 3.25 - 0.5 = 2.425, w = 1.625 + 0.5 x 2.425.
    federation = start("fedavgm", server_learning_rate=0.5, server_momentum=0.9)
    assert two_rounds(federation, (1.0, 4.0), (2.625, 0.625)) == pytest.approx([1.625, 2.8375])


def test_an_update_adds_up_to_one_over_one_minus_momentum_of_itself():
    federation = start("fedavgm", server_learning_rate=1.0, server_momentum=0.5)
    federation.updates = [update(0, 1.0), update(1, 1.0)]
    for number in range(1, 30):
        federation.received = federation.round(number)
        rest = federation.received["w"][0]
        federation.updates = [update(0, rest), update(1, rest)]
    assert rest == pytest.approx(2)


def test_no_momentum_and_rate_1_is_fedavg_to_the_bit():
    rng = np.random.default_rng(0)
    updates = [update(i, rng.normal(size=3), 3 + i) for i in range(3)]
    options = {"server_learning_rate": 1.0, "server_momentum": 0.0}
    out = Federation("fedavgm", updates, options=options).round()
    expected = Federation("fedavg", updates).round()
    assert all(out[key].tobytes() == expected[key].tobytes() for key in out)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_two_rounds_are_those_of_flowers_own_class(name):
    if name == "fedavgm":
        options = {"server_learning_rate": 0.7, "server_momentum": 0.9}
        flowers = flower.FedAvgM(**options)
    else:
        kind, betas = ADAPTIVE[name]
        options = {"server_learning_rate": 0.3, "tau": 0.01, **betas}
        flowers = kind(eta=0.3, tau=0.01, **betas)
    rng = np.random.default_rng(3)
    federation = Federation(name, [update(i) for i in range(3)], options=options)
    for number in (1, 2):
        federation.updates = [update(i, rng.normal(size=3), 2 + 5 * i) for i in range(3)]
        w = {"w": federation.received["w"]}
        flowers.current_arrays = record(w) if name == "fedavgm" else w
        expected = federation.by_flower(flowers, number=number)["w"]
        federation.received = federation.round(number)
        assert federation.received["w"] == pytest.approx(expected.astype(np.float32), rel=1e-6)
        assert not np.allclose(federation.received["w"], w["w"])


STEPPING = [
    *((name, {"server_learning_rate": 2.0}) for name in OPTIMISERS),
    ("fednova", {}),
]


@pytest.mark.parametrize(("name", "options"), STEPPING)
def test_a_running_variance_is_averaged_where_a_step_would_make_it_negative(name, options):
    """From 1 to 0.25 x 0.01 + 0.75 x 0.02, three times, and with unequal local steps."""
    updates = [update(0, 1.0, 10, variance=0.01), update(1, 4.0, 30, variance=0.02, steps=9)]
    variances = {}
    for told, buffers in ((True, BUFFERS), (False, frozenset())):
        federation = Federation(name, updates, options=options, buffers=buffers)
        seen = variances[told] = []
        for number in (1, 2, 3):
            federation.received = federation.round(number)
            seen.append(federation.received["running_var"][0])
    assert variances[True] == pytest.approx([0.0175] * 3)
    assert min(variances[False]) < 0, "the test would pass whatever the strategy did to buffers"


@pytest.mark.parametrize("name", OPTIMISERS)
def test_weights_are_those_of_fedavg(name):
    assert Federation(name, [update(0, 1.0, 10), update(1, 4.0, 30)]).weights() == [0.25, 0.75]


@pytest.mark.parametrize("name", ADAPTIVE)
def test_the_first_step_is_about_the_learning_rate_however_far_the_clients_went(name):
    steps = []
    for distance in (1.0, 100.0):
        federation = Federation(name, [update(0, distance)], options={"server_learning_rate": 0.1})
        steps.append(federation.round()["w"][0])
    assert steps[0] == pytest.approx(steps[1], rel=0.02)
    assert 0.05 < steps[0] < 0.2


@pytest.mark.parametrize("name", OPTIMISERS)
def test_the_received_student_is_not_written_to(name):
    before = {key: value.copy() for key, value in GLOBAL.items()}
    Federation(name, [update(0, 1.0), update(1, 2.0)]).round()
    assert all(np.array_equal(GLOBAL[key], before[key]) for key in GLOBAL)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_step_that_overflows_is_refused_though_all_clients_were_finite(name):
    federation = Federation(name, [update(0, 20.0)], options={"server_learning_rate": 1e39})
    with pytest.raises(UpdateRefused) as caught, np.errstate(all="ignore"):
        federation.round()
    assert str(caught.value).startswith(
        "all clients sent finite values of w, but the server's own step made some that are not; "
        "lower strategy.server_learning_rate"
    )
