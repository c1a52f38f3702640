"""Generators of Fourier prompts by name."""

from typing import get_args

from fedkd.fourier.config import GeneratorName, PromptConfig
from fedkd.fourier.generators.bank import BankGenerator
from fedkd.fourier.generators.conv import ConvGenerator
from fedkd.fourier.generators.generator import FourierPromptGenerator
from fedkd.fourier.generators.jitter import JitterGenerator
from fedkd.fourier.generators.mlp import MLPGenerator
from fedkd.fourier.generators.radial import RadialGenerator

GENERATORS: dict[GeneratorName, str] = {
    "conv": "FPG: a small convolutional decoder",
    "radial": "FPG: gains of 12 rings of frequencies; small, fits images of any size",
    "bank": "FPG: prompts.bank_size free prompts, of which one is drawn",
    "mlp": "FPG: a 9 x 5 grid of gains; on the prototype all its prompts fell on one line",
    "jitter": "control: random gains of the magnitude prompts.magnitude, nothing is learned",
    "amplitude_mix": "control: amplitudes of other images of the batch, nothing is learned",
}
assert set(GENERATORS) == set(get_args(GeneratorName))


def make_generator(
    config: PromptConfig, channels: int, height: int, width: int
) -> FourierPromptGenerator | None:
    """The generator that a config names; None for ``amplitude_mix``, which needs none.

    Weights are drawn from torch's global generator: call it inside ``seeding.isolated``.

    Args:
        config: Which, and its settings.
        channels: Of the images.
        height: Of the images in px.
        width: Of the images in px.

    Raises:
        ValueError: If the images are too small for it.
    """
    size = (channels, height, width)
    if config.generator == "amplitude_mix":
        return None
    if config.generator == "jitter":
        return JitterGenerator(*size, max_gain=config.max_gain, magnitude=config.magnitude)
    if config.generator == "bank":
        return BankGenerator(*size, max_gain=config.max_gain, bank_size=config.bank_size)
    network = {"conv": ConvGenerator, "radial": RadialGenerator, "mlp": MLPGenerator}
    make = network[config.generator]
    return make(*size, latent_dim=config.latent_dim, max_gain=config.max_gain)
