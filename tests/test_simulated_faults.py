"""Draws of simulated trouble: distributions, who is there, wrong labels, wrong updates."""

import math

import numpy as np
import pytest
import torch

from fedkd import wire
from fedkd.errors import ConfigError
from fedkd.faults import FaultsConfig
from fedkd.partition import Partition
from fedkd.simulated_faults import SimulatedFaults, present
from tests.conftest import CLASSES, draw_images
from tests.hand_made_replies import Federation, update

NAMES = ("north", "south", "west")
DRAWS = [(number, client) for number in range(1, 1001) for client in range(3)]


def simulated(seed=0, **values):
    return SimulatedFaults(FaultsConfig(**values), NAMES, seed)


@pytest.mark.parametrize(
    ("delay", "median"),
    [("exponential", 3 * math.log(2)), ("lognormal", 3 / math.sqrt(math.e)), ("uniform", 3.0)],
)
def test_delays_have_the_mean_that_is_asked_for_and_the_median_of_their_distribution(delay, median):
    faults = simulated(stragglers=1.0, delay=delay, delay_mean=3.0)
    drawn = np.array([faults.delay(*keys) for keys in DRAWS])
    assert drawn.mean() == pytest.approx(3, rel=0.08)
    assert np.median(drawn) == pytest.approx(median, rel=0.08)
    assert drawn.min() >= 0
    if delay == "uniform":
        assert 5.9 < drawn.max() <= 6


def test_as_many_are_slow_and_drop_out_as_is_asked_for_each_by_itself():
    faults = simulated(stragglers=0.25, dropout=0.3)
    slow = np.array([faults.delay(*keys) > 0 for keys in DRAWS])
    gone = np.array([faults.drops_out(*keys) for keys in DRAWS])
    assert slow.mean() == pytest.approx(0.25, abs=0.03)
    assert gone.mean() == pytest.approx(0.3, abs=0.03)
    assert (slow & gone).mean() == pytest.approx(0.075, abs=0.02)
    other = simulated(1, dropout=0.3)
    assert [other.drops_out(*keys) for keys in DRAWS] != gone.tolist()


@pytest.mark.parametrize(
    ("delay", "steps"), [(0.0, 10), (0.01, 9), (1.0, 5), (2.4, 2), (9.5, 1), (1e9, 1)]
)
def test_a_slow_client_does_the_steps_for_which_others_wait_at_least_one(delay, steps):
    assert simulated(stragglers=1.0).num_steps(10, delay) == steps
    assert simulated(stragglers=1.0, partial_work=False).num_steps(10, delay) == 10


def test_nothing_is_told_of_delays_where_none_are_simulated():
    assert simulated(dropout=0.5).straggling(1, 0, 7) == (7, {})
    assert simulated(stragglers=1e-9).straggling(1, 0, 7) == (7, {wire.WORK: 1, wire.DELAY: 0})


# Hospitals that come and go


def test_a_hospital_is_there_from_the_round_it_joins_to_the_one_before_it_leaves():
    joins, leaves = {1: 2}, {0: 3, 1: 5}
    there = [present(number, 3, joins, leaves).tolist() for number in range(1, 6)]
    assert there == [[0, 2], [0, 1, 2], [1, 2], [1, 2], [2]]


def federation(fraction, name="fedavg", num=6, **setup):
    return Federation(name, [update(i) for i in range(num)], fraction, **setup)


def test_clients_are_drawn_among_those_present_and_their_number_is_of_these():
    strategy = federation(0.5, joins={4: 3, 5: 3}, leaves={0: 2, 1: 2}).strategy
    drawn = {n: [strategy.sample(n)] for n in range(1, 11)}
    assert [len(drawn[n][0]) for n in (1, 2, 3, 10)] == [2, 1, 2, 2]
    assert set(drawn[2][0]) < {2, 3}
    assert {client for n in range(3, 11) for client in drawn[n][0]} == {2, 3, 4, 5}


def test_who_is_drawn_does_not_change_where_nobody_comes_or_goes():
    plain, told = federation(0.5).strategy, federation(0.5, joins={3: 1}, leaves={2: 99}).strategy
    rounds = range(1, 20)
    assert [plain.sample(n) for n in rounds] == [told.sample(n) for n in rounds]
    # As before clients could come and go, drawn of a number instead of a list.
    assert [plain.sample(n) for n in (1, 2, 3)] == [[2, 3, 4], [2, 4, 5], [0, 4, 5]]


