import datetime
import json
import math
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

from fedkd import config
from fedkd.errors import ConfigError
from fedkd.recipe import Recipe
from fedkd.schedules import SCHEDULES, TORCH_SCHEDULERS, ScheduleConfig, learning_rates

FIGURES = json.loads((Path(__file__).parent / "data/fedmas_reference.json").read_text())["pure"]

# Each scheduler, with the rates that its formula gives for five rounds from 0.1 on.
BY_HAND = {
    "ConstantLR": ({"factor": 0.5, "total_iters": 2}, [0.05, 0.05, 0.1, 0.1, 0.1]),
    "CosineAnnealingLR": (
        {"T_max": 4, "eta_min": 0.02},
        [0.1, 0.06 + 0.02 * math.sqrt(2), 0.06, 0.06 - 0.02 * math.sqrt(2), 0.02],
    ),
    "CosineAnnealingWarmRestarts": ({"T_0": 2}, [0.1, 0.05, 0.1, 0.05, 0.1]),
    "CyclicLR": (
        {"base_lr": 0.2, "max_lr": 0.4, "step_size_up": 2},
        [0.2, 0.3, 0.4, 0.3, 0.2],
    ),
    "ExponentialLR": ({"gamma": 0.5}, [0.1, 0.05, 0.025, 0.0125, 0.00625]),
    "LinearLR": (
        {"start_factor": 0.5, "end_factor": 1.0, "total_iters": 2},
        [0.05, 0.075, 0.1, 0.1, 0.1],
    ),
    "MultiStepLR": ({"milestones": [1, 3], "gamma": 0.1}, [0.1, 0.01, 0.01, 0.001, 0.001]),
    "OneCycleLR": (
        {
            "max_lr": 0.4,
            "total_steps": 5,
            "pct_start": 0.6,
            "anneal_strategy": "linear",
            "div_factor": 4.0,
            "final_div_factor": 10.0,
        },
        [0.1, 0.25, 0.4, (0.4 + 0.01) / 2, 0.01],
    ),
    "PolynomialLR": ({"total_iters": 4, "power": 2.0}, [0.1, 0.05625, 0.025, 0.00625, 0.0]),
    "StepLR": ({"step_size": 2, "gamma": 0.1}, [0.1, 0.1, 0.01, 0.01, 0.001]),
}


def of_torch(scheduler, **options):
    return ScheduleConfig(name="torch", scheduler=scheduler, options=options)


def saved_and_loaded(recipe, folder, text):
    path = folder / "recipe.toml"
    path.write_text(text(recipe))
    return config.load(Recipe, path)


def test_constant_is_the_initial_rate_in_every_round():
    assert learning_rates(ScheduleConfig(), 0.03, 4) == [0.03] * 4


@pytest.mark.parametrize(
    "key", ["cosine_lr0.01_T5", "cosine_lr0.0003_T100", "cosine_lr0.1_T20", "cosine_lr5e-05_T10"]
)
def test_cosine_has_the_figures_of_fed_mas(key):
    initial, num_rounds = re.fullmatch(r"cosine_lr(.+)_T(\d+)", key).groups()
    rates = learning_rates(ScheduleConfig(name="cosine"), float(initial), int(num_rounds))
    figures = FIGURES["lr"][key]
    assert [rates[r] for r in figures["rounds"]] == pytest.approx(figures["lr"], rel=1e-11)


def test_multi_step_has_the_figures_of_fed_mas():
    rates = learning_rates(ScheduleConfig(name="multi_step"), 0.01, 76)
    figures = FIGURES["lr"]["multi_step_lr0.01_one_call_per_round"]
    assert len(figures) == 10
    for r, rate in figures.items():
        assert rates[int(r)] == pytest.approx(rate, rel=1e-11)


def test_cosine_by_hand_ends_at_the_minimum_to_the_bit():
    # 0.2 + 0.8 / 2 * (1 + cos(pi/3, 2 pi/3, pi)) = 0.2 + 0.4 * (1.5, 0.5, 0)
    schedule = ScheduleConfig(name="cosine", min_learning_rate=0.2)
    rates = learning_rates(schedule, 1.0, 3)
    assert rates == pytest.approx([0.8, 0.4, 0.2])
    assert rates[-1] == 0.2
    assert learning_rates(schedule, 1.0, 1) == [0.2]


def test_cosine_rises_from_a_rate_below_the_minimum():
    rates = learning_rates(ScheduleConfig(name="cosine", min_learning_rate=0.5), 0.1, 6)
    assert rates[0] > 0.1
    assert rates == sorted(rates)
    assert rates[-1] == 0.5


@pytest.mark.parametrize(
    ("milestone", "rates"),
    [(0, [0.5, 0.25, 0.125, 0.0625]), (2, [1, 1, 0.5, 0.25]), (4, [1, 1, 1, 1])],
)
def test_multi_step_compounds_from_the_milestone_on(milestone, rates):
    schedule = ScheduleConfig(name="multi_step", milestone=milestone, factor=0.5)
    assert learning_rates(schedule, 1.0, 4) == rates


@pytest.mark.parametrize("scheduler", TORCH_SCHEDULERS)
def test_torch_schedulers_step_once_per_round(scheduler):
    options, rates = BY_HAND[scheduler]
    got = learning_rates(of_torch(scheduler, **options), 0.1, 5)
    assert got == pytest.approx(rates, abs=1e-12)


