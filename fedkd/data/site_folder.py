"""The folder in which a hospital of a real federation has its images, and the server its own.

A hospital makes one by hand, or `fedkd partition CONFIG --sites FOLDER` writes one for each
hospital of a simulation. It holds three things::

    images/      image files in any format that Pillow reads; they are resized to data.size
    labels.csv   a row per image, with a header: id,label,group,split
    site.json    {"version": 1, "name": "north", "class_names": ["akiec", "bcc", "nv"]}

In ``labels.csv``, UTF-8 and divided by commas,

- ``id`` is the file's name in ``images``; ``.png`` is added where it has no ending of an image;
- ``label`` is one of ``class_names``, which are the same, in the same order, everywhere;
- ``group`` (may be left out) is the lesion or patient, empty if unknown; it never travels;
- ``split`` is ``train`` or ``val`` at a hospital. Val, on which it evaluates its own student, may
  be missing. At the server it is ``val`` or ``test``, both of which are needed;
- ``site`` (at the server, may be left out) is the hospital that the image is from, for its scores.

``site.json`` may also have ``image_size``, the side in pixels that the images have and that
``data.size`` must then be; ``counts``, images by split and class, which must then be those of
``labels.csv``; ``bounds``, the published [tail_below, head_above] of
:class:`fedkd.data.images.GroupBounds`; ``data_set``, what the images were taken from
(``Recipe.data_set``), without which a recipe that thins out or marks images is refused; and
``written_by``.
"""

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from pydantic import Field, field_validator

from fedkd import config
from fedkd.config import Section
from fedkd.data.image_table import Problems, read_table, shown
from fedkd.data.images import SPLITS, GroupBounds, Splits
from fedkd.data.labelled_files import ImageFilesConfig, load_images, read_bytes
from fedkd.errors import ConfigError, DataError, first_of

logger = logging.getLogger(__name__)

IMAGES, LABELS, SITE = "images", "labels.csv", "site.json"
COLUMNS = ("id", "label", "split", "group", "site")
_NEEDED = COLUMNS[:3]


class SiteFile(Section):
    """What ``site.json`` says."""

    version: Literal[1]
    """Of this format."""
    name: str = Field(min_length=1, max_length=200)
    """Of the hospital, printable; no two have the same."""
    class_names: tuple[str, ...] = Field(min_length=2)
    """In the order of the class indices, those without an image here included."""
    image_size: int | None = Field(default=None, ge=1)
    """Side in pixels that the images have; None if they are of any size."""
    counts: dict[str, dict[str, int]] | None = None
    """Images by split and class, to notice what was lost."""
    bounds: tuple[int, int] | None = None
    """Published bounds of tail and head."""
    data_set: dict[str, Any] | None = None
    """``Recipe.data_set`` of what was divided."""
    written_by: str = ""
    """What made this folder."""

    @field_validator("class_names")
    @classmethod
    def _each_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if twice := sorted(name for name, number in Counter(names).items() if number > 1):
            raise ValueError(f"names of classes stand there twice: {', '.join(twice)}")
        if blank := [
            number for number, name in enumerate(names) if name != name.strip() or not name
        ]:
            raise ValueError(
                f"names of classes {', '.join(map(str, blank))} (counted from 0) are empty or have "
                "space around them, which labels.csv cannot have; write them without"
            )
        return names

    @field_validator("name")
    @classmethod
    def _has_letters(cls, name: str) -> str:
        if name != name.strip() or not name.isprintable():
            raise ValueError(
                f"the hospital's name is {name!r}; it must be of printable characters, without "
                "space around them"
            )
        return name

    @field_validator("bounds")
    @classmethod
    def _in_order(cls, bounds: tuple[int, int] | None) -> tuple[int, int] | None:
        if bounds and not 0 <= bounds[0] <= bounds[1]:
            raise ValueError(
                f"[tail_below, head_above] is {list(bounds)}; both count images from 0 on, and the "
                "first may not be the larger one"
            )
        return bounds

    @field_validator("counts")
    @classmethod
    def _not_negative(
        cls, counts: dict[str, dict[str, int]] | None
    ) -> dict[str, dict[str, int]] | None:
        for split, classes in (counts or {}).items():
            if split not in SPLITS:
                raise ValueError(f"{split!r} is no split; there are {', '.join(SPLITS)}")
            if low := [name for name, number in classes.items() if number < 0]:
                raise ValueError(f"{split} has less than 0 images of {first_of(low)}")
        return counts


