"""Data sets by name."""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

from pydantic import Discriminator, Tag

from fedkd.data import folder, lesions
from fedkd.data.folder import FolderConfig
from fedkd.data.images import Splits
from fedkd.data.lesions import LesionsConfig


def _name(values: Any) -> str:
    """The data set's name; the embedded one where none is given."""
    given = values.get("name", "lesions") if isinstance(values, dict) else values.name
    return str(given)


DataConfig = Annotated[
    Annotated[LesionsConfig, Tag("lesions")] | Annotated[FolderConfig, Tag("folder")],
    Discriminator(_name),
]


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
