"""Splits of fedkd's own where nobody published any: stratified, and whole lesions or patients.

They come from a fixed stream, not from the recipe's seed, so that runs with other seeds see the
same val and test.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from pydantic import Field, model_validator

from fedkd.data.images import Integers
from fedkd.data.labelled_files import ImageFilesConfig
from fedkd.errors import DataError
from fedkd.seeding import rng


class DrawnSplitConfig(ImageFilesConfig):
    """Image files whose split fedkd draws, unless they come with one."""

    fraction_val: float = Field(0.1, gt=0, lt=1)
    """Share of all images that becomes val where fedkd draws, between 0 and 1; of the training
    images where test is given."""
    fraction_test: float = Field(0.2, gt=0, lt=1)
    """Share of all images that becomes test where fedkd draws, between 0 and 1."""
    split_seed: int = Field(0, ge=0)
    """Names the split that fedkd draws, >= 0; another number is another split. The recipe's seed
    has no part in it."""

    @model_validator(mode="after")
    def _leaves_training_images(self) -> "DrawnSplitConfig":
        held_out = self.fraction_val + self.fraction_test
        if held_out >= 1:
            raise ValueError(
                f"fraction_val + fraction_test is {held_out:g}; it must be below 1, the rest is "
                "train"
            )
        return self

    def draw(self, table: pd.DataFrame) -> "pd.Series[str]":
        """Train, val or test of each image of a table; see :func:`draw_split`."""
        return draw_split(
            table,
            self.name,
            fraction_val=self.fraction_val,
            fraction_test=self.fraction_test,
            seed=self.split_seed,
        )


def carve(
    table: pd.DataFrame, fraction: float, streams: Mapping[str, np.random.Generator]
) -> Integers:
    """Positions of the images to be held out, increasing.

    A group (lesion, patient) stays whole and belongs to the site and class of its first image. Of
    the n images of a site and class, fraction * n, rounded half up and at most n - 1, are held
    out: groups in random order, those skipped that are too large for what is left. A class of a
    site with few images may thus have none held out, and it is never held out wholly (but for
    images whose group belongs to another class).

    Args:
        table: Columns id, label, site and group, all text; "" is an image without group.
        fraction: Share of each class of each site, above 0 and below 1.
        streams: Generator of each site, so that its draw does not depend on the other sites (but
            for groups that two sites share).

    Returns:
        int64 (num_held_out,); empty if every share is rounded to 0.
    """
    groups = table["group"].where(table["group"] != "", "image " + table["id"]).to_numpy()
    _, first, unit = np.unique(groups, return_index=True, return_inverse=True)
    num_images = np.bincount(unit)
    # Units in the order of the table, not of the groups' names.
    by_row = np.argsort(first)
    strata = table.iloc[first[by_row]].reset_index(drop=True).groupby(["site", "label"])
    chosen = np.zeros(len(first), bool)
    for (site, _), rows in strata:
        members = by_row[rows.index]
        total = int(num_images[members].sum())
        left = min(int(fraction * total + 0.5), total - 1)
        for member in streams[str(site)].permutation(members):
            if num_images[member] <= left:
                chosen[member] = True
                left -= int(num_images[member])
    return np.flatnonzero(chosen[unit]).astype(np.int64)


def draw_split(
    table: pd.DataFrame, name: str, *, fraction_val: float, fraction_test: float, seed: int = 0
) -> "pd.Series[str]":
    """Says of each image whether it is ``train``, ``val`` or ``test``; see :func:`carve`.

    The order of the rows does not matter.

    Args:
        table: Columns id and label, and optionally site and group, all text.
        name: Of the data set; names the streams.
        fraction_val: Share of all images that becomes val.
        fraction_test: Share of all images that becomes test; 0 draws no test, as it is known.
        seed: Another number is another split.

    Raises:
        DataError: No image would be in val or in test.
    """
    table = table.assign(**{
        column: value for column, value in (("site", "all"), ("group", "")) if column not in table
    })  # fmt: skip
    ordered = table.sort_values("id", kind="stable")
    split = pd.Series("train", index=ordered.index)
    for part, fraction in (("test", fraction_test), ("val", fraction_val / (1 - fraction_test))):
        if fraction == 0:
            continue
        rest = ordered[split == "train"]
        streams = {site: rng(seed, f"{name} {part} {site}") for site in set(rest["site"])}
        held_out = carve(rest, fraction, streams)
        if not len(held_out):
            given = fraction_test if part == "test" else fraction_val
            raise DataError(
                f"data.fraction_{part} is {given:g}, which makes no {part} image of "
                f"{len(table)} images; raise it"
            )
        split.loc[rest.index[held_out]] = part
    return split[table.index]
