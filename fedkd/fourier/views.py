"""The rolling bank: a few prompted views of all images of a client, with the teacher's features.

A new prompt for every image and step costs a pass of the teacher for each. With the bank, each
image and step takes its target from one of M views, each of which has a prompt of its own for every
image; the teacher runs only when the oldest view is replaced. The recipe is our choice.
"""

from collections.abc import Callable, Mapping
from contextlib import closing

import numpy as np
import torch
from torch import Tensor

from fedkd.data.augment import Draws, dihedral_view, dihedral_views
from fedkd.data.images import Integers
from fedkd.data.loading import Loader
from fedkd.fourier.prompter import Prompter
from fedkd.teachers.features import BATCH
from fedkd.teachers.frozen import Teacher

OnStep = Callable[[int, int], None]
NUM_RENDERED, RENEWED_IN = "num_rendered", "renewed_in"


class ViewBank:
    """M views of a client's images; empty until the first renewal, which makes all of them.

    Args:
        num_views: M, > 0.
        renew_every: Rounds between two renewals, > 0. A client that did not train in the round in
            which a view was due renews it in the next one in which it does.
        square: Whether the images are.
    """

    def __init__(self, num_views: int, renew_every: int, square: bool) -> None:
        self.num_views, self.renew_every, self._square = num_views, renew_every, square
        # One tensor for each view, never written to: a renewal, and what is remembered between
        # rounds, copies none of the others.
        self._views: list[Tensor] = []
        self._num_rendered = 0
        self._renewed_in = 0

    def is_due(self, round_number: int) -> bool:
        """Whether a view, or at first every view, is to be rendered in this round."""
        return not self._views or round_number >= self._renewed_in + self.renew_every

    def renew(self, round_number: int, render: Callable[[int], Tensor]) -> None:
        """Replace the oldest view; an empty bank is filled.

        Args:
            round_number: From 1.
            render: Gives the view of a number, (n, num_turns, D): the views of all rounds are
                numbered 0, 1, ...
        """
        if not self._views:
            self._views = [render(number) for number in range(self.num_views)]
            self._num_rendered = self.num_views
        else:
            self._views[self._num_rendered % self.num_views] = render(self._num_rendered)
            self._num_rendered += 1
        self._renewed_in = round_number

    def of(self, positions: Integers, draws: Draws, chosen: Integers) -> Tensor:
        """Features (batch, D) of some images, on the CPU.

        Args:
            positions: Among the client's images, int64 (batch,).
            draws: Those that augment the images: each gets the features of its own flip and turn,
                if these were rendered.
            chosen: The place in the bank from which each takes its view, below M, int64 (batch,).
        """
        num_turns = self._views[0].shape[1]
        turns = dihedral_views(draws, self._square) if num_turns > 1 else np.zeros_like(positions)
        features = self._views[0].new_empty(len(positions), self._views[0].shape[2])
        for place, view in enumerate(self._views):
            mine = np.flatnonzero(chosen == place)
            features[mine] = view[positions[mine], turns[mine]]
        return features

    def state(self) -> dict[str, Tensor]:
        """What the bank holds; the features are the bank's own, which nobody writes to."""
        return {
            NUM_RENDERED: torch.tensor(self._num_rendered),
            RENEWED_IN: torch.tensor(self._renewed_in),
            **{str(place): view for place, view in enumerate(self._views)},
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what :meth:`state` returned."""
        self._num_rendered = int(state[NUM_RENDERED])
        self._renewed_in = int(state[RENEWED_IN])
        self._views = [state[str(place)] for place in range(len(state) - 2)]


def num_turns(views: str, square: bool) -> int:
    """Flips and turns of which ``teacher.views`` wants features: 1, or 8 (4 if not square)."""
    if views != "dihedral":
        return 1
    return 8 if square else 4


def render_view(
    teacher: Teacher,
    prompter: Prompter,
    loader: Loader,
    num_turns: int,
    order: np.random.Generator,
    rng: torch.Generator,
    on_step: OnStep | None = None,
) -> Tensor:
    """The teacher's features of all images under prompts and strengths drawn for them.

    Images come in an order that is drawn, ``BATCH`` at once (``prompts.per = "batch"`` draws a
    prompt for so many), so that ``amplitude_mix`` takes amplitudes from any image and not from the
    next one of a file that may be sorted by class. The last batch is filled up with the first
    images of the order, so that the bits of an image do not depend on how many there are. All flips
    and turns of an image have the same prompt.

    Args:
        teacher: Is asked.
        prompter: Its generator stays as it is.
        loader: The client's images.
        num_turns: What :func:`num_turns` gives.
        order: Of the order of the images.
        rng: CPU generator of latents and strengths.
        on_step: Told the batches done and all batches.

    Returns:
        Float (n, num_turns, D) on the CPU.
    """
    num_images = len(loader)
    num_batches = -(-num_images // BATCH)
    plan = list(np.resize(order.permutation(num_images), (num_batches, BATCH)))
    features = torch.empty(num_images, num_turns, teacher.num_features, dtype=loader.dtype)
    with closing(loader.batches(plan)) as loaded, torch.no_grad():
        for number, (rows, (pixels, _)) in enumerate(zip(plan, loaded, strict=True)):
            new = rows[: num_images - number * BATCH]
            turned = (dihedral_view(pixels, turn) for turn in range(num_turns))
            for turn, prompted in enumerate(prompter.in_views(turned, rng)):
                seen = teacher.features(prompted.pixels)
                features[new, turn] = seen[: len(new)].to(features)
            if on_step:
                on_step(number + 1, len(plan))
    return features
