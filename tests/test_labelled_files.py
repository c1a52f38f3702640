import logging

import numpy as np
import pytest
from PIL import Image

from fedkd.data.sets import folder
from tests.image_project import ROWS, Project


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def test_broken_images_are_told_with_the_faults_of_the_table(project):
    (project.images / "d.jpg").write_text("not an image")
    (project.images / "c.jpg").write_bytes(b"")
    project.rows = [
        ROWS[0],
        ("b", "", "south", "train", "g1"),
        ROWS[2],
        ROWS[3],
        ("x", "nv", "north", "Train", ""),
    ]
    text = project.error()
    for fault in (
        "1 row(s) have no label: row 3 ('b')",
        "1 row(s) have an unknown split: row 6 ('Train')",
        "1 row(s) name a file that does not exist: row 6 (",
        "1 row(s) name an empty file (0 bytes): row 4 (",
        "1 row(s) name an image that cannot be decoded: row 5 (d: UnidentifiedImageError",
    ):
        assert fault in text
    assert text.count("cannot be decoded") == 1


@pytest.mark.parametrize("there", ["X.jpg", "x.JPG", "x.png"])
def test_a_file_that_differs_in_case_or_ending_is_offered(project, there):
    project.save(Image.new("RGB", (8, 8)), there)
    project.rows.append(("x", "nv", "north", "train", ""))
    assert f"does not exist: row 6 ({project.images / 'x.jpg'}, but {there} does)" in (
        project.error()
    )


@pytest.mark.parametrize("kind", ["parent", "absolute"])
def test_an_id_must_not_lead_out_of_the_folder(project, kind):
    outside = project.root / "secret.jpg"
    Image.new("RGB", (8, 8)).save(outside)
    name = "../secret.jpg" if kind == "parent" else str(outside)
    project.rows.append((name, "nv", "north", "train", ""))
    text = project.error()
    assert f"1 row(s) lead out of data.images: row 6 ({name!r}); name files inside" in text
    assert "\n" not in text


def test_an_id_may_name_a_subfolder(project):
    (project.images / "sub").mkdir()
    project.save(Image.new("RGB", (8, 8), (200, 0, 0)), "sub/x.png")
    project.rows.append(("sub/x.png", "nv", "north", "train", ""))
    assert project.load().train.images[-1, 0].min() == 200


@pytest.mark.parametrize("ending", ["png", "bmp", "tiff"])
def test_a_file_with_the_wrong_ending_is_read_by_its_content(project, ending):
    image = Image.new("RGB", (16, 16), (7, 80, 200))
    with (project.images / "a.jpg").open("wb") as file:
        image.save(file, format=ending)
    assert project.load().train.images[0, :, 3, 3].tolist() == [7, 80, 200]


def test_a_table_with_windows_line_ends_and_a_byte_order_mark(project):
    plain = project.load()
    path = project.root / "table.csv"
    lines = path.read_text("utf-8").replace("\n", "\r\n")
    path.write_bytes(b"\xef\xbb\xbf" + lines.encode())
    other = folder.load(project.config(), project.root / "cache")
    assert other.train.ids == plain.train.ids
    assert other.test.groups == plain.test.groups == ("g3",)
    assert other.train.class_names == ("mel", "nv")
    assert np.array_equal(other.train.images, plain.train.images)


def test_fields_divided_by_semicolons_are_said_to_be(project):
    project.header = project.header.replace(",", ";")
    project.rows = [(";".join(row),) for row in ROWS]
    assert "fields must be divided by commas" in project.error()


def test_whole_numbers_as_labels_are_ordered_by_value(project):
    labels = ["10", "2", "10", "2"]
    project.rows = [(row[0], label, *row[2:]) for row, label in zip(ROWS, labels, strict=True)]
    assert project.load().train.class_names == ("2", "10")
    project.rows[0] = ("a", "benign", *ROWS[0][2:])
    assert project.load().train.class_names == ("10", "2", "benign")


def test_images_that_no_row_names_are_counted(project, caplog):
    for number in range(7):
        project.save(Image.new("RGB", (8, 8)), f"new{number}.png")
    (project.images / "notes.txt").write_text("no image")
    with caplog.at_level(logging.WARNING):
        project.load()
    assert "7 of the 11 image files in" in caplog.text
    assert "are not used: new0.png, new1.png, new2.png, new3.png, new4.png, ..." in caplog.text
    assert "notes.txt" not in caplog.text


def test_nothing_is_said_where_every_image_has_its_row(project, caplog):
    with caplog.at_level(logging.WARNING):
        project.load()
    assert not caplog.messages


def test_groups_reach_the_splits(project):
    assert project.load().train.groups == ("g1", "g1")
    assert project.load(group_column=None).train.groups == ("", "")


def test_without_a_split_column_whole_groups_are_drawn(project):
    for number in range(40):
        project.save(Image.new("RGB", (8, 8), (number, 0, 0)), f"n{number}.jpg")
        label, site = ("nv", "mel")[number % 2], ("north", "south")[number // 20]
        project.rows.append((f"n{number}", label, site, "", f"p{number // 2 * 2 % 20}"))
    split = project.load(split_column="", group_column=None)
    assert [len(part) for part in (split.train, split.val, split.test)] == [32, 4, 8]
    # The words of a split column that is not read do not matter.
    assert project.load(split_column="", group_column=None, val_value="x").val.ids == split.val.ids
    assert project.load(split_column="", group_column=None, split_seed=1).val.ids != split.val.ids
    whole = project.load(split_column="")
    parts = [set(part.groups) - {""} for part in (whole.train, whole.val, whole.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 13


def test_the_draw_does_not_depend_on_the_order_of_the_rows(project):
    for number in range(40):
        project.save(Image.new("RGB", (8, 8), (number, 0, 0)), f"n{number}.jpg")
        project.rows.append((f"n{number}", "nv", "north", "", f"p{number // 3}"))
    one = project.load(split_column="")
    project.rows.reverse()
    other = project.load(split_column="")
    for part in ("train", "val", "test"):
        assert set(getattr(one, part).ids) == set(getattr(other, part).ids)


@pytest.mark.parametrize("name", ["sub/../d", "link.jpg", "folder/d"])
def test_one_file_under_two_names_is_an_image_named_twice(project, name):
    (project.images / "sub").mkdir()
    (project.images / "link.jpg").symlink_to("d.jpg")
    (project.images / "folder").symlink_to(".")
    project.rows.append((name, "mel", "south", "train", ""))
    text = project.error()
    assert f"1 row(s) name the same image twice: row 6 ({name!r}, as in row 5)" in text


def test_a_dot_in_an_id_makes_no_ending(project):
    for name in ("1.2.840", "v1.lesion"):
        project.save(Image.new("RGB", (8, 8), (200, 0, 0)), f"{name}.jpg")
        project.rows.append((name, "nv", "north", "train", ""))
    project.save(Image.new("RGB", (8, 8), (200, 0, 0)), "3.1.PNG")
    project.rows.append(("3.1.PNG", "nv", "north", "train", ""))
    assert project.load().train.images[-3:, 0].min() == 200


def test_an_ending_that_no_image_has_is_given_as_the_extension(project):
    project.save(Image.new("RGB", (8, 8), (200, 0, 0)), "x.scan", format="png")
    project.rows.append(("x.scan", "nv", "north", "train", ""))
    assert "x.scan.jpg, but x.scan does)" in project.error()
    project.rows[-1] = ("x", *project.rows[-1][1:])
    project.rows[:-1] = [(f"{row[0]}.jpg", *row[1:]) for row in ROWS]
    assert project.load(extension=".scan").train.images[-1, 0].min() == 200
