"""Is a data set what it is said to be: every image decoded afresh, counted, and compared.

Two images count as equal if all their pixels are, after decoding and resizing; copies that were
stored anew as JPEG, cropped or turned are not found.
"""

import hashlib
import itertools
import logging
import os
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from fedkd import paths
from fedkd.data import catalog
from fedkd.data.card import DataCard
from fedkd.data.catalog import DataConfig
from fedkd.data.images import SPLITS, LabelledImages, Splits
from fedkd.errors import first_of
from fedkd.fetching import hash_file

logger = logging.getLogger(__name__)

_NUM_EQUAL_SHOWN = 5
_CHUNK = 256


@dataclass(frozen=True)
class Report:
    """What :func:`check` found.

    Attributes:
        name: Of the data set.
        title: Its full name.
        classes: Images of each class, a row per class; columns train, val, test, all and
            published, the last of them missing (NA) where nothing is published.
        sites: Images of each hospital, likewise.
        faults: What differs from the published figures, leaks between splits that the publisher
            did not make, or is broken; a line each.
        notes: What is worth knowing and nobody's to mend here; a line each.
    """

    name: str
    title: str
    classes: pd.DataFrame
    sites: pd.DataFrame
    faults: tuple[str, ...]
    notes: tuple[str, ...]


def check(config: DataConfig, card: DataCard | None = None) -> Report:
    """Decode and count all images of a data set, and look for what should not be there.

    Args:
        config: The data set and its settings; images are compared at its size.
        card: What is published; by default the data set's own card.

    Raises:
        ConfigError: A variable in a path is not set.
        DataError: Files are missing or broken, or a table is wrong, so that there is nothing to
            count; the text has all of that.
    """
    card = card or catalog.card(config)
    splits = _load_afresh(config)
    faults, notes = _wrong_files(card), list[str]()
    classes = _table(splits, "labels", splits.train.class_names, card.class_counts)
    sites = _table(splits, "sites", splits.train.site_names, card.site_counts)
    faults += _differences(classes, "class") + _differences(sites, "hospital")
    faults += [
        f"{split} has {classes[split].sum()} images, {number} are published"
        for split, number in card.split_counts.items()
        if classes[split].sum() != number
    ]
    logger.info("comparing %d images ...", classes["all"].sum())
    for finding in (*_shared(splits), *_duplicates(splits)):
        if finding.is_fault(card):
            faults.append(finding.text)
        else:
            known = " (the publisher's splits, used as they are)" if finding.pair else ""
            notes.append(finding.text + known)
    notes.append(_known_groups(splits))
    return Report(config.name, card.title, classes, sites, tuple(faults), tuple(notes))


def _load_afresh(config: DataConfig) -> Splits:
    # Beside the cache and not in the system's folder for such things, which may be memory.
    folder = paths.cache_dir() / f"check-{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        return catalog.load_splits(config, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wrong_files(card: DataCard) -> list[str]:
    """Downloaded files that are not what was published."""
    if not os.environ.get("FEDKD_DATA"):
        return []
    wrong = []
    for item in card.downloads:
        path = paths.data_dir() / item.path
        name, expected = ("sha256", item.sha256) if item.sha256 else ("md5", item.md5)
        if expected and item.unpack is None and path.is_file():
            seen = hash_file(path, name)
            if seen != expected.lower():
                wrong.append(f"{path} is not as published: its {name} is {seen}, not {expected}")
    return wrong


def _table(
    splits: Splits, codes: str, names: tuple[str, ...], published: Mapping[str, int]
) -> pd.DataFrame:
    counts = {
        split: np.bincount(getattr(getattr(splits, split), codes), minlength=len(names))
        for split in SPLITS
    }
    table = pd.DataFrame(counts, index=list(names), dtype=np.int64)
    absent = [name for name in published if name not in names]
    table = table.reindex([*names, *absent], fill_value=0)
    table["all"] = table.sum(axis=1)
    figures = [published.get(name, 0) if published else pd.NA for name in table.index]
    return table.assign(published=pd.array(figures, dtype="Int64"))


