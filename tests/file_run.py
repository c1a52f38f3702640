"""A small run on image files of many kinds, which a test may predict and export."""

import numpy as np
from PIL import Image

from fedkd import seeding
from server.cli import main

CLASSES = ("mel", "nv", "x,y")


def write_images(root):
    """A folder per class with JPEG, PNG with transparency, 16-bit grey and a turned JPEG."""
    rng = seeding.rng(0, "file run")
    for label, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for number in range(20):
            pixels = rng.integers(0, 120, (20 + number, 28, 3)).astype(np.uint8) + 40 * label
            image = Image.fromarray(pixels.astype(np.uint8))
            stem = root / name / f"{name}-{number}"
            if number % 4 == 1:
                image.putalpha(Image.fromarray(pixels[:, :, 0]))
                image.save(stem.with_suffix(".png"))
            elif number % 4 == 2:
                Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257).save(f"{stem}.TIF")
            elif number % 4 == 3:
                exif = Image.Exif()
                exif[0x0112] = 6
                image.save(stem.with_suffix(".jpeg"), exif=exif)
            else:
                image.save(stem.with_suffix(".jpg"))


def train(folder, *changes, images=None, objective="supervised"):
    """The run directory of two rounds on such images, or with ``images=False`` on embedded ones."""
    if images is False:
        data = 'name = "lesions"\nnum_train = 24\nnum_sites = 1\nnum_val_per_class = 2\n'
        data += "num_test_per_class = 1\n"
    else:
        data = f'name = "image_folder"\nroot = "{images}"\n'
    recipe = folder / "small.toml"
    recipe.write_text(
        'name = "small"\nnum_rounds = 2\nnum_clients = 1\nkeep_students_every = 1\n'
        f'[data]\nsize = 16\n{data}[objective]\nname = "{objective}"\n[engine]\ndevice = "cpu"\n'
    )
    before = set(folder.glob("small/*"))
    assert main(["run", str(recipe), f"output={folder}", *changes]) == 0
    (path,) = set(folder.glob("small/*")) - before
    return path
