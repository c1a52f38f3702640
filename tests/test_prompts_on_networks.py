"""Prompts on networks of both kinds: layers paired by name, and float32 transforms in autocast."""

import copy

import pytest
import torch
from torchvision.models import VisionTransformer

from fedkd import seeding
from fedkd.fourier.config import PromptConfig
from fedkd.fourier.prompter import Prompter
from fedkd.fourier.quality import measure_prompts
from fedkd.teachers.frozen import Teacher
from fedkd.teachers.moments import layer_divergences
from tests.prompt_scene import LEARNED, SIZE, make_explorer, make_generator, natural, target


def vision_transformer():
    """A tiny transformer with LayerNorm, its reference measured on natural images."""
    with seeding.isolated(0, "vit"):
        network = VisionTransformer(
            image_size=SIZE, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32
        )
        network.heads = torch.nn.Identity()
    teacher = Teacher(
        "vit", network, num_features=16, mean=(0.5,) * 3, std=(0.25,) * 3, input_size=None,
        head=None, head_kind="none",
    )  # fmt: skip
    teacher.measure_reference(natural(128, seed=1).split(50))
    return teacher


@pytest.fixture(scope="module")
def teacher():
    return vision_transformer()


def test_layernorms_are_paired_by_name_and_are_near_zero_on_their_own_images(teacher):
    # Oracle O8.
    own = layer_divergences(teacher.observe(natural(128, seed=1)).moments, teacher.reference)
    assert "encoder.ln" in own
    assert len(own) == 5
    assert max(own.values()) < 1e-5
    strange = layer_divergences(teacher.observe(target(128, seed=2)).moments, teacher.reference)
    assert min(strange.values()) > 0.01


@pytest.mark.parametrize("generator", LEARNED)
def test_exploration_on_a_transformer_lowers_its_prior_and_leaves_it_alone(teacher, generator):
    # Oracles O9 and O10.
    before = copy.deepcopy(teacher.state_dict())
    explorer = make_explorer(teacher, PromptConfig(generator=generator))
    images = target(32, seed=2)
    for step in range(25):
        explorer.step(images, seeding.generator(0, "explore", step))
    held_out = target(64, seed=9)
    seen = measure_prompts(teacher, explorer.prompter, held_out, seeding.generator(0, "z"))
    assert seen.prior < 0.8 * seen.prior_clean
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


@pytest.mark.parametrize("name", ["conv", "amplitude_mix"])
def test_transforms_are_float32_under_autocast(name):
    u = natural(4, seed=3)
    prompter = Prompter(PromptConfig(generator=name), make_generator(name))
    drawn = prompter.draw(4, seeding.generator(0, "z"), u)
    with torch.no_grad():
        gains = None if name == "amplitude_mix" else prompter.log_gains(drawn.latents)
    outputs = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            if gains is None:
                outputs.append(prompter.mix_amplitudes(u, u.roll(-1, 0), drawn.strengths).pixels)
            else:
                outputs.append(prompter.apply(u, gains, drawn.strengths).pixels)
    assert torch.equal(*outputs)
    assert outputs[1].dtype == torch.float32


@pytest.mark.parametrize("generator", LEARNED)
def test_generators_explore_under_autocast(teacher, generator):
    explorer = make_explorer(teacher, PromptConfig(generator=generator))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = explorer.step(target(4, seed=2), seeding.generator(0, "explore"))
    assert all(torch.tensor(value).isfinite() for value in values.values())
    assert all(one.dtype == torch.float32 for one in explorer.generator.parameters())
