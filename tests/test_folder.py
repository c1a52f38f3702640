import os
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedkd import config as configs
from fedkd.data import labelled_files
from fedkd.data.sets import folder
from fedkd.data.sets.folder import FolderConfig
from fedkd.errors import ConfigError
from fedkd.seeding import rng
from tests.image_project import ROWS, Project


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def first_pixel(split, row=0):
    return split.images[row, :, 8, 8].astype(int)


def test_rows_become_splits_with_shared_names(project):
    splits = project.load()
    assert splits.train.ids == ("a", "b")
    assert splits.val.ids == ("c",)
    assert splits.test.ids == ("d",)
    for split in (splits.train, splits.val, splits.test):
        assert split.class_names == ("mel", "nv")
        assert split.site_names == ("north", "south")
        assert split.images.dtype == np.uint8
        assert split.images.shape[1:] == (3, 16, 16)
    assert splits.train.labels.tolist() == [1, 0]
    assert splits.test.sites.tolist() == [1]
    assert np.abs(first_pixel(splits.val) - [110, 0, 145]).max() <= 4


def test_splits_in_mixed_order_keep_their_own_pixels(project):
    project.rows = [ROWS[3], ROWS[0], ROWS[2], ROWS[1]]
    splits = project.load()
    assert splits.train.ids == ("a", "b")
    for split, row, value in [(splits.train, 1, 60), (splits.val, 0, 110), (splits.test, 0, 160)]:
        assert abs(first_pixel(split, row)[0] - value) <= 4


def test_given_classes_set_order_and_may_be_absent(project):
    splits = project.load(classes=("nv", "df", "mel"))
    assert splits.train.class_names == ("nv", "df", "mel")
    assert splits.train.class_counts().tolist() == [1, 0, 1]


def test_the_documented_recipe_fits_the_documented_table(project):
    text = (Path(__file__).parents[1] / "docs/data.md").read_text(encoding="utf-8")
    own = text.partition("## A table")[2]
    table, recipe = (part.partition("```")[0] for part in own.split("```")[1:4:2])
    header, *rows = table.strip().splitlines()
    lines = [header]
    for number in range(40):
        project.save(Image.new("RGB", (20, 12), (number, 0, 0)), f"scan_{number}.png")
        shown = number % 2 + 1
        row = rows[shown - 1].replace(f"_{shown}.", f"_{number}.")
        lines.append(row.replace(f"P{shown}", f"P{number}"))
    (project.root / "photos.csv").write_text("\n".join(lines), encoding="utf-8")
    values = tomllib.loads(recipe.removeprefix("toml"))["data"]
    values |= {"images": str(project.images), "csv": str(project.root / "photos.csv")}
    splits = folder.load(FolderConfig(**values), project.root / "cache")
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [28, 4, 8]
    assert splits.train.site_names == ("north", "south")
    assert set(splits.train.groups) < {f"P{number}" for number in range(40)}


def test_without_site_column_there_is_one_site(project):
    assert project.load(site_column=None).train.site_names == ("all",)


def test_split_values_can_be_renamed(project):
    project.rows = [
        (*row[:3], {"train": "1", "val": "2", "test": "NA"}[row[3]], row[4]) for row in ROWS
    ]
    splits = project.load(train_value="1", val_value="2", test_value="NA")
    assert (len(splits.train), len(splits.val), len(splits.test)) == (2, 1, 1)


def test_ids_with_suffix_keep_it(project):
    project.save(Image.new("RGB", (16, 16), (0, 200, 0)), "a.png")
    project.rows[0] = ("a.png", *ROWS[0][1:])
    assert first_pixel(project.load().train).tolist() == [0, 200, 0]


def test_byte_order_mark_blank_lines_and_spaces_do_not_matter(project):
    project.rows.insert(1, ("",))
    project.rows[0] = (" a ", "nv", " north", "train ", "g1")
    project.header = "\ufeff" + project.header
    assert project.load().train.ids == ("a", "b")


