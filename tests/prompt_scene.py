"""Images, a teacher that knows them, and generators that are explored with it, for tests."""

import torch
import torch.nn.functional as F
from torch import nn

from fedkd import seeding
from fedkd.fourier.config import ExploreConfig, PromptConfig
from fedkd.fourier.explore import Explorer
from fedkd.fourier.generators import factory
from fedkd.fourier.prompter import Prompter
from fedkd.fourier.prompts import prompt
from fedkd.models.small_resnet import SmallResNet
from fedkd.teachers.frozen import Teacher

SIZE = 32
LEARNED = ("conv", "radial", "bank", "mlp")


def natural(num, seed):
    """Images with the power spectrum 1/f^2 of natural ones, contrast and colour of their own."""
    rng = seeding.generator(seed, "natural")
    radius = torch.hypot(torch.fft.fftfreq(SIZE)[:, None], torch.fft.rfftfreq(SIZE)[None])
    radius[0, 0] = 1.0
    noise = torch.fft.irfft2(
        torch.fft.rfft2(torch.randn(num, 3, SIZE, SIZE, generator=rng)) / radius, s=(SIZE, SIZE)
    )
    noise = 0.7 * noise.mean(1, keepdim=True) + 0.5 * noise
    noise = (noise - noise.mean((1, 2, 3), keepdim=True)) / noise.std((1, 2, 3), keepdim=True)
    level = 0.5 + 0.08 * torch.randn(num, 1, 1, 1, generator=rng)
    return (level + 0.2 * noise).clamp(0, 1)


def target(num, seed):
    """The same scenes, as a pale, pink, blurred and flat picture of skin would show them."""
    u = F.avg_pool2d(natural(num, seed), 3, 1, 1, count_include_pad=False)
    u = 0.75 + 0.35 * (u - u.mean((2, 3), keepdim=True))
    return (u * torch.tensor([1.1, 0.85, 0.75]).view(3, 1, 1)).clamp(0, 1)


def teacher_on(images, head_kind="contrastive"):
    """A teacher whose BatchNorm statistics are exactly those of the images."""
    with seeding.isolated(0, "teacher"):
        network = SmallResNet((8, 16, 32), all_stages=True)
        head = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 16))
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        network.train()((images - 0.5) / 0.25)
    has_head = head_kind != "none"
    return Teacher(
        "test",
        network,
        num_features=56,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        input_size=None,
        head=head if has_head else None,
        head_kind=head_kind,
        head_slice=slice(24, None) if has_head else None,
    )


def make_student():
    with seeding.isolated(0, "student"):
        return nn.Sequential(SmallResNet((8, 16)), nn.Linear(16, 56)).eval()


def make_generator(name="conv", size=(SIZE, SIZE), seed=0, **settings):
    with seeding.isolated(seed, "fpg"):
        return factory.make_generator(PromptConfig(generator=name, **settings), 3, *size)


def make_explorer(teacher, prompts=None, mean_amplitude=None, **config):
    prompts = prompts or PromptConfig()
    prompter = Prompter(prompts, make_generator(prompts.generator), mean_amplitude)
    return Explorer(prompter, teacher, ExploreConfig(**config))


def run(explorer, images, start, end, project=None):
    """Steps ``start`` to ``end``, each with a batch and draws of its own."""
    log = []
    for step in range(start, end):
        rng = seeding.generator(0, "explore", step)
        rows = torch.randint(len(images), (16,), generator=rng)
        log.append(explorer.step(images[rows], rng, project))
    return log


def full_prompts(generator, images, seed=0):
    z = torch.randn(len(images), generator.latent_dim, generator=seeding.generator(seed, "z"))
    with torch.no_grad():
        gains = generator(z)
        strength = torch.ones(len(images))
        return gains, prompt(images, gains, strength, form="gain", keep_dc=False).pixels
