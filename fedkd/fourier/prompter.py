"""The prompter: what stands between images and the teacher, drawn anew for every batch."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fedkd.fourier.config import PromptConfig, PromptPer
from fedkd.fourier.generators.generator import FourierPromptGenerator
from fedkd.fourier.prompts import Prompted, draw_latents, prompt
from fedkd.fourier.spectrum import amplitude, rfft2


class Draw(NamedTuple):
    """The random input of prompts for a batch.

    Attributes:
        latents: z, float (batch or 1, latent_dim).
        strengths: l, float (batch,).
    """

    latents: Tensor
    strengths: Tensor


class Prompter:
    """Draws prompts for images and applies them.

    Args:
        config: Form, range and number of prompts.
        generator: Of log-gains; None exactly for ``amplitude_mix``.
        mean_amplitude: Of the client's training images; needed for the form ``"mix"``.
    """

    def __init__(
        self,
        config: PromptConfig,
        generator: FourierPromptGenerator | None,
        mean_amplitude: Tensor | None = None,
    ) -> None:
        self.config = config
        self.generator = generator
        self.mean_amplitude = mean_amplitude

    @property
    def learns(self) -> bool:
        """Whether there is anything to train."""
        return self.generator is not None and any(True for _ in self.generator.parameters())

    def draw(
        self,
        num_images: int,
        rng: torch.Generator,
        like: Tensor,
        *,
        per: PromptPer | None = None,
    ) -> Draw:
        """Latents and strengths for a batch.

        Args:
            num_images: Images in the batch.
            rng: CPU generator.
            like: Device and dtype of the result.
            per: Instead of the config's.
        """
        latents, strengths = draw_latents(
            num_images,
            rng,
            per=per or self.config.per,
            latent_dim=self.generator.latent_dim if self.generator else 1,
            max_strength=self.config.max_strength,
            like=like,
        )
        return Draw(latents, strengths)

    def log_gains(self, latents: Tensor) -> Tensor:
        """Log-gains (latents, channels, height, width // 2 + 1), differentiable in the generator.

        Raises:
            ValueError: If there is no generator.
        """
        if self.generator is None:
            raise ValueError(f"{self.config.generator!r} has no generator, and so no log-gain")
        gains: Tensor = self.generator(latents)
        return gains

    def apply(self, pixels: Tensor, log_gains: Tensor, strengths: Tensor) -> Prompted:
        """Images under given prompts.

        Args:
            pixels: Float (batch, channels, height, width) in [0, 1].
            log_gains: Float (batch or 1, channels, height, width // 2 + 1).
            strengths: Float (batch,).
        """
        return prompt(
            pixels,
            log_gains,
            strengths,
            form=self.config.form,
            keep_dc=self.config.keep_dc,
            mean_amplitude=self.mean_amplitude,
        )

    def mix_amplitudes(self, pixels: Tensor, others: Tensor, strengths: Tensor) -> Prompted:
        """Images whose amplitudes have moved towards those of other images.

        Args:
            pixels: Float (batch, channels, height, width) in [0, 1].
            others: Of the same shape.
            strengths: l, float (batch,): the amplitude is (1 - l) A + l A_other.

        Source: Xu et al., "A Fourier-based Framework for Domain Generalization" (FACT), CVPR 2021
        (amplitude mix).
        """
        amplitudes = amplitude(rfft2(others))
        return prompt(
            pixels,
            torch.zeros_like(amplitudes[:1]),
            strengths,
            form="mix",
            keep_dc=self.config.keep_dc,
            mean_amplitude=amplitudes,
        )

    def __call__(self, pixels: Tensor, rng: torch.Generator) -> Prompted:
        """Images under prompts and strengths that are drawn for them.

        ``amplitude_mix`` takes amplitudes from the next image of the batch, which is the image
        itself in a batch of one.

        Args:
            pixels: Float (batch, channels, height, width) in [0, 1].
            rng: CPU generator.
        """
        return next(self.in_views([pixels], rng))

    def in_views(self, views: Iterable[Tensor], rng: torch.Generator) -> Iterator[Prompted]:
        """The same images in several views, such as flipped ones, each under one drawn prompt.

        Prompt and strength of an image are drawn at the first view and are the same in all.

        Args:
            views: Of the same images in the same order, as in :meth:`__call__`.
            rng: CPU generator.
        """
        drawn, log_gains = None, None
        for pixels in views:
            if drawn is None:
                drawn = self.draw(len(pixels), rng, pixels)
                log_gains = None if self.generator is None else self.log_gains(drawn.latents)
            yield self.prompted(pixels, drawn.strengths, log_gains)

    def full(self, pixels: Tensor, rng: torch.Generator) -> Prompted:
        """The same with a prompt of strength 1 for each image, whatever the config says."""
        drawn = self.draw(len(pixels), rng, pixels, per="image")
        log_gains = None if self.generator is None else self.log_gains(drawn.latents)
        return self.prompted(pixels, torch.ones_like(drawn.strengths), log_gains)

    def prompted(self, pixels: Tensor, strengths: Tensor, log_gains: Tensor | None) -> Prompted:
        """Images under given prompts, or mixed with the next image where there is no log-gain."""
        if log_gains is None:
            return self.mix_amplitudes(pixels, pixels.roll(-1, 0), strengths)
        return self.apply(pixels, log_gains, strengths)
