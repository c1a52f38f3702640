"""Pathological, shards, quantity skew and virtual hospitals; the others are in test_partition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd.errors import PartitionError
from fedkd.partitions.factory import PARTITIONS, PartitionConfig
from tests.test_partition import LABELS, ORIGIN, SITES, assert_each_image_has_one_client, split


def attempt(*arguments, **options):
    """The division, or None where it is refused."""
    try:
        return split(*arguments, **options)
    except PartitionError:
        return None


@settings(deadline=None, max_examples=100)
@given(
    totals=st.lists(st.integers(0, 20), min_size=8, max_size=8).filter(any),
    num_clients=st.integers(2, 8),
    classes_per_client=st.integers(1, 5),
    min_examples=st.integers(1, 3),
    seed=st.integers(0, 2**40),
)
def test_pathological_gives_each_client_exactly_its_classes_whenever_that_is_possible(
    totals, num_clients, classes_per_client, min_examples, seed
):
    labels = np.repeat(np.arange(8), totals)
    options = {"classes_per_client": classes_per_client, "min_examples": min_examples}
    request = {"labels": labels, "sites": np.zeros_like(labels), "seed": seed} | options
    result = attempt("pathological", num_clients, **request)
    totals = np.array(totals)
    present = np.count_nonzero(totals)
    pairs = num_clients * classes_per_client
    possible = (
        classes_per_client <= present
        and present <= pairs <= np.minimum(totals, num_clients).sum()
        and num_clients * min_examples <= len(labels)
    )
    if result is None:
        # Each class of a client gives it an image, so that up to k images are no matter of luck.
        assert not possible or min_examples > classes_per_client
        return
    assert possible
    assert_each_image_has_one_client(result, len(labels), min_examples)
    table = result.counts(labels, 8)
    assert np.all((table > 0).sum(axis=1) == classes_per_client)
    for column in table.T[totals > 0]:
        held = column[column > 0]
        assert held.max() - held.min() <= 1
    assert attempt("pathological", num_clients, **request).hash == result.hash


@settings(deadline=None, max_examples=60)
@given(
    labels=st.lists(st.integers(0, 7), min_size=1, max_size=80),
    num_clients=st.integers(2, 8),
    shards_per_client=st.integers(1, 4),
    min_examples=st.integers(1, 5),
    seed=st.integers(0, 2**40),
)
def test_shards_are_complete_nearly_equal_in_size_and_have_few_classes(
    labels, num_clients, shards_per_client, min_examples, seed
):
    labels = np.array(labels)
    options = {"shards_per_client": shards_per_client, "min_examples": min_examples}
    request = {"labels": labels, "sites": np.zeros_like(labels), "seed": seed} | options
    result = attempt("shards", num_clients, **request)
    num_shards = num_clients * shards_per_client
    sure = shards_per_client * (len(labels) // num_shards)
    if result is None:
        assert num_shards > len(labels) or min_examples > sure
        return
    assert num_shards <= len(labels)
    assert_each_image_has_one_client(result, len(labels), min_examples)
    sizes = np.array([len(own) for own in result.indices])
    assert sizes.min() >= sure
    assert sizes.max() - sizes.min() <= shards_per_client
    # Cutting a row of c classes into s shards makes at most c + s - 1 pieces of one class.
    pieces = np.count_nonzero(result.counts(labels, 8))
    assert pieces <= num_shards + len(np.unique(labels)) - 1
    assert attempt("shards", num_clients, **request).hash == result.hash


@settings(deadline=None, max_examples=60)
@given(
    num_images=st.integers(1, 80),
    num_clients=st.integers(2, 6),
    alpha=st.sampled_from([1e-300, 0.05, 1.0, 1e6]),
    min_examples=st.integers(1, 4),
    seed=st.integers(0, 2**40),
)
def test_quantity_skew_is_complete_disjoint_and_keeps_the_minimum_or_refuses(
    num_images, num_clients, alpha, min_examples, seed
):
    labels = np.zeros(num_images, np.int64)
    options = {"alpha": alpha, "min_examples": min_examples}
    request = {"labels": labels, "sites": labels, "seed": seed} | options
    result = attempt("quantity_skew", num_clients, **request)
    if result is None:
        # With room for twice the minimum, only skew fails.
        assert alpha < 1 or num_images < 2 * num_clients * min_examples
        return
    assert len(result.indices) == num_clients
    assert_each_image_has_one_client(result, num_images, min_examples)
    assert attempt("quantity_skew", num_clients, **request).hash == result.hash


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 2)), min_size=3, max_size=80),
    clients_per_site=st.integers(1, 4),
    alpha=st.sampled_from([0.05, 1.0, 1e6]),
    min_examples=st.integers(1, 2),
    seed=st.integers(0, 2**40),
)
def test_by_site_dirichlet_keeps_every_client_inside_its_hospital_or_refuses(
    rows, clients_per_site, alpha, min_examples, seed
):
    labels, sites = np.array(rows).T
    options = {"clients_per_site": clients_per_site, "alpha": alpha, "min_examples": min_examples}
    request = {"labels": labels, "sites": sites, "seed": seed} | options
    result = attempt("by_site_dirichlet", None, **request)
    smallest = np.bincount(sites, minlength=3).min()
    if smallest < clients_per_site * min_examples:
        assert result is None
        return
    if result is None:
        assert clients_per_site > 1
        assert alpha < 1 or smallest < 2 * clients_per_site * min_examples
        return
    assert len(result.indices) == 3 * clients_per_site
    assert_each_image_has_one_client(result, len(labels), min_examples)
    for number, own in enumerate(result.indices):
        assert np.all(sites[own] == number // clients_per_site)
    assert attempt("by_site_dirichlet", 3 * clients_per_site, **request).hash == result.hash


def test_virtual_hospitals_are_named_after_their_real_one():
    result = split("by_site_dirichlet", None, clients_per_site=2)
    assert result.client_names == (
        "rosendahl-0", "rosendahl-1", "vidir-0", "vidir-1", "vienna-0", "vienna-1",
    )  # fmt: skip
    assert result.client_sites == tuple(np.repeat(SITES, 2))
    assert len({split("by_site_dirichlet", None, seed=seed).hash for seed in range(5)}) == 5


def test_one_virtual_hospital_in_each_is_by_site():
    one, plain = split("by_site_dirichlet", None, clients_per_site=1), split("by_site", None)
    assert (one.hash, one.client_names) == (plain.hash, plain.client_names)


def test_another_hospitals_images_do_not_change_a_division():
    # The last hospital loses half of its images; the rows of the others stay where they are.
    keep = np.flatnonzero((ORIGIN < 2) | (np.arange(len(ORIGIN)) % 2 == 0))
    whole = split("by_site_dirichlet", None).indices
    less = split("by_site_dirichlet", None, labels=LABELS[keep], sites=ORIGIN[keep]).indices
    for before, after in zip(whole[:4], less[:4], strict=True):
        assert np.array_equal(before, keep[after])


def test_equal_hospitals_are_divided_differently():
    labels, sites = np.tile(np.repeat(np.arange(4), 20), 3), np.repeat(np.arange(3), 80)
    table = split("by_site_dirichlet", None, labels=labels, sites=sites).counts(labels, 4)
    assert len({rows.tobytes() for rows in table.reshape(3, 2, 4)}) == 3


def test_quantity_skew_falls_with_alpha_and_leaves_the_classes_mixed():
    def largest(alpha):
        return np.mean(
            [max(map(len, split("quantity_skew", 4, s, alpha=alpha).indices)) for s in range(10)]
        )

    assert largest(0.1) > 0.6 * len(LABELS)
    assert largest(1e6) < 0.32 * len(LABELS)
    table = split("quantity_skew", 2, alpha=1.0, min_examples=150).counts(LABELS, 8)
    share = table[:, 0] / table.sum(axis=1)
    assert np.abs(share - 300 / 523).max() < 0.12


def test_shards_of_a_balanced_set_are_of_one_class_each():
    # 4 classes of 12 images in 8 shards of 6: the setting of McMahan et al. in small.
    labels = np.repeat(np.arange(4), 12)[np.random.default_rng(0).permutation(48)]
    result = split("shards", 4, labels=labels, sites=np.zeros(48, np.int64))
    table = result.counts(labels, 4)
    assert set(np.unique(table)) <= {0, 6, 12}
    assert np.all(table.sum(axis=1) == 12)
    tables = {
        split("shards", 4, seed, labels=labels, sites=np.zeros(48, np.int64))
        .counts(labels, 4)
        .tobytes()
        for seed in range(10)
    }
    assert len(tables) > 5, "which shards a client gets is drawn"


def test_pathological_draws_each_pairing_of_classes():
    # Two clients and four classes: three ways to pair the classes up.
    labels = np.repeat(np.arange(4), 5)
    pairs = set()
    for seed in range(40):
        result = split("pathological", 2, seed, labels=labels, sites=np.zeros(20, np.int64))
        pairs.add(frozenset(tuple(np.unique(labels[own])) for own in result.indices))
    assert len(pairs) == 3


def test_pathological_lets_any_two_clients_share_a_class_or_not():
    labels = np.repeat(np.arange(2), 12)
    for first, second in ((0, 1), (0, 3), (2, 3)):
        shared = set()
        for seed in range(20):
            own = split("pathological", 4, seed, labels=labels, sites=labels, classes_per_client=1)
            kinds = [labels[rows[0]] for rows in own.indices]
            shared.add(bool(kinds[first] == kinds[second]))
        assert shared == {True, False}


def test_pathological_divides_a_class_equally_among_those_who_have_it():
    # Both clients of each class: 7 images are 4 and 3, 4 images are 2 and 2.
    labels = np.repeat(np.arange(2), (7, 4))
    more = set()
    for seed in range(20):
        table = split("pathological", 2, seed, labels=labels, sites=labels).counts(labels, 2)
        assert sorted(table[:, 0]) == [3, 4]
        assert table[:, 1].tolist() == [2, 2]
        more.add(int(table[:, 0].argmax()))
    assert more == {0, 1}


def test_pathological_says_why_it_cannot():
    with pytest.raises(PartitionError, match="is 8, but only 7 classes have .* use 7 or fewer"):
        split("pathological", 4, classes_per_client=8)
    with pytest.raises(PartitionError, match="room for 6 classes, but 7 .* at least 3 classes per"):
        split("pathological", 3, classes_per_client=2)
    # Ten clients: five classes reach all of them, two have 2 and 1 images.
    with pytest.raises(PartitionError, match="60 pairs .* allows 53; use fewer classes per client"):
        split("pathological", 10, classes_per_client=6)
    with pytest.raises(
        PartitionError, match="classes_per_client = 2 .*best smallest client: .*lowe"
    ):
        split("pathological", 4, classes_per_client=2, min_examples=130)


def test_shards_say_why_they_cannot():
    with pytest.raises(PartitionError, match="needs 524 training images, .* there are 523"):
        split("shards", 4, shards_per_client=131)
    # 60 images in 40 shards of 2 or 1: 20 clients of 3 would need one of each kind at every client.
    few = {"labels": LABELS[:60], "sites": ORIGIN[:60]}
    with pytest.raises(PartitionError, match=r"= 2 \(best smallest client: 2\); lower min_ex"):
        split("shards", 20, min_examples=3, **few)


def test_quantity_skew_says_what_to_change():
    with pytest.raises(PartitionError, match=r"alpha = 0\.001 .* raise alpha, use fewer clients"):
        split("quantity_skew", 20, alpha=0.001)


def test_by_site_dirichlet_names_the_hospital_that_is_too_small_or_too_skewed():
    sites = np.where(np.arange(len(LABELS)) < 3, 1, np.arange(len(LABELS)) % 2 * 2)
    with pytest.raises(
        PartitionError,
        match=r"site vidir \(3\); .* for each of .*clients_per_site = 4 .*, lower clients_per_site",
    ):
        split("by_site_dirichlet", None, sites=sites, clients_per_site=4)
    with pytest.raises(PartitionError, match=r"alpha = 1e-05 at site vidir \(best"):
        split("by_site_dirichlet", None, sites=sites, clients_per_site=3, alpha=1e-5)
    with pytest.raises(PartitionError, match="num_clients is 5 .* make 6; .* set it to 6"):
        split("by_site_dirichlet", 5)


def test_every_partition_of_the_list_is_a_name_of_the_config():
    names = PartitionConfig.model_fields["name"].annotation.__args__
    assert tuple(PARTITIONS) == names
