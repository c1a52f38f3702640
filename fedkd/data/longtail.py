"""Long-tailed class counts: how many images each class gets, and which classes are head or tail."""

import math

import numpy as np

from fedkd.data.images import GroupBounds, Integers, Splits
from fedkd.errors import DataError


def exponential_counts(num_images: int, num_classes: int, imbalance_factor: float) -> Integers:
    """Images per class of an exponential long tail, largest class first.

    The count of class c is proportional to ``imbalance_factor ** (-c / (num_classes - 1))``. Shares
    are rounded by largest remainder (ties to the lower c). A class whose share falls below one
    image gets one and the others share the rest, so that with few images the ratio of the largest
    to the smallest count stays below the factor asked for (our choice: no class is ever lost).

    Args:
        num_images: Images of all classes together, >= num_classes.
        num_classes: Number of classes, >= 1.
        imbalance_factor: Largest over smallest count, >= 1; 1 means balanced.

    Returns:
        int64 (num_classes,), non-increasing, every count >= 1, sum exactly ``num_images``.

    Raises:
        DataError: If an argument is out of range.

    Source: Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss",
    NeurIPS 2019 (experiments, long-tailed CIFAR). Differs: there the largest class keeps all its
    images, here the total is given, as a simulation has a budget of images.
    """
    if num_classes < 1:
        raise DataError(f"num_classes is {num_classes}; a data set needs at least 1 class")
    if num_images < num_classes:
        raise DataError(
            f"num_images is {num_images}; {num_classes} classes need at least one image each, "
            f"ask for {num_classes} or more"
        )
    if not (imbalance_factor >= 1 and np.isfinite(imbalance_factor)):
        raise DataError(
            f"imbalance_factor is {imbalance_factor}; it must be a finite number >= 1 "
            "(1 = balanced, 100 = the largest class has 100 times the images of the smallest)"
        )
    ranks = np.arange(num_classes) / max(num_classes - 1, 1)
    profile = float(imbalance_factor) ** -ranks
    # The profile falls, so the classes below one image are always the last ones.
    num_open = num_classes
    while True:
        budget = num_images - (num_classes - num_open)
        shares = budget * profile[:num_open] / profile[:num_open].sum()
        num_enough = int(np.count_nonzero(shares >= 1))
        if num_enough in (0, num_open):
            break
        num_open = num_enough
    counts = np.ones(num_classes, np.int64)
    floors = np.floor(shares).astype(np.int64)
    most_cut_off = np.argsort(floors - shares, kind="stable")
    floors[most_cut_off[: budget - int(floors.sum())]] += 1
    counts[:num_open] = floors
    return counts


def realised_imbalance(counts: Integers) -> float:
    """Images of the largest class over images of the smallest that has any.

    Args:
        counts: Images per class, int (num_classes,), >= 0.

    Returns:
        At least 1; NaN without images. Absent classes do not count.
    """
    present = np.asarray(counts)[np.asarray(counts) > 0]
    return float(present.max() / present.min()) if len(present) else math.nan


def head_medium_tail(
    counts: Integers, bounds: GroupBounds | None = None
) -> tuple[Integers, Integers, Integers]:
    """Class indices of the head, the medium and the tail, each by falling count.

    The rule without bounds (our choice): of the n classes with at least one training image, sorted
    by count with ties to the lower index, the first n // 3 (at least 1) are the head, the last
    ceil(n / 3) the tail, the rest medium. Classes without a training image join the end of the
    tail. So 7 classes make 2 + 2 + 3 (HAM10000: nv mel / bkl bcc / akiec vasc df), 8 make
    2 + 3 + 3. Thirds by rank rather than bounds on the count, because the same bounds cannot serve
    1,000 images and 25,000.

    Args:
        counts: Training images per class, int (num_classes,), >= 0; with bounds the images that
            these are about.
        bounds: The published bounds of a data set; a group may then be empty.

    Returns:
        Three int64 arrays that together hold every class index once. One present class is head,
        two are head and tail; groups may be empty.

    Raises:
        DataError: If a count is negative.
    """
    values = np.asarray(counts, np.int64)
    if values.size and values.min() < 0:
        worst = int(values.argmin())
        raise DataError(f"the count of class {worst} is {values[worst]}; counts must be >= 0")
    order = np.argsort(-values, kind="stable").astype(np.int64)
    if bounds is not None:
        num_head = int(np.count_nonzero(values > bounds.head_above))
        first_tail = int(np.count_nonzero(values >= bounds.tail_below))
        return order[:num_head], order[num_head:first_tail], order[first_tail:]
    num_present = int(np.count_nonzero(values))
    num_head = min(max(num_present // 3, 1), num_present)
    num_tail = min(-(-num_present // 3), num_present - num_head)
    first_tail = num_present - num_tail
    return order[:num_head], order[num_head:first_tail], order[first_tail:]


def class_groups(splits: Splits) -> dict[str, Integers]:
    """Class indices of ``head``, ``medium`` and ``tail`` of a data set, by its training images.

    By all images where the data set has published bounds, as these are about the whole of it.
    """
    counts = splits.train.class_counts()
    if splits.bounds is not None:
        counts = counts + splits.val.class_counts() + splits.test.class_counts()
    head, medium, tail = head_medium_tail(counts, splits.bounds)
    return {"head": head, "medium": medium, "tail": tail}
