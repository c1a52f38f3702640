"""The rolling bank of prompted views: what it holds, when it is renewed, that it resumes."""

import copy

import numpy as np
import pytest
import torch

from clients.factory import make_objective
from clients.node import Node
from fedkd import seeding
from fedkd.data.augment import dihedral_view
from fedkd.experiment import open_experiment
from fedkd.fourier.prompts import draw_latents
from fedkd.fourier.spectrum import amplitude, irfft2, rfft2
from fedkd.fourier.views import ViewBank, num_turns
from fedkd.models import states

BANK = {
    "objective": {"name": "fopro"},
    "prompts": {"kept_views": 2, "renew_every": 2},
    "augmentation": {"name": "none"},
}
CONTROLS = ("conv", "jitter", "amplitude_mix")


@pytest.fixture
def begin(make_recipe, hospitals, tiny_teacher):
    """A function that opens FoPro with a bank: objective, student and images of a client."""

    def make(client=0, views="augmented", **changes):
        config = {**BANK, "teacher": {"views": views}}
        for key, value in changes.items():
            config[key] = {**config.get(key, {}), **value}
        experiment = open_experiment(make_recipe(**config), **hospitals, teacher=tiny_teacher)
        objective = make_objective(experiment, client, 1)
        return objective, experiment.build_student(), experiment.loader(client)

    return make


def targets(objective, loader, chosen, draws):
    positions = np.arange(len(loader))
    return objective._bank.of(positions, draws, np.full(len(loader), chosen))


def plain(num):
    """Draws that turn nothing."""
    return np.ones((num, 10))


@pytest.mark.parametrize("generator", CONTROLS)
def test_a_kept_feature_is_that_of_the_image_under_its_prompt(begin, generator):
    """Uncached: every image asked for alone, with latents drawn by hand in the bank's order."""
    objective, student, loader = begin(prompts={"generator": generator})
    objective.start_round(student, loader, 1)
    num = len(loader)
    for view in (0, 1):
        order = seeding.rng(0, "view-order", 0, view).permutation(num)
        rng = seeding.generator(0, "view-prompts", 0, view)
        made = objective.prompter.generator
        latents, strengths = draw_latents(
            32,
            rng,
            per="image",
            latent_dim=made.latent_dim if made else 1,
            max_strength=1.0,
            like=torch.empty(0),
        )
        found = targets(objective, loader, view, plain(num))
        for place, position in enumerate(order):
            pixels = loader.pixels(order[[place]])
            spectrum, strength = rfft2(pixels), strengths[place]
            if made is None:
                other = amplitude(rfft2(loader.pixels(order[[(place + 1) % num]])))
                gain = other / amplitude(spectrum)
            else:
                with torch.no_grad():
                    gain = made(latents[[place]]).exp()
            prompted = irfft2(spectrum * (1 + strength * (gain - 1)), (16, 16)).clamp(0, 1)
            expected = objective.teacher.features(prompted)
            torch.testing.assert_close(found[[position]], expected, rtol=1e-5, atol=2e-6)


def test_every_flip_and_turn_of_an_image_has_its_prompt(begin):
    objective, student, loader = begin(views="dihedral", augmentation={"name": "dihedral"})
    objective.start_round(student, loader, 1)
    order = seeding.rng(0, "view-order", 0, 1).permutation(len(loader))
    rng = seeding.generator(0, "view-prompts", 0, 1)
    batch = loader.pixels(np.resize(order, 32))
    prompts = objective.prompter
    drawn = prompts.draw(32, rng, batch)
    draws = plain(len(loader))
    draws[:, :2] = 0.0  # both flips: view 6
    with torch.no_grad():
        turned = prompts.apply(
            dihedral_view(batch, 6), prompts.log_gains(drawn.latents), drawn.strengths
        )
    expected = objective.teacher.features(turned.pixels)[: len(loader)]
    assert torch.equal(targets(objective, loader, 1, draws)[order], expected)
    upright = targets(objective, loader, 1, plain(len(loader)))
    assert not torch.allclose(upright[order], expected)


@pytest.mark.parametrize(("square", "num"), [(True, 8), (False, 4)])
def test_images_that_are_not_square_only_flip(square, num):
    assert num_turns("dihedral", square) == num
    assert num_turns("clean", square) == num_turns("augmented", square) == 1


def test_the_oldest_view_is_replaced_in_the_rounds_that_are_due():
    bank, rendered = ViewBank(3, 4, square=True), []

    def render(number):
        rendered.append(number)
        return torch.full((2, 1, 1), float(number))

    held = {}
    for number in range(1, 19):
        if bank.is_due(number):
            bank.renew(number, render)
            chosen = [bank.of(np.array([1]), plain(1), np.array([c])).item() for c in range(3)]
            held[number] = chosen
    assert held == {1: [0, 1, 2], 5: [3, 1, 2], 9: [3, 4, 2], 13: [3, 4, 5], 17: [6, 4, 5]}
    assert rendered == list(range(7))