def test_variables_in_paths_are_filled_in(project, monkeypatch):
    monkeypatch.setenv("FEDKD_DATA", str(project.root))
    splits = project.load(images="${FEDKD_DATA}/images", csv="${FEDKD_DATA}/table.csv")
    assert len(splits.train) == 2


def test_unset_variable_is_named(project, monkeypatch):
    monkeypatch.delenv("FEDKD_DATA", raising=False)
    with pytest.raises(
        ConfigError, match=r"data\.images is .* FEDKD_DATA is not set; start the co"
    ):
        project.load(images="${FEDKD_DATA}/images")


def test_class_named_twice_is_refused(project):
    values = {"images": "i", "csv": "c", "classes": ["nv", "mel", "nv"]}
    with pytest.raises(ConfigError, match="classes: 'nv' stands there twice"):
        configs.build(FolderConfig, values)


def test_one_value_for_two_splits_is_refused(project):
    values = {"images": "i", "csv": "c", "val_value": "test"}
    with pytest.raises(ConfigError, match="are train, test, test; they must differ, as an image"):
        configs.build(FolderConfig, values)


def test_missing_csv_and_missing_folder(project):
    nowhere = str(project.root / "nowhere")
    assert "nowhere, which does not exist" in project.error(csv=nowhere)
    assert "nowhere, which is not a folder" in project.error(images=nowhere)


def test_missing_columns_are_all_named_with_the_nearest(project):
    text = project.error(label_column="lable", group_column="patient")
    assert "data.label_column is 'lable'" in text
    assert "did you mean 'label'?" in text
    assert "data.group_column is 'patient'" in text
    assert "'image_id', 'label', 'site', 'split', 'group'" in text


def test_csv_without_rows(project):
    project.rows = []
    assert "has a header but no rows" in project.error()


def test_empty_csv(project):
    project.header = ""
    project.rows = []
    assert "is not a CSV" in project.error()


def test_csv_that_is_not_utf8(project):
    project.write()
    (project.root / "latin.csv").write_bytes("image_id,label\na,n\xe9vus\n".encode("latin-1"))
    assert "is not a CSV in UTF-8" in project.error(csv=str(project.root / "latin.csv"))


def test_rows_longer_than_the_header(project):
    project.rows = [(*row, "extra") for row in ROWS]
    assert "Expected 5 fields in line 2, saw 6" in project.error()


def test_a_column_that_stands_there_twice_is_refused(project):
    project.header += ",label"
    project.rows = [(*row, "other") for row in ROWS]
    assert "has 2 columns 'label' (the label); rename all but one" in project.error()


@pytest.mark.parametrize("place", [0, 1])
def test_zero_bytes_are_refused(project, place):
    row = [*ROWS[0]]
    row[place] += "\0"
    project.rows[0] = tuple(row)
    assert "it holds zero bytes; save it anew" in project.error()


def test_missing_files_are_counted_and_the_first_rows_named(project):
    project.rows += [(f"x{k}", "nv", "north", "train", "") for k in range(9)]
    text = project.error()
    assert "9 row(s) name a file that does not exist: row 6 (" in text
    assert "x0.jpg" in text
    assert "x4.jpg" in text
    assert "x5.jpg" not in text


def test_row_numbers_count_blank_lines(project):
    project.rows = [*ROWS, ("",), ("x", "nv", "north", "train", "")]
    assert "does not exist: row 7 (" in project.error()


def test_empty_file(project):
    (project.images / "b.jpg").write_bytes(b"")
    assert "1 row(s) name an empty file (0 bytes): row 3 (" in project.error()


@pytest.mark.parametrize("keep", [0.5, 0.9])
@pytest.mark.parametrize("extension", ["jpg", "png"])
def test_truncated_file(project, extension, keep):
    noise = rng(0, "test").integers(0, 256, (64, 64, 3), np.uint8)
    name = f"b.{extension}"
    project.save(Image.fromarray(noise), name)
    content = (project.images / name).read_bytes()
    (project.images / name).write_bytes(content[: int(len(content) * keep)])
    project.rows[1] = (name, *ROWS[1][1:])
    text = project.error()
    assert f"1 row(s) name an image that cannot be decoded: row 3 ({name}: " in text


