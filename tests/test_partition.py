import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fedkd.data.images import LabelledImages
from fedkd.errors import PartitionError
from fedkd.partition import Partition
from fedkd.partitions.drawing import MAX_DRAWS
from fedkd.partitions.factory import PartitionConfig, partition

DRAWN = ("iid", "dirichlet", "pathological", "shards", "quantity_skew")
SITES = ("rosendahl", "vidir", "vienna")
# Eight classes with a long tail, two of them rarer than the number of clients, and one absent.
COUNTS = np.array([300, 120, 60, 30, 10, 2, 1, 0])
LABELS = np.repeat(np.arange(8), COUNTS)
ORIGIN = np.arange(len(LABELS)) % 3


def split(name, num_clients, seed=0, labels=LABELS, sites=ORIGIN, site_names=SITES, **options):
    config = PartitionConfig(name=name, **options)
    pixels = np.zeros((len(labels), 3, 1, 1), np.uint8)
    images = LabelledImages(pixels, labels, tuple("abcdefgh"), sites, site_names)
    return partition(config, images, num_clients, seed)


def assert_each_image_has_one_client(result, num_images, min_examples=1):
    together = np.concatenate(result.indices)
    assert np.array_equal(np.sort(together), np.arange(num_images))
    assert min(map(len, result.indices)) >= min_examples
    for own in result.indices:
        assert own.dtype == np.int64
        assert np.all(np.diff(own) > 0)
    assert len(set(result.client_names)) == len(result.client_names) == len(result.indices)


@given(num_images=st.integers(1, 60), num_clients=st.integers(1, 60), seed=st.integers(0, 2**40))
def test_iid_is_complete_disjoint_and_equal_in_size(num_images, num_clients, seed):
    labels = np.zeros(num_images, np.int64)
    request = {"labels": labels, "sites": labels, "seed": seed}
    if num_clients > num_images:
        with pytest.raises(PartitionError):
            split("iid", num_clients, **request)
        return
    result = split("iid", num_clients, **request)
    assert len(result.indices) == num_clients
    assert_each_image_has_one_client(result, num_images)
    sizes = [len(own) for own in result.indices]
    assert max(sizes) - min(sizes) <= 1


@settings(deadline=None)
@given(
    labels=st.lists(st.integers(0, 5), min_size=8, max_size=60),
    num_clients=st.integers(1, 4),
    min_examples=st.integers(1, 2),
    alpha=st.sampled_from([1e-300, 0.01, 0.1, 1.0, 1e6]),
    seed=st.integers(0, 2**40),
)
def test_dirichlet_is_complete_disjoint_and_keeps_the_minimum_or_refuses(
    labels, num_clients, min_examples, alpha, seed
):
    labels = np.array(labels)
    options = {"alpha": alpha, "min_examples": min_examples}
    request = {"labels": labels, "sites": np.zeros_like(labels), "seed": seed} | options
    try:
        result = split("dirichlet", num_clients, **request)
    except PartitionError:
        # Only extreme skew may fail: then few classes meet many clients.
        assert alpha < 1
        return
    assert len(result.indices) == num_clients
    assert_each_image_has_one_client(result, len(labels), min_examples)


@given(sites=st.lists(st.integers(0, 2), min_size=3, max_size=40), seed=st.integers(0, 2**40))
def test_by_site_gives_each_client_its_hospitals_images(sites, seed):
    sites = np.array(sites)
    request = {"labels": np.zeros_like(sites), "sites": sites, "seed": seed}
    if len(np.unique(sites)) < 3:
        with pytest.raises(PartitionError):
            split("by_site", None, **request)
        return
    result = split("by_site", None, **request)
    assert result.client_names == SITES
    assert_each_image_has_one_client(result, len(sites))
    for number, own in enumerate(result.indices):
        assert np.all(sites[own] == number)
    assert split("by_site", 3, **request).hash == result.hash


@pytest.mark.parametrize("name", DRAWN)
def test_equal_seeds_give_equal_splits_and_other_seeds_others(name):
    assert split(name, 4, seed=7).hash == split(name, 4, seed=7).hash
    assert len({split(name, 4, seed=seed).hash for seed in range(5)}) == 5
    assert split(name, 4).client_names == ("client-0", "client-1", "client-2", "client-3")


@pytest.mark.parametrize(
    ("name", "num_clients", "start"),
    [
        ("iid", 4, "4490db3d0c29702c"),
        ("dirichlet", 4, "ef24054dc1ba9587"),
        ("by_site", None, "e45dadfa58fb0186"),
        ("pathological", 4, "30c8aad11d5df804"),
        ("shards", 4, "369bc06baef9cba4"),
        ("quantity_skew", 4, "693f62ac57825707"),
        ("by_site_dirichlet", None, "25ce9eadd15852ef"),
    ],
)
def test_partitions_without_groups_divide_as_they_always_have(name, num_clients, start):
    assert split(name, num_clients, seed=3).hash.startswith(start)


def test_a_split_leaves_the_global_generator_alone():
    state = np.random.get_state()[1].copy()  # noqa: NPY002 - looks at the state, draws nothing
    for name in DRAWN:
        split(name, 4)
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002