def test_a_client_that_missed_a_renewal_makes_it_up():
    bank = ViewBank(1, 4, square=True)
    bank.renew(1, lambda _: torch.zeros(1, 1, 1))
    assert [number for number in range(2, 9) if bank.is_due(number)] == [5, 6, 7, 8]
    bank.renew(7, lambda _: torch.zeros(1, 1, 1))
    assert [number for number in range(8, 13) if bank.is_due(number)] == [11, 12]


def test_exploration_and_the_teacher_run_only_where_a_view_is_renewed(begin, passes):
    """Two views at first, then one in rounds 3 and 5; 11 images fit into one batch of 32.

    Besides, prompts are measured in every round, on 4 images.
    """
    objective, student, loader = begin(explore={"warm_up_steps": 2, "steps_per_round": 3})
    seen = []
    for number in range(1, 6):
        passes.clear()
        values = objective.start_round(student, loader, number)
        steps = objective.state()["explorer.num_steps"].item()
        assert values["explore_steps"] == {1: 5, 3: 3, 5: 3}.get(number, 0)
        seen.append((steps, "explore_prior" in values, list(passes)))
        passes.clear()
        objective.next_images(np.array([3, 1]), plain(2))
        objective.target(loader.pixels(np.array([3, 1])))
        assert not passes
    first, no, one = (5, True, [32, 32, 4]), [4], [32, 4]
    assert seen == [first, (5, False, no), (8, True, one), (8, False, no), (11, True, one)]


def test_an_image_gets_one_of_the_views_by_chance(begin):
    objective, student, loader = begin(prompts={"kept_views": 3})
    objective.start_round(student, loader, 1)
    pixels = loader.pixels(np.zeros(300, np.int64))
    objective.next_images(np.zeros(300, np.int64), plain(300))
    counts = torch.unique(objective.target(pixels), dim=0, return_counts=True)[1]
    assert len(counts) == 3
    assert counts.min() > 70


def test_rounds_and_clients_draw_views_of_their_own(begin):
    drawn = set()
    for client, number in ((0, 1), (0, 2), (1, 1)):
        objective, student, loader = begin(client)
        objective.start_round(student, loader, number)
        drawn.add(tuple(objective._choices.integers(2, size=64)))
    assert len(drawn) == 3


def test_scores_compare_with_images_without_a_prompt_and_draw_nothing(begin):
    runs = []
    for scored in (False, True):
        objective, student, loader = begin()
        objective.start_round(student, loader, 1)
        positions = np.arange(8)
        if scored:
            objective.next_images(positions, None)
            expected = objective.teacher.features(loader.pixels(positions))
            assert torch.equal(objective.score_target(loader.pixels(positions)), expected)
        objective.next_images(positions, plain(8))
        runs.append(objective.target(loader.pixels(positions)))
    assert torch.equal(*runs)


@pytest.mark.parametrize(
    ("generator", "form", "gamma"),
    [("conv", "mix", 0.3), ("jitter", "mix", 0.0), ("amplitude_mix", "gain", 0.0)],
)
def test_a_bank_continues_from_its_state_to_the_bit(opened, generator, form, gamma):
    explore = {"gamma": gamma, "warm_up_steps": 1}
    prompts = {**BANK["prompts"], "generator": generator, "form": form}
    config = {**BANK, "prompts": prompts, "explore": explore, "num_rounds": 4}
    node = Node(opened(**config))
    arrays = node.initial_arrays()
    state, kept = {}, []
    for number in range(1, 5):
        kept.append((arrays, copy.deepcopy(state)))
        reply, state = node.train(1, arrays, state, number)
        arrays = reply.arrays
    for number, (given, remembered) in enumerate(kept, 1):
        again, after = Node(opened(**config)).train(1, given, remembered, number)
        following = kept[number] if number < 4 else (arrays, state)
        assert states.sha256(again.arrays) == states.sha256(following[0])
        assert states.sha256(after["objective"]) == states.sha256(following[1]["objective"])


def test_a_renewal_copies_no_other_view(begin):
    objective, student, loader = begin()
    objective.start_round(student, loader, 1)
    before = objective.state()
    objective.start_round(student, loader, 3)
    after = objective.state()
    assert after["bank.1"] is before["bank.1"]
    assert not torch.equal(after["bank.0"], before["bank.0"])


def test_without_distillation_no_view_is_made(begin, passes):
    objective, student, loader = begin(objective={"lambda_f": 0.0})
    objective.start_round(student, loader, 1)
    assert passes == [4], "prompts are measured, and no view is rendered"
    assert not any(name.startswith("bank.") for name in objective.state())
