"""Divisions that keep the images of one lesion or patient together."""

import itertools
import logging

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from fedkd.data.images import LabelledImages
from fedkd.errors import PartitionError
from fedkd.partitions import drawing, manifest
from fedkd.partitions.drawing import deal
from fedkd.partitions.factory import PartitionConfig, partition
from fedkd.partitions.units import units_of

DRAWN = ("iid", "dirichlet", "pathological", "shards", "quantity_skew")
SITES = ("graz", "wien")

# A unit: its images, their class, and whether it is a named group (else so many single images).
unit = st.tuples(st.integers(1, 6), st.integers(0, 2), st.booleans())


def training(units, seed=0, sites=None):
    """Shuffled images of units (size, class, grouped), with the group of each."""
    rows = []
    for number, (size, label, grouped) in enumerate(units):
        rows += [(label, f"patient {number}" if grouped else "")] * size
    order = np.random.default_rng(seed).permutation(len(rows))
    labels, groups = zip(*(rows[row] for row in order), strict=True)
    return images_of(labels, groups, sites)


def images_of(labels, groups, sites=None):
    pixels = np.zeros((len(labels), 3, 1, 1), np.uint8)
    sites = np.zeros(len(labels), np.int64) if sites is None else np.array(sites)
    return LabelledImages(pixels, np.array(labels), tuple("abcd"), sites, SITES, groups=groups)


def attempt(name, images, num_clients, seed=0, **options):
    """The division, or None where it is refused."""
    try:
        return partition(PartitionConfig(name=name, **options), images, num_clients, seed)
    except PartitionError:
        return None


def clients_of_groups(result, images):
    owners = {}
    for client, rows in enumerate(result.indices):
        for row in rows:
            owners.setdefault(images.groups[row] or row, set()).add(client)
    return owners


def assert_whole(result, images, min_examples=1):
    together = np.sort(np.concatenate(result.indices))
    assert np.array_equal(together, np.arange(len(images)))
    assert min(map(len, result.indices)) >= min_examples
    assert all(len(owners) == 1 for owners in clients_of_groups(result, images).values())
    assert all(own.dtype == np.int64 and np.all(np.diff(own) > 0) for own in result.indices)


def sizes_of(units):
    return [n for size, _, grouped in units for n in ([size] if grouped else [1] * size)]


def can_be_packed(sizes, num_clients, least):
    """Whether some assignment of units gives each client its minimum: all are tried."""
    return any(
        min(np.bincount(owners, sizes, minlength=num_clients)) >= least
        for owners in itertools.product(range(num_clients), repeat=len(sizes))
    )


@settings(deadline=None, max_examples=200)
@given(
    name=st.sampled_from(DRAWN),
    units=st.lists(unit, min_size=2, max_size=20),
    num_clients=st.integers(2, 5),
    alpha=st.sampled_from([0.05, 1.0, 1e6]),
    classes_per_client=st.integers(1, 3),
    shards_per_client=st.integers(1, 3),
    min_examples=st.integers(1, 4),
    seed=st.integers(0, 2**40),
)
def test_every_drawn_division_is_complete_keeps_groups_whole_and_the_minimum_and_is_seeded(
    name, units, num_clients, seed, **options
):
    images = training(units)
    result = attempt(name, images, num_clients, seed, **options)
    assume(result is not None)
    assert len(result.indices) == num_clients
    assert_whole(result, images, options["min_examples"])
    assert attempt(name, images, num_clients, seed, **options).hash == result.hash


@settings(deadline=None, max_examples=80)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=2, max_size=6),
    num_clients=st.integers(2, 3),
    min_examples=st.integers(1, 6),
    seed=st.integers(0, 2**40),
)
@example(sizes=[3, 3, 2, 2, 2], num_clients=2, min_examples=6, seed=0)  # one way: 3 + 3, 2 + 2 + 2
@example(sizes=[5, 1, 1, 1, 1, 1], num_clients=2, min_examples=5, seed=0)
def test_iid_is_refused_only_where_no_assignment_of_whole_groups_reaches_the_minimum(
    sizes, num_clients, min_examples, seed
):
    images = training([(size, 0, True) for size in sizes])
    result = attempt("iid", images, num_clients, seed, min_examples=min_examples)
    assert (result is not None) == can_be_packed(sizes, num_clients, min_examples)


