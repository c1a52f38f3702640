import copy
import math

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import nn

from fedkd import seeding
from fedkd.data.dead_leaves import dead_leaves
from fedkd.errors import TeacherError
from fedkd.fourier import spectrum
from fedkd.fourier.config import ExploreConfig, PromptConfig
from fedkd.fourier.explore import Explorer, explore_loss, held_out_prior
from fedkd.fourier.generators.conv import ConvGenerator
from fedkd.fourier.prompter import Prompter
from fedkd.fourier.prompts import (
    Prompted,
    diversity_loss,
    effective_rank,
    prompt,
)
from fedkd.losses.distillation import feature_distillation
from fedkd.models.small_resnet import SmallResNet
from fedkd.teachers.config import TeacherConfig
from fedkd.teachers.frozen import Teacher, confidence_loss
from fedkd.teachers.loading import open_teacher
from fedkd.teachers.moments import layer_divergences, moment_divergence

SIZE = 32
TERMS = {
    "explore_loss",
    "prior",
    "clean_prior",
    "confidence",
    "diversity",
    "out_of_range",
    "disagreement",
    "gamma_effective",
}


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


@pytest.fixture(scope="module")
def teacher():
    return teacher_on(natural(512, seed=1))


@pytest.fixture(scope="module")
def student():
    with seeding.isolated(0, "student"):
        return nn.Sequential(SmallResNet((8, 16)), nn.Linear(16, 56)).eval()


def make_generator(seed=0):
    with seeding.isolated(seed, "fpg"):
        return ConvGenerator(3, SIZE, SIZE, latent_dim=64, max_gain=4.0)


def make_explorer(teacher, prompts=None, mean_amplitude=None, **config):
    prompter = Prompter(prompts or PromptConfig(), make_generator(), mean_amplitude)
    return Explorer(prompter, teacher, ExploreConfig(**config))


def run(explorer, images, start, end, project=None):
    """Steps ``start`` to ``end``, each with a batch and draws of its own."""
    log = []
    for step in range(start, end):
        rng = seeding.generator(0, "explore", step)
        rows = torch.randint(len(images), (16,), generator=rng)
        log.append(explorer.step(images[rows], rng, project))
    return log


@pytest.fixture(scope="module")
def explored(teacher):
    """A generator after 60 steps, with its log and what the teacher was before."""
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    explorer = make_explorer(teacher)
    return explorer, run(explorer, target(256, seed=2), 0, 60), before


def full_prompts(generator, images, seed=0):
    z = torch.randn(len(images), 64, generator=seeding.generator(seed, "z"))
    with torch.no_grad():
        gains = generator(z)
        strength = torch.ones(len(images))
        return gains, prompt(images, gains, strength, form="gain", keep_dc=False).pixels


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


def test_exploration_lowers_the_prior_of_held_out_images(teacher, explored):
    # Oracle O10.
    explorer, log, _ = explored
    rng = seeding.generator(0, "held-out")
    clean, prompted = held_out_prior(teacher, explorer.prompter, target(128, seed=9), rng)
    assert prompted < 0.5 * clean
    assert all(math.isfinite(value) for terms in log for value in terms.values())
    assert all(terms.keys() == TERMS for terms in log)
    assert log[-1]["explore_loss"] < log[0]["explore_loss"]


def test_an_untrained_generator_hardly_changes_the_prior(teacher):
    images = target(128, seed=9)
    rng = seeding.generator(0, "held-out")
    prompter = Prompter(PromptConfig(), make_generator())
    clean, prompted = held_out_prior(teacher, prompter, images, rng)
    assert clean == float(moment_divergence(teacher.observe(images).moments, teacher.reference))
    assert prompted == pytest.approx(clean, rel=0.2)


def test_prompts_do_not_collapse_to_one_direction(explored):
    # Oracle O11.
    gains, _ = full_prompts(explored[0].generator, target(128, seed=9))
    assert effective_rank(gains) > 3


def test_the_penalty_keeps_prompted_images_in_range(teacher):
    images, out_of_range = target(128, seed=9), {}
    for weight in (0.0, 10.0):
        explorer = make_explorer(teacher, out_of_range_weight=weight)
        run(explorer, target(256, seed=2), 0, 20)
        gains, _ = full_prompts(explorer.generator, images)
        seen = prompt(images, gains, torch.ones(128), form="gain", keep_dc=False)
        out_of_range[weight] = float(seen.out_of_range)
    assert out_of_range[10.0] < 0.5 * out_of_range[0.0]


