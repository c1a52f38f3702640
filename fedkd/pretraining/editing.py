"""Source editing of a pre-training's images: what a recipe asks for, done once to all of them."""

import hashlib
import logging
import time
from contextlib import closing
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedkd import seeding
from fedkd.data.cache import Allocate, load_or_fill
from fedkd.data.catalog import load_splits
from fedkd.data.images import LabelledImages, Splits
from fedkd.data.loading import in_order
from fedkd.data.pixels import Pixels, read_batches
from fedkd.errors import DataError
from fedkd.fourier import editing
from fedkd.pretraining.config import EditConfig
from fedkd.pretraining.images import UNLABELLED, content_hash

logger = logging.getLogger(__name__)

SAMPLE = 2048
"""Images of each side whose spectra are measured, drawn without replacement; our choice."""

_AT_ONCE = 256
_FLAT = 1e-12
_REPORT_EVERY_S = 5.0


def describe_edit(config: EditConfig) -> str:
    """What a notch or a match does to images, in words."""
    if config.data is not None:
        return f"radial power spectrum matched to that of the training split of {config.data.name}"
    return f"notch at radius {config.centre:g}, width {config.width:g}, depth {config.depth:g}"


def edit_images(images: Pixels, config: EditConfig) -> tuple[Pixels, dict[str, float]]:
    """Edited images, mapped from a store in the cache, and what the edit did to a sample of them.

    Args:
        images: uint8 (num_images, channels, height, width).
        config: With the name none, the images come back as they are.

    Returns:
        The images and, if anything was done, ``clipped_share`` (of the values) with, for match,
        ``psd_distance_before`` and ``psd_distance_after`` (KL divergence in nats of the target's
        radial PSD from the images') or, for notch, ``band_share_before`` and ``band_share_after``
        (of the radial PSD, within two widths of the centre).

    Raises:
        DataError: The images to match, or these, are all flat.
    """
    if config.name == "none":
        return images, {}
    logger.info("edit: %s ...", describe_edit(config))
    height, width = images.shape[-2:]
    sample = _sample(images)
    before = _psd(sample, "the images of the pre-training")
    if config.data is not None:
        target = _psd(
            _sample(load_splits(config.data).train.images),
            f"the training images of edit.data ({config.data.name})",
        )
        transfer = editing.matching(height, width, before, target)
        measure, what = partial(editing.psd_distance, target), "psd_distance"
    else:
        transfer = editing.notch(
            height, width, centre=config.centre, spread=config.width, depth=config.depth
        )
        measure, what = partial(_band_share, config), "band_share"
    edited, clipped = editing.edit_bytes(sample, transfer)
    found = {
        f"{what}_before": measure(before),
        f"{what}_after": measure(editing.radial_psd([edited])),
        "clipped_share": clipped,
    }
    found = {name: float(f"{value:.4g}") for name, value in found.items()}
    logger.info(
        "on a sample of %d images: %s",
        len(sample),
        ", ".join(f"{name} {value:g}" for name, value in found.items()),
    )
    return _edit_all(images, transfer), found


def _sample(images: Pixels) -> npt.NDArray[np.uint8]:
    rows = seeding.rng(0, "edit-sample").permutation(len(images))[:SAMPLE]
    return np.asarray(images[np.sort(rows)])


def _psd(images: npt.NDArray[np.uint8], what: str) -> Tensor:
    starts = range(0, len(images), _AT_ONCE)
    psd = editing.radial_psd(images[start : start + _AT_ONCE] for start in starts)
    if psd.sum() < _FLAT:
        raise DataError(
            f"{what} are flat: their radial power spectrum is empty, so there is nothing to edit "
            "or to match; look at the pictures"
        )
    return psd


def _band_share(config: EditConfig, psd: Tensor) -> float:
    radius = torch.arange(1, len(psd) + 1) / len(psd)
    inside = (radius - config.centre).abs() <= 2 * config.width
    return float(psd[inside].sum() / psd.sum())


def _edit_all(images: Pixels, transfer: Tensor) -> Pixels:
    """All images, batch by batch, into a store, so that they need not fit into memory."""

    def fill(allocate: Allocate) -> Splits:
        pixels = allocate(images.shape)
        last = time.monotonic()
        plan = in_order(len(images), _AT_ONCE)
        with closing(read_batches(images, plan)) as loaded:
            for rows, batch in zip(plan, loaded, strict=True):
                pixels[rows], _ = editing.edit_bytes(batch, transfer)
                if time.monotonic() - last >= _REPORT_EVERY_S:
                    last = time.monotonic()
                    logger.info("edited %d of %d images", rows[-1] + 1, len(images))
        train = LabelledImages(pixels, np.zeros(len(pixels), np.int64), UNLABELLED)
        none = LabelledImages(pixels[:0], np.zeros(0, np.int64), UNLABELLED)
        return Splits(train, none, none)

    digest = hashlib.sha256(transfer.numpy().tobytes()).hexdigest()
    key = f"version 1 torch {torch.__version__} {content_hash(images)} {digest}"
    return load_or_fill("edited", key, fill).train.images
