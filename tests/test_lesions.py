import hashlib
import logging

import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifier

from fedkd import config as configs
from fedkd.data.sets import lesions
from fedkd.data.sets.acquisition import hospital, photograph
from fedkd.data.sets.case_mix import assign_sites, case_mix
from fedkd.data.sets.lesion_images import CLASS_NAMES, DIAGNOSES, draw_lesion
from fedkd.data.sets.lesion_structures import STRUCTURES
from fedkd.data.sets.lesions import LesionsConfig
from fedkd.data.sets.skin_patterns import Canvas
from fedkd.errors import ConfigError
from fedkd.seeding import rng

SMALL = LesionsConfig(size=16, num_train=60, num_val_per_class=2, num_test_per_class=3, num_sites=3)
SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return lesions.load(SMALL, tmp_path_factory.mktemp("small"))


def digest(splits):
    parts = [getattr(splits, name) for name in SPLITS]
    return hashlib.sha256(
        b"".join(
            part.images.tobytes() + part.labels.tobytes() + part.sites.tobytes() for part in parts
        )
    ).hexdigest()


def by_id(split):
    return dict(zip(split.ids, split.images, strict=True))


def changed(**fields):
    return SMALL.model_copy(update=fields)


def test_same_config_gives_same_bytes(tmp_path):
    assert digest(lesions.load(SMALL, tmp_path / "a")) == digest(
        lesions.load(SMALL, tmp_path / "b")
    )


def test_cached_splits_are_the_drawn_ones(tmp_path, monkeypatch):
    drawn = digest(lesions.load(SMALL, tmp_path))
    monkeypatch.setattr(lesions, "_build", lambda config: pytest.fail("drawn again"))
    assert digest(lesions.load(SMALL, tmp_path)) == drawn


def test_an_image_does_not_depend_on_what_was_drawn_before_it(small):
    # The 2nd test image of DF, drawn alone: there is no batch and no shared stream.
    name = "test-DF-00001"
    site = small.test.sites[small.test.ids.index(name)]
    stream = rng(SMALL.seed, "lesions/test", CLASS_NAMES.index("DF"), 1)
    settings = hospital(SMALL.seed, int(site))
    closeness = settings.magnification * float(np.exp(stream.normal(0, 0.06)))
    skin = draw_lesion(CLASS_NAMES.index("DF"), SMALL.size, stream, closeness)
    assert np.array_equal(photograph(skin, settings, stream), by_id(small.test)[name])


def test_another_seed_gives_other_images(small, tmp_path):
    other = lesions.load(changed(seed=1), tmp_path)
    assert not np.array_equal(other.val.images, small.val.images)


def test_val_and_test_stay_when_train_grows(small, tmp_path):
    large = lesions.load(changed(num_train=90), tmp_path)
    assert np.array_equal(small.val.images, large.val.images)
    assert np.array_equal(small.test.images, large.test.images)
    assert np.array_equal(small.test.sites, large.test.sites)


def test_growing_test_only_adds_images(small, tmp_path):
    large = lesions.load(changed(num_test_per_class=5), tmp_path)
    grown = by_id(large.test)
    assert all(np.array_equal(image, grown[name]) for name, image in by_id(small.test).items())
    assert np.array_equal(small.train.images, large.train.images)
    assert np.array_equal(small.val.images, large.val.images)


def test_no_image_stands_in_two_splits_or_twice(small):
    images = [image.tobytes() for name in SPLITS for image in getattr(small, name).images]
    ids = [name for split in SPLITS for name in getattr(small, split).ids]
    assert len(set(images)) == len(images) == len(set(ids)) == 60 + 8 * 2 + 8 * 3


def test_train_is_long_tailed_with_naevi_first_and_val_and_test_are_balanced(small):
    counts = dict(zip(CLASS_NAMES, small.train.class_counts(), strict=True))
    in_order = [counts[name] for name in ("NV", "MEL", "BCC", "BKL", "AK", "SCC", "VASC", "DF")]
    assert in_order == sorted(in_order, reverse=True)
    assert sum(in_order) == 60
    assert in_order[-1] == 1
    assert small.val.class_counts().tolist() == [2] * 8
    assert small.test.class_counts().tolist() == [3] * 8


def test_class_names_are_those_of_isic_2019_in_order():
    assert CLASS_NAMES == ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")


def test_val_and_test_come_from_sites_that_see_the_class(tmp_path):
    splits = lesions.load(changed(num_test_per_class=12), tmp_path)
    mix = case_mix(SMALL.seed, SMALL.num_sites, 8, CLASS_NAMES.index("NV"))
    assert (mix == 0).any()
    for split in (splits.train, splits.val, splits.test):
        assert (mix[split.sites, split.labels] > 0).all()


