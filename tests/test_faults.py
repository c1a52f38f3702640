"""Settings of simulated trouble: what is refused, with which words, and what is said of it."""

import numpy as np
import pytest

from fedkd import config
from fedkd.errors import ConfigError
from fedkd.faults import FaultsConfig
from fedkd.partition import Partition
from fedkd.recipe import Recipe
from fedkd.simulated_faults import SimulatedFaults
from tests.conftest import draw_images

NAMES = ("north", "south", "west")


def refused(**values):
    with pytest.raises(ConfigError) as caught:
        config.build(Recipe, values)
    return str(caught.value)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"faults": {"dropout": 0.3}},
         "faults.dropout is 0.3, but failures.policy is 'stop', with which a client that does not "
         "answer ends the run; set failures.policy = 'continue'"),
        ({"faults": {"byzantine": ["north"], "attack": "nan"}, "failures": {"policy": "retry"}},
         "faults.attack is 'nan', but failures.policy is 'retry', with which the first of these "
         "updates ends the run; set failures.policy = 'continue'"),
        ({"faults": {"byzantine": ["north"]}, "strategy": {"exchange": "nothing"}},
         "faults.byzantine is given, but with strategy.exchange = 'nothing' no update is sent that "
         "could be wrong; leave it out"),
        ({"faults": {"label_noise": {"north": 0.1}}, "objective": {"name": "moco"}},
         "faults.label_noise is given, but objective.name = 'moco' reads no training label; leave "
         "it out"),
        ({"faults": {"leaves": {"north": 4}}, "privacy": {"name": "fixed"}},
         "faults.joins or faults.leaves is given with privacy.name = 'fixed', but noise that "
         "reckons with all clients of a round hides less where some are not there; leave them out, "
         "or set privacy.name = 'none'"),
        ({"faults": {"joins": {"north": 4, "west": 9}}, "num_rounds": 4},
         "faults.joins has west = 9, but num_rounds is 4: it would never take part; raise "
         "num_rounds, or name an earlier round"),
        ({"faults": {"joins": {"a": 0}, "leaves": {"b": 1}, "label_noise": {"c": 1.5}}},
         "faults.joins.a is 0; it must be a round, 1 or later; faults.leaves.b is 1; it must be a "
         "round, 2 or later; faults.label_noise.c is 1.5; it must be a probability, 0 to 1"),
        ({"faults": {"attack": "signflip"}},
         "faults.attack is 'signflip' in the given config; it must be 'sign_flip', 'noise', "
         "'scale' or 'nan'"),
        ({"faults": {"byzantine": [True]}}, "faults.byzantine.0 is True in the given config"),
    ],
)  # fmt: skip
def test_what_cannot_be_simulated_is_refused(values, text):
    assert text in refused(**values)


def simulated(names=NAMES, **values):
    return SimulatedFaults(FaultsConfig(**values), names, 0)


def test_unknown_hospitals_are_named_all_at_once_with_the_nearest():
    with pytest.raises(ConfigError) as caught:
        simulated(joins={"nort": 2}, leaves={"3": 2}, byzantine=["east"], label_noise={"-1": 0.5})
    assert str(caught.value).splitlines() == [
        "faults.joins names 'nort', which is no hospital of the partition and no number from 0 to "
        "2; did you mean north?",
        "faults.leaves names '3', which is no hospital of the partition and no number from 0 to 2; "
        "it has north, south, west",
        "faults.label_noise names '-1', which is no hospital of the partition and no number from 0 "
        "to 2; it has north, south, west",
        "faults.byzantine names 'east', which is no hospital of the partition and no number from 0 "
        "to 2; did you mean west?",
    ]
    with pytest.raises(ConfigError, match=r"of the partition, with num_clients = 1, and no number"):
        simulated(("all",), byzantine=["north"])


def test_a_hospital_named_twice_or_gone_before_it_comes_is_refused():
    with pytest.raises(ConfigError) as caught:
        simulated(byzantine=["south", 1], joins={"west": 5}, leaves={"2": 5})
    assert str(caught.value).splitlines() == [
        "faults.byzantine names south twice; name it once",
        "west leaves in round 5 (faults.leaves) but joins in round 5 (faults.joins); it must leave "
        "later than it joins",
    ]


def test_a_name_goes_before_a_number():
    faults = simulated(("1", "0"), joins={"0": 7}, leaves={"1": 9})
    assert (faults.joins, faults.leaves) == ({1: 7}, {0: 9})


def test_a_round_without_any_hospital_is_refused_before_training(opened):
    away = {"joins": {"west": 4}, "leaves": {"north": 3, "south": 3}}
    with pytest.raises(ConfigError) as caught:
        opened(faults=away, num_rounds=5)
    assert str(caught.value) == (
        "in round 3 no hospital is present: all have left or have not joined yet; change "
        "faults.joins or faults.leaves, or lower num_rounds"
    )
    opened(faults={**away, "leaves": {"north": 4, "south": 3}}, num_rounds=5)


def test_names_are_compared_with_the_partition_as_the_experiment_is_opened(opened):
    with pytest.raises(ConfigError, match=r"faults.byzantine names 'norht', .*did you mean north"):
        opened(faults={"byzantine": ["norht"]})


def test_noise_needs_another_class():
    images = draw_images("one class", [0, 0])
    object.__setattr__(images, "class_names", ("a",))
    with pytest.raises(ConfigError) as caught:
        simulated(label_noise={"0": 0.5}).with_label_noise(images, Partition((np.arange(2),), "n"))
    assert str(caught.value) == (
        "faults.label_noise is given, but the data have one class (a); there is no other one for a "
        "label to be: leave it out"
    )


def test_only_what_is_simulated_is_in_the_hash_of_a_recipe(make_recipe):
    plain = make_recipe().hash()
    assert make_recipe(faults={"attack": "noise", "delay_mean": 3.0}).hash() == plain
    assert make_recipe(faults={"stragglers": 0.1}).hash() != plain
    assert not FaultsConfig(attack="noise", attack_scale=9).is_given


def test_the_attack_nan_needs_no_quotes_on_the_command_line():
    assert config.load(Recipe, None, ["faults.attack=nan"]).faults.attack == "nan"


def test_what_is_simulated_in_one_line():
    values = {
        "dropout": 0.3, "stragglers": 0.25, "delay_mean": 2, "joins": {"west": 3},
        "leaves": {"0": 9}, "label_noise": {"south": 0.2}, "byzantine": [1], "attack": "scale",
        "attack_scale": 100,
    }  # fmt: skip
    assert FaultsConfig(**values).in_words() == (
        "a client drops out of a round with probability 0.3; a client is slow with probability "
        "0.25 (exponential delay, mean 2 times its usual time) and sends what it has; client west "
        "joins in round 3; client 0 leaves in round 9; client south has other labels with "
        "probability 0.2; client 1 sends wrong updates (scale x 100)"
    )
    words = FaultsConfig(stragglers=0.5, partial_work=False, byzantine=["a", "b"], attack="nan")
    assert words.in_words() == (
        "a client is slow with probability 0.5 (exponential delay, mean 1 times its usual time) "
        "and is waited for; client a, client b sends wrong updates (nan)"
    )
    assert FaultsConfig().in_words() == ""
