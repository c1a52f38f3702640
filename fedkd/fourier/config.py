"""Settings of Fourier prompts and of their exploration."""

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from fedkd.config import Section
from fedkd.teachers.moments import PriorForm

PromptForm = Literal["gain", "mix"]
PromptPer = Literal["image", "batch"]
PromptsShared = Literal["no", "by_examples", "by_strategy"]
GeneratorName = Literal["conv", "radial", "bank", "mlp", "jitter", "amplitude_mix"]
CONTROLS: tuple[GeneratorName, ...] = ("jitter", "amplitude_mix")
"""Generators that learn nothing."""


class PromptConfig(Section):
    """Fourier prompts of the teacher's input."""

    generator: GeneratorName = "conv"
    """What makes the prompts; `fedkd list` has a line for each. jitter and amplitude_mix learn
    nothing: they are controls, without which nobody can say that learned prompts help."""
    form: PromptForm = "gain"
    """gain: amplitudes are multiplied by the prompt. mix: they move towards the mean amplitude of
    the client's training images, multiplied by the prompt."""
    keep_dc: bool = False
    """Leave brightness and colour cast alone; preserves content best, closes less of the gap to
    the teacher's data."""
    max_strength: float = Field(default=1.0, ge=0, le=1)
    """Strengths are drawn uniformly from 0 (no prompt) to this."""
    max_gain: float = Field(default=4.0, gt=1)
    """Largest factor on an amplitude; the smallest is 1 / max_gain."""
    latent_dim: int = Field(default=64, ge=1)
    """Length of the random input of conv, radial and mlp."""
    bank_size: int = Field(default=16, ge=2, le=1024)
    """Of bank: prompts in it, of which one is drawn each time."""
    magnitude: float = Field(default=0.5, gt=0)
    """Of jitter: mean absolute log-gain in nats, below log(max_gain). The column prompt_magnitude
    of clients.csv has that of learned prompts, which a fair control has too."""
    per: PromptPer = "image"
    """Draw a prompt for every image, or one for all images of a batch (3 to 5 times cheaper; the
    strength is drawn for every image either way)."""
    kept_views: int = Field(default=0, ge=0)
    """Prompted views of a client's images whose features are kept, the rolling bank: each image and
    step draws one of them as its target, and the teacher runs only when views are rendered. 0 draws
    a new prompt for every image and step. The views are of the plain image, or with teacher.views =
    dihedral of all its flips and turns, and stay in memory: images x kept_views x the teacher's
    features x 4 bytes, 8 times that with dihedral."""
    renew_every: int = Field(default=8, ge=1)
    """With kept_views, rounds between two renewals: explore.steps_per_round steps of exploration,
    and one new view in place of the oldest. There is no exploration in the other rounds."""
    shared: PromptsShared = "no"
    """Whether the prompt generator travels to the server and back with the student. no: it never
    leaves the hospital. by_examples: the server averages the generators by the clients' numbers of
    images, whatever the strategy. by_strategy: by the weights that the strategy gives the students.
    Only generators that learn have anything to share; the state of their optimiser and the mean
    amplitude of the form mix always stay with the hospital."""

    @model_validator(mode="after")
    def _jitter_stays_in_bounds(self) -> Self:
        bound = math.log(self.max_gain)
        if self.generator == "jitter" and self.magnitude >= bound:
            raise ValueError(
                f"magnitude is {self.magnitude}, but max_gain = {self.max_gain} bounds log-gains "
                f"at {bound:.3f}; it must be below that, or max_gain larger"
            )
        return self

    @model_validator(mode="after")
    def _amplitude_mix_has_no_gains(self) -> Self:
        if self.generator != "amplitude_mix":
            return self
        # Compared with defaults, not with what was written: a run's config.toml has every key.
        for key in ("form", "max_gain", "bank_size", "magnitude"):
            value, default = getattr(self, key), type(self).model_fields[key].default
            if value != default:
                raise ValueError(
                    f"{key} is {value!r}, but generator = 'amplitude_mix' has no gains and takes "
                    f"an amplitude for each image from another one; leave {key} out, or choose "
                    "another generator"
                )
        return self


class ExploreConfig(Section):
    """Training of the Fourier prompt generator.

    The controls jitter and amplitude_mix train nothing and read only batch_size, the images on
    which prompts are measured.
    """

    prior_weight: float = Field(default=1.0, ge=0)
    """Weight of the distance from the teacher's feature moments."""
    prior: PriorForm = "kl"
    """kl: scale free, mean over channels and layers. l2: DeepInversion's sum of L2 norms."""
    confidence_weight: float = Field(default=1.0, ge=0)
    """mu: weight of the confidence of the teacher's pre-training head. With 0.1 full prompts leave
    the embedded teacher a cosine of 0.42 to what it saw before, with 1 it is 0.86."""
    temperature: float = Field(default=0.2, gt=0)
    """Of the confidence of a contrastive head."""
    diversity_weight: float = Field(default=0.05, ge=0)
    """Weight of the penalty on prompts that do not follow their latents."""
    out_of_range_weight: float = Field(default=10.0, ge=0)
    """Weight of the distance by which prompted pixels leave [0, 1]."""
    gamma: float = Field(default=0.0, ge=0)
    """Weight of the student's disagreement, which is maximised (AKD). 0 is FPG alone, 0.3 is
    recommended; 1 already leaves natural images."""
    warm_up_steps: int = Field(default=60, ge=0)
    """First steps of a client's generator, without AKD."""
    steps_per_round: int = Field(default=5, ge=0)
    """Steps per round after the warm-up."""
    epochs_per_round: int | None = Field(default=None, ge=1)
    """Instead of steps_per_round: passes over the client's images, in batches of batch_size; what
    does not fill one is left out of a pass. Not given means that steps count."""
    every: int = Field(default=1, ge=1)
    """Explore in every so-manieth round of the client, from its first one on, which has the whole
    warm-up. The generator rests in the others. With prompts.kept_views, renewals of views are
    counted instead of rounds."""
    batch_size: int = Field(default=32, ge=1)
    """Images per step, or all that the client has, if they are fewer; also of the batch on which
    prompts are measured."""
    learning_rate: float = Field(default=2e-3, gt=0)
    """Of Adam. bank learns ten times as fast: a step trains only those of its prompts that were
    drawn."""
    clip_norm: float = Field(default=5.0, gt=0)
    """Largest gradient norm."""
