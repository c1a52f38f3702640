import logging

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd import config as configs
from fedkd.data.sets import fed_isic2019
from fedkd.data.sets.fed_isic2019 import SITES, FedIsic2019Config
from fedkd.errors import ConfigError, DataError
from tests.image_project import Refused
from tests.isic_files import decode_nothing, save_fed_isic, save_images

OWN_LOG = "fedkd.data.sets.fed_isic2019"
NUM_TRAIN = {center: 20 + 10 * center for center in range(6)}


class Project(Refused):
    """Six centres: half of the training images are MEL, 3 in 10 NV, 2 in 10 SCC; 4 test images."""

    def __init__(self, root):
        self.root, self.images, self.lists = root, root / "images", root / "lists"
        for center, num in NUM_TRAIN.items():
            train = [(f"c{center}_{row}", (0, 0, 0, 0, 0, 1, 1, 1, 7, 7)[row % 10])
                     for row in range(num)]  # fmt: skip
            val = [(f"t{center}_{row}", row) for row in range(4)]
            save_fed_isic(self.lists, center, train, val)
            save_images(self.images, [name for name, _ in train + val])

    def load(self, **changes):
        fields = {"images": str(self.images), "lists": str(self.lists), "size": 16, **changes}
        return fed_isic2019.load(FedIsic2019Config(**fields), self.root / "cache")

    def metadata(self, lesions, header="image,lesion_id"):
        """Write which lesion each image shows; the key's value."""
        path = self.root / "metadata.csv"
        path.write_text("\n".join([header, *(f"{name},{of}" for name, of in lesions)]) + "\n")
        return str(path)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return Project(tmp_path_factory.mktemp("fed"))


@pytest.fixture
def project(tmp_path):
    """One that a test may damage."""
    return Project(tmp_path)


def by_site_and_class(split):
    return np.array([
        [np.sum((split.sites == site) & (split.labels == label)) for label in (0, 1, 7)]
        for site in range(len(split.site_names))
    ])  # fmt: skip


def test_the_lists_named_val_are_test(built):
    test = built.load().test
    assert set(test.ids) == {f"t{center}_{row}" for center in range(6) for row in range(4)}
    assert np.bincount(test.sites).tolist() == [4] * 6
    assert np.bincount(test.labels, minlength=8).tolist() == [6, 6, 6, 6, 0, 0, 0, 0]


def test_train_and_val_share_the_train_lists_out(built):
    splits = built.load()
    both = [*splits.train.ids, *splits.val.ids]
    expected = {f"c{center}_{row}" for center, num in NUM_TRAIN.items() for row in range(num)}
    assert len(both) == len(expected)
    assert set(both) == expected


def test_val_is_the_fraction_of_every_class_of_every_center(built):
    # 20 images at centre 0: 10, 6 and 4 of the classes; a tenth, rounded half up: 1, 1 and 0.
    val = by_site_and_class(built.load().val)
    assert val.tolist() == [[1, 1, 0], [2, 1, 1], [2, 1, 1], [3, 2, 1], [3, 2, 1], [4, 2, 1]]
    half = built.load(fraction_val=0.5)
    assert by_site_and_class(half.val)[0].tolist() == [5, 3, 2]
    assert by_site_and_class(half.train)[0].tolist() == [5, 3, 2]


def test_a_class_of_a_center_is_never_carved_out_wholly(built):
    splits = built.load(fraction_val=0.99)
    assert by_site_and_class(splits.train).tolist() == [[1, 1, 1]] * 6


def test_same_config_same_val_and_other_fold_other_val(project):
    first = project.load(centers=(1,), fraction_val=0.5).val.ids
    assert fed_isic2019.load(
        FedIsic2019Config(images=str(project.images), lists=str(project.lists), size=16,
                          centers=(1,), fraction_val=0.5), project.root / "other cache",
    ).val.ids == first  # fmt: skip
    for kind in ("train", "val"):
        path = project.lists / f"{kind}_flamby_isic_fl_1_1.csv"
        path.rename(project.lists / f"{kind}_flamby_isic_fl_1_2.csv")
    other = project.load(centers=(1,), fraction_val=0.5, fold=2).val.ids
    assert len(other) == len(first)
    assert other != first


def test_the_val_images_of_fold_1_stay_the_same(built):
    # Drawn once; a change here would change every figure on this data set.
    val = ("c0_5", "c0_10", "c1_9", "c1_12", "c1_16", "c1_21")
    assert built.load(centers=(0, 1)).val.ids == val


def test_centers_left_out_change_nothing_for_the_others(built):
    whole, two = built.load(), built.load(centers=(5, 2))
    assert two.train.site_names == (SITES[2], SITES[5])
    for name in ("train", "val", "test"):
        all_six, chosen = getattr(whole, name), getattr(two, name)
        kept = [image for image in all_six.ids if image[1] in "25"]
        assert list(chosen.ids) == kept


