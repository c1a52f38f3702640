from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedkd import config as configs
from fedkd.data.images import SPLITS
from fedkd.data.sets import ham10000
from fedkd.data.sets.ham10000 import CARD, Ham10000Config
from fedkd.errors import ConfigError
from fedkd.experiment import open_data
from fedkd.recipe import Recipe
from tests.image_project import Refused
from tests.isic_files import decode_nothing, save_images

OFFICIAL = "lesion_id,image_id,dx,dx_type,age,sex,localization,dataset"
CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
ROWS = [
    (f"HAM_{row // 2}", f"ISIC_{row}", dx, source)
    for row, (source, dx) in enumerate(
        (source, dx) for source in ("rosendahl", "vienna_dias") for dx in ("nv", "mel") * 10
    )
]


class Project(Refused):
    """Forty images of two sources, two of a lesion, as the authors' table has them."""

    def __init__(self, root):
        self.root, self.images, self.csv = root, root / "images", root / "metadata.csv"
        save_images(self.images, [row[1] for row in ROWS])
        self.save(f"{lesion},{image},{dx},histo,70.0,male,back,{source}"
                  for lesion, image, dx, source in ROWS)  # fmt: skip

    def save(self, lines, header=OFFICIAL):
        self.csv.write_text("\n".join([header, *lines]) + "\n")

    def load(self, **changes):
        fields = {"images": str(self.images), "metadata": str(self.csv), "size": 16, **changes}
        return ham10000.load(Ham10000Config(**fields), self.root / "cache")


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def test_the_authors_table_gives_classes_sources_and_lesions(project):
    train = project.load().train
    assert train.class_names == CLASSES
    assert train.site_names == ("rosendahl", "vienna_dias")
    known = {image: (lesion, dx, source) for lesion, image, dx, source in ROWS}
    for row, image in enumerate(train.ids):
        site, dx = train.site_names[train.sites[row]], CLASSES[train.labels[row]]
        assert (train.groups[row], dx, site) == known[image]


def test_a_table_with_a_column_source_reads_alike(project):
    official = project.load()
    lines = [f"{image},{lesion},{dx},{source}" for lesion, image, dx, source in ROWS]
    project.save(reversed(lines), '"image_id","lesion_id","dx","source"')
    other = project.load()
    for name in SPLITS:
        assert set(getattr(other, name).ids) == set(getattr(official, name).ids)
    assert other.train.site_names == official.train.site_names


def test_without_a_source_the_column_is_named(project):
    project.save([f"{lesion},{image},{dx}" for lesion, image, dx, _ in ROWS],
                 "lesion_id,image_id,dx")  # fmt: skip
    assert "metadata.csv has no column 'dataset' (the site); " in project.error()


def test_drawn_splits_keep_lesions_and_the_recipe_seed_has_no_part_in_them(project):
    splits = project.load()
    lesions = [set(getattr(splits, name).groups) for name in SPLITS]
    assert sum(map(len, lesions)) == len(set.union(*lesions)) == 20
    # 20 images per source; nv and mel alternate, so every lesion has both and counts as nv.
    assert [len(getattr(splits, name)) for name in SPLITS] == [28, 4, 8]
    other = project.load(split_seed=1)
    assert set(other.test.ids) != set(splits.test.ids)


def test_a_split_column_is_taken_as_it_is(project):
    split_of = {f"HAM_{n}": SPLITS[n % 3] for n in range(20)}
    project.save([f"{lesion},{image},{dx},{source},{split_of[lesion]}"
                  for lesion, image, dx, source in ROWS],
                 "lesion_id,image_id,dx,source,part")  # fmt: skip
    splits = project.load(split_column="part")
    for name in SPLITS:
        assert {split_of[lesion] for lesion in getattr(splits, name).groups} == {name}