def test_more_gamma_means_more_disagreement(teacher, student, explored):
    # Oracle O12: from one warm start, on held-out images.
    warm, images = explored[0].state(), target(128, seed=9)
    images_train = target(256, seed=2)
    disagreements = []
    for gamma in (0.0, 1.0, 3.0):
        explorer = make_explorer(teacher, gamma=gamma)
        explorer.load_state(warm)
        run(explorer, images_train, 60, 80, student)
        _, prompted = full_prompts(explorer.generator, images)
        with torch.no_grad():
            loss = feature_distillation(student(images), teacher.features(prompted))
        disagreements.append(float(loss.mean()))
    assert disagreements[0] < disagreements[1] < disagreements[2]


def test_exploration_changes_the_generator_alone(teacher, student, explored):
    # Oracle O9: to the bit, with AKD in effect.
    _, _, before = explored
    pupil = copy.deepcopy(student)
    explorer = make_explorer(teacher, gamma=0.3, warm_up_steps=0)
    start = copy.deepcopy(explorer.generator.state_dict())
    log = run(explorer, target(32, seed=2), 0, 2, pupil)
    assert log[0]["gamma_effective"] == 0.3
    for module, expected in ((teacher, before), (pupil, student.state_dict())):
        for name, value in module.state_dict().items():
            assert torch.equal(value, expected[name]), name
    assert all(p.grad is None for m in (teacher, pupil) for p in m.parameters())
    for name, value in explorer.generator.state_dict().items():
        assert not torch.equal(value, start[name]), name


