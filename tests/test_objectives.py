"""The local objectives: values by hand, what FoPro prompts, explores, keeps and shares."""

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from clients.ekd import EKD
from clients.factory import OBJECTIVES, distillation_weight, make_objective
from clients.supervised import Supervised
from fedkd.experiment import open_experiment
from fedkd.fourier.spectrum import mean_amplitude
from fedkd.losses.distillation import feature_distillation
from fedkd.losses.factory import LOSSES, LossConfig, make_loss
from fedkd.models import states
from fedkd.models.student import StudentOutput
from fedkd.recipe import ObjectiveConfig

COUNTS = torch.tensor([3.0, 1.0])
LABELS = torch.tensor([0, 1])
# Two examples. Of fc: both logits equal. Of fc_free: odds 3 to 1 for class 0.
OUTPUT = StudentOutput(
    features=torch.zeros(2, 1),
    logits=torch.zeros(2, 2),
    projection=torch.tensor([[1.0, 0.0], [0.0, 2.0]]),
    projected_logits=torch.tensor([[math.log(3), 0.0], [math.log(3), 0.0]]),
)
TARGET = torch.tensor([[0.0, 5.0], [0.0, 1.0]])
PIXELS = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def loss_of(name):
    return make_loss(name, LossConfig(), COUNTS, 1, 1)


def student(pixels):
    assert pixels is PIXELS
    return OUTPUT


def teacher_features(pixels):
    assert pixels is PIXELS, "the teacher sees what the student sees"
    return TARGET


TEACHER = SimpleNamespace(features=teacher_features)
# BSM adds log(3/4) and log(1/4) to the logits.
BSM = [math.log(4 / 3), math.log(4)]
BSM_FREE = [math.log(10 / 9), math.log(10)]
CE = [math.log(2)] * 2
CE_FREE = [math.log(4 / 3), math.log(4)]
DISTANCES = [2.0, 0.0]


@pytest.mark.parametrize(("loss", "expected"), [("bsm", BSM), ("ce", CE)])
def test_supervised_by_hand(loss, expected):
    objective = Supervised(loss_of(loss))
    losses = objective.loss(student, PIXELS, LABELS)
    assert losses.per_example.tolist() == pytest.approx(expected)
    assert losses.total.item() == pytest.approx(sum(expected) / 2)
    assert {name: t.item() for name, t in losses.terms.items()} == pytest.approx(
        {"loss": sum(expected) / 2, "loss_supervised": sum(expected) / 2}
    )
    assert objective.score_target(PIXELS) is None
    assert objective.scores(student, PIXELS, LABELS, None).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(("loss", "own", "free"), [("bsm", BSM, BSM_FREE), ("ce", CE, CE_FREE)])
@pytest.mark.parametrize("lambda_f", [3.0, 0.5])
def test_ekd_by_hand(loss, own, free, lambda_f):
    objective = EKD(loss_of(loss), TEACHER, lambda_f)
    losses = objective.loss(student, PIXELS, LABELS)
    means = {"loss_supervised": sum(own) / 2, "loss_projected": sum(free) / 2,
             "loss_distillation": 1.0}  # fmt: skip
    total = means["loss_supervised"] + means["loss_projected"] + lambda_f
    assert losses.total.item() == pytest.approx(total)
    assert {name: t.item() for name, t in losses.terms.items()} == pytest.approx(
        {"loss": total, **means}
    )
    assert losses.per_example.tolist() == pytest.approx(DISTANCES, abs=1e-6)
    scores = objective.scores(student, PIXELS, LABELS, objective.score_target(PIXELS))
    assert scores.tolist() == pytest.approx(DISTANCES, abs=1e-6)


def test_without_distillation_the_loss_per_example_and_the_scores_are_supervised():
    objective = EKD(loss_of("bsm"), TEACHER, 0.0)
    losses = objective.loss(student, PIXELS, LABELS)
    assert losses.total.item() == pytest.approx((sum(BSM) + sum(BSM_FREE)) / 2)
    assert losses.per_example.tolist() == pytest.approx(BSM)
    assert objective.score_target(PIXELS) is None
    assert objective.scores(student, PIXELS, LABELS, None).tolist() == pytest.approx(BSM)