def read_site_folder(
    folder: Path,
    size: int,
    splits: Sequence[str],
    needed: Sequence[str],
    settings: ImageFilesConfig | None = None,
    cache_dir: Path | None = None,
) -> tuple[SiteFile, Splits]:
    """What a folder says of itself, and its images, decoded or from the cache.

    Args:
        folder: Of one hospital, or of the server.
        size: Side in pixels to which images are resized.
        splits: Those that it may have; images of others are a fault.
        needed: Those of which it must have an image.
        settings: Where decoded images are kept; None means mapped.
        cache_dir: Where; None is the user's cache.

    Raises:
        DataError: Everything that is wrong with the folder, one line for each kind of fault.
    """
    csv = folder / LABELS
    problems = Problems(csv)
    described = _describe(folder / SITE, size, problems)
    table, content = pd.DataFrame(), b""
    try:
        content = read_bytes(csv, "labels.csv")
        header = content[:4096].decode("utf-8-sig", "replace").partition("\n")[0]
        there = [column.strip().strip('"') for column in header.split(",")]
        columns = {c: c if c in _NEEDED or c in there else None for c in COLUMNS}
        table = read_table(csv, content, columns, have_keys=False)
    except DataError as error:
        problems.lines.append(str(error))
    if table.empty:
        problems.raise_if_any()
    _check(table, described, splits, needed, problems)
    names = described.class_names if described else ()
    if described and "site" not in table:
        table["site"] = described.name
    opened = load_images(
        ImageFilesConfig(
            name="site",
            size=size,
            store=settings.store if settings else "mapped",
            num_workers=settings.num_workers if settings else None,
        ),
        table,
        folder / IMAGES,
        {name: name for name in names},
        key=f"{size} {names} {described.name if described else ''}",
        content=content,
        problems=problems,
        cache_dir=cache_dir,
        extension=".png",
        place=f"the folder {IMAGES}",
        if_missing=f"put them into {folder / IMAGES}, or remove the rows",
        # An operator agreed to this folder, and to no other.
        links_may_leave=False,
    )
    assert described is not None, "a missing site.json is a problem"
    bounds = GroupBounds(*described.bounds) if described.bounds else None
    return described, replace(opened, bounds=bounds)


def _describe(path: Path, size: int, problems: Problems) -> SiteFile | None:
    try:
        described = config.build(
            SiteFile, json.loads(read_bytes(path, SITE).decode("utf-8-sig")), str(path)
        )
    except (ConfigError, DataError) as error:
        problems.lines.append(str(error))
        return None
    except (ValueError, TypeError, RecursionError) as error:
        problems.lines.append(f"{path} is no JSON object in UTF-8: {error}")
        return None
    if described.image_size not in (None, size):
        problems.lines.append(
            f"{path}: image_size is {described.image_size} but data.size is {size}; resized twice "
            "they would be other images: make the folder anew for this size, or leave image_size "
            "out if the files are the originals"
        )
    return described


def _check(
    table: pd.DataFrame,
    described: SiteFile | None,
    splits: Sequence[str],
    needed: Sequence[str],
    problems: Problems,
) -> None:
    """Note every fault that shows without opening an image."""
    for column in ("id", "label", *(["site"] if "site" in table else [])):
        rows = table.loc[table[column] == "", "id"]
        problems.add(f"have no {column}", shown(rows), "fill it in or remove the rows")
    if described:
        names = described.class_names
        rows = table.loc[~table["label"].isin(names) & (table["label"] != ""), "label"]
        allowed = f"allowed are the class_names of {SITE}, {', '.join(names)}"
        problems.add("have an unknown label", shown(rows), allowed)
    rows = table.loc[~table["split"].isin(splits), "split"]
    whose = "at the server" if "test" in splits else "at a hospital"
    allowed = f"allowed {whose} are {', '.join(map(repr, splits))}"
    problems.add("have a split that may not be here", shown(rows), allowed)
    for split in needed:
        if not (table["split"] == split).any():
            problems.add_line(f"no row has the split {split!r}; one image at least is needed")
    if described and described.counts is not None:
        found = counts_of(table)
        if found != (said := {s: _present(c) for s, c in described.counts.items() if _present(c)}):
            problems.add_line(
                f"it has {found}, but {SITE} says that there are {said}; copy what is missing, or "
                "correct or remove counts"
            )
    if "group" in table:
        known = table[table["group"] != ""].drop_duplicates(["group", "split"])
        if leaking := int(known["group"].duplicated().sum()):
            logger.warning(
                "%s: %d lesions or patients (groups) are in two splits; scores on the second one "
                "look better than they are",
                problems.csv,
                leaking,
            )


def counts_of(table: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Images by split and class, of splits and classes that have any."""
    return {
        split: _present(Counter(table.loc[table["split"] == split, "label"]))
        for split in SPLITS
        if (table["split"] == split).any()
    }


def _present(counts: Mapping[str, int]) -> dict[str, int]:
    return {name: int(counts[name]) for name in sorted(counts) if counts[name]}