def test_torch_schedulers_neither_warn_nor_draw():
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learning_rates(of_torch("StepLR", step_size=1), 0.1, 3)
    assert torch.equal(torch.get_rng_state(), state)


def test_every_torch_scheduler_is_offered_or_refused_with_a_reason():
    offered = set(TORCH_SCHEDULERS)
    for name in set(lr_scheduler.__all__) - offered:
        with pytest.raises(ValueError, match="takes a metric, a function or other schedulers"):
            of_torch(name)
    assert offered == set(BY_HAND)


@pytest.mark.parametrize(
    ("schedule", "text"),
    [
        ({"name": "torch"}, "schedule.scheduler is ''; it must be one of ConstantLR, Cos"),
        (
            {"name": "torch", "scheduler": "CosineAnealingLR"},
            r"scheduler is 'CosineAnealingLR'; did you mean CosineAnnealingLR or .*\?",
        ),
        (
            {"name": "torch", "scheduler": "ReduceLROnPlateau"},
            "'ReduceLROnPlateau'; that takes a metric, .* it must be one of ConstantLR, ",
        ),
        ({"name": "torch", "scheduler": "SGD"}, "scheduler is 'SGD'; it must be one of ConstantLR"),
        (
            {"name": "torch", "scheduler": "CosineAnnealingLR", "options": {"tmax": 3}},
            "options are {'tmax': 3}, but CosineAnnealingLR refused them: .*unexpected keyword "
            "argument 'tmax'; give the arguments of torch.optim.lr_scheduler.CosineAnnealingLR",
        ),
        (
            {"name": "torch", "scheduler": "CosineAnnealingLR"},
            "missing 1 required positional argument: 'T_max'",
        ),
        (
            {"name": "torch", "scheduler": "StepLR", "options": {"step_size": 2, "last_epoch": 3}},
            "StepLR refused them: param 'initial_lr' is not specified",
        ),
        ({"scheduler": "StepLR"}, "schedule.name is not given; set it to 'torch'"),
        ({"name": "cosin"}, "it must be 'constant', 'cosine', 'multi_step' or 'torch'"),
        ({"min_learning_rate": math.inf}, "schedule.min_learning_rate is inf .* finite"),
        ({"factor": 0.0}, "schedule.factor is 0.0 .* greater than 0"),
    ],
)
def test_what_is_wrong_with_a_schedule_is_said_in_one_line_when_it_is_loaded(schedule, text):
    with pytest.raises(ConfigError, match=text) as caught:
        config.build(Recipe, {"schedule": schedule})
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("schedule", "text"),
    [
        (of_torch("StepLR", step_size=0), "StepLR refused them in round 2 of 5: .*by zero; give"),
        (
            of_torch("OneCycleLR", max_lr=1.0, total_steps=3),
            "OneCycleLR refused them in round 5 of 5: .*total steps is 3",
        ),
        (
            of_torch("StepLR", step_size=2, gamma=-1),
            r"{'step_size': 2, 'gamma': -1}, but StepLR then gives the rate -0.1 in round 3; it "
            "must be finite and at least 0: change the options",
        ),
        (of_torch("ExponentialLR", gamma=1e200), "the rate inf in round 3"),
    ],
)
def test_what_only_the_rounds_show_is_said_before_training(schedule, text):
    with pytest.raises(ConfigError, match=text) as caught:
        learning_rates(schedule, 0.1, 5)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("text", [config.dump, config.explain])
@pytest.mark.parametrize(
    "schedule",
    [
        of_torch("MultiStepLR", milestones=[3, 6], gamma=0.5),
        of_torch("CyclicLR", base_lr=0.1, max_lr=1.0, mode="exp_range", cycle_momentum=False),
        of_torch("ConstantLR"),
        ScheduleConfig(name="multi_step", milestone=3),
    ],
)
def test_options_survive_saving_and_loading(tmp_path, text, schedule):
    recipe = Recipe(schedule=schedule)
    again = saved_and_loaded(recipe, tmp_path, text)
    assert again == recipe
    assert again.hash() == recipe.hash()
    assert list(map(type, again.schedule.options.values())) == [
        type(value) for value in schedule.options.values()
    ]


def test_options_can_be_given_on_the_command_line(tmp_path):
    (tmp_path / "a.toml").write_text("")
    overrides = ["schedule.name=torch", "schedule.scheduler=StepLR", "schedule.options.step_size=1"]
    recipe = config.load(Recipe, tmp_path / "a.toml", overrides)
    assert learning_rates(recipe.schedule, 1.0, 2) == [1.0, 0.1]


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_every_listed_schedule_gives_one_rate_per_round(name):
    schedule = ScheduleConfig(name=name, scheduler="ConstantLR" if name == "torch" else "")
    assert len(learning_rates(schedule, 0.1, 7)) == 7


@pytest.mark.parametrize("value", [float("nan"), np.int64(2), datetime.date(2020, 1, 1)])
def test_options_that_no_recipe_can_hold_are_refused(value):
    with pytest.raises(ConfigError, match="schedule.options are .*; they must be finite numbers"):
        config.build(Recipe, {"schedule": {"options": {"step_size": value}}})
