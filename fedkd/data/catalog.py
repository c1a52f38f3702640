"""Data sets by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Discriminator, Tag

from fedkd.data.card import DataCard
from fedkd.data.images import Splits
from fedkd.data.sets import (
    fed_isic2019,
    folder,
    ham10000,
    hyperkvasir,
    image_folder,
    isic2019_lt,
    lesions,
    medmnist,
)
from fedkd.data.sets.fed_isic2019 import FedIsic2019Config
from fedkd.data.sets.folder import FolderConfig
from fedkd.data.sets.ham10000 import Ham10000Config
from fedkd.data.sets.hyperkvasir import HyperKvasirConfig
from fedkd.data.sets.image_folder import ImageFolderConfig
from fedkd.data.sets.isic2019_lt import Isic2019LtConfig
from fedkd.data.sets.lesions import LesionsConfig
from fedkd.data.sets.medmnist import MedMnistConfig


def _name(values: Any) -> str:
    """The data set's name; the embedded one where none is given."""
    if isinstance(values, dict):
        return str(values.get("name", "lesions"))
    # Neither a table nor a section, such as data = 3: no name that is allowed.
    return str(getattr(values, "name", values))


DataConfig = Annotated[
    Annotated[LesionsConfig, Tag("lesions")]
    | Annotated[FolderConfig, Tag("folder")]
    | Annotated[Isic2019LtConfig, Tag("isic2019_lt")]
    | Annotated[FedIsic2019Config, Tag("fed_isic2019")]
    | Annotated[Ham10000Config, Tag("ham10000")]
    | Annotated[HyperKvasirConfig, Tag("hyperkvasir")]
    | Annotated[MedMnistConfig, Tag("medmnist")]
    | Annotated[ImageFolderConfig, Tag("image_folder")],
    Discriminator(_name),
]


class DataSet(NamedTuple):
    """A data set: how to open it, the line that describes it, and what is published about it.

    Attributes:
        load: Takes the settings and the folder of decoded images (None: the user's cache).
        description: One line.
        card: What is published, whatever the settings.
        card_for: What is published about the images that the settings choose; None where the
            settings make no difference.
    """

    load: Callable[[Any, Path | None], Splits]
    description: str
    card: DataCard
    card_for: Callable[[Any], DataCard] | None = None


DATASETS: dict[str, DataSet] = {
    "lesions": DataSet(
        lesions.load,
        "embedded, synthetic dermoscopy-like images: 8 classes, any number of sites",
        lesions.CARD,
    ),
    "folder": DataSet(
        folder.load,
        "your own image files and a CSV that names label, site, split",
        folder.CARD,
    ),
    "isic2019_lt": DataSet(
        isic2019_lt.load,
        "ISIC 2019 with a long tail, by the FoPro-KD authors' lists: 8 classes",
        isic2019_lt.CARD,
        isic2019_lt.card_for,
    ),
    "fed_isic2019": DataSet(
        fed_isic2019.load,
        "ISIC 2019 at its six centres, by the Fed-MAS lists or FLamby's table: 8 classes",
        fed_isic2019.CARD,
        fed_isic2019.card_for,
    ),
    "ham10000": DataSet(
        ham10000.load,
        "HAM10000 at its four sources, split by lesion: 7 classes",
        ham10000.CARD,
    ),
    "hyperkvasir": DataSet(
        hyperkvasir.load,
        "HyperKvasir's labelled images of the gut, five folds: 23 classes",
        hyperkvasir.CARD,
    ),
    "medmnist": DataSet(
        medmnist.load,
        "a 2-D single-label set of MedMNIST+ at 28 to 224 px, official splits",
        medmnist.CARD,
        medmnist.card_for,
    ),
    "image_folder": DataSet(
        image_folder.load,
        "your own image files in a folder per class, as torchvision's ImageFolder",
        image_folder.CARD,
    ),
}


def load_splits(config: DataConfig, cache_dir: Path | None = None) -> Splits:
    """Train, val and test of the data set that the config names; DataError if it is unusable."""
    return DATASETS[config.name].load(config, cache_dir)


def card(config: DataConfig) -> DataCard:
    """What is published about the images that the config chooses."""
    entry = DATASETS[config.name]
    return entry.card_for(config) if entry.card_for else entry.card