def test_a_rule_that_needs_more_clients_than_the_smallest_round_has_is_refused_at_once():
    with pytest.raises(ConfigError, match=r"num_malicious is 1 and 4 clients train in a round"):
        federation(1.0, "krum", leaves={0: 3, 1: 3}, options={"num_malicious": 1})
    federation(1.0, "krum", leaves={0: 3, 1: 11}, options={"num_malicious": 1})


# Labels


@pytest.fixture
def images():
    return draw_images("many", np.arange(2000) % 4)


def divided():
    return Partition((np.arange(1000), np.arange(1000, 1900), np.arange(1900, 2000)), NAMES)


def test_wrong_labels_are_at_one_hospital_and_every_other_class_is_as_likely(images):
    noisy = simulated(label_noise={"south": 0.4}).with_label_noise(images, divided())
    rows = divided().indices[1]
    changed = np.flatnonzero(noisy.labels != images.labels)
    assert set(changed) <= set(rows)
    assert len(changed) / len(rows) == pytest.approx(0.4, abs=0.05)
    table = np.zeros((4, 4))
    np.add.at(table, (images.labels[changed], noisy.labels[changed]), 1)
    others = table[~np.eye(4, dtype=bool)]
    assert others.min() > 0.5 * len(changed) / 12
    assert others.max() < 1.6 * len(changed) / 12
    assert noisy.images is images.images
    assert noisy.ids == images.ids


def test_with_probability_1_no_label_stays_and_with_0_all_do(images):
    noise = {"north": 1.0, "2": 0.0}
    noisy = simulated(label_noise=noise).with_label_noise(images, divided())
    same = noisy.labels == images.labels
    assert [bool(same[rows].any()) for rows in divided().indices] == [False, True, True]
    assert same[divided().indices[2]].all()
    assert images.labels[:5].tolist() == [0, 1, 2, 3, 0], "the given images stay as they are"
    assert len(CLASSES) == 4
    again = simulated(label_noise=noise).with_label_noise(images, divided())
    other = simulated(1, label_noise=noise).with_label_noise(images, divided())
    assert (again.labels == noisy.labels).all()
    assert (other.labels != noisy.labels).any()


# Updates

RECEIVED = {
    "w": torch.tensor([1.0, 2.0]),
    "var": torch.tensor([1.0]),
    "count": torch.tensor(3),
    "prompts/w": torch.tensor([0.0]),
    "not sent back": torch.zeros(1),
}
TRAINED = {
    "w": torch.tensor([2.0, 0.0]),
    "var": torch.tensor([4.0]),
    "count": torch.tensor(5),
    "prompts/w": torch.tensor([1.0]),
}


def sent(client=1, number=1, **values):
    faults = simulated(byzantine=["south"], **values)
    return faults.sent(TRAINED, RECEIVED, {"var", "count"}, number, client)


@pytest.mark.parametrize(
    ("attack", "w", "prompt"),
    # The updates are (1, -2) and 1.
    [("sign_flip", [-2.0, 8.0], -3.0), ("scale", [4.0, -4.0], 3.0)],
)
def test_an_attack_by_hand_leaves_buffers_and_integers(attack, w, prompt):
    arrays = sent(attack=attack, attack_scale=3)
    assert list(arrays) == list(TRAINED)
    assert arrays["w"].tolist() == w
    assert arrays["prompts/w"].tolist() == [prompt]
    assert arrays["var"].tolist() == [4]
    assert arrays["count"].tolist() == 5
    assert {name: a.dtype for name, a in arrays.items()} == {n: t.dtype for n, t in TRAINED.items()}
    assert TRAINED["w"].tolist() == [2, 0], "what the client remembers stays"


def test_nan_is_in_every_floating_point_value_and_in_no_integer():
    arrays = sent(attack="nan")
    assert [bool(arrays[n].isnan().all()) for n in TRAINED] == [True, True, False, True]
    assert arrays["count"].tolist() == 5


def test_noise_has_the_standard_deviation_of_the_update_times_the_scale():
    received, trained = {"w": torch.zeros(20000)}, {"w": torch.linspace(-1, 1, 20000) + 5}
    faults = simulated(byzantine=["west"], attack="noise", attack_scale=3)
    arrays = faults.sent(trained, received, (), 1, 2)
    noise = arrays["w"] - trained["w"]
    assert noise.std().item() == pytest.approx(3 / math.sqrt(3), rel=0.03)
    assert noise.mean().item() == pytest.approx(0, abs=0.05)
    later = faults.sent(trained, received, (), 2, 2)
    assert not torch.equal(later["w"], arrays["w"])
    assert torch.equal(faults.sent(trained, received, (), 1, 2)["w"], arrays["w"])


def test_others_send_what_they_have_trained():
    assert sent(client=0) is TRAINED
