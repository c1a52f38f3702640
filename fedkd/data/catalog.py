"""Data sets by name."""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from fedkd.data import folder, lesions
from fedkd.data.folder import FolderConfig
from fedkd.data.images import Splits
from fedkd.data.lesions import LesionsConfig

DataConfig = Annotated[LesionsConfig | FolderConfig, Field(discriminator="name")]


class DataSet(NamedTuple):
    """A data set and the line that describes it."""

    load: Callable[[Any], Splits]
    description: str


DATASETS: dict[str, DataSet] = {
    "lesions": DataSet(
        lesions.load, "embedded, synthetic dermoscopy-like images: 8 classes, any number of sites"
    ),
    "folder": DataSet(folder.load, "your own image files and a CSV that names label, site, split"),
}


def load_splits(config: LesionsConfig | FolderConfig) -> Splits:
    """Train, val and test of the data set that the config names; DataError if it is unusable."""
    return DATASETS[config.name].load(config)