@pytest.mark.parametrize("name", [*DRAWN, "by_site", "by_site_dirichlet"])
def test_one_client_pools_everything_in_order(name):
    result = split(name, 1, alpha=0.01)
    assert np.array_equal(result.indices[0], np.arange(len(LABELS)))
    assert result.client_names == ("client-0",)


def test_by_site_of_a_single_hospital_keeps_its_name():
    site = np.zeros(len(LABELS), np.int64)
    for num_clients in (None, 1):
        result = split("by_site", num_clients, sites=site, site_names=("vienna",))
        assert result.client_names == ("vienna",)
        assert np.array_equal(result.indices[0], np.arange(len(LABELS)))


def test_dirichlet_skew_falls_with_alpha():
    def largest_share(alpha):
        counts = [split("dirichlet", 4, seed, alpha=alpha).counts(LABELS, 8) for seed in range(10)]
        return np.mean([table[:, 0].max() / COUNTS[0] for table in counts])

    assert largest_share(0.1) > 0.6
    assert largest_share(1e6) < 0.32


def test_dirichlet_ignores_the_order_of_rows_within_a_class():
    # 300 rows in order; cutting them in blocks would give each client a run without gaps.
    own = split("dirichlet", 4, labels=LABELS[:300], sites=ORIGIN[:300], alpha=10.0).indices
    assert all(np.diff(rows).max() > 1 for rows in own)


def test_every_client_may_lack_a_rare_disease():
    # Rounding shares down would leave the single image of class 6 to the last client every time.
    owners = [
        int(split("dirichlet", 4, seed).counts(LABELS, 8)[:, 6].argmax()) for seed in range(80)
    ]
    assert np.bincount(owners, minlength=4).min() >= 8


def test_dirichlet_copes_with_rare_and_absent_classes():
    table = split("dirichlet", 20, min_examples=5).counts(LABELS, 8)
    assert table.dtype == np.int64
    assert table.sum(axis=0).tolist() == COUNTS.tolist()
    assert table.sum(axis=1).min() >= 5


def test_counts_and_hash_by_definition():
    result = Partition((np.array([0, 3]), np.array([1, 2, 4])), ("a", "b"))
    labels = np.array([0, 1, 1, 0, 1])
    assert result.counts(labels, 3).tolist() == [[2, 0, 0], [0, 3, 0]]
    stated = np.array([2, 2, 0, 3, 3, 1, 2, 4], "<i8").tobytes()
    assert result.hash == hashlib.sha256(stated).hexdigest()
    swapped = Partition(result.indices[::-1], ("a", "b"))
    moved = Partition((np.array([0, 3, 1]), np.array([2, 4])), ("a", "b"))
    renamed = Partition(result.indices, ("c", "d"))
    assert len({result.hash, swapped.hash, moved.hash}) == 3
    assert renamed.hash == result.hash


@pytest.mark.parametrize("name", DRAWN)
def test_missing_num_clients_is_refused(name):
    with pytest.raises(
        PartitionError, match=f"num_clients is not set .* '{name}'; set num_clients"
    ):
        split(name, None)


@pytest.mark.parametrize("name", [*DRAWN, "by_site"])
def test_impossible_numbers_are_refused(name):
    few = {"labels": LABELS[:3], "sites": ORIGIN[:3]}
    with pytest.raises(PartitionError, match="num_clients is 4 .* needs 4 training .* there are 3"):
        split(name, 4, **few)
    with pytest.raises(PartitionError, match="min_examples = 2: that needs 6 .* there are 3"):
        split(name, 3, min_examples=2, **few)
    with pytest.raises(PartitionError, match="num_clients is 0; it must be >= 1"):
        split(name, 0)


def test_by_site_refuses_another_number_of_clients():
    with pytest.raises(PartitionError, match="num_clients is 5 .* 3 sites; leave num_clients out"):
        split("by_site", 5)


def test_by_site_names_the_sites_with_too_few_images():
    sites = np.where(ORIGIN == 1, 0, ORIGIN)
    with pytest.raises(
        PartitionError, match=r"at site vidir \(0\); each site needs at least .* 1:"
    ):
        split("by_site", None, sites=sites)
    sites[:2] = 1
    with pytest.raises(PartitionError, match=r"at site vidir \(2\); .* = 3:"):
        split("by_site", None, sites=sites, min_examples=3)


def test_a_practically_impossible_skew_says_what_to_change():
    with pytest.raises(PartitionError) as caught:
        split("dirichlet", 20, alpha=0.001)
    text = str(caught.value)
    assert f"of {MAX_DRAWS} gave each of 20 clients partition.min_examples = 1 of the 523" in text
    assert "partition.alpha = 0.001 (best smallest client: 0)" in text
    assert "raise alpha, use fewer clients, or lower min_examples" in text


@pytest.mark.parametrize(
    "wrong",
    [
        {"alpha": 0},
        {"alpha": 2e6},
        {"alpha": float("nan")},
        {"min_examples": 0},
        {"classes_per_client": 0},
        {"shards_per_client": 0},
        {"clients_per_site": 0},
        {"name": "random"},
    ],
)
def test_config_refuses_values_out_of_range(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        PartitionConfig(**wrong)
