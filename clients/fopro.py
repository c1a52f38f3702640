"""FoPro-KD: EKD whose teacher sees the images through Fourier prompts that it likes."""

import logging
import math
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clients.ekd import EKD
from clients.objective import OnStep
from fedkd import seeding
from fedkd.data.augment import Draws
from fedkd.data.images import Integers
from fedkd.data.loading import Loader, in_order
from fedkd.experiment import Experiment
from fedkd.fourier.explore import Explorer
from fedkd.fourier.generators.factory import make_generator
from fedkd.fourier.kept import MEAN_AMPLITUDE, path_of, save_prompts
from fedkd.fourier.prompter import Prompter
from fedkd.fourier.quality import COLLAPSED_BELOW, measure_prompts
from fedkd.fourier.spectrum import mean_amplitude
from fedkd.fourier.views import ViewBank, num_turns, render_view
from fedkd.losses.factory import SupervisedLoss
from fedkd.models.student import Student

logger = logging.getLogger(__name__)

BANK = "bank."
"""Prefix of the bank's tensors in the state."""


class FoPro(EKD):
    """Explore, then exploit: the generator is trained before each round and fixed during it.

    The teacher sees the prompted image, the student the un-prompted one, both with the same
    augmentation. The generator stays with the client unless the recipe shares it. All clients
    begin with the same one; their draws differ. With ``prompts.kept_views`` the targets come from a
    bank of prompted views, and there is exploration only in rounds in which one is renewed.

    Args:
        experiment: Gives recipe and teacher.
        partition_id: Names this client's random streams and its teacher.
        loss: As in EKD, and so are the next two.
        lambda_f: Weight of the distillation term in this round.
        class_weights: Of the distillation, or None.

    Source: Elbatel et al., "FoPro-KD: Fourier Prompted Effective Knowledge Distillation for
    Long-Tailed Medical Image Recognition", IEEE TMI 2024 (arXiv 2305.17421). Differs: see
    ``fedkd.fourier``.
    """

    def __init__(
        self,
        experiment: Experiment,
        partition_id: int,
        loss: SupervisedLoss,
        lambda_f: float,
        class_weights: Tensor | None = None,
    ) -> None:
        teacher = experiment.teacher_of(partition_id)
        super().__init__(loss, teacher, lambda_f, class_weights)
        self._recipe = recipe = experiment.recipe
        self._partition_id = partition_id
        channels, height, width = experiment.splits.train.images.shape[1:]
        with seeding.isolated(recipe.seed, "prompt-generator"):
            generator = make_generator(recipe.prompts, channels, height, width)
        if generator is not None:
            generator.to(experiment.device, experiment.dtype)
        self.prompter = Prompter(recipe.prompts, generator)
        self._explorer = (
            Explorer(self.prompter, teacher, recipe.explore) if self.prompter.learns else None
        )
        self._draws: torch.Generator | None = None
        square = height == width
        prompts = recipe.prompts
        # Without distillation nobody asks for a target.
        self._bank = (
            ViewBank(prompts.kept_views, prompts.renew_every, square)
            if prompts.kept_views and lambda_f
            else None
        )
        self._num_turns = num_turns(experiment.teacher_configs[partition_id].views, square)
        self._choices: np.random.Generator | None = None

    def state(self) -> dict[str, Tensor]:
        """Generator, its optimiser, the mean amplitude where prompts need it, and the bank."""
        state = {} if self._explorer is None else self._explorer.state()
        if self.prompter.mean_amplitude is not None:
            state[MEAN_AMPLITUDE] = self.prompter.mean_amplitude
        if self._bank is not None:
            state.update({BANK + name: tensor for name, tensor in self._bank.state().items()})
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from :meth:`state`."""
        self.prompter.mean_amplitude = state.get(MEAN_AMPLITUDE)
        bank = {k.removeprefix(BANK): t for k, t in state.items() if k.startswith(BANK)}
        if self._bank is not None:
            self._bank.load_state(bank)
        if self._explorer is not None:
            own = {k: t for k, t in state.items() if not k.startswith((MEAN_AMPLITUDE, BANK))}
            self._explorer.load_state(own)

    def shared(self) -> dict[str, Tensor]:
        """The generator, if there is one and the recipe shares it."""
        if self._explorer is None or self._recipe.prompts.shared == "no":
            return {}
        return self._explorer.generator.state_dict()

    def load_shared(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over the average generator."""
        assert self._explorer is not None, "nothing is shared without a generator"
        self._explorer.generator.load_state_dict(tensors)

    def save_prompts(self, folder: Path, round_number: int) -> None:
        """Write the generator and the mean amplitude into this client's file."""
        save_prompts(path_of(folder, self._partition_id), self.prompter, round_number)

    def start_round(
        self, student: Student, loader: Loader, round_number: int, on_step: OnStep | None = None
    ) -> dict[str, float]:
        """Train the generator: the warm-up in the client's first round, then a few steps a round.

        With a bank, the generator is trained and the view rendered only where one is due.

        Returns:
            Means of the terms over the round's steps after the warm-up, ``explore_prior`` and so
            on, with the number of steps, ``explore_steps`` (the first round's has the warm-up's).
            Measures of prompts at full strength on a fixed batch of the client's images:
            ``prior`` with prompts and ``prior_clean`` without, and ``prompt_*``, see
            :class:`fedkd.fourier.quality.Quality`.
        """
        if self._recipe.prompts.form == "mix" and self.prompter.mean_amplitude is None:
            self.prompter.mean_amplitude = self._mean_amplitude(loader)
        values: dict[str, float] = {}
        due = self._bank is None or self._bank.is_due(round_number)
        if self._explorer is not None:
            values = (
                self._explore(self._explorer, student, loader, round_number, on_step)
                if due
                else {"explore_steps": 0.0}
            )
        keys = self._keys(round_number)
        if self._bank is None:
            self._draws = seeding.generator(self._recipe.seed, "prompt", *keys)
        else:
            if due:
                self._bank.renew(round_number, lambda view: self._render(view, loader, on_step))
            self._choices = seeding.rng(self._recipe.seed, "kept-view", *keys)
        return {**values, **self._measure(loader)}

    def _explore(
        self,
        explorer: Explorer,
        student: Student,
        loader: Loader,
        round_number: int,
        on_step: OnStep | None,
    ) -> dict[str, float]:
        """Explore for one round; returns means over its steps after the warm-up.

        Of a round that was nothing but warm-up, over all steps; of one without a step, no means.
        """
        keys = self._keys(round_number)
        student.eval()
        rng = seeding.generator(self._recipe.seed, "explore", *keys)
        num_warm_up = explorer.steps_of_warm_up_left
        plan = explorer.plan_round(
            len(loader), seeding.rng(self._recipe.seed, "explore-images", *keys)
        )
        log: list[dict[str, float]] = []
        with closing(loader.batches(plan)) as loaded:
            for step, (pixels, _) in enumerate(loaded, 1):
                log.append(explorer.step(pixels, rng, student.project))
                if on_step:
                    on_step(step, len(plan))
        counted = log[num_warm_up:] or log
        means = {
            f"explore_{name}": math.fsum(terms[name] for terms in counted) / len(counted)
            for name in (counted[0] if counted else ())
            if name != "explore_loss"
        }
        return {**means, "explore_steps": float(len(plan))}

    def _render(self, view: int, loader: Loader, on_step: OnStep | None) -> Tensor:
        seed, client = self._recipe.seed, self._partition_id
        return render_view(
            self.teacher,
            self.prompter,
            loader,
            self._num_turns,
            seeding.rng(seed, "view-order", client, view),
            seeding.generator(seed, "view-prompts", client, view),
            on_step,
        )

    def next_images(self, positions: Integers, draws: Draws | None) -> None:
        """Draw which view of the bank is each image's target, and look it up.

        Images that are not augmented are to be scored, against targets without a prompt.
        """
        if self._bank is not None and draws is not None:
            assert self._choices is not None, "start_round() comes first"
            chosen = self._choices.integers(self._bank.num_views, size=len(positions))
            self._next = self._bank.of(positions, draws, chosen)

    def step_state(self) -> dict[str, Tensor]:
        """The generator of prompts; which views are drawn, :meth:`next_images` draws again."""
        return {} if self._draws is None else {"draws": self._draws.get_state()}

    def load_step_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from :meth:`step_state`."""
        if self._draws is not None:
            self._draws.set_state(state["draws"].cpu())

    def target(self, pixels: Tensor) -> Tensor:
        """Features of the prompted images, float (batch, D), a constant."""
        if self._bank is not None:
            return self._next.to(pixels, non_blocking=True)
        assert self._draws is not None, "start_round() comes first"
        with torch.no_grad():
            prompted = self.prompter(pixels, self._draws)
        return self.teacher.features(prompted.pixels)

    def _mean_amplitude(self, loader: Loader) -> Tensor:
        plan = in_order(len(loader), self._recipe.evaluation.batch_size)
        with closing(loader.batches(plan)) as loaded:
            return mean_amplitude(pixels for pixels, _ in loaded)

    def _keys(self, round_number: int) -> tuple[int, int]:
        return round_number, self._partition_id

    def _measure(self, loader: Loader) -> dict[str, float]:
        """On the same images and latents in every round, so that rounds compare."""
        seed, client = self._recipe.seed, self._partition_id
        rows = seeding.rng(seed, "prior-images", client)
        size = min(self._recipe.explore.batch_size, len(loader))
        quality = measure_prompts(
            self.teacher,
            self.prompter,
            loader.pixels(rows.choice(len(loader), size, replace=False)),
            seeding.generator(seed, "prior", client),
        )
        rank = quality.effective_rank
        if self._explorer is not None and self._explorer.notice_collapse(rank):
            logger.warning(
                "the prompts of client %d have collapsed: their effective rank is %.1f, below %g; "
                "a larger explore.diversity_weight or another prompts.generator spreads them",
                client,
                rank,
                COLLAPSED_BELOW,
            )
        values = {
            "prior": quality.prior,
            "prior_clean": quality.prior_clean,
            "prompt_diversity": quality.feature_diversity,
            "prompt_cosine": quality.cosine,
            "prompt_saturated": quality.saturated,
        }
        if self.prompter.generator is None:
            return values
        return {**values, "prompt_magnitude": quality.magnitude, "prompt_rank": rank}
