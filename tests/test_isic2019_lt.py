import numpy as np
import pandas as pd
import pytest

from fedkd import config as configs
from fedkd.data.sets import isic2019_lt
from fedkd.data.sets.isic2019_lt import CLASS_NAMES, IMBALANCE_FACTORS, Isic2019LtConfig
from fedkd.data.sets.isic_lists import CLASS_NAMES as ISIC_2019
from fedkd.errors import ConfigError, DataError
from tests.isic_files import decode_nothing, save_images, save_isic_lt

PUBLISHED = dict(zip(ISIC_2019, (4522, 12875, 3323, 867, 2624, 239, 253, 628), strict=True))


def config(root, **changes):
    fields = {"images": str(root / "images"), "lists": str(root / "lists"), "size": 16}
    return Isic2019LtConfig(**{**fields, **changes})


def test_labels_are_findings_and_absent_classes_stay(tmp_path):
    save_images(tmp_path / "images", "abc")
    rows = {"train": [("a", 5, 7)], "val": [("b", 1, 0)], "test": [("c", 0, 1)]}
    save_isic_lt(tmp_path / "lists", rows)
    splits = isic2019_lt.load(config(tmp_path), tmp_path / "cache")
    assert splits.train.class_counts().tolist() == [0, 0, 0, 0, 0, 0, 0, 1]
    assert splits.val.labels.tolist() == [0]
    assert splits.test.labels.tolist() == [1]
    assert splits.train.class_names == CLASS_NAMES
    assert splits.train.site_names == ("all",)


@pytest.mark.parametrize("factor", ["0.01", "0.005", "0.002"])
def test_fold_and_factor_choose_the_lists(tmp_path, factor):
    save_images(tmp_path / "images", "abcd")
    rows = {"train": [("a", 1, 0)], "val": [("b", 1, 0)], "test": [("c", 0, 1)]}
    other = {**rows, "train": [("d", 1, 0)]}
    for fold in range(1, 6):
        for name in ("0.01", "0.005", "0.002"):
            chosen = rows if (fold, name) == (3, factor) else other
            save_isic_lt(tmp_path / "lists", chosen, fold, name)
    chosen = config(tmp_path, fold=3, imbalance_factor=float(factor))
    assert isic2019_lt.load(chosen, tmp_path / "cache").train.ids == ("a",)


def test_factors_and_folds_without_lists_are_refused():
    paths = {"images": "i", "lists": "l"}
    text = r"imbalance_factor: 0.1 has no lists; it must be 0.01 \(1:100\), 0.005 \(1:200\) or 0.00"
    with pytest.raises(ConfigError, match=text):
        configs.build(Isic2019LtConfig, {**paths, "imbalance_factor": 0.1})
    with pytest.raises(ConfigError, match="fold is 6 in .*; it must be less than or equal to 5"):
        configs.build(Isic2019LtConfig, {**paths, "fold": 6})


def real_config(realdata, **changes):
    folders = {
        "images": str(realdata / "ham10000" / "images"),
        "lists": str(realdata / "splits" / "isic_lt"),
    }
    return Isic2019LtConfig(**folders, **changes)


def real_list(realdata, split, factor=0.01):
    path = realdata / "splits" / "isic_lt" / f"{split}_skin1_{factor:g}.csv"
    return pd.read_csv(path).set_index("image")


@pytest.mark.realdata
def test_split_1_says_which_images_are_missing(realdata, tmp_path):
    with pytest.raises(DataError) as caught:
        isic2019_lt.load(real_config(realdata, imbalance_factor=0.002), tmp_path)
    (line,) = str(caught.value).splitlines()
    assert "12982 of 21982 listed images are not in data.images" in line
    assert "train 12214 of 20782, val 254 of 400, test 514 of 800; the first are ISIC_00000" in line


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("factor", "sizes"),
    [(0.01, (9278, 153, 298)), (0.005, (8974, 134, 264)), (0.002, (8568, 146, 286))],
)
def test_split_1_loads_what_is_there(realdata, tmp_path, monkeypatch, factor, sizes):
    decode_nothing(monkeypatch)
    chosen = real_config(realdata, imbalance_factor=factor, missing="skip")
    splits = isic2019_lt.load(chosen, tmp_path)
    assert (len(splits.train), len(splits.val), len(splits.test)) == sizes


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("factor", "ratio", "counts"),
    [
        (0.01, 143, [12725, 4372, 3173, 1788, 717, 478, 103, 89]),
        (0.005, 199, [12725, 4372, 2833, 1329, 623, 292, 103, 64]),
        (0.002, 509, [12725, 4372, 2180, 897, 369, 152, 62, 25]),
    ],
)
def test_split_1_has_the_documented_counts(realdata, factor, ratio, counts):
    train = np.bincount(real_list(realdata, "train", factor)["finding"])
    assert train.tolist() == counts
    assert round(train[0] / train[-1]) == ratio
    assert factor in IMBALANCE_FACTORS
    for split, num in (("val", 50), ("test", 100)):
        assert np.bincount(real_list(realdata, split, factor)["finding"]).tolist() == [num] * 8


@pytest.mark.realdata
def test_class_names_are_those_of_counts_fed_mas_lists_and_diagnoses(realdata):
    table = pd.concat([real_list(realdata, split) for split in ("train", "val", "test")])
    names = table["finding"].map(dict(enumerate(CLASS_NAMES)))
    assert (names == table["finding_name"].map(dict(enumerate(ISIC_2019)))).all()
    counts = names.value_counts().to_dict()
    assert {name for name in ISIC_2019 if counts[name] != PUBLISHED[name]} == {"BKL"}
    fed = pd.concat([
        pd.read_csv(realdata / "splits" / "fed_isic2019" / f"{kind}_flamby_isic_fl_all_1.csv")
        for kind in ("train", "val")
    ])  # fmt: skip
    theirs = fed.set_index("image_name")["dx"].map(dict(enumerate(ISIC_2019)))
    shared = names.index.intersection(theirs.index)
    assert len(shared) > 20000
    assert (names[shared] == theirs[shared]).all()
    ham = pd.read_csv(realdata / "ham10000" / "metadata.csv").set_index("image_id")["dx"]
    shared = names.index.intersection(ham.index)
    diagnoses = names[shared].str.lower().replace({"ak": "akiec", "scc": "akiec"})
    assert len(shared) > 9000
    assert (diagnoses == ham[shared]).all()


@pytest.mark.realdata
@pytest.mark.parametrize("factor", IMBALANCE_FACTORS)
def test_split_1_shares_lesions_but_no_images_between_train_and_test(realdata, factor):
    ham = pd.read_csv(realdata / "ham10000" / "metadata.csv").set_index("image_id")["lesion_id"]
    train, test = (real_list(realdata, split, factor).index for split in ("train", "test"))
    assert set(train).isdisjoint(test)
    shared = set(ham.reindex(train).dropna()) & set(ham.reindex(test).dropna())
    assert len(shared) == {0.01: 114, 0.005: 90, 0.002: 85}[factor]