@settings(deadline=None, max_examples=80)
@given(
    name=st.sampled_from(["iid", "quantity_skew", "dirichlet", "shards"]),
    units=st.lists(unit, min_size=1, max_size=8),
    num_clients=st.integers(2, 4),
    seed=st.integers(0, 2**40),
)
def test_an_image_for_everyone_is_refused_only_where_units_are_too_few(
    name, units, num_clients, seed
):
    options = {"alpha": 1e6, "shards_per_client": 1}
    result = attempt(name, training(units), num_clients, seed, **options)
    assert (result is not None) == (len(sizes_of(units)) >= num_clients)


@settings(deadline=None, max_examples=80)
@given(
    units=st.lists(unit, min_size=2, max_size=12),
    num_clients=st.integers(2, 5),
    classes_per_client=st.integers(1, 3),
    seed=st.integers(0, 2**40),
)
@example(  # found by a longer search: 7 images of class a for 4 clients, 4 of them in one group
    units=[(3, 0, False), (4, 0, True), (4, 1, False)], num_clients=4, classes_per_client=2, seed=0
)
def test_pathological_gives_each_client_exactly_its_classes_whenever_groups_allow(
    units, num_clients, classes_per_client, seed
):
    images = training(units)
    result = attempt(
        "pathological", images, num_clients, seed, classes_per_client=classes_per_client
    )
    num_units = np.zeros(3, np.int64)
    for size, label, grouped in units:
        num_units[label] += 1 if grouped else size
    present, pairs = np.count_nonzero(num_units), num_clients * classes_per_client
    possible = classes_per_client <= present <= pairs <= np.minimum(num_units, num_clients).sum()
    assert (result is not None) == possible
    if possible:
        table = result.counts(images.labels, 4)
        assert np.all((table > 0).sum(axis=1) == classes_per_client)


@settings(deadline=None, max_examples=60)
@given(
    units=st.lists(unit, min_size=2, max_size=20),
    clients_per_site=st.integers(2, 3),
    site_seed=st.integers(0, 99),
    seed=st.integers(0, 2**40),
)
def test_by_site_dirichlet_keeps_groups_whole_within_each_hospital_or_refuses(
    units, clients_per_site, site_seed, seed
):
    images = training(units)
    sites = np.random.default_rng(site_seed).integers(0, 2, len(images))
    images = images_of(images.labels, images.groups, sites)
    request = {"alpha": 1e6, "clients_per_site": clients_per_site}
    result = attempt("by_site_dirichlet", images, None, seed, **request)
    kept = [
        len({images.groups[row] or row for row in np.flatnonzero(sites == site)}) for site in (0, 1)
    ]
    assert (result is not None) == (min(kept) >= clients_per_site)
    if result is None:
        return
    assert np.array_equal(np.sort(np.concatenate(result.indices)), np.arange(len(images)))
    for client, rows in enumerate(result.indices):
        assert np.all(sites[rows] == client // clients_per_site)
    for site in (0, 1):
        inside = np.flatnonzero(sites == site)
        for group in {images.groups[row] for row in inside} - {""}:
            members = {row for row in inside if images.groups[row] == group}
            assert sum(bool(members & set(rows)) for rows in result.indices) == 1
    assert attempt("by_site_dirichlet", images, None, seed, **request).hash == result.hash


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from([*DRAWN, "by_site_dirichlet"]),
    labels=st.lists(st.integers(0, 2), min_size=8, max_size=30),
    seed=st.integers(0, 2**40),
)
def test_groups_that_are_single_or_not_to_be_kept_change_nothing(name, labels, seed):
    sites = np.arange(len(labels)) % 2
    num_clients = None if name == "by_site_dirichlet" else 3
    single = [f"patient {row}" if row % 2 else "" for row in range(len(labels))]
    pairs = [f"patient {row // 2}" for row in range(len(labels))]
    before = attempt(name, images_of(labels, (), sites), num_clients, seed, classes_per_client=1)
    for groups, keep_groups in ((single, True), (pairs, False)):
        after = attempt(
            name,
            images_of(labels, tuple(groups), sites),
            num_clients,
            seed,
            keep_groups=keep_groups,
            classes_per_client=1,
        )
        assert (after is None) == (before is None)
        assert before is None or after.hash == before.hash


