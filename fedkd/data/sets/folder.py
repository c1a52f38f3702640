"""The data set ``folder``: the user's own image files, and a CSV that says what each one is.

Everything that can be wrong is found before training starts, and all of it is said at once, with
the rows of the CSV it is about.
"""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from PIL import Image
from pydantic import field_validator, model_validator

from fedkd import paths
from fedkd.data.card import DataCard
from fedkd.data.image_table import Problems, check_table, read_table
from fedkd.data.images import SPLITS, Splits
from fedkd.data.labelled_files import image_files, load_images, open_folder, read_bytes
from fedkd.data.splitting import DrawnSplitConfig
from fedkd.errors import first_of

logger = logging.getLogger(__name__)

CARD = DataCard(title="Your own image files with a CSV")


class FolderConfig(DrawnSplitConfig):
    """Image files of any format that Pillow reads, described by a CSV with a header line."""

    name: Literal["folder"] = "folder"
    """Selects this data set."""
    images: str
    """Folder of the image files; ``${FEDKD_DATA}`` and other variables are filled in."""
    csv: str
    """CSV in UTF-8, one row per image; variables are filled in. Space around values is dropped."""
    id_column: str = "image_id"
    """Column of the file names relative to ``images``, with or without extension."""
    label_column: str = "label"
    """Column of the class names."""
    site_column: str | None = None
    """Column of the hospitals; none means one site, ``all``."""
    split_column: str = "split"
    """Column that says whether a row belongs to train, val or test; "" means that none does, and
    fedkd draws the split, with the same share of each class of each site and whole groups."""
    train_value: str = "train"
    """What the split column holds for training images."""
    val_value: str = "val"
    """What the split column holds for validation images."""
    test_value: str = "test"
    """What the split column holds for test images."""
    group_column: str | None = None
    """Column of the lesion or patient; images of one group in two splits are refused as a leak.
    Rows without a value form no group."""
    extension: str = ".jpg"
    """Added to ids that end neither in it nor in another ending of images."""
    classes: tuple[str, ...] = ()
    """Class names in the order of their indices; empty means all labels of the CSV, sorted (whole
    numbers by value)."""
    require_all_sites: bool = True
    """Refuse the data if a site has no training image; false allows sites in val and test only."""

    @field_validator("classes")
    @classmethod
    def _no_class_twice(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        twice = sorted({name for name in classes if classes.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(map(repr, twice))} stands there twice; name each once")
        return classes

    @model_validator(mode="after")
    def _tells_splits_apart(self) -> "FolderConfig":
        if len(set(self.split_values)) < len(self.split_values):
            raise ValueError(
                f"train_value, val_value and test_value are {', '.join(self.split_values)}; they "
                "must differ, as an image is in one split only"
            )
        return self

    @property
    def split_values(self) -> tuple[str, str, str]:
        """What says train, val and test."""
        if not self.split_column:
            return SPLITS
        return self.train_value, self.val_value, self.test_value


def load(config: FolderConfig, cache_dir: Path | None = None) -> Splits:
    """Train, val and test; decoded the first time, read from the cache afterwards.

    The rows of each split stay in the order of the CSV. Image files that no row names are not used,
    and the log says how many they are. The cache notices any change of the CSV
    and of name, size or modification time of a file.

    Args:
        config: Where the images are and how the CSV is to be read.
        cache_dir: Where to keep the decoded images; by default the user's cache.

    Raises:
        ConfigError: A variable in a path is not set.
        DataError: Missing CSV, folder or column; or, with all their rows counted and the first
            ones named: missing, empty or broken file, duplicate id, unknown or empty label, site
            or split value, empty split, site without training image, group in two splits.
    """
    csv = paths.expand(config.csv, "data.csv")
    content = read_bytes(csv, "data.csv")
    folder = open_folder(config.images, "data.images")
    columns = {
        "id": config.id_column,
        "label": config.label_column,
        "split": config.split_column or None,
        "site": config.site_column,
        "group": config.group_column,
    }
    table = read_table(csv, content, columns)
    if not config.split_column:
        table["split"] = config.draw(table)
    problems = Problems(csv)
    check_table(
        table,
        config.split_values,
        classes=config.classes,
        require_all_sites=config.require_all_sites,
        problems=problems,
    )
    _tell_unlisted(folder, table["id"], config.extension)
    classes = config.classes or _sorted_classes(set(table["label"]))
    return load_images(
        config,
        table,
        folder,
        {label: label for label in classes},
        split_values=config.split_values,
        extension=config.extension,
        key=config.cache_key("images", "csv"),
        content=content,
        problems=problems,
        cache_dir=cache_dir,
    )


def _sorted_classes(labels: set[str]) -> tuple[str, ...]:
    """Whole numbers by value, so that 10 comes after 2; anything else as text."""
    if all(label.isdecimal() for label in labels):
        return tuple(sorted(labels, key=lambda label: (int(label), label)))
    return tuple(sorted(labels))


def _tell_unlisted(folder: Path, ids: Iterable[str], extension: str) -> None:
    """Say in the log how many image files no row names."""
    listed = set(image_files(folder, ids, extension))
    endings = Image.registered_extensions()
    found = [file for file in folder.rglob("*") if file.suffix.lower() in endings]
    unlisted = sorted(str(file.relative_to(folder)) for file in found if file not in listed)
    if unlisted:
        logger.warning(
            "%d of the %d image files in %s are named by no row and are not used: %s",
            len(unlisted),
            len(found),
            folder,
            first_of(unlisted),
        )
