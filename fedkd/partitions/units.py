"""What a partition deals out: whole lesions or patients, and the images of no known group."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedkd.data.images import Integers
from fedkd.errors import PartitionError


@dataclass(frozen=True, eq=False)
class Units:
    """Images that stay together, counted as one; numbered by their first image.

    Where no group has a second image, unit i is image i.

    Attributes:
        labels: Class of each unit, int64 (num_units,): that of most of its images, of equally
            frequent ones the lowest index. Only partitions that look at classes look at it; counts
            that are reported are those of the images.
        sizes: Images of each unit, int64 (num_units,), >= 1.
        of_image: Unit of each image, int64 (num_images,).
        num_mixed: Units whose images have several classes.
        name_of_largest: Name of a largest group; "" where no group has a second image.
    """

    labels: Integers
    sizes: Integers
    of_image: Integers
    num_mixed: int
    name_of_largest: str

    def __len__(self) -> int:
        return len(self.sizes)

    def rows(self, parts: Sequence[Integers]) -> list[Integers]:
        """Rows of the images, ascending, of each client's units; every unit is in one part."""
        owner = np.empty(len(self), np.int64)
        for number, units in enumerate(parts):
            owner[units] = number
        by_client = owner[self.of_image]
        return [np.flatnonzero(by_client == number) for number in range(len(parts))]

    def check_enough(self, num_clients: int, min_examples: int, where: str = "") -> None:
        """Refuse what whole groups can surely not give.

        A unit with more than ``min_examples`` images serves one client, as one of exactly that size
        does. What passes can still be impossible for larger minima (a packing problem).

        Args:
            num_clients: At least 1.
            min_examples: Images that each client has at least, >= 1.
            where: Which images these are, such as ``" at site vienna"``, for the error.

        Raises:
            PartitionError: The images would do, but not in whole groups.
        """
        useful = int(np.minimum(self.sizes, min_examples).sum())
        if useful >= num_clients * min_examples:
            return
        raise PartitionError(
            f"{num_clients} clients with partition.min_examples = {min_examples} cannot be made of "
            f"the {len(self.of_image)} training images{where}: partition.keep_groups keeps images "
            f"of one lesion or patient together, {self.describe()}; use fewer clients"
            f"{', a lower min_examples' if min_examples > 1 else ''} or "
            "partition.keep_groups = false"
        )

    def describe(self) -> str:
        """How many units there are and the largest of them, for errors."""
        return (
            f"which makes {len(self)} units, the largest {self.name_of_largest!r} of "
            f"{self.sizes.max()} images"
        )


def units_of(labels: Integers, groups: Sequence[str]) -> Units:
    """The units of some images.

    Args:
        labels: Class of each image, int64 (num_images,), at least one image.
        groups: Lesion or patient of each image; "" is an image of no known group, a unit of its
            own.
    """
    numbers: dict[str | int, int] = {}
    of_image = np.array(
        [numbers.setdefault(group or row, len(numbers)) for row, group in enumerate(groups)],
        np.int64,
    )
    num_classes = int(labels.max()) + 1
    pairs = np.bincount(of_image * num_classes + labels, minlength=len(numbers) * num_classes)
    counts = pairs.reshape(len(numbers), num_classes)
    sizes = counts.sum(axis=1)
    largest = groups[int(np.argmax(sizes[of_image]))] if sizes.max() > 1 else ""
    return Units(
        labels=counts.argmax(axis=1).astype(np.int64),
        sizes=sizes.astype(np.int64),
        of_image=of_image,
        num_mixed=int(np.count_nonzero((counts > 0).sum(axis=1) > 1)),
        name_of_largest=largest,
    )
