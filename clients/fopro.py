"""FoPro-KD: EKD whose teacher sees the images through Fourier prompts that it likes."""

from collections.abc import Mapping
from contextlib import closing

import torch
from torch import Tensor

from clients.ekd import EKD
from clients.objective import OnStep
from fedkd import seeding
from fedkd.data.loading import Loader, in_order
from fedkd.experiment import Experiment
from fedkd.fourier.explore import Explorer, held_out_prior
from fedkd.fourier.prompts import FourierPromptGenerator, draw_latents, prompt
from fedkd.fourier.spectrum import mean_amplitude
from fedkd.losses.factory import SupervisedLoss
from fedkd.models.student import Student

MEAN_AMPLITUDE = "mean_amplitude"


class FoPro(EKD):
    """Explore, then exploit: the generator is trained before each round and fixed during it.

    The teacher sees the prompted image, the student the un-prompted one, both with the same
    augmentation. The generator stays with the client unless the recipe shares it. All clients
    begin with the same one; their draws differ.

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
            generator = FourierPromptGenerator(
                channels,
                height,
                width,
                latent_dim=recipe.prompts.latent_dim,
                max_gain=recipe.prompts.max_gain,
            )
        generator.to(experiment.device, experiment.dtype)
        self._explorer = Explorer(generator, teacher, recipe.explore, recipe.prompts)
        self._draws: torch.Generator | None = None

    def state(self) -> dict[str, Tensor]:
        """Generator, its optimiser, and the mean amplitude where prompts need it."""
        state = self._explorer.state()
        if self._explorer.mean_amplitude is not None:
            state[MEAN_AMPLITUDE] = self._explorer.mean_amplitude
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from :meth:`state`."""
        self._explorer.mean_amplitude = state.get(MEAN_AMPLITUDE)
        self._explorer.load_state({k: t for k, t in state.items() if k != MEAN_AMPLITUDE})

    def shared(self) -> dict[str, Tensor]:
        """The generator, if the recipe shares it."""
        return self._explorer.generator.state_dict() if self._recipe.objective.share_prompts else {}

    def load_shared(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over the average generator."""
        self._explorer.generator.load_state_dict(tensors)

    def start_round(
        self, student: Student, loader: Loader, round_number: int, on_step: OnStep | None = None
    ) -> dict[str, float]:
        """Train the generator: the warm-up in the client's first round, then a few steps a round.

        Returns:
            The terms of the last step, and the prior at full strength on a fixed batch of the
            client's images with prompts (``prior``) and without (``prior_clean``).
        """
        explorer, config, keys = self._explorer, self._recipe.explore, self._keys(round_number)
        if self._recipe.prompts.form == "mix" and explorer.mean_amplitude is None:
            explorer.mean_amplitude = self._mean_amplitude(loader)
        student.eval()
        rng = seeding.generator(self._recipe.seed, "explore", *keys)
        rows = seeding.rng(self._recipe.seed, "explore-images", *keys)
        size = min(config.batch_size, len(loader))
        num_steps = config.steps_per_round
        if explorer.num_steps < config.warm_up_steps:
            num_steps += config.warm_up_steps - explorer.num_steps
        terms: dict[str, float] = {}
        plan = [rows.choice(len(loader), size, replace=False) for _ in range(num_steps)]
        with closing(loader.batches(plan)) as loaded:
            for step, (pixels, _) in enumerate(loaded, 1):
                terms = explorer.step(pixels, rng, student.project)
                if on_step:
                    on_step(step, num_steps)
        self._draws = seeding.generator(self._recipe.seed, "prompt", *keys)
        values = {f"explore_{name}": v for name, v in terms.items() if name != "explore_loss"}
        return {**values, **self._measure(loader, size)}

    def target(self, pixels: Tensor) -> Tensor:
        """Features of the prompted images, float (batch, D), a constant."""
        assert self._draws is not None, "start_round() comes first"
        prompts, explorer = self._recipe.prompts, self._explorer
        with torch.no_grad():
            latents, strengths = draw_latents(
                len(pixels),
                self._draws,
                per=prompts.per,
                latent_dim=prompts.latent_dim,
                max_strength=prompts.max_strength,
                like=pixels,
            )
            prompted = prompt(
                pixels,
                explorer.generator(latents),
                strengths,
                form=prompts.form,
                keep_dc=prompts.keep_dc,
                mean_amplitude=explorer.mean_amplitude,
            )
        return self.teacher.features(prompted.pixels)

    def _mean_amplitude(self, loader: Loader) -> Tensor:
        plan = in_order(len(loader), self._recipe.evaluation.batch_size)
        with closing(loader.batches(plan)) as loaded:
            return mean_amplitude(pixels for pixels, _ in loaded)

    def _keys(self, round_number: int) -> tuple[int, int]:
        return round_number, self._partition_id

    def _measure(self, loader: Loader, size: int) -> dict[str, float]:
        """The prior on the same images and latents in every round, so that rounds compare."""
        seed, explorer = self._recipe.seed, self._explorer
        rows = seeding.rng(seed, "prior-images", self._partition_id)
        clean, prompted = held_out_prior(
            self.teacher,
            explorer.generator,
            loader.pixels(rows.choice(len(loader), size, replace=False)),
            seeding.generator(seed, "prior", self._partition_id),
            self._recipe.prompts,
            mean_amplitude=explorer.mean_amplitude,
        )
        return {"prior": prompted, "prior_clean": clean}
