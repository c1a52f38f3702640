"""What the drawn partitions share: drawing anew until every client has enough, and dealing out."""

from bisect import bisect_right
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from fedkd.data.images import Integers
from fedkd.errors import PartitionError
from fedkd.partitions.units import Units

# Redrawing costs microseconds; a request that fails this often has a chance of about 1 in 1000 at
# best, and its clients would be drawn from an odd corner of the distribution.
MAX_DRAWS = 1000
# Dealing out groups costs about ten microseconds each: a few seconds at most before a refusal.
MAX_UNITS_DEALT = 500_000

Drawn = TypeVar("Drawn")


def draw_until_enough(
    draw: Callable[[], tuple[Drawn, Integers]],
    deal: Callable[[Drawn], list[Integers]],
    units: Units,
    min_examples: int,
    request: str,
    advice: str,
) -> list[Integers]:
    """Draw and deal until every client has ``min_examples`` images.

    It ends after ``MAX_DRAWS`` tries, or ``MAX_UNITS_DEALT`` units that were dealt in vain.

    Args:
        draw: One try: what is drawn, and the number of images of each client, int (num_clients,).
        deal: From what is drawn to the units of each client. Where groups are kept, these may have
            other numbers of images than those drawn.
        units: What is dealt.
        min_examples: Images that each client has at least.
        request: Setting that makes small clients, for the error.
        advice: What to change, for the error.

    Returns:
        Units of each client, of the first try that is good enough.

    Raises:
        PartitionError: None was.
    """
    best = 0
    num_dealt = 0
    for draws in range(1, MAX_DRAWS + 1):  # noqa: B007 - the error says how many there were
        drawn, sizes = draw()
        if sizes.min() >= min_examples:
            parts = deal(drawn)
            sizes = np.array([units.sizes[own].sum() for own in parts])
            if sizes.min() >= min_examples:
                return parts
            num_dealt += len(units)
        best = max(best, int(sizes.min()))
        if num_dealt > MAX_UNITS_DEALT:
            break
    if units.name_of_largest:
        request += f" with whole groups (partition.keep_groups, {units.describe()})"
        advice += ", or set partition.keep_groups = false"
    raise PartitionError(
        f"no draw of {draws} gave each of {len(sizes)} clients partition.min_examples = "
        f"{min_examples} of the {sizes.sum()} training images at {request} (best smallest client: "
        f"{best}); {advice}"
    )


def deal_by_class(units: Units, counts: Integers, rng: np.random.Generator) -> list[Integers]:
    """Give each client its number of images of each class; which ones is drawn.

    Args:
        units: What is dealt; the class of an image is that of its unit.
        counts: Images per class that occurs (ascending) and client, int64 (num_present_classes,
            num_clients); rows add up to the images of the class.
        rng: Source of the draws.

    Returns:
        Units of each client, class by class. See :func:`deal` for the numbers of images.
    """
    parts: list[list[Integers]] = [[] for _ in range(counts.shape[1])]
    for number, row in zip(np.unique(units.labels), counts, strict=True):
        dealt = deal(np.flatnonzero(units.labels == number), units.sizes, row, rng)
        for own, members in zip(parts, dealt, strict=True):
            own.append(members)
    return [np.concatenate(own) for own in parts]


def deal(
    members: Integers, sizes: Integers, counts: Integers, rng: np.random.Generator
) -> list[Integers]:
    """Deal some units so that each client gets its number of images, as far as whole units allow.

    First the units of several images, in random order: each goes to a client with room for it, of
    these to the one that lacks the largest share of its number; if none has room, to the one that
    lacks most images. Ties are drawn. Then the single images fill up at random, where clients lack
    most. So a client's images differ from its number by less than the largest unit, and not at all
    if there was room for every unit, as there is where all are single. Where all numbers are equal
    up to one, everyone gets a unit if there are as many as clients. Our choice: no source deals
    groups.

    Args:
        members: Units to deal, int64 (num_members,).
        sizes: Images of every unit, int64 (num_units,).
        counts: Images that each client shall have, int64 (num_clients,); adds up to those of the
            members.
        rng: Source of the draws.

    Returns:
        Units of each client.
    """
    lacking = np.array(counts, np.int64)
    grouped: list[list[int]] = [[] for _ in counts]
    several = members[sizes[members] > 1]
    # Nothing is drawn where there are no groups: then divisions stay what they were before groups.
    for unit in rng.permutation(several) if len(several) else several:
        room = lacking >= sizes[unit]
        need = np.where(room, lacking / np.maximum(counts, 1), -1.0) if room.any() else lacking
        first = np.flatnonzero(need == need.max())
        owner = first[rng.integers(len(first))]
        grouped[owner].append(unit)
        lacking[owner] -= sizes[unit]
    single = rng.permutation(members[sizes[members] == 1])
    split = np.split(single, np.cumsum(_level(lacking, len(single), rng))[:-1])
    return [
        np.concatenate([np.array(own, np.int64), rest])
        for own, rest in zip(grouped, split, strict=True)
    ]


def _level(lacking: Integers, available: int, rng: np.random.Generator) -> Integers:
    """Single images for each client: what it lacks; if some have too much, most where most lack.

    Returns:
        int64 (num_clients,), >= 0, at most ``lacking`` where that is > 0, adds up to ``available``.
    """
    given = np.maximum(lacking, 0)
    surplus = int(given.sum()) - available
    if surplus == 0:
        return given
    # The highest level to which everyone can be left lacking; one more is left to those who lack
    # most, ties drawn.
    level = bisect_right(
        range(int(given.max())), surplus, key=lambda low: int(np.minimum(given, low + 1).sum())
    )
    left = np.minimum(given, level)
    candidates = np.flatnonzero(given > level)
    order = np.lexsort((rng.random(len(candidates)), -given[candidates]))
    left[candidates[order][: surplus - left.sum()]] += 1
    return given - left
