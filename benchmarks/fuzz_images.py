"""Spoiled images, and the commands that read them."""

import io
import shutil
import zlib
from pathlib import Path

import numpy as np
from fuzz_materials import Case, copy_data
from fuzz_spoiling import spoil_bytes


def _spoiled_image(rng: np.random.Generator, whole: bytes) -> bytes:
    from PIL import Image

    style = int(rng.integers(0, 8))
    if style < 3:
        return spoil_bytes(rng, whole, int(rng.integers(1, 4)))
    if style == 3:
        return _odd_file(rng)
    mode = str(rng.choice(["1", "L", "P", "RGBA", "CMYK", "I;16", "I", "F", "LA", "YCbCr", "LAB"]))
    shape = [(1, 1), (1, 3000), (20, 20), (3000, 1)][int(rng.integers(0, 4))]
    kinds = ("PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP", "PPM", "ICO", "TGA", "JPEG2000")
    kind = str(rng.choice(kinds))
    out = io.BytesIO()
    try:
        values = rng.integers(0, 256, (shape[1], shape[0], 3)).astype(np.uint8)
        plain = Image.fromarray(values)
        if mode == "I;16":
            plain = Image.fromarray(values[..., 0].astype(np.uint16) * 257)
        elif mode == "LAB":
            plain = Image.new("LAB", shape)
        else:
            plain = plain.convert(mode)
        plain.save(out, kind)
    except (OSError, ValueError, KeyError):
        return _odd_file(rng)
    content = out.getvalue()
    return spoil_bytes(rng, content) if style > 5 else content


def _odd_file(rng: np.random.Generator) -> bytes:
    """Files that are no images, or say that they are huge."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (len(data).to_bytes(4, "big") + kind + data
                + zlib.crc32(kind + data).to_bytes(4, "big"))  # fmt: skip

    def png(width: int, height: int, more: bytes = b"") -> bytes:
        head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
        return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + more
                + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b""))  # fmt: skip

    files = (
        b"",
        b"\0" * 4096,
        b"\0" * 128 + b"DICM" + b"\x02\0\0\0UL\x04\0" + b"\xff" * 200,
        png(100_000, 100_000),
        png(2**31 - 1, 2**31 - 1),
        png(0, 10),
        png(12_000, 12_000),
        png(20, 20, chunk(b"zTXt", b"x\0\0" + zlib.compress(b"a" * 20_000_000))),
        png(20, 20, chunk(b"iCCP", b"x\0\0" + zlib.compress(b"a" * 20_000_000))),
        b"GIF89a"
        + b"\xff\xff\xff\xff\x80\0\0"
        + b"\0" * 6
        + b",\0\0\0\0\xff\xff\xff\xff\0\x02\0\x3b",
        b"BM" + (2**31).to_bytes(4, "little") * 12,
        b"P6\n99999 99999\n255\n",
        b"P5\n-1 5\n255\nabc",
        b"P6\n3 3\n99999999\nabc",
        b"II*\0\x08\0\0\0\xff\xff" + b"\x01" * 300,
        b"\xff\xd8\xff\xe0" + b"\xff" * 500,
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99999 99999\nshowpage\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"RIFF\xff\xff\xff\xffWEBPVP8 " + b"\xff" * 100,
        b"PK\x03\x04" + b"\0" * 100,
        b"icns\0\0\xff\xff" + b"ic07\xff\xff\xff\xff" * 20,
        b"\0\0\x01\0\xff\xff" + b"\x10" * 300,
    )
    return files[int(rng.integers(0, len(files)))]


def images(rng: np.random.Generator, materials: Path, folder: Path) -> Case:
    """Some spoiled images of a data set, or such to predict."""
    copy_data(materials, folder)
    there = sorted(path for path in (folder / "images").iterdir() if path.name.startswith("im"))
    number = int(rng.choice([1, 2, 9, len(there)], p=[0.6, 0.2, 0.1, 0.1]))
    chosen = [there[int(n)] for n in rng.choice(len(there), number, replace=False)]
    for path in chosen:
        path.write_bytes(_spoiled_image(rng, path.read_bytes()))
        if rng.random() < 0.03:
            path.unlink()
            path.mkdir()
    if rng.random() < 0.5:
        shutil.copytree(materials / "run", folder / "run")
        endings = (".png", ".jpg", ".tif", ".dcm", ".gif", ".eps", ".webp", ".bmp", ".ppm", ".icns")
        for path in chosen:
            if rng.random() < 0.5:
                path.rename(path.with_suffix(endings[int(rng.integers(0, len(endings)))]))
        names = [str(p.relative_to(folder)) for p in sorted((folder / "images").glob("im*"))]
        given = ["images"] if rng.random() < 0.5 else names
        (folder / "out").mkdir()
        return Case(folder, ["predict", "run", *given, "--output", "out/predictions.csv"])
    more = [str(rng.choice(["data.store=mapped", "data.store=stream"]))]
    return Case(folder, ["data", "check", "recipe.toml", *more])
