import os
from pathlib import Path

import pandas as pd
import pytest

from fedkd.data import folder
from fedkd.data.folder import FolderConfig
from tests.isic_files import decode_nothing

pytestmark = pytest.mark.realdata


@pytest.fixture
def ham10000():
    places = [Path(__file__).resolve().parents[2] / "shared" / "data"]
    if os.environ.get("FEDKD_DATA"):
        places.insert(0, Path(os.environ["FEDKD_DATA"]))
    for place in places:
        if (place / "ham10000" / "metadata.csv").is_file():
            return place / "ham10000"
    looked = ", ".join(map(str, places))
    return pytest.skip(f"no ham10000/metadata.csv in {looked}; set FEDKD_DATA")


def ham_config(csv, images):
    return FolderConfig(
        images=str(images),
        csv=str(csv),
        label_column="dx",
        site_column="source",
        group_column="lesion_id",
        size=32,
    )


def test_ham10000_subset_loads(ham10000, tmp_path):
    table = pd.read_csv(ham10000 / "metadata.csv", dtype=str)
    parts = [table[table["split"] == name].iloc[::stride] for name, stride in
             [("train", 58), ("val", 25), ("test", 50)]]  # fmt: skip
    subset = pd.concat(parts)
    subset.to_csv(tmp_path / "subset.csv", index=False)
    config = ham_config(tmp_path / "subset.csv", ham10000 / "images")
    splits = folder.load(config, tmp_path / "cache")
    assert [len(splits.train), len(splits.val), len(splits.test)] == [len(part) for part in parts]
    assert splits.train.site_names == ("rosendahl", "vidir_modern", "vidir_molemax", "vienna_dias")
    # Skin is light and reddish: a channel mix-up or an all-black store would show here.
    red, green, blue = splits.train.images.mean(axis=(0, 2, 3))
    assert red > blue > green * 0.9 > 60


def test_ham10000_has_the_counts_it_should_have(ham10000, tmp_path, monkeypatch):
    # The checks of the table and of all 10,015 files, without decoding.
    decode_nothing(monkeypatch)
    config = ham_config(ham10000 / "metadata.csv", ham10000 / "images")
    splits = folder.load(config, tmp_path)
    assert [len(splits.train), len(splits.val), len(splits.test)] == [7004, 1003, 2008]
    assert len(splits.train.site_names) == 4
    # akiec bcc bkl df mel nv vasc
    assert splits.train.class_counts().tolist() == [228, 359, 768, 80, 778, 4693, 98]