@pytest.fixture
def open_tiny(make_recipe, hospitals, tiny_teacher):
    """A function that opens the tiny experiment with changes."""
    return lambda **changes: open_experiment(
        make_recipe(**changes), **hospitals, teacher=tiny_teacher
    )


@pytest.fixture
def fopro(open_tiny):
    """A function that gives FoPro of a client, its student and its loader."""

    def make(client=0, **changes):
        experiment = open_tiny(**changes)
        objective = make_objective(experiment, client, 1)
        return objective, experiment.build_student(), experiment.loader(client)

    return make


def prompts_seen(objective, pixels):
    """The latents that the generator gets while targets of these pixels are made."""
    seen = []
    hook = objective._explorer.generator.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0])
    )
    objective.target(pixels)
    hook.remove()
    (latents,) = seen
    return latents


LABELLED = [name for name in OBJECTIVES if name != "moco"]


@pytest.mark.parametrize("name", LABELLED)
def test_every_objective_of_the_catalog_can_be_made_and_has_gradients(open_tiny, name):
    experiment = open_tiny(objective={"name": name})
    objective, network = make_objective(experiment, 1, 1), experiment.build_student().train()
    pixels, labels = experiment.loader(1).batch(np.arange(6))
    objective.start_round(network, experiment.loader(1), 1)
    network.train()
    network.zero_grad(set_to_none=True)
    objective.loss(network, pixels, labels).total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    scores = objective.scores(network.eval(), pixels, labels, objective.score_target(pixels))
    assert scores.shape == (6,)
    assert not scores.requires_grad


def test_ekd_distils_from_the_plain_teacher_and_fopro_from_the_prompted_one(open_tiny, fopro):
    objective, network, loader = fopro()
    pixels = loader.pixels(np.arange(8))
    plain = objective.teacher.features(pixels)
    ekd = make_objective(open_tiny(objective={"name": "ekd"}), 0, 1)
    assert torch.equal(ekd.target(pixels), plain)
    objective.start_round(network, loader, 1)
    target = objective.target(pixels)
    assert target.shape == plain.shape
    assert not target.requires_grad
    assert (target - plain).abs().max() > 1e-3
    # Only the target is prompted: scores compare with the plain teacher.
    network.eval()
    expected = feature_distillation(network.project(pixels), plain)
    scores = objective.scores(network, pixels, loader.labels[:8], objective.score_target(pixels))
    torch.testing.assert_close(scores, expected)


@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.parametrize("objective", LABELLED)
def test_every_objective_takes_every_loss(open_tiny, objective, name):
    """Client 2 has neither class 1 nor class 2; round 2 of 2 is re-weighted."""
    experiment = open_tiny(objective={"name": objective, "loss": name})
    chosen, network = make_objective(experiment, 2, 2), experiment.build_student()
    loader = experiment.loader(2)
    chosen.start_round(network, loader, 2)
    pixels, labels = loader.batch(np.arange(6))
    losses = chosen.loss(network.train(), pixels, labels)
    losses.total.backward()
    assert losses.total.isfinite()
    assert losses.per_example.shape == (6,)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    target = chosen.score_target(pixels)
    assert (chosen.scores(network.eval(), pixels, labels, target) >= 0).all()


@pytest.mark.parametrize(
    ("start", "expected"),
    [(None, [3, 3, 3, 3, 3]), (2, [3, 3, 3, 2, 1]), (0, [3, 2.4, 1.8, 1.2, 0.6]), (4, [3] * 5),
     (9, [3] * 5)],
)  # fmt: skip
def test_the_distillation_weight_ramps_down(start, expected):
    config = ObjectiveConfig(ramp_down_after=start)
    weights = [distillation_weight(config, number, 5) for number in range(1, 6)]
    assert weights == pytest.approx(expected)


