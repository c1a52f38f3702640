import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fedkd import seeding
from fedkd.errors import TeacherError
from fedkd.losses.distillation import feature_distillation
from fedkd.models.small_resnet import SmallResNet
from fedkd.teachers.frozen import Observation, Teacher, confidence_loss
from fedkd.teachers.moments import moment_divergence

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def pixels(num=4, height=16, width=16, dtype=torch.float32):
    rng = seeding.generator(0, "pixels", height, width)
    return torch.rand(num, 3, height, width, generator=rng).to(dtype)


def backbone(trained=True):
    with seeding.isolated(0, "backbone"):
        network = SmallResNet((4, 8), all_stages=True)
    if trained:
        with torch.no_grad():
            network.train()(pixels(32))
    return network


def make_teacher(network=None, **changes):
    with seeding.isolated(0, "head"):
        head = nn.Linear(8, 5)
    settings = {
        "num_features": 12,
        "mean": MEAN,
        "std": STD,
        "input_size": None,
        "head": head,
        "head_kind": "contrastive",
        "head_slice": slice(4, None),
    }
    return Teacher("test", network or backbone(), **(settings | changes))


class Pixels(nn.Module):
    """Shows what the backbone is given."""

    def forward(self, x):
        return x.flatten(1)


def showing(**changes):
    return make_teacher(Pixels(), head=None, head_kind="none", head_slice=None, **changes)


def state_of(teacher):
    return {name: value.clone() for name, value in teacher.state_dict().items()}


def test_train_stays_in_eval_mode():
    teacher = make_teacher()
    for _ in range(2):
        assert teacher.train() is teacher
        assert not any(module.training for module in teacher.modules())
    nn.ModuleDict({"teacher": teacher}).train()
    assert not any(module.training for module in teacher.modules())


def test_weights_are_frozen_and_no_buffer_moves_to_the_bit():
    # Oracle O9, the teacher's part.
    teacher = make_teacher()
    before = state_of(teacher)
    x = pixels().requires_grad_()
    teacher.train()
    seen = teacher.observe(x)
    (seen.features.sum() + seen.head_output.sum() + seen.moments["bn1"].var.sum()).backward()
    teacher.features(pixels())
    assert x.grad.abs().sum() > 0
    assert all(not p.requires_grad and p.grad is None for p in teacher.parameters())
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_pixels_are_normalised_with_the_teachers_own_mean_and_std():
    x = pixels()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    torch.testing.assert_close(showing().features(x), ((x - mean) / std).flatten(1))


def test_without_mean_and_std_pixels_reach_the_backbone_as_they_are():
    x = pixels()
    assert torch.equal(showing(mean=None, std=None).features(x), x.flatten(1))


@pytest.mark.parametrize("size", [(16, 16), (12, 20), (8, 8), (24, 24)])
def test_images_are_resized_when_their_size_differs_only(size):
    x = pixels(height=size[0], width=size[1])
    seen = showing(mean=None, std=None, input_size=16).features(x).view(4, 3, 16, 16)
    if size == (16, 16):
        assert torch.equal(seen, x)
    else:
        torch.testing.assert_close(seen.mean((2, 3)), x.mean((2, 3)), atol=0.03, rtol=0)


def test_resizing_does_not_alias_and_lets_gradients_through():
    board = torch.zeros(1, 3, 32, 32)
    board[..., ::2, ::2] = board[..., 1::2, 1::2] = 1
    board.requires_grad_()
    seen = showing(mean=None, std=None, input_size=10)(board)
    assert (seen - 0.5).abs().max() < 0.1
    seen.square().sum().backward()
    assert board.grad.abs().min() > 0


def test_features_are_a_constant_that_a_loss_can_save():
    teacher = make_teacher()
    target = teacher.features(pixels().requires_grad_())
    assert not target.requires_grad
    projection = torch.ones(4, 12, requires_grad=True)
    (feature_distillation(projection, target).sum() + (projection * target).sum()).backward()
    assert projection.grad.abs().sum() > 0


