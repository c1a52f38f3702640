"""(epsilon, delta) against integration, published figures and bounds."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm

from fedkd.accounting import (
    composed_mu,
    gaussian_delta,
    gaussian_epsilon,
    privacy_spent,
    sentence,
)
from fedkd.aggregation import PrivacyConfig


@pytest.mark.parametrize("mu", [0.1, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0, 4.0])
def test_delta_is_the_hockey_stick_divergence(mu, epsilon):
    # Of N(mu, 1) from N(0, 1): the integral of max(p - e^epsilon q, 0).
    crossing = epsilon / mu + mu / 2

    def gap(x):
        return norm.pdf(x, mu) - math.exp(epsilon) * norm.pdf(x)

    expected, _ = quad(gap, crossing, mu + 40, points=[crossing + 1, mu + 8], epsabs=1e-14)
    assert gaussian_delta(epsilon, mu) == pytest.approx(expected, rel=1e-6, abs=1e-13)


# PLDAccountant(value_discretization_interval=1e-4) of dp-accounting 0.6.0, GaussianDpEvent composed
# num_releases times; it is never below the exact value.
@pytest.mark.parametrize(
    ("noise", "num_releases", "expected"),
    [
        (1.0, 1, 4.37717810002493),
        (1.0, 10, 17.85658683146691),
        (2.0, 20, 11.480022811714345),
        (5.0, 100, 9.99725615024243),
        (0.5, 3, 20.12502354784799),
    ],
)
def test_epsilon_is_that_of_another_accountant(noise, num_releases, expected):
    epsilon = gaussian_epsilon(1e-5, composed_mu(noise, num_releases))
    assert epsilon == pytest.approx(expected, rel=1e-8)
    assert epsilon <= expected


@given(mu=st.floats(1e-3, 1e3), delta=st.floats(1e-12, 0.9))
def test_epsilon_is_the_inverse_of_delta(mu, delta):
    epsilon = gaussian_epsilon(delta, mu)
    if epsilon:
        assert gaussian_delta(epsilon, mu) == pytest.approx(delta, rel=1e-4)
    else:
        assert gaussian_delta(0.0, mu) <= delta


def test_four_releases_cost_as_much_as_one_with_half_the_noise():
    assert composed_mu(2.0, 4) == composed_mu(1.0, 1) == 1.0


def test_uniform_with_fixed_clipping_has_an_epsilon():
    config = PrivacyConfig(name="fixed", noise_multiplier=2.0, clipping_norm=0.3, delta=1e-5)
    spent = privacy_spent(config, "uniform", 4)
    # Dong, Roth and Su: mu = 1 is epsilon 4.38 at delta 1e-5; the clipping norm plays no role.
    assert spent["epsilon"] == pytest.approx(4.377, abs=5e-4)
    assert spent["reason"] == ""
    assert sentence(spent) == (
        "privacy: epsilon 4.377 at delta 1e-05 over 4 rounds, for the student's tensors alone"
    )


@pytest.mark.parametrize(
    ("values", "strategy", "reason"),
    [
        ({"noise_multiplier": 0.0}, "uniform", "no noise was added, so epsilon is infinite"),
        ({"name": "adaptive"}, "uniform", "Flower gives no accounting for adaptive clipping"),
        (
            {},
            "fedavg",
            "the accounting holds for strategy uniform; what one client changes with fedavg is not "
            "bounded by clipping_norm / clients, as its data move the weights or the choice",
        ),
    ],
)
def test_an_epsilon_that_is_not_known_is_null_with_its_reason(values, strategy, reason):
    spent = privacy_spent(PrivacyConfig(**{"name": "fixed", **values}), strategy, 3)
    assert spent["epsilon"] is None
    assert spent["reason"] == reason
    assert sentence(spent) == f"privacy: epsilon is not known at delta 1e-05: {reason}"