def test_balanced_distillation_weighs_classes_in_the_last_fifth_of_the_rounds():
    v = torch.tensor([0.5, 1.5])
    objective = EKD(loss_of("ce"), TEACHER, 3.0, class_weights=v)
    losses = objective.loss(student, PIXELS, LABELS)
    # Distances 2 and 0 of classes 0 and 1: a plain mean of 0.5 * 2 and 1.5 * 0.
    assert losses.per_example.tolist() == pytest.approx([1.0, 0.0], abs=1e-6)
    assert losses.terms["loss_distillation"].item() == pytest.approx(0.5)
    assert losses.total.item() == pytest.approx(3 * 0.5 + sum(CE) / 2 + sum(CE_FREE) / 2)
    # Scores are of the plain loss.
    scores = objective.scores(student, PIXELS, LABELS, objective.score_target(PIXELS))
    assert scores.tolist() == pytest.approx(DISTANCES, abs=1e-6)


@pytest.mark.parametrize(("number", "weighted"), [(4, False), (5, True)])
def test_weights_of_the_distillation_begin_after_four_fifths(open_tiny, number, weighted):
    experiment = open_tiny(num_rounds=5, objective={"name": "ekd", "balanced_distillation": True})
    weights = make_objective(experiment, 2, number)._class_weights
    if not weighted:
        assert weights is None
    else:
        # Three images of class 0 and of class 3: equal weights with mean 1, absent classes 0.
        assert weights.tolist() == pytest.approx([1, 0, 0, 1])


def test_the_student_sees_the_images_without_prompts(fopro):
    objective, network, loader = fopro()
    objective.start_round(network, loader, 1)
    pixels, labels = loader.batch(np.arange(6))
    seen = []
    network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    objective.loss(network.train(), pixels, labels)
    assert [p is pixels for p in seen] == [True]


def test_prompts_without_strength_leave_the_plain_teacher(fopro):
    objective, network, loader = fopro(prompts={"max_strength": 0.0})
    objective.start_round(network, loader, 1)
    pixels = loader.pixels(np.arange(6))
    torch.testing.assert_close(objective.target(pixels), objective.teacher.features(pixels))


@pytest.mark.parametrize(("per", "num"), [("image", 6), ("batch", 1)])
def test_a_prompt_is_drawn_for_every_image_or_for_the_batch(fopro, per, num):
    objective, network, loader = fopro(prompts={"per": per})
    objective.start_round(network, loader, 1)
    assert prompts_seen(objective, loader.pixels(np.arange(6))).shape == (num, 6)