def test_start_of_drawing_is_in_the_log(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        lesions.load(SMALL, tmp_path)
    assert "drawing 100 synthetic lesion images of 16 px" in caplog.text


@pytest.mark.parametrize("num_sites", [2, 3, 4, 5, 12, 40])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_sites_lack_classes_but_every_class_and_every_site_is_served(num_sites, seed):
    mix = case_mix(seed, num_sites, 8, common_class=1)
    assert ((mix == 0).any(axis=1)).sum() >= 2
    assert (mix[:, 1] > 0).all()
    np.testing.assert_allclose(mix.sum(axis=0), 1)
    counts = np.array([4, 40, 3, 1, 2, 1, 1, 1])
    assigned = assign_sites(mix, counts, common_class=1)
    assert [len(sites) for sites in assigned] == counts.tolist()
    assert set(np.concatenate(assigned).tolist()) == set(range(num_sites))
    for label, sites in enumerate(assigned):
        assert (mix[sites, label] > 0).all()


def test_sites_are_assigned_by_largest_remainder():
    # 5 images: shares 3.5, 1.0, 0.5 of class 0; the remainders tie and the lower site wins.
    mix = np.array([[0.7, 0.0], [0.2, 0.5], [0.1, 0.5]])
    first, second = assign_sites(mix, np.array([5, 4]), common_class=0)
    assert first.tolist() == [0, 0, 0, 0, 1]
    assert second.tolist() == [1, 1, 2, 2]


def test_a_site_left_without_images_takes_a_common_one():
    mix = np.array([[0.9, 1.0], [0.1, 0.0]])
    first, second = assign_sites(mix, np.array([3, 2]), common_class=0)
    assert first.tolist() == [0, 0, 1]
    assert second.tolist() == [0, 0]


def test_one_site_sees_everything():
    assert case_mix(0, 1, 8, 1).tolist() == [[1.0] * 8]


def test_more_sites_than_common_images_is_refused_by_the_config():
    with pytest.raises(ConfigError, match=r"num_sites is 30 .* only 26 training images"):
        configs.build(LesionsConfig, {"num_train": 60, "num_sites": 30})


@pytest.mark.parametrize(
    ("key", "value"), [("size", 8), ("num_train", 7), ("imbalance_factor", 0.5)]
)
def test_values_out_of_range_are_refused(key, value):
    with pytest.raises(ConfigError, match=f"{key} is {value} .* must be greater than or equal to"):
        configs.build(LesionsConfig, {key: value})


def test_every_structure_is_used_and_every_mimic_exists():
    used = {name for diagnosis in DIAGNOSES.values() for name in diagnosis.structures}
    assert used == set(STRUCTURES)
    mimics = {name for diagnosis in DIAGNOSES.values() for name in diagnosis.mimics}
    assert mimics <= set(CLASS_NAMES)


@pytest.mark.parametrize("label", range(8))
def test_lesions_are_float32_reflectances_with_contrast(label):
    skin = draw_lesion(label, 32, rng(0, "test", label))
    assert (skin.dtype, skin.shape) == (np.float32, (3, 32, 32))
    assert skin.min() >= 0
    assert skin.max() <= 1
    assert skin.std() > 0.01


def test_pictures_are_uint8():
    picture = photograph(np.full((3, 16, 16), 0.5, np.float32), hospital(0, 0), rng(0, "test"))
    assert (picture.dtype, picture.shape) == (np.uint8, (3, 16, 16))


def test_hospitals_differ_and_do_not_depend_on_how_many_there_are():
    settings = [hospital(0, site) for site in range(5)]
    assert len(set(settings)) == 5
    assert hospital(0, 3) == settings[3]
    assert hospital(1, 3) != settings[3]


def test_noise_has_unit_variance_in_its_band_and_is_zero_where_pixels_cannot_show_it():
    fields = np.stack([Canvas(64, rng(0, "test", k)).noise(8) for k in range(40)])
    assert fields.std() == pytest.approx(1, abs=0.05)
    power = np.square(np.abs(np.fft.rfft(fields, axis=2))).sum(axis=(0, 1))
    assert 4 <= power[1:].argmax() + 1 <= 10
    assert not Canvas(16, rng(0, "test")).noise(200, octaves=0.25).any()


@pytest.fixture(scope="module")
def balanced(tmp_path_factory):
    config = LesionsConfig(
        size=32, num_train=640, imbalance_factor=1, num_val_per_class=1, num_test_per_class=25
    )
    return lesions.load(config, tmp_path_factory.mktemp("cache"))


def pooled(split):
    blocks = split.images.reshape(len(split), 3, 16, 2, 16, 2).mean(axis=(3, 5))
    return blocks.reshape(len(split), -1) / 255


def test_classes_can_be_told_apart_from_pixels_but_not_easily(balanced):
    probe = RidgeClassifier(alpha=300).fit(pooled(balanced.train), balanced.train.labels)
    accuracy = probe.score(pooled(balanced.test), balanced.test.labels)
    assert 0.22 < accuracy < 0.55  # chance is 0.125


def test_sites_can_be_told_apart(balanced):
    probe = RidgeClassifier(alpha=300).fit(pooled(balanced.train), balanced.train.sites)
    assert probe.score(pooled(balanced.test), balanced.test.sites) > 0.55
