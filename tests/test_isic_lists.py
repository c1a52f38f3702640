import logging

import pytest

from fedkd.data import labelled_files
from fedkd.data.sets import isic2019_lt
from fedkd.data.sets.isic2019_lt import Isic2019LtConfig
from fedkd.errors import ConfigError
from tests.image_project import Refused
from tests.isic_files import save_images, save_isic_lt

ROWS = {
    "train": [("a", 1, 0), ("b", 0, 1), ("c_downsampled", 5, 7)],
    "val": [("d", 1, 0)],
    "test": [("e", 0, 1), ("f", 2, 2)],
}


class Project(Refused):
    """Six images and their three lists, to be damaged by a test."""

    def __init__(self, root):
        self.root, self.images, self.lists = root, root / "images", root / "lists"
        self.rows = {split: list(rows) for split, rows in ROWS.items()}
        save_images(self.images, [row[0] for rows in ROWS.values() for row in rows])
        save_isic_lt(self.lists, self.rows)

    def load(self, **changes):
        fields = {"images": str(self.images), "lists": str(self.lists), "size": 16, **changes}
        return isic2019_lt.load(Isic2019LtConfig(**fields), self.root / "cache")


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def test_splits_are_the_lists_in_their_order_with_their_own_pixels(project):
    splits = project.load()
    assert splits.train.ids == ("a", "b", "c_downsampled")
    assert splits.val.ids == ("d",)
    assert splits.test.ids == ("e", "f")
    reds = [abs(int(split.images[-1, 0, 8, 8]) - number) for split, number in
            [(splits.train, 2), (splits.val, 3), (splits.test, 5)]]  # fmt: skip
    assert max(reds) <= 1
    assert splits.train.images.shape == (3, 3, 16, 16)


def test_variables_in_both_paths_are_filled_in(project, monkeypatch):
    monkeypatch.setenv("FEDKD_DATA", str(project.root))
    splits = project.load(images="${FEDKD_DATA}/images", lists="${FEDKD_DATA}/lists")
    assert len(splits.train) == 3


@pytest.mark.parametrize("key", ["images", "lists"])
def test_a_variable_that_is_not_set_is_named(project, monkeypatch, key):
    monkeypatch.delenv("FEDKD_DATA", raising=False)
    with pytest.raises(ConfigError, match=rf"data\.{key} is .* FEDKD_DATA is not set"):
        project.load(**{key: "${FEDKD_DATA}/x"})


@pytest.mark.parametrize("key", ["images", "lists"])
def test_a_folder_that_is_not_there_is_named(project, key):
    nowhere = str(project.root / "nowhere")
    text = f"data.{key} is {nowhere}, which is not a folder; check the path"
    assert project.error(**{key: nowhere}) == text


def test_lists_that_are_not_there_are_all_named_beside_those_that_are(project):
    (project.lists / "val_skin1_0.01.csv").unlink()
    assert project.error() == (
        f"data.lists is {project.lists}, which lacks 1 of 3 lists: val_skin1_0.01.csv; copy the "
        "authors' files there or change data.fold. It has test_skin1_0.01.csv, train_skin1_0.01.csv"
    )
    text = project.error(fold=2)
    assert "lacks 3 of 3 lists: train_skin2_0.01.csv, val_skin2_0.01.csv, test_skin2" in text


def test_a_folder_without_any_list_says_so(project):
    project.lists.joinpath("empty").mkdir()
    assert project.error(lists=str(project.lists / "empty")).endswith("It has no CSV")


def test_a_list_that_cannot_be_read_is_named(project):
    path = project.lists / "val_skin1_0.01.csv"
    path.unlink()
    path.mkdir()
    assert project.error().startswith(f"cannot read data.lists {path}: ")


def test_a_list_with_another_column_names_what_it_has(project):
    path = project.lists / "val_skin1_0.01.csv"
    path.write_text("image,finding_name,findings\nd,1,0\n")
    assert project.error() == (
        f"{path} has no column 'finding' (the label); did you mean 'findings'? It has 'image', "
        "'finding_name', 'findings'"
    )