def test_draws_differ_by_batch_round_client_and_seed_and_repeat_otherwise(fopro):
    def latents(client, number, **changes):
        objective, network, loader = fopro(client, **changes)
        objective.start_round(network, loader, number)
        pixels = loader.pixels(np.arange(4))
        return [prompts_seen(objective, pixels), prompts_seen(objective, pixels)]

    first, again = latents(0, 1), latents(0, 1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    others = [*first, *latents(0, 2), *latents(1, 1), *latents(0, 1, seed=1)]
    assert len({states.sha256({"z": z}) for z in others}) == len(others)


def test_targets_before_the_round_starts_are_refused(fopro):
    objective, _, loader = fopro()
    with pytest.raises(AssertionError, match="start_round"):
        objective.target(loader.pixels(np.arange(4)))


def test_clients_begin_with_one_generator_and_go_their_own_ways(fopro):
    (first, *rest), (second, *others) = fopro(0), fopro(1)
    assert states.sha256(first.state()) == states.sha256(second.state())
    first.start_round(*rest, 1)
    second.start_round(*others, 1)
    assert states.sha256(first.state()) != states.sha256(second.state())


@pytest.mark.parametrize(
    ("warm_up", "per_round", "steps"), [(4, 2, [6, 8, 10]), (0, 3, [3, 6, 9]), (0, 0, [0, 0, 0])]
)
def test_warm_up_comes_once_and_a_few_steps_in_every_round(fopro, warm_up, per_round, steps):
    explore = {"warm_up_steps": warm_up, "steps_per_round": per_round}
    objective, network, loader = fopro(explore=explore)
    seen = []
    for number in (1, 2, 3):
        values = objective.start_round(network, loader, number)
        seen.append(objective.state()["explorer.num_steps"].item())
        assert {"prior", "prior_clean"} <= set(values)
        assert ("explore_prior" in values) == bool(per_round)
    assert seen == steps


def test_exploration_leaves_the_student_and_the_teacher_as_they_were(fopro):
    objective, network, loader = fopro(explore={"gamma": 0.3, "warm_up_steps": 0})
    before = [states.sha256(m.state_dict()) for m in (network, objective.teacher)]
    values = objective.start_round(network, loader, 1)
    assert values["explore_gamma_effective"] == 0.3
    assert values["explore_disagreement"] > 0
    assert [states.sha256(m.state_dict()) for m in (network, objective.teacher)] == before
    assert all(p.grad is None for p in network.parameters())


def test_disagreement_counts_only_after_the_warm_up(fopro):
    explore = {"gamma": 0.3, "warm_up_steps": 3, "steps_per_round": 0}
    objective, network, loader = fopro(explore=explore)
    values = objective.start_round(network, loader, 1)
    assert values["explore_gamma_effective"] == 0
    assert "explore_disagreement" not in values


@pytest.mark.parametrize("form", ["gain", "mix"])
def test_fopro_continues_from_its_state_to_the_bit(fopro, form):
    changes = {"prompts": {"form": form}, "explore": {"gamma": 0.3, "warm_up_steps": 1}}
    whole, network, loader = fopro(**changes)
    whole.start_round(network, loader, 1)
    state = copy.deepcopy(whole.state())
    values = whole.start_round(network, loader, 2)
    second, *_ = fopro(**changes)
    second.load_state(state)
    assert second.start_round(network, loader, 2) == values
    assert states.sha256(second.state()) == states.sha256(whole.state())
    pixels = loader.pixels(np.arange(4))
    assert torch.equal(second.target(pixels), whole.target(pixels))


def test_the_mean_amplitude_is_that_of_all_images_of_the_client(fopro):
    objective, network, loader = fopro(prompts={"form": "mix"}, evaluation={"batch_size": 4})
    assert "mean_amplitude" not in objective.state()
    objective.start_round(network, loader, 1)
    expected = mean_amplitude([loader.pixels(np.arange(11))])
    torch.testing.assert_close(objective.state()["mean_amplitude"], expected)


def test_shared_prompts_are_the_generator_and_take_over_what_is_given(fopro):
    alone, *_ = fopro()
    assert alone.shared() == {}
    objective, network, loader = fopro(prompts={"shared": "by_strategy"})
    own = {name: tensor.clone() for name, tensor in objective.shared().items()}
    objective.start_round(network, loader, 1)
    assert states.sha256(objective.shared()) != states.sha256(own)
    objective.load_shared(own)
    assert states.sha256(objective.shared()) == states.sha256(own)
    assert objective.state()["explorer.num_steps"] == 3, "only the generator is taken over"


def test_a_client_with_few_images_explores_with_all_it_has(fopro):
    objective, network, loader = fopro(2, explore={"batch_size": 50})
    values = objective.start_round(network, loader, 1)
    assert all(math.isfinite(value) for value in values.values())


def test_the_prior_is_measured_on_the_same_images_every_round(fopro):
    explore = {"warm_up_steps": 0, "steps_per_round": 0}
    objective, network, loader = fopro(explore=explore)
    first, second = (objective.start_round(network, loader, number) for number in (1, 2))
    assert first == second, "nothing was trained"
    trained, *_ = fopro(explore={"warm_up_steps": 30})
    values = trained.start_round(network, loader, 1)
    assert values["prior_clean"] == first["prior_clean"]
    assert values["prior"] < first["prior"]
