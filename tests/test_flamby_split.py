"""Fed-ISIC2019 from FLamby's own table instead of the Fed-MAS lists."""

import pytest

from fedkd.data import catalog
from fedkd.data.sets import fed_isic2019
from fedkd.data.sets.fed_isic2019 import SITES, FedIsic2019Config
from tests.image_project import Refused
from tests.isic_files import save_flamby, save_images

# 20 training images and 4 test images at each of three centres, in turn.
ROWS = [
    (f"c{center}_{row}", row % 2, center, "test" if row >= 20 else "train")
    for row in range(24)
    for center in (5, 0, 2)
]


class Project(Refused):
    def __init__(self, root):
        self.root, self.images, self.csv = root, root / "images", root / "train_test_split"
        save_images(self.images, [row[0] for row in ROWS])
        save_flamby(self.csv, ROWS)

    def load(self, **changes):
        fields = {"images": str(self.images), "split_csv": str(self.csv), "size": 16, **changes}
        return fed_isic2019.load(FedIsic2019Config(**fields), self.root / "cache")


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def test_its_test_is_test_and_val_is_carved_out_of_its_train(project):
    splits = project.load(fraction_val=0.2)
    assert splits.train.site_names == (SITES[0], SITES[2], SITES[5])
    assert list(splits.test.ids) == [row[0] for row in ROWS if row[3] == "test"]
    both = {*splits.train.ids, *splits.val.ids}
    assert both == {row[0] for row in ROWS if row[3] == "train"}
    # A fifth of 10 images of each of two classes of each of three centres.
    assert splits.val.class_counts().tolist() == [6, 6, 0, 0, 0, 0, 0, 0]
    assert len(both) == len(splits.train) + len(splits.val)
    known = {row[0]: row for row in ROWS}
    for image, label, site in zip(
        splits.train.ids, splits.train.labels, splits.train.sites, strict=True
    ):
        assert known[image][1] == label
        assert SITES[known[image][2]] == splits.train.site_names[site]


def test_centers_left_out_change_nothing_for_the_others(project):
    whole, two = project.load(), project.load(centers=(2, 0))
    assert two.train.site_names == (SITES[0], SITES[2])
    assert list(two.val.ids) == [image for image in whole.val.ids if image[1] in "02"]


def test_a_center_without_rows_is_refused(project):
    assert project.error(centers=(3, 4)) == f"{project.csv} has no row of data.centers [3, 4]"


def test_missing_images_name_the_table_and_can_be_skipped(project):
    for image in project.images.glob("c0_*.jpg"):
        image.unlink()
    text = project.error()
    assert text.startswith(f"{project.csv}: 24 of 72 listed images are not in data.images")
    assert "center-0 24 of 24" in text
    assert project.load(missing="skip").train.site_names == (SITES[2], SITES[5])


def test_unknown_centers_and_folds_are_named_at_once(project):
    save_flamby(project.csv, [("a", 0, 6, "train"), ("b", 0, 1, "val")])
    first, second = project.error().splitlines()
    assert first == (
        f"{project.csv}: 1 row(s) have an unknown center: row 2 ('6'); allowed are 0, 1, 2, 3, 4, 5"
    )
    assert second.endswith("have an unknown fold: row 3 ('val'); allowed are train, test")


def test_an_unknown_target_is_named(project):
    save_flamby(project.csv, [(image, 8, *rest) for image, _, *rest in ROWS])
    assert "72 row(s) have an unknown label: row 2 ('8')" in project.error()


def test_another_table_is_refused(project):
    project.csv.write_text("image,target\na,1\n")
    assert f"{project.csv} has no column 'center' (the site); " in project.error()
    nowhere = str(project.root / "nowhere")
    text = f"data.split_csv is {nowhere}, which does not exist; check the path"
    assert project.error(split_csv=nowhere) == text


def test_the_card_has_the_counts_of_the_lists_and_no_list_to_fetch():
    card = catalog.card(FedIsic2019Config(split_csv="s", fold=3, centers=(5,)))
    assert card.site_counts == {SITES[5]: 439}
    assert card.downloads == ()
