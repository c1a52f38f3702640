"""A small project of the data set ``folder``, to be damaged by a test."""

import pytest
from PIL import Image

from fedkd.data.sets import folder
from fedkd.data.sets.folder import FolderConfig
from fedkd.errors import DataError

ROWS = [
    ("a", "nv", "north", "train", "g1"),
    ("b", "mel", "south", "train", "g1"),
    ("c", "nv", "north", "val", "g2"),
    ("d", "mel", "south", "test", "g3"),
]
COLOURS = {"a": 10, "b": 60, "c": 110, "d": 160}


class Refused:
    """What the projects of all data sets have in common; each has a ``load``."""

    def error(self, **changes):
        with pytest.raises(DataError) as caught:
            self.load(**changes)
        return str(caught.value)


class Project(Refused):
    """A folder of four small images with its CSV, both to be damaged by a test."""

    def __init__(self, root):
        self.root = root
        self.images = root / "images"
        self.images.mkdir()
        self.rows = list(ROWS)
        self.header = "image_id,label,site,split,group"
        for name, value in COLOURS.items():
            self.save(Image.new("RGB", (20, 12), (value, 0, 255 - value)), f"{name}.jpg")

    def save(self, image, name, **options):
        image.save(self.images / name, **options)

    def config(self, **changes):
        fields = {
            "images": str(self.images),
            "csv": str(self.root / "table.csv"),
            "site_column": "site",
            "group_column": "group",
            "size": 16,
        }
        return FolderConfig(**{**fields, **changes})

    def write(self):
        lines = [self.header, *(",".join(row) for row in self.rows)]
        (self.root / "table.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def load(self, **changes):
        self.write()
        return folder.load(self.config(**changes), self.root / "cache")
