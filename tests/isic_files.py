"""Small lists and images in exactly the formats of ISIC-LT and Fed-ISIC2019."""

import numpy as np
from PIL import Image

from fedkd.data import labelled_files


def save_images(images, names):
    """One small image per name; its red channel is its number in ``names``."""
    images.mkdir(exist_ok=True)
    for value, name in enumerate(names):
        Image.new("RGB", (20, 12), (value, 90, 60)).save(images / f"{name}.jpg", quality=100)


def save_isic_lt(lists, rows, fold=1, factor="0.01"):
    """The three lists; ``rows`` has (image, finding_name, finding) by split."""
    lists.mkdir(exist_ok=True)
    for split, own in rows.items():
        lines = ["image,finding_name,finding", *(",".join(map(str, row)) for row in own)]
        path = lists / f"{split}_skin{fold}_{factor}.csv"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def save_fed_isic(lists, center, train, val, fold=1):
    """A centre's two lists; each of ``train`` and ``val`` has (image_name, dx) rows."""
    lists.mkdir(exist_ok=True)
    for kind, rows in (("train", train), ("val", val)):
        lines = [",image_name,dx", *(f"{n},{name},{dx}" for n, (name, dx) in enumerate(rows))]
        path = lists / f"{kind}_flamby_isic_fl_{center}_{fold}.csv"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def save_flamby(path, rows):
    """FLamby's table ``train_test_split``; ``rows`` has (image, target, center, fold)."""
    classes = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK")
    lines = [",".join(["image", *classes, "target", "center", "fold", "fold2"])]
    for image, target, center, fold in rows:
        hot = [str(float(label == target)) for label in range(len(classes))]
        lines.append(",".join([image, *hot, str(target), str(center), fold, f"{fold}_{center}"]))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def decode_nothing(monkeypatch):
    """Files are checked but not decoded."""
    monkeypatch.setattr(
        labelled_files,
        "decode_files",
        lambda files, *_: (np.zeros((len(files), 3, 1, 1), np.uint8), []),
    )
