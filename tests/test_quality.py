"""What prompts are like: measures by hand, of each generator and of the controls."""

import logging
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clients.factory import make_objective
from fedkd import seeding
from fedkd.fourier.config import PromptConfig
from fedkd.fourier.prompter import Prompter
from fedkd.fourier.prompts import effective_rank
from fedkd.fourier.quality import Quality, measure_prompts
from fedkd.teachers.moments import moment_divergence
from tests.prompt_scene import LEARNED, make_generator, natural, target, teacher_on

COLUMNS = {
    "prior", "prior_clean", "prompt_magnitude", "prompt_rank", "prompt_diversity", "prompt_cosine",
    "prompt_saturated",
}  # fmt: skip


@pytest.fixture(scope="module")
def teacher():
    return teacher_on(natural(512, seed=1))


def prompter_of(name, **settings):
    config = PromptConfig(generator=name, **settings)
    return Prompter(config, make_generator(name, **settings))


def measured(teacher, prompter, num=16):
    rng = seeding.generator(0, "held-out")
    return measure_prompts(teacher, prompter, target(num, seed=9), rng)


def test_an_untrained_generator_hardly_changes_the_prior(teacher):
    images = target(16, seed=9)
    seen = measured(teacher, prompter_of("conv"))
    clean = float(moment_divergence(teacher.observe(images).moments, teacher.reference))
    assert seen.prior_clean == clean
    assert seen.prior == pytest.approx(seen.prior_clean, rel=0.2)
    assert seen.cosine > 0.95


def test_measures_are_those_of_the_draws_that_the_generator_gives(teacher):
    images, prompter = target(16, seed=9), prompter_of("jitter", magnitude=0.6)
    seen = measured(teacher, prompter)
    rng = seeding.generator(0, "held-out")
    first = prompter.full(images, rng)
    second = prompter.full(images.flip(0), rng).pixels.flip(0)
    clean, one, other = (teacher.features(p) for p in (images, first.pixels, second))
    gains = prompter.log_gains(prompter.draw(32, rng, images).latents)
    expected = Quality(
        prior=float(moment_divergence(teacher.observe(first.pixels).moments, teacher.reference)),
        prior_clean=seen.prior_clean,
        magnitude=float(gains.abs().mean()),
        effective_rank=effective_rank(gains),
        feature_diversity=1 - float(F.cosine_similarity(one, other).mean()),
        cosine=float(F.cosine_similarity(one, clean).mean()),
        saturated=float(first.saturated),
    )
    assert seen == pytest.approx(expected, rel=1e-6)
    assert seen.magnitude == pytest.approx(0.6, rel=0.1)
    assert 0 < seen.feature_diversity < 1
    assert 0 < seen.saturated < 1


def test_amplitude_mix_has_no_log_gain_and_two_neighbours(teacher):
    seen = measured(teacher, prompter_of("amplitude_mix"))
    assert math.isnan(seen.magnitude)
    assert math.isnan(seen.effective_rank)
    assert seen.feature_diversity > 1e-4
    assert seen.cosine < 0.9995
    alone = measured(teacher, prompter_of("amplitude_mix"), num=1)
    assert alone.feature_diversity == pytest.approx(0, abs=1e-5)
    assert alone.cosine == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", [*LEARNED, "jitter"])
def test_a_batch_of_one_is_measured(teacher, name):
    assert all(math.isfinite(value) for value in measured(teacher, prompter_of(name), num=1))


def test_a_measure_asks_the_teacher_three_times_and_leaves_no_gradient(teacher):
    calls = []
    hook = teacher.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    measured(teacher, prompter_of("conv"))
    hook.remove()
    assert calls == [False] * 3


@pytest.mark.parametrize("generator", ["conv", "jitter", "amplitude_mix"])
def test_clients_report_what_prompts_are_like(opened, generator):
    objective, student, loader = parts(opened(prompts={"generator": generator}))
    values = objective.start_round(student, loader, 1)
    expected = COLUMNS if generator != "amplitude_mix" else COLUMNS - {"prompt_magnitude",
                                                                       "prompt_rank"}  # fmt: skip
    assert expected == {name for name in values if not name.startswith("explore_")}
    assert ("explore_prior" in values) == (generator == "conv")
    assert objective.target(loader.pixels(np.arange(4))).shape == (4, 10)


def parts(experiment):
    return make_objective(experiment, 0, 1), experiment.build_student(), experiment.loader(0)


def test_terms_of_a_round_are_means_over_its_steps_after_the_warm_up(opened, monkeypatch):
    objective, student, loader = parts(
        opened(explore={"warm_up_steps": 2, "steps_per_round": 3, "every": 2})
    )
    log, step = [], objective._explorer.step

    def kept(*args):
        log.append(step(*args))
        return log[-1]

    monkeypatch.setattr(objective._explorer, "step", kept)
    first = objective.start_round(student, loader, 1)
    assert first["explore_steps"] == len(log) == 5
    for name in ("prior", "clean_prior", "confidence", "diversity", "out_of_range"):
        expected = sum(terms[name] for terms in log[2:]) / 3
        assert first[f"explore_{name}"] == pytest.approx(expected, rel=1e-12)
    resting = objective.start_round(student, loader, 2)
    assert resting["explore_steps"] == 0
    assert "explore_prior" not in resting
    assert resting["prior"] == first["prior"], "nothing was trained"
    third = objective.start_round(student, loader, 3)
    assert third["explore_steps"] == 3
    assert third["explore_prior"] == pytest.approx(sum(t["prior"] for t in log[5:]) / 3, rel=1e-12)


def test_a_collapse_is_warned_of_once_in_a_run(opened, caplog):
    changes = {"prompts": {"generator": "bank", "bank_size": 2}}  # one direction at the most
    objective, student, loader = parts(opened(**changes))
    with caplog.at_level(logging.WARNING):
        objective.start_round(student, loader, 1)
        again, *_ = parts(opened(**changes))
        again.load_state(objective.state())
        again.start_round(student, loader, 2)
    (text,) = (record.getMessage() for record in caplog.records if "collapsed" in record.msg)
    assert text.startswith("the prompts of client 0 have collapsed: their effective rank is 1.0")
    assert "explore.diversity_weight or another prompts.generator" in text
