"""The data set ``ham10000``: 10,015 dermatoscopic images of 7,470 lesions from four sources.

Tschandl, Rosendahl and Kittler, "The HAM10000 dataset, a large collection of multi-source
dermatoscopic images of common pigmented skin lesions", Sci. Data 5:180161, 2018. Harvard Dataverse,
doi:10.7910/DVN/DBW86T; CC BY-NC 4.0, which forbids commercial use.

| class | images | | source | images |
|---|---|---|---|---|
| akiec, actinic keratoses and Bowen's disease | 327 | | rosendahl | 2259 |
| bcc, basal cell carcinoma | 514 | | vidir_modern | 3363 |
| bkl, benign keratoses | 1099 | | vidir_molemax | 3954 |
| df, dermatofibroma | 115 | | vienna_dias | 439 |
| mel, melanoma | 1113 | | | |
| nv, melanocytic nevi | 6705 | | | |
| vasc, vascular lesions | 142 | | | |

The source of acquisition is the hospital. 4,501 of the images share their lesion with another one
(nine lesions come from two sources each), so that splits drawn image by image would leak; fedkd's
own keep lesions whole.
"""

from pathlib import Path
from typing import Literal

from fedkd import paths
from fedkd.data.card import DataCard
from fedkd.data.image_table import Problems, check_table, read_table
from fedkd.data.images import SPLITS, Splits
from fedkd.data.labelled_files import load_images, open_folder, read_bytes
from fedkd.data.splitting import DrawnSplitConfig

CLASS_COUNTS = {
    "akiec": 327,
    "bcc": 514,
    "bkl": 1099,
    "df": 115,
    "mel": 1113,
    "nv": 6705,
    "vasc": 142,
}
"""Published images of each class, in the order of the class indices."""

CARD = DataCard(
    title="HAM10000, dermatoscopic images from four sources",
    source="https://doi.org/10.7910/DVN/DBW86T",
    licence="CC BY-NC 4.0: no commercial use",
    citation=("Tschandl et al., Sci. Data 5:180161, 2018",),
    class_counts=CLASS_COUNTS,
    site_counts={
        "rosendahl": 2259,
        "vidir_modern": 3363,
        "vidir_molemax": 3954,
        "vienna_dias": 439,
    },
    steps=(
        "1. Open https://doi.org/10.7910/DVN/DBW86T and accept the terms.\n"
        "2. Download HAM10000_images_part_1.zip and HAM10000_images_part_2.zip, and unpack both "
        "into the one folder $FEDKD_DATA/ham10000/images.\n"
        "3. Download HAM10000_metadata (as CSV) to $FEDKD_DATA/ham10000/metadata.csv."
    ),
)


class Ham10000Config(DrawnSplitConfig):
    """HAM10000: 7 classes, the four sources of acquisition as hospitals."""

    name: Literal["ham10000"] = "ham10000"
    """Selects this data set."""
    images: str = "${FEDKD_DATA}/ham10000/images"
    """Folder of the 10,015 images (``<image_id>.jpg``); variables are filled in."""
    metadata: str = "${FEDKD_DATA}/ham10000/metadata.csv"
    """The authors' table as CSV, with the columns image_id, lesion_id, dx and dataset (the source;
    a column ``source`` will do as well); variables are filled in."""
    split_column: str | None = None
    """Column of ``metadata`` that says train, val or test; left out, fedkd draws the split by
    lesion, source and class. A lesion in two splits is refused."""


def load(config: Ham10000Config, cache_dir: Path | None = None) -> Splits:
    """Train, val and test, one site per source, in the order of the table.

    Args:
        config: Where images and table are, and how to split.
        cache_dir: Where to keep the decoded images; by default the user's cache.

    Raises:
        ConfigError: A variable in a path is not set.
        DataError: What :func:`fedkd.data.sets.folder.load` finds, or a split without images.
    """
    csv = paths.expand(config.metadata, "data.metadata")
    content = read_bytes(csv, "data.metadata")
    folder = open_folder(config.images, "data.images")
    header = content.decode("utf-8-sig", "replace").partition("\n")[0]
    names = [name.strip(' "\r') for name in header.split(",")]
    columns = {
        "id": "image_id",
        "label": "dx",
        "site": "source" if "source" in names else "dataset",
        "group": "lesion_id",
        "split": config.split_column,
    }
    table = read_table(csv, content, columns, have_keys=False)
    if config.split_column is None:
        table["split"] = config.draw(table)
    problems = Problems(csv)
    check_table(table, SPLITS, tuple(CLASS_COUNTS), require_all_sites=True, problems=problems)
    return load_images(
        config,
        table,
        folder,
        {label: label for label in CLASS_COUNTS},
        key=config.cache_key("images", "metadata"),
        content=content,
        problems=problems,
        cache_dir=cache_dir,
    )
