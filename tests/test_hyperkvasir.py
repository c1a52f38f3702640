import numpy as np
import pytest
from PIL import Image

from fedkd import config as configs
from fedkd.data.longtail import head_medium_tail
from fedkd.data.sets import hyperkvasir
from fedkd.data.sets.hyperkvasir import BOUNDS, CLASS_COUNTS, FOLDERS, HyperKvasirConfig
from fedkd.errors import ConfigError
from tests.image_project import Refused

CLASSES = tuple(sorted(CLASS_COUNTS))
NUM = {"hemorrhoids": 6, "ileum": 9, "polyps": 20}


class Copy(Refused):
    """The unpacked archive with ten tiny images per class, but for three classes."""

    def __init__(self, root):
        self.root = root / "labeled-images"
        self.cache = root / "cache"
        lines = ["Video file,Organ,Finding,Classification"]
        for place, counts in FOLDERS.items():
            for name in counts:
                folder = self.root / place / name
                folder.mkdir(parents=True)
                for number in range(NUM.get(name, 10)):
                    # Names are not in the order of the classes, as the real ones are not.
                    stem = f"{number:02d}-{name}"
                    Image.new("RGB", (20, 12), (9 * CLASSES.index(name), 9, 9)).save(
                        folder / f"{stem}.jpg", quality=100
                    )
                    lines.append(f"{stem},{place[:8]},{name},{place.partition('/')[2]}")
        self.csv = self.root / "image-labels.csv"
        self.csv.write_text("\n".join(lines) + "\n")

    def load(self, **changes):
        fields = {"root": str(self.root), "size": 16, **changes}
        return hyperkvasir.load(HyperKvasirConfig(**fields), self.cache)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return Copy(tmp_path_factory.mktemp("kvasir"))


@pytest.fixture
def copy(tmp_path):
    """One that a test may damage."""
    return Copy(tmp_path)


def test_published_counts_add_up():
    assert len(CLASS_COUNTS) == 23
    assert sum(CLASS_COUNTS.values()) == 10_662


def test_the_folder_gives_the_class(built):
    train = built.load().train
    assert train.class_names == CLASSES
    for row, image in enumerate(train.ids):
        name = CLASSES[train.labels[row]]
        assert image.endswith(f"/{name}/{image.rpartition('/')[2]}")
        assert abs(int(train.images[row, 0, 8, 8]) - 9 * train.labels[row]) <= 3


def test_each_image_is_test_in_one_of_five_folds(built):
    tests = [built.load(fold=fold).test for fold in range(1, 6)]
    ids = [image for test in tests for image in test.ids]
    assert len(ids) == len(set(ids)) == 6 + 9 + 20 + 200
    assert [len(test) for test in tests] == [47] * 5
    by_fold = np.array([test.class_counts() for test in tests])
    # Each class differs by at most one image from fold to fold.
    assert np.ptp(by_fold, axis=0).max() == 1
    assert sorted(by_fold[:, CLASSES.index("hemorrhoids")]) == [1, 1, 1, 1, 2]
    assert by_fold[:, CLASSES.index("polyps")].tolist() == [4] * 5


def test_splits_share_nothing_and_have_all_classes(built):
    for fold in range(1, 6):
        splits = built.load(fold=fold)
        ids = [image for s in (splits.train, splits.val, splits.test) for image in s.ids]
        assert len(ids) == len(set(ids)) == 235
        # An eighth of 4 or more images that are not test is at least half an image.
        assert splits.val.class_counts().min() == 1
        assert splits.val.class_counts()[CLASSES.index("polyps")] == 2


def test_the_split_of_fold_1_stays_the_same(built):
    # Drawn once; a change here would change every figure on this data set.
    splits = built.load()
    rare = [
        [image.rpartition("/")[2][:2] for image in split.ids if "hemorrhoids" in image]
        for split in (splits.val, splits.test)
    ]
    assert rare == [["03"], ["02", "04"]]


def test_head_and_tail_go_by_the_published_bounds(built):
    assert built.load().bounds == BOUNDS
    groups = head_medium_tail(np.array([CLASS_COUNTS[name] for name in CLASSES]), BOUNDS)
    head, medium, tail = ({CLASSES[row] for row in group} for group in groups)
    assert head == {"bbps-2-3", "polyps", "cecum", "dyed-lifted-polyps", "pylorus",
                    "dyed-resection-margins", "z-line", "retroflex-stomach"}  # fmt: skip
    assert tail == {"hemorrhoids", "ileum", "barretts", "barretts-short-segment",
                    "ulcerative-colitis-grade-0-1", "ulcerative-colitis-grade-1-2",
                    "ulcerative-colitis-grade-2-3"}  # fmt: skip
    assert len(medium) == 8


def test_a_missing_and_an_unknown_class_folder_are_named(copy):
    folder = copy.root / "upper-gi-tract/anatomical-landmarks/z-line"
    folder.rename(folder.with_name("zline"))
    assert copy.error() == (
        f"data.root is {copy.root}, which lacks 1 class folders: "
        "upper-gi-tract/anatomical-landmarks/z-line; unpack hyper-kvasir-labeled-images.zip anew"
    )
    folder.with_name("zline").rename(folder)
    folder.with_name("new").mkdir()
    assert "which has 1 folders of no class: upper-gi-tract/anatomical-landmarks/new" in (
        copy.error()
    )


def test_an_incomplete_copy_is_refused_as_it_would_change_the_folds(copy):
    folder = copy.root / "lower-gi-tract/pathological-findings/polyps"
    (folder / "03-polyps.jpg").unlink()
    text = copy.error()
    assert "1 row(s) name an image that is in no class folder: row " in text
    assert "('03-polyps'); copy the files again" in text


def test_files_without_row_and_files_in_two_classes_are_named(copy):
    folder = copy.root / "lower-gi-tract/pathological-findings"
    (folder / "polyps" / "more.jpg").write_bytes((folder / "polyps/00-polyps.jpg").read_bytes())
    (folder / "hemorrhoids" / "01-polyps.jpg").write_bytes(b"x")
    text = copy.error()
    assert (
        "1 file(s) in class folders have no row: "
        "lower-gi-tract/pathological-findings/polyps/more.jpg; unpack "
    ) in text
    assert "1 file(s) in class folders have the name of another one: lower-gi-tract" in text


def test_a_row_that_stands_twice_is_named(copy):
    copy.csv.write_text(copy.csv.read_text() + "00-ileum,Lower GI,ileum,anatomical-landmarks\n")
    assert "1 row(s) name the same image twice: row 237 ('00-ileum'); each may" in copy.error()


def test_a_copy_without_its_table_is_refused(copy):
    copy.csv.unlink()
    assert copy.error() == (
        f"the table in data.root is {copy.csv}, which does not exist; check the path"
    )


@pytest.mark.parametrize("values", [{"fold": 0}, {"fold": 6}, {"fraction_val": 0.8}])
def test_folds_and_fractions_out_of_range_are_refused(values):
    (key,) = values
    with pytest.raises(ConfigError, match=f"{key} is {values[key]} in .*; it must be"):
        configs.build(HyperKvasirConfig, values)
