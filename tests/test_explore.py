"""Explorer: what it trains and leaves alone, which images it sees, how it goes on."""

import copy
import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from fedkd import seeding
from fedkd.errors import ConfigError, TeacherError
from fedkd.fourier import spectrum
from fedkd.fourier.config import ExploreConfig, PromptConfig
from fedkd.fourier.explore import Explorer
from fedkd.fourier.prompter import Prompter
from fedkd.fourier.prompts import effective_rank, prompt
from fedkd.fourier.quality import measure_prompts
from fedkd.models.small_resnet import SmallResNet
from fedkd.teachers.frozen import Teacher
from tests.prompt_scene import (
    LEARNED,
    SIZE,
    full_prompts,
    make_explorer,
    make_generator,
    make_student,
    natural,
    run,
    target,
    teacher_on,
)

TERMS = {
    "explore_loss",
    "prior",
    "clean_prior",
    "confidence",
    "diversity",
    "out_of_range",
    "gamma_effective",
}


@pytest.fixture(scope="module")
def teacher():
    return teacher_on(natural(512, seed=1))


@pytest.fixture(scope="module")
def student():
    return make_student()


@pytest.fixture(scope="module")
def explored(teacher, request):
    """A generator after 60 steps, with its log."""
    explorer = make_explorer(teacher, PromptConfig(generator=request.param))
    return explorer, run(explorer, target(256, seed=2), 0, 60)


@pytest.mark.parametrize("explored", LEARNED, indirect=True)
def test_prompts_do_not_collapse_to_one_direction_but_for_those_of_mlp(explored):
    # Oracle O11.
    explorer, _ = explored
    gains, _ = full_prompts(explorer.generator, target(128, seed=9))
    assert (effective_rank(gains) > 3) == (explorer.prompter.config.generator != "mlp")


@pytest.mark.parametrize("explored", LEARNED, indirect=True)
def test_exploration_lowers_the_prior_of_held_out_images(teacher, explored):
    # Oracle O10.
    explorer, log = explored
    rng = seeding.generator(0, "held-out")
    seen = measure_prompts(teacher, explorer.prompter, target(128, seed=9), rng)
    assert seen.prior < 0.5 * seen.prior_clean
    assert all(math.isfinite(value) for terms in log for value in terms.values())
    assert all(terms.keys() == TERMS for terms in log)
    assert log[-1]["explore_loss"] < log[0]["explore_loss"]


def test_the_penalty_keeps_prompted_images_in_range(teacher):
    images, out_of_range = target(128, seed=9), {}
    for weight in (0.0, 10.0):
        explorer = make_explorer(teacher, out_of_range_weight=weight)
        run(explorer, target(256, seed=2), 0, 20)
        gains, _ = full_prompts(explorer.generator, images)
        seen = prompt(images, gains, torch.ones(128), form="gain", keep_dc=False)
        out_of_range[weight] = float(seen.out_of_range)
    assert out_of_range[10.0] < 0.5 * out_of_range[0.0]


@pytest.mark.parametrize("generator", LEARNED)
def test_exploration_changes_the_generator_alone(teacher, student, generator):
    # Oracle O9: to the bit, with AKD in effect.
    pupil = copy.deepcopy(student)
    before = [copy.deepcopy(module.state_dict()) for module in (teacher, pupil)]
    prompts = PromptConfig(generator=generator)
    explorer = make_explorer(teacher, prompts, gamma=0.3, warm_up_steps=0)
    start = copy.deepcopy(explorer.generator.state_dict())
    log = run(explorer, target(32, seed=2), 0, 2, pupil)
    assert log[0]["gamma_effective"] == 0.3
    for module, expected in zip((teacher, pupil), before, strict=True):
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
    text = r"step 1 of exploration has a gradient that is not finite .*learning_rate \(it is 0.002"
    with pytest.raises(ConfigError, match=text):
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
    [
        {"prior": "js"},
        {"temperature": 0},
        {"gamma": -1},
        {"batch_size": 0},
        {"clip_norm": 0},
        {"every": 0},
        {"epochs_per_round": 0},
    ],
)
def test_config_refuses_values_out_of_range(wrong):
    with pytest.raises(ValidationError):
        ExploreConfig(**wrong)


def plans(num_images, num_rounds, **config):
    """The plans of some rounds of a client that explores nothing but its plans."""
    explorer = make_explorer(teacher_on(natural(8, seed=1)), **config)
    for number in range(num_rounds):
        plan = explorer.plan_round(num_images, seeding.rng(0, "plan", number))
        explorer.num_steps += len(plan)
        yield plan


def test_a_round_has_the_rest_of_the_warm_up_and_its_own_steps():
    config = {"warm_up_steps": 3, "steps_per_round": 2, "batch_size": 4}
    first, second = plans(10, 2, **config)
    assert [len(first), len(second)] == [5, 2]
    assert all(len(set(rows.tolist())) == 4 for rows in first + second)
    assert max(np.concatenate(first)) < 10


def test_epochs_see_every_image_once_but_for_what_fills_no_batch():
    config = {"warm_up_steps": 1, "steps_per_round": 9, "batch_size": 4, "epochs_per_round": 2}
    first, second = plans(10, 2, **config)
    assert [len(first), len(second)] == [1 + 4, 4]
    for epoch in (first[1:3], first[3:], second[:2], second[2:]):
        assert len(set(np.concatenate(epoch).tolist())) == 8
    (whole,) = plans(8, 1, **{**config, "warm_up_steps": 0})
    assert sorted(np.concatenate(whole[:2])) == list(range(8))
    (few,) = plans(3, 1, **{**config, "warm_up_steps": 0})
    assert [sorted(rows.tolist()) for rows in few] == [[0, 1, 2], [0, 1, 2]]


def test_every_counts_the_clients_own_rounds_from_its_first():
    config = {"warm_up_steps": 4, "steps_per_round": 2, "every": 3}
    assert [len(plan) for plan in plans(10, 7, **config)] == [6, 0, 0, 2, 0, 0, 2]


def test_rounds_are_counted_on_from_the_state(teacher):
    explorer, resumed = (make_explorer(teacher, warm_up_steps=0, every=2) for _ in range(2))
    explorer.plan_round(10, seeding.rng(0, "plan"))
    resumed.load_state(explorer.state())
    assert resumed.plan_round(10, seeding.rng(0, "plan")) == []


def test_a_collapse_is_noticed_once_and_not_during_the_warm_up(teacher):
    explorer = make_explorer(teacher, warm_up_steps=1)
    assert not explorer.notice_collapse(1.0)
    explorer.num_steps = 1
    assert [explorer.notice_collapse(rank) for rank in (3.0, 2.9, 1.0)] == [False, True, False]
    resumed = make_explorer(teacher, warm_up_steps=1)
    resumed.load_state(explorer.state())
    assert not resumed.notice_collapse(1.0)


def test_a_generator_learns_at_its_own_rate(teacher):
    for name, rate in (("conv", 2e-3), ("bank", 2e-2)):
        explorer = make_explorer(teacher, PromptConfig(generator=name))
        before = [one.detach().clone() for one in explorer.generator.parameters()]
        explorer.step(target(16, seed=2), seeding.generator(0, "explore"))
        moved = [
            (after - old).abs().max().item()
            for after, old in zip(explorer.generator.parameters(), before, strict=True)
        ]
        # The first step of Adam is the learning rate, whatever the gradient.
        assert max(moved) == pytest.approx(rate, rel=1e-2)