def _differences(table: pd.DataFrame, what: str) -> list[str]:
    return [
        f"{what} {name} has {row['all']} images, {row['published']} are published"
        for name, row in table.dropna().iterrows()
        if row["all"] != row["published"]
    ]


class _Finding(NamedTuple):
    text: str
    pair: tuple[str, str] | None
    """Splits that have something in common; None if it is no matter of splits."""
    is_label: bool = False
    """Whether labels contradict each other."""

    def is_fault(self, card: DataCard) -> bool:
        """Whether it is to be mended here: the publisher's labels and splits stay as they are."""
        if self.pair is not None:
            return self.pair not in card.fixed_splits
        return self.is_label and not card.source


def _shared(splits: Splits) -> Iterator[_Finding]:
    """Names and groups that stand in two splits."""
    ids, groups = {}, {}
    for split in SPLITS:
        part: LabelledImages = getattr(splits, split)
        # Row numbers, which stand in for names, are the same in every split.
        unnamed = part.ids == tuple(map(str, range(len(part))))
        ids[split] = set() if unnamed else set(part.ids)
        groups[split] = set(part.groups) - {""}
    for what, names in (("image name(s)", ids), ("lesion(s) or patient(s)", groups)):
        for first, second in itertools.combinations(SPLITS, 2):
            both = sorted(names[first] & names[second])
            if both:
                text = f"{len(both)} {what} are in both {first} and {second}: {first_of(both)}"
                yield _Finding(text, (first, second))


class _Image(NamedTuple):
    split: str
    name: str
    label: str

    def __str__(self) -> str:
        return f"{self.name} ({self.split}, {self.label})"


def _duplicates(splits: Splits) -> Iterator[_Finding]:
    """Images with equal pixels: in two splits, with two labels, or neither."""
    sets = _equal_images(splits)
    for pair in itertools.combinations(SPLITS, 2):
        across = [images for images in sets if set(pair) <= {image.split for image in images}]
        if across:
            where = f"in both {pair[0]} and {pair[1]}"
            yield _Finding(f"{_sets(across)} are {where}: {_named(across)}", pair)
    differing = [images for images in sets if len({image.label for image in images}) > 1]
    if differing:
        text = f"{_sets(differing)} have two labels: {_named(differing)}"
        yield _Finding(text, None, is_label=True)
    same = [images for images in sets if len({(image.split, image.label) for image in images}) == 1]
    if same:
        yield _Finding(f"{_sets(same)} are in one split and class: {_named(same)}", None)


def _equal_images(splits: Splits) -> list[list[_Image]]:
    """Sets of images with equal pixels, two or more each."""
    seen: dict[bytes, list[_Image]] = defaultdict(list)
    for split in SPLITS:
        part: LabelledImages = getattr(splits, split)
        for start in range(0, len(part), _CHUNK):
            rows = np.arange(start, min(start + _CHUNK, len(part)))
            for row, pixels in zip(rows, part.images[rows], strict=True):
                image = _Image(split, part.ids[row], part.class_names[part.labels[row]])
                seen[hashlib.sha256(pixels.tobytes()).digest()].append(image)
    return [images for images in seen.values() if len(images) > 1]


def _known_groups(splits: Splits) -> str:
    groups = [group for split in SPLITS for group in getattr(splits, split).groups]
    known = sum(group != "" for group in groups)
    if not known:
        return "no lesion or patient is known, so one that is in two splits would not be seen"
    return f"the lesion or patient is known of {known} of {len(groups)} images"


def _sets(sets: list[list[_Image]]) -> str:
    return f"{len(sets)} set(s) of images with equal pixels"


def _named(sets: list[list[_Image]]) -> str:
    return first_of([" = ".join(map(str, images[:_NUM_EQUAL_SHOWN])) for images in sets])