def test_gradients_flow_to_the_input_alone():
    x = pixels(dtype=torch.float64)
    teacher = make_teacher().double()
    assert not teacher(x).requires_grad
    assert torch.autograd.gradcheck(teacher, pixels(2, 5, 5, torch.float64).requires_grad_())


def test_observation_has_features_head_output_and_moments():
    teacher = make_teacher()
    seen = teacher.observe(pixels())
    assert torch.equal(seen.features, teacher.features(pixels()))
    torch.testing.assert_close(seen.head_output, teacher.head(seen.features[:, 4:]))
    assert seen.moments.keys() == teacher.reference.keys()


def test_the_head_takes_all_features_without_a_slice_and_may_be_missing():
    whole = make_teacher(head=nn.Identity(), head_kind="supervised", head_slice=None)
    assert torch.equal(whole.observe(pixels()).head_output, whole.features(pixels()))
    none = make_teacher(head=None, head_kind="none", head_slice=None)
    assert none.observe(pixels()).head_output is None


def test_observing_leaves_no_hook():
    teacher = make_teacher(mean=None, std=None)
    teacher.observe(pixels())
    with pytest.raises(RuntimeError, match="channels"):
        teacher.observe(torch.zeros(1, 5, 8, 8))
    for module in teacher.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_a_copy_is_a_teacher_of_its_own():
    teacher = make_teacher(backbone(trained=False))
    teacher.measure_reference([pixels()])
    twin = copy.deepcopy(teacher).double()
    torch.testing.assert_close(twin.features(pixels().double()).float(), teacher.features(pixels()))
    assert twin.reference.keys() == teacher.reference.keys()
    with torch.no_grad():
        twin.backbone.conv1.weight.zero_()
    assert teacher.backbone.conv1.weight.abs().sum() > 0


def test_normalisation_follows_the_dtype_and_is_not_part_of_the_state():
    teacher = make_teacher().double()
    assert teacher.mean.dtype == teacher(pixels(dtype=torch.float64)).dtype == torch.float64
    assert not {"mean", "std"} & teacher.state_dict().keys()


def test_reference_is_given_or_that_of_batchnorm():
    teacher = make_teacher()
    assert teacher.has_reference
    assert torch.equal(teacher.reference["bn1"].var, teacher.backbone.bn1.running_var)
    given = {"bn1": teacher.reference["bn1"]}
    assert make_teacher(reference=given).reference == given


def test_reference_is_measured_where_batchnorm_has_none():
    teacher = make_teacher(backbone(trained=False))
    assert not teacher.has_reference
    with pytest.raises(TeacherError, match=r"'test' has no BatchNorm.*measure_reference"):
        _ = teacher.reference
    teacher.double().measure_reference(pixels(6).split(4))  # float32 batches are converted
    assert teacher.has_reference
    entering = teacher.backbone.conv1(teacher.prepare(pixels(6, dtype=torch.float64)))
    torch.testing.assert_close(teacher.reference["bn1"].mean, entering.mean((0, 2, 3)))


@pytest.mark.parametrize("network", [Pixels(), None])
def test_measuring_nothing_is_refused(network):
    teacher = make_teacher(network or backbone(trained=False))
    with pytest.raises(TeacherError, match="nothing could be measured on teacher 'test'"):
        teacher.measure_reference([pixels()] if network else [])


@pytest.mark.parametrize(
    "wrong", [{"mean": None}, {"std": None}, {"head": None}, {"head_kind": "none"}]
)
def test_arguments_that_contradict_each_other_are_refused(wrong):
    with pytest.raises(ValueError, match="given together|exactly without a head"):
        make_teacher(**wrong)


ROUNDING = {"bfloat16": 2**-8, "float16": 2**-11}


