"""Decoding of image files into one array of RGB pixels; every file is decoded to its end.

What becomes of a file: the first frame is used; EXIF rotation is applied; colour profiles are not.
Grey (8 bit, black and white) is repeated into three channels; 16-bit grey is divided by 257, so
0..65535 becomes 0..255; of 16-bit colour the high byte is taken; palettes, CMYK and other colour
spaces go through Pillow's conversion; transparent parts become black. Then the picture is resized
to a square, bilinear with antialiasing, without keeping its aspect ratio (our choice: a crop could
lose the lesion).

Files come from anywhere, so what a decoder may do is bounded: Pillow refuses images of more than
179 million pixels; EPS, for which it starts Ghostscript, is not read; nor is what is no regular
file, such as a pipe, which may never end.
"""

import logging
import os
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

logger = logging.getLogger(__name__)

_REPORT_EVERY_S = 5.0
_IN_FLIGHT = 256
# What Pillow's readers raise on damaged files; UnidentifiedImageError is an OSError.
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    OverflowError,
    RuntimeError,  # AVIF, and pixel formats that are not implemented
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def default_workers() -> int:
    """Threads that decode if the config does not say: one per core, 16 at most."""
    return min(os.cpu_count() or 1, 16)


def decode_files(
    files: Sequence[Path],
    size: int,
    num_workers: int | None = None,
    allocate: Callable[[tuple[int, ...]], npt.NDArray[np.uint8]] | None = None,
) -> tuple[npt.NDArray[np.uint8], list[tuple[int, str]]]:
    """Pixels of all files, and what is wrong with those that cannot be read.

    Threads share the work, as Pillow lets go of the interpreter while it decodes. Says every few
    seconds in the log how far it is. Damage that the format's decoder does not notice (a wrong
    byte within a JPEG's data) passes.

    Args:
        files: Image files in any format that Pillow reads by itself.
        size: Width and height of the result in pixels.
        num_workers: Threads; None is :func:`default_workers`.
        allocate: Makes the array that is filled, of a given shape; None makes one in memory.

    Returns:
        Pixels, uint8 (len(files), 3, size, size), and for each unreadable file its index and the
        reason, by index; its pixels are undefined.
    """
    logger.info("reading %d images, resized to %d px ...", len(files), size)
    shape = (len(files), 3, size, size)
    images = np.empty(shape, np.uint8) if allocate is None else allocate(shape)
    faults: list[tuple[int, str]] = []
    for index, result in _decoded(files, size, num_workers):
        if isinstance(result, str):
            faults.append((index, result))
        else:
            images[index] = result
    return images, faults


def find_broken(
    files: Sequence[Path], size: int, num_workers: int | None = None
) -> list[tuple[int, str]]:
    """The faults that :func:`decode_files` would return; the pixels are not kept."""
    logger.info("looking for broken files among %d images ...", len(files))
    decoded = _decoded(files, size, num_workers)
    return [(index, result) for index, result in decoded if isinstance(result, str)]


def _decoded(
    files: Sequence[Path], size: int, num_workers: int | None
) -> Iterator[tuple[int, npt.NDArray[np.uint8] | str]]:
    """Index and pixels, or fault, of each file, in order."""
    last = time.monotonic()
    with ThreadPoolExecutor(max_workers=num_workers or default_workers()) as pool:
        for first in range(0, len(files), _IN_FLIGHT):
            chunk = files[first : first + _IN_FLIGHT]
            yield from enumerate(pool.map(decode_file, chunk, [size] * len(chunk)), first)
            if time.monotonic() - last >= _REPORT_EVERY_S:
                last = time.monotonic()
                logger.info("read %d of %d images", first + len(chunk), len(files))


def decode_file(file: str | Path, size: int) -> npt.NDArray[np.uint8] | str:
    """Pixels, uint8 (3, size, size), or the reason why there are none."""
    try:
        if not os.path.isfile(file) and os.path.exists(file):
            return "is no regular file"
        with Image.open(file, formats=_formats()) as opened:
            opened.load()
            upright = ImageOps.exif_transpose(opened)
            picture = _to_rgb(upright).resize((size, size), Image.Resampling.BILINEAR)
    except _BROKEN as error:
        return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return np.asarray(picture).transpose(2, 0, 1)


def _formats() -> tuple[str, ...]:
    """Formats that are decoded within this process."""
    Image.init()
    return tuple(name for name in Image.ID if name != "EPS")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _sixteen_bit(image).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range; store 8 or 16 bits")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "black"), layer).convert("RGB")
    return image.convert("RGB")


def _sixteen_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(
            f"grey values span {values.min()}..{values.max()}; 16 bits hold 0..65535 at most"
        )
    return Image.fromarray(np.round(values / 257).astype(np.uint8))