def test_faults_name_row_and_list_and_come_at_once(project):
    project.rows["train"] += [("g", 9, 8), ("", 0, 1)]
    project.rows["val"] += [("h", 1, "")]
    project.rows["test"] += [("a", 1, 0), ("i", 1, "nv")]
    save_images(project.images, "ghi")
    save_isic_lt(project.lists, project.rows)
    (project.images / "e.jpg").write_bytes(b"")
    lines = project.error().splitlines()
    assert lines == [
        f"{project.lists}: {text}"
        for text in (
            "1 row(s) have no id: row 6 of train_skin1_0.01.csv (''); fill it in or remove the "
            "rows",
            "1 row(s) have no label: row 3 of val_skin1_0.01.csv ('h'); fill it in or remove the "
            "rows",
            "2 row(s) have an unknown label: row 5 of train_skin1_0.01.csv ('8'), row 5 of "
            "test_skin1_0.01.csv ('nv'); allowed are 0, 1, 2, 3, 4, 5, 6, 7",
            "1 row(s) name the same image twice: row 4 of test_skin1_0.01.csv ('a', as in row 2 of "
            "train_skin1_0.01.csv); each image may stand there once",
            f"1 row(s) name an empty file (0 bytes): row 2 of test_skin1_0.01.csv "
            f"({project.images / 'e.jpg'}); copy the files again",
        )
    ]


def test_an_image_that_cannot_be_decoded_is_named_with_row_and_list(project):
    (project.images / "d.jpg").write_text("not an image")
    text = project.error()
    assert "1 row(s) name an image that cannot be decoded: row 2 of val_skin1_0.01.csv (d: " in text


def test_missing_images_are_refused_with_their_number_and_the_first(project):
    for name in "ae":
        (project.images / f"{name}.jpg").unlink()
    assert project.error() == (
        f"{project.lists}: 2 of 6 listed images are not in data.images {project.images}: train 1 "
        'of 3, test 1 of 2; the first are a, e. Copy them there or set data.missing = "skip"'
    )


def test_only_the_first_missing_images_are_named(project):
    project.rows["train"] += [(f"x{number}", 1, 0) for number in range(6)]
    save_isic_lt(project.lists, project.rows)
    text = project.error()
    assert "train 6 of 9; the first are x0, x1, x2, x3, x4, .... Copy" in text


def test_skipped_images_are_left_out_with_one_line(project, caplog):
    for name in "ae":
        (project.images / f"{name}.jpg").unlink()
    with caplog.at_level(logging.WARNING):
        splits = project.load(missing="skip")
    assert splits.train.ids == ("b", "c_downsampled")
    assert splits.test.ids == ("f",)
    assert [record.getMessage() for record in caplog.records] == [
        f"{project.lists}: 2 of 6 listed images are not in data.images {project.images}: train 1 "
        "of 3, test 1 of 2; the first are a, e. They are skipped"
    ]


def test_skip_says_nothing_when_all_images_are_there(project, caplog):
    with caplog.at_level(logging.WARNING):
        project.load(missing="skip")
    assert caplog.records == []


def test_a_split_of_which_skipping_leaves_nothing_is_refused(project):
    for name in "def":
        (project.images / f"{name}.jpg").unlink()
    text = project.error(missing="skip")
    assert "val 1 of 1, test 2 of 2" in text
    assert text.endswith("Nothing is left of val and test; check data.images")


def test_an_image_that_arrives_later_is_no_longer_skipped(project):
    (project.images / "a.jpg").unlink()
    assert len(project.load(missing="skip").train) == 2
    save_images(project.images, "a")
    assert len(project.load(missing="skip").train) == 3


def test_second_start_reads_the_cache_until_a_list_changes(project, monkeypatch):
    project.load()
    calls = []
    decode = labelled_files.decode_files
    monkeypatch.setattr(
        labelled_files, "decode_files", lambda *given: calls.append(1) or decode(*given)
    )
    project.load()
    assert calls == []
    project.rows["train"][0] = ("a", 4, 3)
    save_isic_lt(project.lists, project.rows)
    assert project.load().train.labels[0] == 3
    assert calls == [1]
