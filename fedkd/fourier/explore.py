"""Exploration: training the prompt generator (FPG) towards what a frozen teacher knows.

Prompted images are to have the feature moments of the teacher's own data (prior), be recognised
by its head (confidence), stay in range and differ from prompt to prompt. With gamma > 0 they also
seek what the student does not match yet (AKD).

Source: Elbatel et al., FoPro-KD (see ``prompts``). Differs: the authors' terms and weights are not
public; those here are our choice, measured on a prototype.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from fedkd.data.images import Integers
from fedkd.errors import ConfigError
from fedkd.fourier.config import ExploreConfig
from fedkd.fourier.prompter import Prompter
from fedkd.fourier.prompts import Prompted, diversity_loss
from fedkd.fourier.quality import COLLAPSED_BELOW
from fedkd.losses.distillation import feature_distillation
from fedkd.teachers.frozen import Observation, Teacher, confidence_loss
from fedkd.teachers.moments import moment_divergence
from fedkd.training import load_optimizer_state, optimizer_state

MOMENTUM, MAX_HALVINGS = 0.9, 10  # of the AKD safeguard, see Explorer


def explore_loss(
    teacher: Teacher,
    prompted: Prompted,
    clean: Observation,
    log_gains: Tensor,
    latents: Tensor,
    config: ExploreConfig,
    *,
    gamma: float = 0.0,
    projection: Tensor | None = None,
) -> dict[str, Tensor]:
    """All terms of L_explore for one batch; ``explore_loss`` is the scalar to minimise.

    explore_loss = prior_weight prior + confidence_weight confidence + diversity_weight diversity
    + out_of_range_weight out_of_range - gamma disagreement, the last being the mean of
    2 - 2 cos(student's projection of the un-prompted image, teacher's features of the prompted).

    Args:
        teacher: Frozen, with reference moments.
        prompted: The images with prompts, differentiable in what made them.
        clean: The teacher's observation of the same images without prompts, a constant.
        log_gains: The prompts, float (num, channels, height, width // 2 + 1).
        latents: What they were made of, float (num, latent_dim).
        config: Weights.
        gamma: AKD weight that is in effect; 0 is FPG alone.
        projection: Constant float (batch, D), needed when ``gamma`` > 0.

    Raises:
        ValueError: If ``gamma`` > 0 and there is no projection.
    """
    if gamma > 0 and projection is None:
        raise ValueError(f"gamma is {gamma}; the student's projection is needed when it is > 0")
    seen = teacher.observe(prompted.pixels)
    terms = {
        "prior": moment_divergence(seen.moments, teacher.reference, config.prior),
        "confidence": confidence_loss(seen, clean, teacher.head_kind, config.temperature),
        "diversity": diversity_loss(log_gains, latents),
        "out_of_range": prompted.out_of_range,
    }
    total = (
        config.prior_weight * terms["prior"]
        + config.confidence_weight * terms["confidence"]
        + config.diversity_weight * terms["diversity"]
        + config.out_of_range_weight * terms["out_of_range"]
    )
    if projection is not None:
        terms["disagreement"] = feature_distillation(projection, seen.features).mean()
        total = total - gamma * terms["disagreement"]
    return {"explore_loss": total, **terms}


class Explorer:
    """Trains one client's prompt generator; teacher and student are only read.

    AKD safeguard: gamma in effect is ``gamma * 2**-k``. After every step past the warm-up, k rises
    by one (to at most 10) if the running prior of prompted images exceeds that of the same images
    without prompts, and falls by one (to at least 0) otherwise. Running means have momentum 0.9
    and begin with the first step's value. How k moves is our choice.

    Args:
        prompter: Its generator is trained in place; device and dtype are those of teacher and
            pixels. Exploration draws a prompt for each image whatever ``prompts.per`` says, and
            never fewer than two, as diversity compares them.
        teacher: Frozen, with reference moments.
        config: Weights, steps and optimiser.

    Raises:
        TeacherError: If the teacher has no reference moments.
        ValueError: If the prompter has nothing to train.
    """

    def __init__(self, prompter: Prompter, teacher: Teacher, config: ExploreConfig) -> None:
        if prompter.generator is None or not prompter.learns:
            raise ValueError(f"{prompter.config.generator!r} has nothing to train")
        self.prompter = prompter
        self.generator = prompter.generator
        self.teacher = teacher
        self.config = config
        self.num_rounds = 0
        self.num_steps = 0
        self.num_halvings = 0
        self.has_collapsed = False
        self.running_prior = 0.0
        self.running_clean_prior = 0.0
        self._reference = teacher.reference
        self._adam = torch.optim.Adam(
            self.generator.parameters(),
            lr=config.learning_rate * self.generator.learning_rate_factor,
        )

    @property
    def steps_of_warm_up_left(self) -> int:
        """Steps that are still to be taken without AKD."""
        return max(self.config.warm_up_steps - self.num_steps, 0)

    def plan_round(self, num_images: int, rng: np.random.Generator) -> list[Integers]:
        """Which images each step of the client's next round is of; called once in every round.

        What is left of the warm-up comes first, in a round that explores at all (``every``).

        Args:
            num_images: That the client has; a batch is at most so large.
            rng: Of the draws, which are without replacement in a batch, and in an epoch.
        """
        config, size = self.config, min(self.config.batch_size, num_images)
        explores = self.num_rounds % config.every == 0
        self.num_rounds += 1
        if not explores:
            return []
        num_drawn = self.steps_of_warm_up_left
        if config.epochs_per_round is None:
            num_drawn += config.steps_per_round
        plan = [rng.choice(num_images, size, replace=False) for _ in range(num_drawn)]
        for _ in range(config.epochs_per_round or 0):
            order = rng.permutation(num_images)
            # Moments depend on how many images they are of: a smaller last batch is left out.
            plan += [order[i : i + size] for i in range(0, num_images - size + 1, size)]
        return plan

    def notice_collapse(self, rank: float) -> bool:
        """Whether this effective rank is the first after the warm-up that is alarmingly low."""
        first = not (self.has_collapsed or self.steps_of_warm_up_left) and rank < COLLAPSED_BELOW
        self.has_collapsed |= first
        return first

    @property
    def effective_gamma(self) -> float:
        """Weight of the disagreement in the next step; 0 during the warm-up."""
        if self.steps_of_warm_up_left:
            return 0.0
        return math.ldexp(self.config.gamma, -self.num_halvings)

    def step(
        self,
        pixels: Tensor,
        rng: torch.Generator,
        project: Callable[[Tensor], Tensor] | None = None,
    ) -> dict[str, float]:
        """One update of the generator.

        Args:
            pixels: Target images, float (batch, channels, height, width) in [0, 1].
            rng: CPU generator of latents and strengths.
            project: The student's projections (batch, D) of ``pixels``, in eval mode; called
                without gradients, and only when ``effective_gamma`` > 0.

        Returns:
            The terms of :func:`explore_loss` before the update, with ``clean_prior`` and
            ``gamma_effective``; ``disagreement`` only where AKD was in effect.

        Raises:
            ValueError: If AKD is in effect and ``project`` is missing.
            ConfigError: If a gradient is not finite; nothing is then changed.
        """
        gamma, config = self.effective_gamma, self.config
        with torch.no_grad():
            clean = self.teacher.observe(pixels)
            clean_prior = moment_divergence(clean.moments, self._reference, config.prior)
            projection = project(pixels) if gamma > 0 and project is not None else None
        drawn = self.prompter.draw(max(len(pixels), 2), rng, pixels, per="image")
        log_gains = self.prompter.log_gains(drawn.latents)
        num = len(pixels)
        prompted = self.prompter.apply(pixels, log_gains[:num], drawn.strengths[:num])
        terms = explore_loss(
            self.teacher,
            prompted,
            clean,
            log_gains,
            drawn.latents,
            config,
            gamma=gamma,
            projection=projection,
        )
        self._adam.zero_grad(set_to_none=True)
        terms["explore_loss"].backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.generator.parameters(), config.clip_norm)
        read = {**terms, "clean_prior": clean_prior, "norm": norm}
        # All at once: each number that is read makes the program wait for the GPU.
        numbers = torch.stack([value.detach().double() for value in read.values()]).tolist()
        values = dict(zip(read, numbers, strict=True))
        if not math.isfinite(values.pop("norm")):
            raise ConfigError(
                f"step {self.num_steps + 1} of exploration has a gradient that is not finite "
                f"(explore_loss {values['explore_loss']:.3g}); use a lower "
                f"explore.learning_rate (it is {config.learning_rate})"
            )
        self._adam.step()
        self._guard(values["prior"], values["clean_prior"])
        return {**values, "gamma_effective": gamma}

    def _guard(self, prior: float, clean_prior: float) -> None:
        weight = 1 - MOMENTUM if self.num_steps else 1.0
        self.running_prior += weight * (prior - self.running_prior)
        self.running_clean_prior += weight * (clean_prior - self.running_clean_prior)
        self.num_steps += 1
        if self.num_steps > self.config.warm_up_steps:
            change = 1 if self.running_prior > self.running_clean_prior else -1
            self.num_halvings = min(max(self.num_halvings + change, 0), MAX_HALVINGS)

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on but images and draws, as copied tensors.

        Names: ``generator.*``, ``optimizer.*`` and ``explorer.*`` (0-dimensional).
        """
        parts: dict[str, Mapping[str, Tensor]] = {
            "generator": self.generator.state_dict(),
            "optimizer": optimizer_state(self._adam),
            "explorer": {
                "num_rounds": torch.tensor(self.num_rounds),
                "num_steps": torch.tensor(self.num_steps),
                "num_halvings": torch.tensor(self.num_halvings),
                "has_collapsed": torch.tensor(int(self.has_collapsed)),
                "running_prior": torch.tensor(self.running_prior, dtype=torch.float64),
                "running_clean_prior": torch.tensor(self.running_clean_prior, dtype=torch.float64),
            },
        }
        return {
            f"{part}.{name}": value.detach().clone()
            for part, tensors in parts.items()
            for name, value in tensors.items()
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on, to the bit, from what :meth:`state` returned; the given tensors are copied."""
        parts: dict[str, dict[str, Tensor]] = {"generator": {}, "optimizer": {}, "explorer": {}}
        for name, value in state.items():
            part, _, key = name.partition(".")
            parts[part][key] = value.clone()
        self.generator.load_state_dict(parts["generator"])
        self._adam.state.clear()
        load_optimizer_state(self._adam, parts["optimizer"])
        scalars = parts["explorer"]
        self.num_rounds = int(scalars["num_rounds"])
        self.num_steps = int(scalars["num_steps"])
        self.num_halvings = int(scalars["num_halvings"])
        self.has_collapsed = bool(scalars["has_collapsed"])
        self.running_prior = float(scalars["running_prior"])
        self.running_clean_prior = float(scalars["running_clean_prior"])