@settings(deadline=None, max_examples=150)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=30),
    shares=st.lists(st.floats(0.01, 1), min_size=1, max_size=6),
    seed=st.integers(0, 2**32),
)
def test_dealt_sizes_differ_from_those_asked_for_by_less_than_the_largest_unit(sizes, shares, seed):
    sizes, rng = np.array(sizes), np.random.default_rng(seed)
    asked = rng.multinomial(sizes.sum(), np.array(shares) / sum(shares))
    parts = deal(np.arange(len(sizes)), sizes, asked, rng)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(sizes)))
    got = np.array([sizes[own].sum() for own in parts])
    assert np.all(np.abs(got - asked) < sizes.max())
    assert all(got[asked == 0] == 0)


def test_single_images_fill_up_to_exactly_the_sizes_asked_for():
    # 3 groups of 3 and 9 single images for 10 and 8: any place of the groups leaves room enough.
    sizes = np.array([3] * 3 + [1] * 9)
    for seed in range(20):
        parts = deal(np.arange(12), sizes, np.array([10, 8]), np.random.default_rng(seed))
        assert [sizes[own].sum() for own in parts] == [10, 8]


def test_single_images_go_where_most_are_lacking_if_a_group_took_too_much():
    # 12 images for 4, 4 and 4; the group of 9 takes one client's 4 and 5 more, and 3 are left for
    # the two others: 1 and 2.
    sizes = np.array([9, 1, 1, 1])
    seen = set()
    for seed in range(40):
        parts = deal(np.arange(4), sizes, np.array([4, 4, 4]), np.random.default_rng(seed))
        seen.add(tuple(int(sizes[own].sum()) for own in parts))
    assert seen == set(itertools.permutations((9, 1, 2)))


def test_shards_are_cut_between_groups_nearest_to_equal_shards():
    # One class, groups of 2, 2, 4 and 4 in any order: of two shards, one cut at 6 of 12 images.
    images = training([(2, 0, True), (2, 0, True), (4, 0, True), (4, 0, True)])
    for seed in range(20):
        result = attempt("shards", images, 2, seed, shards_per_client=1)
        assert sorted(map(len, result.indices)) in ([6, 6], [4, 8])
    # The cut falls into the large group wherever that stands; no shard is left empty.
    images = training([(9, 0, True), (1, 0, True)])
    assert sorted(map(len, attempt("shards", images, 2, shards_per_client=1).indices)) == [1, 9]


def test_a_unit_has_the_class_of_most_of_its_images_and_of_equals_the_lowest():
    labels = np.array([2, 1, 1, 2, 0, 2, 2])
    units = units_of(labels, ("x", "x", "x", "y", "y", "", ""))
    assert units.of_image.tolist() == [0, 0, 0, 1, 1, 2, 3]
    assert units.labels.tolist() == [1, 0, 2, 2]
    assert units.sizes.tolist() == [3, 2, 1, 1]
    assert units.num_mixed == 2
    assert units.name_of_largest == "x"


def test_patients_with_several_classes_are_dealt_by_the_most_frequent_and_warned_of(caplog):
    # Patients with two images of a and one of b each, and pure images of b.
    labels, groups = [0, 0, 1] * 2 + [1] * 4, ["x"] * 3 + ["y"] * 3 + [""] * 4
    images = images_of(labels, tuple(groups))
    config = PartitionConfig(name="pathological", classes_per_client=1)
    with caplog.at_level(logging.WARNING):
        result = partition(config, images, 2, 0)
    table = sorted(result.counts(images.labels, 4).tolist())
    assert table == [[0, 4, 0, 0], [4, 2, 0, 0]]
    assert "2 lesions or patients have images of several classes" in caplog.text
    assert "more than classes_per_client = 1" in caplog.text


