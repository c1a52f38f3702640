"""class_balanced on hand-made replies, with the arithmetic written out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkd import wire
from fedkd.errors import UpdateRefused
from tests.hand_made_replies import Federation, update


def federate(*counts, w=None):
    values = w or [float(i) for i in range(len(counts))]
    return Federation(
        "class_balanced",
        [update(i, values[i], sum(own), counts=own) for i, own in enumerate(counts)],
    )


def test_every_class_shares_one_vote_among_those_who_have_it():
    # Class 0: 90 and 10 of 100; class 1: 1 and 3 of 4. 0.9 + 0.25 and 0.1 + 0.75, of 2 votes.
    federation = federate((90, 1), (10, 3), w=[1.0, 4.0])
    assert federation.weights() == pytest.approx([1.15 / 2, 0.85 / 2])
    assert federation.round()["w"] == pytest.approx([(1.15 + 4 * 0.85) / 2] * 3)


def test_a_class_that_one_hospital_alone_has_gives_it_a_whole_vote():
    assert federate((999, 0), (0, 1)).weights() == [0.5, 0.5]


def test_a_class_that_nobody_has_gives_no_vote():
    assert federate((3, 0, 1), (1, 0, 1)).weights() == [(0.75 + 0.5) / 2, (0.25 + 0.5) / 2]


def test_classes_spread_alike_are_fedavg():
    assert federate((10, 2), (30, 6)).weights() == pytest.approx([0.25, 0.75])


def test_a_client_that_saw_no_image_leaves_its_classes_to_the_others():
    """drop_last can leave images without a batch."""
    unseen = update(2, 9.0, 0, counts=(5, 100))
    federation = Federation(
        "class_balanced",
        [update(0, counts=(3, 1)), update(1, counts=(1, 1)), unseen],
    )
    assert federation.weights() == pytest.approx([1.25 / 2, 0.75 / 2, 0])


def test_nobody_with_an_image_is_refused():
    with pytest.raises(UpdateRefused, match="cannot be normalised"):
        federate((0, 0), (0, 0)).round()


@given(st.lists(st.tuples(*[st.integers(0, 50)] * 3), min_size=1, max_size=6))
def test_votes_sum_to_the_number_of_classes_that_are_present(counts):
    metrics = [{wire.CLASS_COUNTS: list(own), wire.NUM_EXAMPLES: sum(own)} for own in counts]
    weights = federate((1, 1)).strategy.weigh(metrics, 1)
    present = int((np.sum(counts, axis=0) > 0).sum())
    assert sum(weights) == pytest.approx(present)
    assert min(weights) >= 0