@pytest.mark.parametrize("precision", ROUNDING)
def test_mixed_precision_rounds_the_features_a_little_and_keeps_their_type(precision):
    full, mixed = make_teacher(), make_teacher(precision=precision)
    expected, seen = full.features(pixels()), mixed.features(pixels())
    assert seen.dtype == torch.float32
    error = float((seen - expected).norm() / expected.norm())
    # Several layers add up to a few roundings of the last bit; one of them is there at least.
    assert ROUNDING[precision] / 20 < error < 3 * ROUNDING[precision]
    assert torch.equal(mixed.double().features(pixels().double()), full.double()(pixels().double()))


@pytest.mark.parametrize("precision", ROUNDING)
def test_prior_and_confidence_of_mixed_precision_are_finite_and_near(precision):
    values = []
    for teacher in (make_teacher(), make_teacher(precision=precision)):
        x = pixels(32, 64, 64).requires_grad_()
        with torch.no_grad():
            clean = teacher.observe(x.flip(3))
        seen = teacher.observe(x)
        assert {m.var.dtype for m in (*seen.moments.values(), *clean.moments.values())} == {
            torch.float32
        }
        prior = moment_divergence(seen.moments, teacher.reference)
        confidence = confidence_loss(seen, clean, "contrastive", 0.2)
        (prior + confidence).backward()
        values.append((prior.item(), confidence.item(), x.grad))
    (*losses, grad), (*mixed_losses, mixed_grad) = values
    assert mixed_losses == pytest.approx(losses, rel=0.05, abs=1e-3)
    assert F.cosine_similarity(mixed_grad.flatten(), grad.flatten(), dim=0) > 0.98
    assert 0.9 < mixed_grad.norm() / grad.norm() < 1.1


def test_float16_passes_with_gradients_are_in_full_precision():
    teacher, full = make_teacher(precision="float16"), make_teacher()
    x = pixels().requires_grad_()
    assert torch.equal(teacher(x), full(x))
    assert not torch.equal(teacher.features(x), full.features(x))


def observation(features, head_output=None):
    return Observation(torch.tensor(features), head_output, {})


def test_contrastive_confidence_worked_by_hand():
    eye = torch.eye(2)
    clean = observation([[0.0], [0.0]], eye)
    same = confidence_loss(observation([[0.0], [0.0]], 3 * eye), clean, "contrastive", 0.5)
    assert float(same) == pytest.approx(math.log(1 + math.exp(-2)))
    swapped = confidence_loss(clean._replace(head_output=eye.flip(0)), clean, "contrastive", 0.5)
    assert float(swapped) == pytest.approx(math.log(1 + math.exp(2)))


def test_confidence_without_a_head_is_that_of_the_features():
    prompted, clean = torch.randn(2, 5, 7, generator=seeding.generator(0, "f")).unbind()
    expected = confidence_loss(
        Observation(clean, prompted, {}), Observation(prompted, clean, {}), "contrastive", 0.2
    )
    value = confidence_loss(
        Observation(prompted, None, {}), Observation(clean, None, {}), "none", 0.2
    )
    assert torch.equal(value, expected)


def test_supervised_confidence_worked_by_hand():
    clean = observation([[0.0]])
    # Sure of another class each: cross-entropy 0, entropy of the mean log 2.
    sure = observation([[0.0]], 100 * torch.eye(2))
    assert float(confidence_loss(sure, clean, "supervised", 1.0)) == pytest.approx(-math.log(2))
    # Sure of one class: no entropy. Not sure at all: log 2 - log 2.
    for logits in (torch.tensor([[100.0, 0.0]] * 2), torch.zeros(2, 2)):
        value = confidence_loss(observation([[0.0]], logits), clean, "supervised", 1.0)
        assert float(value) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kind", ["contrastive", "supervised"])
def test_confidence_of_one_image_or_extreme_outputs_is_finite(kind):
    for values in (torch.zeros(1, 3), torch.tensor([[1e4, -1e4, 0.0]])):
        output = values.clone().requires_grad_()
        clean = observation([[0.0]], torch.ones(1, 3))
        loss = confidence_loss(observation([[0.0]], output), clean, kind, 0.2)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(output.grad).all()