def test_equal_seeds_give_equal_generators_and_leave_the_global_generator_alone(teacher):
    before, images = torch.get_rng_state(), target(32, seed=2)
    first, second, other = (make_explorer(teacher) for _ in range(3))
    assert run(first, images, 0, 2) == run(second, images, 0, 2)
    run(other, images, 1, 3)
    pairs = list(zip(*(e.state().values() for e in (first, second, other)), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert not all(torch.equal(a, c) for a, _, c in pairs)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_continued_from_its_state_is_bit_identical(teacher, student):
    images, settings = target(32, seed=2), {"gamma": 3.0, "warm_up_steps": 1}
    whole, part = make_explorer(teacher, **settings), make_explorer(teacher, **settings)
    expected = run(whole, images, 0, 5, student)
    seen = run(part, images, 0, 3, student)
    state = part.state()
    kept = {name: value.clone() for name, value in state.items()}
    run(part, images, 8, 9, student)  # does not reach into the state that it gave
    resumed = make_explorer(teacher, **settings)
    run(resumed, images, 7, 8, student)  # whatever it had done is forgotten
    resumed.load_state(state)
    seen += run(resumed, images, 3, 5, student)
    assert seen == expected
    final = resumed.state()
    assert final.keys() == whole.state().keys()
    for name, value in whole.state().items():
        assert torch.equal(final[name], value), name
    # The state is a copy: neither explorer has written into it.
    assert all(torch.equal(state[name], kept[name]) for name in kept)


def test_state_of_a_fresh_explorer_resets_a_used_one(teacher):
    images, fresh, used = target(32, seed=2), make_explorer(teacher), make_explorer(teacher)
    run(used, images, 0, 2)
    used.load_state(fresh.state())
    assert run(used, images, 0, 2) == run(fresh, images, 0, 2)


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
    prompted = Prompted(pixels, torch.tensor(0.25))
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


def test_gamma_without_a_projection_is_refused(teacher):
    explorer = make_explorer(teacher, gamma=0.3, warm_up_steps=1)
    images = target(8, seed=2)
    rng = seeding.generator(0, "explore")
    explorer.step(images, rng)  # the warm-up needs none
    with pytest.raises(ValueError, match=r"gamma is 0\.3; the student's projection is needed"):
        explorer.step(images, rng)


def test_the_student_is_asked_only_when_akd_is_in_effect_and_without_gradients(teacher, student):
    calls = []

    def project(images):
        calls.append((images.clone(), torch.is_grad_enabled()))
        return student(images)

    explorer = make_explorer(teacher, gamma=0.3, warm_up_steps=2)
    images = target(8, seed=2)
    rng = seeding.generator(0, "explore")
    logs = [explorer.step(images, rng, project) for _ in range(3)]
    assert [terms["gamma_effective"] for terms in logs] == [0.0, 0.0, 0.3]
    assert [terms["disagreement"] > 0 for terms in logs] == [False, False, True]
    assert len(calls) == 1
    assert torch.equal(calls[0][0], images)  # un-prompted
    assert not calls[0][1]


def test_gamma_is_halved_while_the_running_prior_exceeds_that_of_clean_images(teacher):
    # The guard alone, with the priors of made-up steps.
    explorer = make_explorer(teacher, gamma=0.8, warm_up_steps=1)
    seen = []
    for prior in (5.0, 5.0, 5.0, 0.0, 0.0, 0.0, -40.0, 0.0, 0.0, 0.0):
        explorer._guard(prior, 4.0)
        seen.append((round(explorer.running_prior, 4), explorer.effective_gamma))
    assert explorer.running_clean_prior == pytest.approx(4.0)
    # Running means by hand: 5, 5, 5, 4.5, 4.05, 3.645, 0.9 * 3.645 - 4 = -0.7195, ...
    assert [mean for mean, _ in seen[:7]] == [5, 5, 5, 4.5, 4.05, 3.645, -0.7195]
    # No halving during the warm-up, then four of them, then back, one doubling a step, to 0.8.
    assert [gamma for _, gamma in seen] == [0.8, 0.4, 0.2, 0.1, 0.05, 0.1, 0.2, 0.4, 0.8, 0.8]


def test_gamma_is_halved_ten_times_at_most(teacher):
    explorer = make_explorer(teacher, gamma=1.0, warm_up_steps=0)
    for _ in range(15):
        explorer._guard(5.0, 4.0)
    assert explorer.effective_gamma == 2**-10


@pytest.mark.parametrize("head_kind", ["supervised", "none"])
@pytest.mark.parametrize("prior", ["kl", "l2"])
def test_every_kind_of_head_and_prior_trains_the_generator(head_kind, prior):
    teacher = teacher_on(natural(64, seed=1), head_kind)
    explorer = make_explorer(teacher, prior=prior, confidence_weight=1.0)
    log = run(explorer, target(64, seed=2), 0, 8)
    assert log[-1]["prior"] < log[0]["prior"]


@pytest.mark.parametrize("per", ["image", "batch"])
@pytest.mark.parametrize("num", [1, 3])
def test_exploration_draws_a_prompt_per_image_and_two_at_least(teacher, per, num):
    explorer = make_explorer(teacher, PromptConfig(per=per))
    seen = []
    explorer.generator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    terms = explorer.step(target(num, seed=2), seeding.generator(0, "explore"))
    assert seen[0].shape == (max(num, 2), 64)
    assert 1 < terms["diversity"] < 99
    assert all(math.isfinite(value) for value in terms.values())


def test_mix_form_and_kept_dc_train_the_generator(teacher):
    images = target(64, seed=2)
    prompts = PromptConfig(form="mix", keep_dc=True, max_strength=0.5)
    explorer = make_explorer(teacher, prompts, spectrum.mean_amplitude([images]))
    log = run(explorer, images, 0, 3)
    assert all(math.isfinite(value) for terms in log for value in terms.values())


def test_black_images_and_double_precision_explore_without_nan(teacher):
    images = torch.zeros(4, 3, SIZE, SIZE, dtype=torch.float64)
    prompter = Prompter(PromptConfig(), make_generator().double())
    explorer = Explorer(prompter, copy.deepcopy(teacher).double(), ExploreConfig())
    terms = explorer.step(images, seeding.generator(0, "explore"))
    assert all(math.isfinite(value) for value in terms.values())
    assert explorer.state()["generator.conv3.weight"].dtype == torch.float64


def test_a_gradient_that_is_not_finite_is_raised_and_changes_nothing(teacher):
    explorer = make_explorer(teacher)
    before = explorer.state()
    images = target(4, seed=2)
    images[0, 0, 0, 0] = math.nan
    with pytest.raises(RuntimeError, match="non-finite"):
        explorer.step(images, seeding.generator(0, "explore"))
    assert all(torch.equal(value, before[name]) for name, value in explorer.state().items())


def test_a_teacher_without_reference_is_refused_before_the_first_step():
    network = SmallResNet((4,))
    blank = Teacher(
        "blank",
        network,
        num_features=4,
        mean=None,
        std=None,
        input_size=None,
        head=None,
        head_kind="none",
    )
    with pytest.raises(TeacherError, match="measure_reference"):
        make_explorer(blank)


def test_mix_without_mean_amplitude_is_refused(teacher):
    explorer = make_explorer(teacher, PromptConfig(form="mix"))
    with pytest.raises(ValueError, match="needs mean_amplitude"):
        explorer.step(target(4, seed=2), seeding.generator(0, "explore"))


@pytest.mark.parametrize(
    "wrong",
    [{"prior": "js"}, {"temperature": 0}, {"gamma": -1}, {"batch_size": 0}, {"clip_norm": 0}],
)
def test_config_refuses_values_out_of_range(wrong):
    with pytest.raises(ValidationError):
        ExploreConfig(**wrong)