def test_class_and_site_names_are_those_of_isic_2019_and_of_the_sources(built):
    train = built.load().train
    assert train.class_names == ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")
    assert train.site_names == SITES


def test_lesions_stay_together(built, caplog):
    # Three images in a row are one lesion, across classes; every tenth image has none.
    lesions = [(f"c3_{row}", "" if row % 10 == 9 else f"L{row // 3}") for row in range(50)]
    lesions += [("t3_0", "L1"), ("elsewhere", "L2")]
    metadata = built.metadata(lesions)
    with caplog.at_level(logging.INFO, OWN_LOG):
        splits = built.load(centers=(3,), fraction_val=0.4, metadata=metadata)
    of = dict(lesions)
    train, val = ({of[name] for name in s.ids} - {""} for s in (splits.train, splits.val))
    assert train.isdisjoint(val)
    assert len(val) > 3
    assert len(splits.val) == pytest.approx(20, abs=4)
    assert [record.getMessage() for record in caplog.records if record.name == OWN_LOG] == [
        "lesions are known of 45 of 50 training images; 1 of 4 test images show one of them "
        "(the lists do not keep lesions together)"
    ]


def test_a_lesion_of_two_centers_stays_together(built):
    pairs = [(f"c{center}_{row}", f"L{row}") for center in (0, 1) for row in range(20)]
    splits = built.load(centers=(0, 1), fraction_val=0.5, metadata=built.metadata(pairs))
    lesion = dict(pairs)
    train, val = ({lesion.get(name, name) for name in s.ids} for s in (splits.train, splits.val))
    assert train.isdisjoint(val)


def test_metadata_without_any_lesion_changes_nothing(built):
    plain = built.load(fraction_val=0.3)
    metadata = built.metadata([("c0_0", ""), ("c0_1", "")])
    assert built.load(fraction_val=0.3, metadata=metadata).val.ids == plain.val.ids


def test_the_cache_notices_other_lesions(project):
    for step in (1, 2):
        pairs = {f"c0_{row}": f"L{row // 2 if step == 1 else row % 10}" for row in range(20)}
        metadata = project.metadata(pairs.items())
        splits = project.load(centers=(0,), fraction_val=0.5, metadata=metadata)
        train, val = ({pairs[name] for name in s.ids} for s in (splits.train, splits.val))
        assert train.isdisjoint(val)


def test_the_column_of_names_can_be_another(built):
    metadata = built.metadata([("c0_0", "L"), ("c0_1", "L")], header="image_id,lesion_id")
    text = built.error(metadata=metadata)
    assert text == (
        f"{metadata} has no column 'image' (the id); did you mean 'image_id'? It has 'image_id', "
        "'lesion_id'"
    )
    assert len(built.load(metadata=metadata, metadata_id_column="image_id").test) == 24


def test_metadata_that_is_not_there_or_names_an_image_twice_is_refused(built):
    nowhere = str(built.root / "nowhere.csv")
    text = f"data.metadata is {nowhere}, which does not exist; check the path"
    assert built.error(metadata=nowhere) == text
    metadata = built.metadata([("c0_0", "L"), ("c0_1", "L"), ("c0_0", "M")])
    assert built.error(metadata=metadata) == (
        f"{metadata}: 1 row(s) name the same image twice: row 4 ('c0_0'); each image may stand "
        "there once"
    )


def test_a_fraction_that_gives_no_val_image_is_refused(built):
    assert built.error(centers=(0,), fraction_val=0.01) == (
        "data.fraction_val is 0.01, which makes no val image of 20 training images; raise it"
    )


@pytest.mark.parametrize("centers", [[], [0, 6], [1, 1], [-1]])
def test_centers_that_are_none_are_refused(centers):
    values = {"images": "i", "lists": "l", "centers": centers}
    with pytest.raises(ConfigError) as caught:
        configs.build(FedIsic2019Config, values)
    assert f"centers: {centers} is no choice of centres; name one or more of 0, 1" in str(
        caught.value
    )


@pytest.mark.parametrize("fraction", [0, 1])
def test_val_of_nothing_or_everything_is_refused(fraction):
    values = {"images": "i", "lists": "l", "fraction_val": fraction}
    with pytest.raises(ConfigError, match=f"fraction_val is {fraction} in .*; it must be"):
        configs.build(FedIsic2019Config, values)


