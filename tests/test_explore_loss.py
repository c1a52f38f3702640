"""L_explore: the prior's order of images, the sum of terms, its gradient."""

import pytest
import torch
from torch import nn

from fedkd import seeding
from fedkd.data.dead_leaves import dead_leaves
from fedkd.fourier import spectrum
from fedkd.fourier.config import ExploreConfig
from fedkd.fourier.explore import explore_loss
from fedkd.fourier.prompts import Prompted, diversity_loss, prompt
from fedkd.losses.distillation import feature_distillation
from fedkd.models.small_resnet import SmallResNet
from fedkd.teachers.config import TeacherConfig
from fedkd.teachers.frozen import Teacher, confidence_loss
from fedkd.teachers.loading import open_teacher
from fedkd.teachers.moments import layer_divergences, moment_divergence
from tests.prompt_scene import (
    SIZE,
    full_prompts,
    make_generator,
    make_student,
    natural,
    target,
    teacher_on,
)


@pytest.fixture(scope="module")
def teacher():
    return teacher_on(natural(512, seed=1))


@pytest.fixture(scope="module")
def student():
    return make_student()


def test_prior_is_zero_on_the_teachers_own_data_in_every_layer(teacher):
    # Oracle O8. Fresh images of the same kind only differ by sampling.
    for images, tolerance in ((natural(512, seed=1), 1e-5), (natural(512, seed=9), 5e-3)):
        layers = layer_divergences(teacher.observe(images).moments, teacher.reference)
        assert len(layers) == 9
        assert max(layers.values()) < tolerance


def test_prior_ranks_natural_below_target_below_flat_images(teacher):
    # Oracle O8.
    values = [
        float(moment_divergence(teacher.observe(images).moments, teacher.reference))
        for images in (natural(128, 9), target(128, 9), torch.full((128, 3, SIZE, SIZE), 0.5))
    ]
    assert values[0] < 0.01
    assert values[0] < values[1] / 10
    assert values[1] < values[2] / 1.5


def test_prior_of_the_shipped_teacher_is_near_zero_on_its_own_kind_of_images_only():
    # Oracle O8 for the default teacher, at the size it was made to be read at.
    shipped = open_teacher(TeacherConfig())
    leaves = torch.from_numpy(dead_leaves(64, 64, seed=77)).float() / 255
    own = layer_divergences(shipped.observe(leaves).moments, shipped.reference)
    assert max(own.values()) < 0.05
    flat = layer_divergences(shipped.observe(leaves * 0 + 0.5).moments, shipped.reference)
    assert min(flat.values()) > 0.2


def test_loss_is_the_weighted_sum_of_its_terms(teacher, student):
    images = target(6, seed=3)
    gains, pixels = full_prompts(make_generator(), images)
    z = torch.randn(6, 64, generator=seeding.generator(0, "z"))
    config = ExploreConfig(
        prior_weight=2, confidence_weight=3, diversity_weight=5, out_of_range_weight=7
    )
    clean, seen = teacher.observe(images), teacher.observe(pixels)
    with torch.no_grad():
        projection = student(images)
    prompted = Prompted(pixels, torch.tensor(0.25), torch.tensor(0.5))
    terms = explore_loss(
        teacher, prompted, clean, gains, z, config, gamma=11.0, projection=projection
    )
    expected = {
        "prior": moment_divergence(seen.moments, teacher.reference),
        "confidence": confidence_loss(seen, clean, "contrastive", 0.2),
        "diversity": diversity_loss(gains, z),
        "out_of_range": torch.tensor(0.25),
        "disagreement": feature_distillation(projection, seen.features).mean(),
    }
    weights = (2, 3, 5, 7, -11)
    total = sum(w * float(v) for w, v in zip(weights, expected.values(), strict=True))
    assert terms.keys() == {"explore_loss", *expected}
    for name, value in expected.items():
        assert float(terms[name]) == pytest.approx(float(value), rel=1e-5), name
    assert float(terms["explore_loss"]) == pytest.approx(total, rel=1e-5)


def test_gradient_of_the_loss_is_that_of_finite_differences():
    with seeding.isolated(0, "teacher"):
        network, head = SmallResNet((2, 3)), nn.Linear(3, 2)
    images = natural(3, seed=4)[..., :8, :8].double()
    teacher = Teacher(
        "tiny",
        network,
        num_features=3,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        input_size=None,
        head=head,
        head_kind="contrastive",
    ).double()
    teacher.measure_reference([natural(8, seed=5)])
    clean = teacher.observe(images)
    rng = seeding.generator(0, "gains")
    z = torch.randn(3, 4, generator=rng, dtype=torch.float64)
    gains = 0.1 * torch.randn(3, 3, 8, 5, generator=rng, dtype=torch.float64)

    def loss(values):
        symmetric = spectrum.symmetrise(values, 8)
        seen = prompt(images, symmetric, torch.ones(3).double(), form="gain", keep_dc=False)
        projection = torch.ones(3, 3, dtype=torch.float64)
        config = ExploreConfig(confidence_weight=1.0)
        terms = explore_loss(
            teacher, seen, clean, symmetric, z, config, gamma=0.3, projection=projection
        )
        return terms["explore_loss"]

    assert torch.autograd.gradcheck(loss, gains.requires_grad_(), fast_mode=True, eps=1e-7)
