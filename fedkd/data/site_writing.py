"""Writes what each hospital of a simulation would have on its own disk, and the server on its."""

import json
import logging
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from fedkd import files
from fedkd.data.images import Integers, LabelledImages, Splits
from fedkd.data.loading import in_order
from fedkd.data.pixels import read_batches
from fedkd.data.site_folder import IMAGES, LABELS, SITE, SiteFile, counts_of
from fedkd.errors import ConfigError
from fedkd.held_out import divide_held_out
from fedkd.partition import Partition

logger = logging.getLogger(__name__)

SERVER = "server"
_BATCH = 64
_REPORT_EVERY_S = 5.0


def write_sites(
    folder: Path, splits: Splits, divided: Partition, seed: int, data_set: Mapping[str, Any]
) -> list[Path]:
    """Write a folder as :mod:`fedkd.data.site_folder` says for each client, and one for the server.

    A hospital's has its training images and its own part of val; the server's has all of val and
    test. Files are PNGs of exactly the pixels that a simulation has, so that both give the same
    bits.

    Args:
        folder: Where; must be empty or not there.
        splits: The images, uint8 and square.
        divided: Which client has which training images.
        seed: Of the recipe, by which val is divided where clients are no sites.
        data_set: ``Recipe.data_set``.

    Returns:
        The folders, the server's last.

    Raises:
        ConfigError: The folder is not empty or cannot be written, or images are not square.
    """
    height, width = splits.train.images.shape[2:]
    if height != width:
        raise ConfigError(
            f"the images are {height}x{width} px; folders of hospitals can be written of square "
            "images alone, as image files are resized to squares"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if found := sorted(path.name for path in folder.iterdir()):
            raise ConfigError(
                f"--sites {folder} is not empty, the first thing in it is {found[0]}; nothing is "
                "written over: name another folder, or empty it"
            )
        own_val = divide_held_out(splits.val, splits.train.labels, divided, seed)
        common = {"bounds": splits.bounds, "data_set": dict(data_set)}
        written = []
        for number, (name, rows) in enumerate(
            zip(divided.client_names, divided.indices, strict=True)
        ):
            parts = {"train": (splits.train, rows), "val": (splits.val, own_val[number])}
            path = folder / f"{number}-{_safe(name)}"
            _write(path, name, parts, common, with_sites=False)
            written.append(path)
        held_out = {
            name: (images, np.arange(len(images)))
            for name, images in (("val", splits.val), ("test", splits.test))
        }
        _write(folder / SERVER, SERVER, held_out, common, with_sites=True)
    except OSError as error:
        raise ConfigError(
            f"cannot write to --sites {folder}: {error}; name another folder"
        ) from None
    return [*written, folder / SERVER]


def _write(
    folder: Path,
    name: str,
    parts: Mapping[str, tuple[LabelledImages, Integers]],
    common: Mapping[str, Any],
    with_sites: bool,
) -> None:
    (folder / IMAGES).mkdir(parents=True)
    num_images = sum(len(rows) for _, rows in parts.values())
    logger.info("writing %d images to %s ...", num_images, folder)
    taken: set[str] = set()
    tables = []
    for split, (images, rows) in parts.items():
        names = [_free(images.ids[row], taken) for row in rows]
        _write_images(folder / IMAGES, images, rows, names)
        table = pd.DataFrame(
            {
                "id": names,
                "label": np.asarray(images.class_names)[images.labels[rows]],
                "group": [images.groups[row] for row in rows],
                "split": split,
            }
        )
        if with_sites:
            table["site"] = np.asarray(images.site_names)[images.sites[rows]]
        tables.append(table)
    table = pd.concat(tables, ignore_index=True)
    with files.replacing(folder / LABELS) as part:
        table.to_csv(part, index=False)
    first = next(iter(parts.values()))[0]
    described = SiteFile(
        version=1,
        name=name,
        class_names=first.class_names,
        image_size=first.images.shape[-1],
        counts=counts_of(table),
        written_by=f"fedkd partition --sites, fedkd {version('fedkd')}",
        **common,
    )
    # Last: without it the folder is refused, as it is after a write that was interrupted.
    with files.replacing(folder / SITE) as part:
        text = json.dumps(described.model_dump(mode="json"), indent=1)
        part.write_text(text + "\n", encoding="utf-8")


def _write_images(
    folder: Path, images: LabelledImages, rows: Integers, names: Sequence[str]
) -> None:
    last, done = time.monotonic(), 0
    plan = [rows[positions] for positions in in_order(len(rows), _BATCH)]
    with closing(read_batches(images.images, plan)) as read:
        for pixels in read:
            for picture in pixels.transpose(0, 2, 3, 1):
                Image.fromarray(np.ascontiguousarray(picture)).save(folder / f"{names[done]}.png")
                done += 1
            if time.monotonic() - last >= _REPORT_EVERY_S:
                last = time.monotonic()
                logger.info("wrote %d of %d images", done, len(rows))


def _safe(name: str) -> str:
    """A name as a file may have it on any system."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip(".") or "_"


def _free(name: str, taken: set[str]) -> str:
    """A safe name without the ending of an image, which no file has yet, whatever the case."""
    endings = set(Image.registered_extensions())
    while Path(name).suffix.lower() in endings:
        name = Path(name).with_suffix("").name
    base = free = _safe(name)
    number = 1
    while free.lower() in taken:
        number += 1
        free = f"{base}-{number}"
    taken.add(free.lower())
    return free