def test_broken_files_of_all_splits_are_reported_at_once_in_row_order(project):
    project.rows = [ROWS[3], ROWS[0], ROWS[2], ROWS[1]]
    for name in "dab":
        (project.images / f"{name}.jpg").write_text("not an image")
    text = project.error()
    assert "3 row(s) name an image that cannot be decoded" in text
    assert text.index("row 2 (d") < text.index("row 3 (a") < text.index("row 5 (b")


def test_duplicate_id(project):
    project.rows.append(("a.jpg", *ROWS[0][1:]))
    text = project.error()
    assert "1 row(s) name the same image twice: row 6 ('a.jpg', as in row 2)" in text


def test_unknown_label(project):
    text = project.error(classes=("nv", "bcc"))
    assert "2 row(s) have an unknown label: row 3 ('mel'), row 5 ('mel')" in text
    assert "allowed are nv, bcc" in text


@pytest.mark.parametrize(("column", "place"), [("id", 0), ("label", 1), ("site", 2)])
def test_empty_value(project, column, place):
    row = list(ROWS[1])
    row[place] = " "
    project.rows.append(tuple(row))
    assert f"1 row(s) have no {column}: row 6 (" in project.error()


def test_unknown_split_value(project):
    project.rows.append(("a.jpg", "nv", "north", "Train", ""))
    text = project.error()
    assert "1 row(s) have an unknown split: row 6 ('Train'); allowed are 'train', 'val'" in text


def test_empty_split(project):
    project.rows = ROWS[:3]
    assert "no row has the split 'test'; test needs at least one image" in project.error()


def test_site_without_training_images(project):
    project.rows[1] = ("b", "mel", "north", "train", "")
    text = project.error()
    assert "1 site(s) have no training image: 'south' (1 images); the first is row 5" in text
    assert project.load(require_all_sites=False).train.site_names == ("north", "south")


def test_group_in_two_splits_is_a_leak(project):
    project.rows[2] = ("c", "nv", "north", "val", "g1")
    text = project.error()
    assert "1 group(s) are in more than one split" in text
    assert "'g1' in train (row 2) and val (row 4)" in text
    assert len(project.load(group_column=None).val) == 1


def test_rows_without_group_leak_nothing(project):
    project.rows = [(*row[:4], "") for row in ROWS]
    assert len(project.load().train) == 2


def test_faults_of_several_kinds_are_reported_together(project):
    project.rows = [ROWS[0], ("x", "", "north", "train", ""), ROWS[2], ROWS[3]]
    text = project.error()
    for part in ("have no label", "does not exist", "'south' (1 images)"):
        assert part in text


def test_second_start_reads_the_cache(project, monkeypatch):
    first = project.load()
    monkeypatch.setattr(labelled_files, "decode_files", lambda *_: pytest.fail("decoded again"))
    assert np.array_equal(project.load().train.images, first.train.images)


@pytest.mark.parametrize("change", ["file", "time", "csv", "size"])
def test_cache_notices_changes(project, monkeypatch, change):
    project.load()
    calls = []
    decode = labelled_files.decode_files
    monkeypatch.setattr(
        labelled_files, "decode_files", lambda *given: calls.append(1) or decode(*given)
    )
    path = project.images / "a.jpg"
    if change == "file":
        project.save(Image.new("RGB", (30, 30), "white"), "a.jpg")
    elif change == "time":
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    elif change == "csv":
        project.rows[0] = ("a", "mel", *ROWS[0][2:])
    splits = project.load(size=32 if change == "size" else 16)
    assert calls == [1]
    if change == "file":
        assert first_pixel(splits.train).tolist() == [255, 255, 255]