def test_by_site_follows_the_sites_and_warns_of_groups_at_two(caplog):
    groups = ("x", "x", "y", "y", "", "", "z", "z")
    images = images_of([0] * 8, groups, [0, 1, 0, 0, 0, 1, 1, 0])
    with caplog.at_level(logging.WARNING):
        result = partition(PartitionConfig(), images, None, 0)
    assert [own.tolist() for own in result.indices] == [[0, 2, 3, 4, 7], [1, 5, 6]]
    assert "2 lesions or patients have images at several sites, such as x, z;" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        partition(PartitionConfig(keep_groups=False), images, None, 0)
    assert not caplog.records


def test_a_manifest_is_followed_whatever_the_groups(tmp_path):
    images = images_of([0] * 6, ("x",) * 3 + ("y",) * 3)
    config = PartitionConfig(name="iid", keep_groups=False)
    made = partition(config, images, 3, 0)
    assert any(len(owners) > 1 for owners in clients_of_groups(made, images).values())
    path = tmp_path / "partition.json"
    text = manifest.to_json(manifest.describe(made, images, config.model_dump(), 0))
    path.write_text(text, encoding="utf-8")
    followed = partition(PartitionConfig(name="file", file=str(path)), images, None, 0)
    assert followed.hash == made.hash


@pytest.mark.parametrize("name", DRAWN)
def test_fewer_groups_than_clients_are_refused(name):
    images = training([(5, 0, True), (3, 1, True)])
    with pytest.raises(PartitionError) as caught:
        partition(PartitionConfig(name=name), images, 3, 0)
    assert str(caught.value) == (
        "3 clients with partition.min_examples = 1 cannot be made of the 8 training images: "
        "partition.keep_groups keeps images of one lesion or patient together, which makes 2 "
        "units, the largest 'patient 0' of 5 images; use fewer clients or "
        "partition.keep_groups = false"
    )


def test_a_minimum_that_whole_groups_cannot_reach_is_refused():
    # At most 3 of the 9 images of one patient count: 3 + 1 + 1 < 2 * 3.
    images = training([(9, 0, True), (2, 0, False)])
    with pytest.raises(PartitionError, match="3 units, .* clients, a lower min_examples or part"):
        partition(PartitionConfig(name="iid", min_examples=3), images, 2, 0)
    # 2 + 2 + 2 images make no two times 3, which only trying shows.
    images = training([(2, 0, True)] * 3)
    with pytest.raises(PartitionError) as caught:
        partition(PartitionConfig(name="iid", min_examples=3), images, 2, 0)
    text = str(caught.value)
    assert "partition.name = 'iid' with whole groups (partition.keep_groups, which makes 3" in text
    assert "of 2 images) (best smallest client: 2); use fewer clients, or lower" in text
    assert text.endswith("or set partition.keep_groups = false")


def test_many_groups_are_not_dealt_in_vain_for_long(monkeypatch):
    monkeypatch.setattr(drawing, "MAX_UNITS_DEALT", 30)
    images = training([(2, 0, True)] * 3)
    with pytest.raises(PartitionError, match="no draw of 11 gave each of 2 clients"):
        partition(PartitionConfig(name="iid", min_examples=3), images, 2, 0)


def test_a_hospital_with_too_few_groups_is_named():
    images = images_of([0] * 8, ("x",) * 4 + ("",) * 4, [0] * 4 + [1] * 4)
    with pytest.raises(PartitionError, match="of the 4 training images at site graz: .* 1 units"):
        partition(PartitionConfig(name="by_site_dirichlet"), images, None, 0)


def test_shards_and_classes_beyond_the_number_of_groups_are_refused():
    images = training([(5, 0, True), (5, 0, True), (5, 1, True)])
    with pytest.raises(PartitionError, match=r"needs 4 lesions or patients .*, there are 3"):
        partition(PartitionConfig(name="shards"), images, 2, 0)
    with pytest.raises(PartitionError, match=r"as many clients as lesions or patients .* allows 3"):
        partition(PartitionConfig(name="pathological"), images, 2, 0)