def test_a_lesion_in_two_splits_of_a_column_is_refused(project):
    project.save([f"{lesion},{image},{dx},{source},{SPLITS[row % 3]}"
                  for row, (lesion, image, dx, source) in enumerate(ROWS)],
                 "lesion_id,image_id,dx,source,part")  # fmt: skip
    text = project.error(split_column="part")
    assert "20 group(s) are in more than one split" in text
    assert "'HAM_0' in train (row 2) and val (row 3)" in text


def test_an_unknown_class_and_a_missing_image_are_named_at_once(project):
    (project.images / "ISIC_3.jpg").unlink()
    project.csv.write_text(project.csv.read_text().replace("ISIC_0,nv", "ISIC_0,naevus"))
    text = project.error()
    assert "1 row(s) have an unknown label: row 2 ('naevus'); allowed are akiec, bcc, bkl" in text
    assert "ISIC_3.jpg" in text


def test_fractions_that_leave_no_training_images_are_refused():
    with pytest.raises(ConfigError) as caught:
        configs.build(Ham10000Config, {"fraction_val": 0.5, "fraction_test": 0.6})
    assert "fraction_val + fraction_test is 1.1; it must be below 1" in str(caught.value)


def test_paths_need_no_key_where_fedkd_data_is_set(project, monkeypatch):
    (project.root / "data").mkdir()
    (project.root / "data" / "ham10000").symlink_to(project.root)
    monkeypatch.setenv("FEDKD_DATA", str(project.root / "data"))
    assert len(ham10000.load(Ham10000Config(size=16), project.root / "cache").train) == 28


@pytest.fixture
def real(realdata, monkeypatch):
    monkeypatch.setenv("FEDKD_DATA", str(realdata))
    return realdata / "ham10000"


@pytest.mark.realdata
def test_the_card_agrees_with_the_real_table(real, tmp_path, monkeypatch):
    decode_nothing(monkeypatch)
    splits = ham10000.load(Ham10000Config(), tmp_path)
    parts = [getattr(splits, name) for name in SPLITS]
    counts = np.sum([part.class_counts() for part in parts], axis=0)
    assert dict(zip(CLASSES, counts.tolist(), strict=True)) == CARD.class_counts
    sites = np.sum([np.bincount(part.sites, minlength=4) for part in parts], axis=0)
    assert dict(zip(splits.train.site_names, sites.tolist(), strict=True)) == CARD.site_counts
    lesions = [set(part.groups) for part in parts]
    assert sum(map(len, lesions)) == len(set.union(*lesions)) == 7470
    # Drawn once; a change here would change every figure on this data set.
    assert [len(part) for part in parts] == [7014, 1001, 2000]
    assert parts[2].class_counts().tolist() == [65, 102, 220, 22, 221, 1341, 29]


@pytest.mark.realdata
def test_the_recipe_has_the_counts_it_always_had(real, monkeypatch):
    decode_nothing(monkeypatch)
    path = Path(__file__).parents[1] / "configs/ham10000_sites.toml"
    splits, partition = open_data(configs.load(Recipe, path))
    assert [len(getattr(splits, name)) for name in SPLITS] == [7004, 1003, 2008]
    assert splits.train.class_counts().tolist() == [228, 359, 768, 80, 778, 4693, 98]
    assert partition.client_names == ("rosendahl", "vidir_modern", "vidir_molemax", "vienna_dias")
    table = pd.read_csv(real / "metadata.csv")
    assert splits.train.ids == tuple(table.loc[table["split"] == "train", "image_id"])


@pytest.mark.realdata
def test_real_pixels_are_skin(real, tmp_path):
    table = pd.read_csv(real / "metadata.csv", dtype=str)
    table.groupby("split").head(40).to_csv(tmp_path / "subset.csv", index=False)
    config = Ham10000Config(
        metadata=str(tmp_path / "subset.csv"), split_column="split", size=32
    )  # fmt: skip
    splits = ham10000.load(config, tmp_path / "cache")
    # Skin is light and reddish: a channel mix-up or an all-black store would show here.
    red, green, blue = splits.train.images.mean(axis=(0, 2, 3))
    assert red > blue > green * 0.9 > 60
