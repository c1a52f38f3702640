import math

import numpy as np
import pytest
import torch

from fedkd.probing.neighbours import knn_probabilities

# Unit vectors at 0, 60 and 90 degrees: cosines to the first are 1, 0.5 and 0.
BANK = torch.tensor([[1.0, 0.0], [0.5, math.sqrt(0.75)], [0.0, 1.0]])
LABELS = torch.tensor([0, 1, 1])
ASKED = torch.tensor([[3.0, 0.0]])  # length does not matter


def ask(**options):
    return knn_probabilities(BANK, LABELS, ASKED, 3, temperature=0.5, **options)[0].tolist()


def close(seen, expected):
    return seen == pytest.approx(expected)


def test_a_neighbour_votes_by_its_cosine_and_its_class_size():
    first, second, third = 1.0, math.exp(-1), math.exp(-2)
    balanced = first + (second + third) / 2
    assert close(ask(), [first / balanced, (second + third) / 2 / balanced, 0])
    plain = first + second + third
    assert close(ask(balanced=False), [first / plain, (second + third) / plain, 0])


def test_only_the_k_nearest_vote():
    assert close(ask(k=1), [1, 0, 0])
    second = math.exp(-1) / 2  # one of the two images of its class
    assert close(ask(k=2), [1 / (1 + second), second / (1 + second), 0])


def test_an_image_of_the_bank_is_not_its_own_neighbour():
    seen = knn_probabilities(BANK, LABELS, BANK, 3, k=1, leave_out=np.arange(3))
    assert seen.argmax(1).tolist() == [1, 1, 1]


def test_opposite_features_still_vote():
    seen = knn_probabilities(BANK[:1], LABELS[:1], -BANK[:1], 2, temperature=1e-3)
    assert seen.tolist() == [[1, 0]]


def test_no_image_asks_nothing():
    assert knn_probabilities(BANK, LABELS, BANK[:0], 3).shape == (0, 3)


@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize("k", [5, 2000])
def test_what_is_left_out_is_as_if_it_were_not_in_the_bank(balanced, k):
    draws = torch.randn(1500, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(1500) % 3
    lesions = np.arange(1500) // 4  # of several classes each, and nearest by chance alone
    draws[1235] = draws[1234]  # but for this one
    rest = torch.from_numpy(lesions != lesions[1234])
    options = {"balanced": balanced, "k": k}
    whole = knn_probabilities(draws, labels, draws, 3, leave_out=lesions, **options)
    one = knn_probabilities(draws[rest], labels[rest], draws[1234:1235], 3, **options)
    torch.testing.assert_close(whole[1234:1235], one)
