"""What strategies remember between rounds: put into a fresh one, the next rounds have its bits."""

import numpy as np
import pytest

from fedkd.aggregation import PrivacyConfig
from strategies.factory import STRATEGIES
from tests.hand_made_replies import Federation, update

REMEMBERING = {"fedavgm": {"0"}, **{name: {"m_t/w", "v_t/w"} for name in
               ("fedadagrad", "fedadam", "fedyogi")}}  # fmt: skip
PRIVATE = sorted({"fedavg", "uniform", "class_balanced", "mas"})


def updates_of(number):
    rng = np.random.default_rng(number)
    return [
        update(i, rng.normal(size=3), int(rng.integers(1, 99)), scores=rng.random(2),
               losses=rng.random(2), steps=1 + i, loss=rng.random())
        for i in range(5)
    ]  # fmt: skip


def play(federation, received, rounds):
    """The student after each of the rounds."""
    students = []
    for number in rounds:
        federation.updates, federation.received = updates_of(number), received
        received = federation.round(number)
        students.append(received)
    return students


def bits(students):
    return [{n: (v.dtype, v.shape, v.tobytes()) for n, v in one.items()} for one in students]


def interrupted_equals_whole(name, after, **setup):
    """Plays six rounds, whole and with a fresh strategy after some; returns what was stored."""
    whole = Federation(name, updates_of(0), **setup)
    start = play(Federation("fedavg", updates_of(0)), whole.received, [1])[-1]
    expected = play(whole, start, range(1, 7))
    first, second = (Federation(name, updates_of(0), **setup) for _ in range(2))
    begun = play(first, start, range(1, after + 1))
    stored = {n: np.array(v, copy=True) for n, v in first.strategy.state().items()}
    second.strategy.load_state(stored)
    received = begun[-1] if begun else start
    assert bits(begun + play(second, received, range(after + 1, 7))) == bits(expected)
    return stored


@pytest.mark.parametrize("after", [0, 1, 3])
@pytest.mark.parametrize("name", list(STRATEGIES))
def test_a_fresh_strategy_goes_on_with_the_same_bits(name, after):
    options = {"server_momentum": 0.9} if name == "fedavgm" else None
    stored = interrupted_equals_whole(name, after, options=options)
    assert set(stored) == (REMEMBERING.get(name, set()) if after else set())


@pytest.mark.parametrize("after", [0, 3])
@pytest.mark.parametrize("mode", ["fixed", "adaptive"])
@pytest.mark.parametrize("name", PRIVATE)
def test_under_privacy_the_clipping_norm_goes_along(name, mode, after):
    privacy = PrivacyConfig(name=mode, noise_multiplier=0.1, clipping_norm=0.7)
    stored = interrupted_equals_whole(name, after, privacy=privacy)
    assert set(stored) == {"clipping_norm"}
    moved = mode == "adaptive" and after > 0
    assert (float(stored["clipping_norm"]) != 0.7) == moved


@pytest.mark.parametrize("name", sorted(REMEMBERING))
def test_without_its_memory_a_strategy_goes_elsewhere(name):
    options = {"server_momentum": 0.9} if name == "fedavgm" else None
    whole, fresh = (Federation(name, updates_of(0), options=options) for _ in range(2))
    students = play(whole, whole.received, range(1, 4))
    assert bits(play(fresh, students[1], [3])) != bits(students[2:])