def test_missing_centers_are_named_in_one_line_and_can_be_skipped(project, caplog):
    for image in project.images.glob("?[04]_*.jpg"):
        image.unlink()
    counts = "train 72 of 241, val 8 of 29, test 8 of 24, center-0 24 of 24, center-4 64 of 64"
    assert project.error() == (
        f"{project.lists}: 88 of 294 listed images are not in data.images {project.images}: "
        f"{counts}; the first are c0_0, c0_1, c0_2, c0_3, c0_4, .... Copy them there, leave "
        'centres out (data.centers) or set data.missing = "skip"'
    )
    with caplog.at_level(logging.WARNING):
        skipped = project.load(missing="skip")
    (line,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert counts in line
    assert line.endswith("They are skipped")
    named = project.load(centers=(1, 2, 3, 5))
    assert skipped.train.site_names == named.train.site_names
    for name in ("train", "val", "test"):
        assert getattr(skipped, name).ids == getattr(named, name).ids


def test_an_image_that_cannot_be_decoded_is_named_though_splits_are_reordered(project):
    (project.images / "t0_1.jpg").write_text("not an image")
    text = project.error()
    assert "cannot be decoded: row 3 of val_flamby_isic_fl_0_1.csv (t0_1: " in text


def test_an_image_at_two_centers_is_refused(project):
    save_fed_isic(project.lists, 0, [("c1_3", 1), ("c0_1", 0)], [("t0_0", 0)])
    text = project.error(fraction_val=0.5)
    assert "1 row(s) name the same image twice: row 5 of train_flamby_isic_fl_1_1.csv ('c1_3', as "
    assert "in row 2 of train_flamby_isic_fl_0_1.csv)" in text


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([0, 3]), st.integers(0, 2), st.integers(0, 9)),
        min_size=1,
        max_size=60,
    ),
    st.floats(0.01, 0.99),
)
def test_carving_is_bounded_seeded_and_keeps_lesions(images, fraction):
    config = FedIsic2019Config(images="", lists="", fraction_val=fraction)
    train = pd.DataFrame({
        "id": [f"i{row}" for row in range(len(images))],
        "site": [SITES[center] for center, _, _ in images],
        "label": [str(label) for _, label, _ in images],
    })  # fmt: skip
    lesions = pd.Series([f"L{lesion}" if lesion else "" for _, _, lesion in images])
    try:
        val = fed_isic2019._carve(train, lesions, config)
    except DataError:
        return
    assert np.array_equal(fed_isic2019._carve(train, lesions, config), val)
    assert np.array_equal(np.unique(val), val)
    assert 0 < len(val) < len(images)
    assert len(val) <= fraction * len(images) + 0.5 * train.groupby(["site", "label"]).ngroups
    rest = np.setdiff1d(np.arange(len(images)), val)
    assert (set(lesions[val]) - {""}).isdisjoint(set(lesions[rest]))


def real_config(realdata, **changes):
    folders = {
        "images": str(realdata / "ham10000" / "images"),
        "lists": str(realdata / "splits" / "fed_isic2019"),
    }
    return FedIsic2019Config(**folders, **changes)


@pytest.mark.realdata
@pytest.mark.parametrize("way", ["centers", "skip"])
def test_the_four_real_hospitals_have_the_published_counts(realdata, tmp_path, monkeypatch, way):
    decode_nothing(monkeypatch)
    changes = {"centers": (1, 2, 3, 5)} if way == "centers" else {"missing": "skip"}
    splits = fed_isic2019.load(real_config(realdata, **changes), tmp_path)
    assert splits.train.site_names == tuple(SITES[center] for center in (1, 2, 3, 5))
    carved = np.bincount(splits.val.sites)
    assert (np.bincount(splits.train.sites) + carved).tolist() == [3163, 2691, 1807, 351]
    assert np.bincount(splits.test.sites).tolist() == [791, 672, 452, 88]
    assert carved.tolist() == [317, 268, 181, 36]


@pytest.mark.realdata
def test_six_centers_name_the_two_whose_images_are_missing(realdata, tmp_path):
    with pytest.raises(DataError) as caught:
        fed_isic2019.load(real_config(realdata), tmp_path)
    (line,) = str(caught.value).splitlines()
    assert "13232 of 23247 listed images are not in data.images" in line
    assert "center-0 12413 of 12413, center-4 819 of 819; the first are" in line
    assert "center-1" not in line


@pytest.mark.realdata
def test_lesions_of_ham10000_stay_together(realdata, tmp_path, monkeypatch, caplog):
    decode_nothing(monkeypatch)
    metadata = realdata / "ham10000" / "metadata.csv"
    with caplog.at_level(logging.INFO, OWN_LOG):
        splits = fed_isic2019.load(
            real_config(realdata, centers=(1, 2, 3, 5), metadata=str(metadata),
                        metadata_id_column="image_id"), tmp_path,
        )  # fmt: skip
    known = pd.read_csv(metadata).set_index("image_id")
    train, val, test = (
        set(known["lesion_id"][list(split.ids)])
        for split in (splits.train, splits.val, splits.test)
    )
    assert train.isdisjoint(val)
    assert len((train | val) & test) == 696
    assert "known of 8012 of 8012 training images; 760 of 2003 test images" in caplog.text
    sources = known["source"][list(splits.train.ids)]
    sites = [splits.train.site_names[site] for site in splits.train.sites]
    assert {f"{site}/{source}" for site, source in zip(sites, sources, strict=True)} == {
        f"{site}/{site[9:]}" for site in splits.train.site_names
    }
