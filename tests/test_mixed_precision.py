"""engine.mixed_precision and engine.channels_last: what is rounded, and what stays as it is."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clients import ekd, moco, supervised
from clients.factory import make_objective
from clients.node import Node
from fedkd.errors import ConfigError
from fedkd.fourier.explore import explore_loss
from fedkd.models.factory import StudentConfig, build_student
from fedkd.prediction import predict
from fedkd.teachers.config import OneTeacherConfig
from fedkd.teachers.features import keep_features
from fedkd.teachers.frozen import Teacher
from fedkd.teachers.opening import open_teachers
from fedkd.teachers.reference import _settings

BFLOAT16 = {"mixed_precision": "bfloat16"}
METHODS = {
    "supervised": {"objective": {"name": "supervised", "loss": "focal"}},
    "ldam": {"objective": {"name": "fedprox", "loss": "ldam"}},
    "moon": {"objective": {"name": "moon"}},
    "moco": {"objective": {"name": "moco"}},
    "mas": {"objective": {"name": "ekd"}, "strategy": {"name": "mas"}},
    "fopro": {"objective": {"name": "fopro"}, "explore": {"gamma": 0.5}},
}


@pytest.mark.parametrize("method", ["moon", "mas", "fopro"])
def test_a_run_is_near_that_of_float32_the_same_twice_and_its_student_is_float32(method, run):
    plain, *rounded = (run(engine=engine, **METHODS[method]) for engine in ({}, BFLOAT16, BFLOAT16))
    first, second = rounded
    assert first.summary["student_sha256"] == second.summary["student_sha256"]
    assert first.summary["student_sha256"] != plain.summary["student_sha256"]
    own, expected = first.student.state_dict(), plain.student.state_dict()
    assert {n: t.dtype for n, t in own.items()} == {n: t.dtype for n, t in expected.items()}
    assert first.rounds["train_loss"].to_numpy() == pytest.approx(
        plain.rounds["train_loss"].to_numpy(), rel=0.03
    )
    assert first.board.test_probabilities.dtype == np.float64


def test_only_the_backbone_is_rounded_and_what_losses_read_is_float32():
    student = build_student(StudentConfig(), num_classes=3, num_teacher_features=5, seed=0)
    pixels, seen = torch.rand(4, 3, 16, 16), {}
    plain = student(pixels)
    for name, module in student.named_modules():
        module.register_forward_hook(
            lambda _, inputs, out, name=name: seen.update({name: (inputs[0], out)})
        )
    student.precision = "bfloat16"
    out = student(pixels)
    assert seen["backbone.layer2.0.conv1"][1].dtype == torch.bfloat16
    assert seen["backbone.bn1"][0].dtype == torch.bfloat16
    assert student.backbone.bn1.running_mean.dtype == torch.float32
    assert {tensor.dtype for tensor in out} == {torch.float32}
    # Logits are those of rounded features, themselves not rounded to bfloat16.
    assert torch.equal(out.logits, student.fc(out.features))
    assert not torch.equal(out.logits, out.logits.bfloat16().float())
    assert 0 < (out.features - plain.features).norm() < 0.02 * plain.features.norm()
    out.logits.sum().backward()
    assert {p.grad.dtype for p in student.parameters() if p.grad is not None} == {torch.float32}


@pytest.mark.parametrize("method", METHODS)
def test_losses_see_no_bfloat16_and_no_autocast(method, opened, monkeypatch):
    """Every function that an objective hands tensors to is asked for their types."""
    seen = []

    def watch(function):
        def watched(*args, **kwargs):
            assert not torch.is_autocast_enabled("cpu")
            tensors = [a for a in args if isinstance(a, torch.Tensor) and a.is_floating_point()]
            seen.extend(tensor.dtype for tensor in tensors)
            return function(*args, **kwargs)

        return watched

    for module, name in (
        (ekd, "feature_distillation"), (moco, "queue_nt_xent"), (F, "cosine_similarity"),
        (F, "cross_entropy"), (supervised.SupervisedLoss, "per_example"),
        (torch.fft, "rfft2"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, watch(getattr(module, name)))
    node = Node(opened(engine=BFLOAT16, **METHODS[method]))
    scores = METHODS[method].get("strategy") is not None
    node.train(0, node.initial_arrays(), {}, 1, score_classes=scores)
    assert set(seen) == {torch.float32}


def test_the_teacher_is_rounded_too_but_not_its_moments_and_gradients(opened):
    plain, rounded = (
        opened(engine=engine, objective={"name": "fopro"}) for engine in ({}, BFLOAT16)
    )
    pixels = plain.loader(0).pixels(np.arange(6))
    (before, teacher) = (experiment.teachers[0] for experiment in (plain, rounded))
    assert (before.precision, teacher.precision) == ("full", "bfloat16")
    difference = (before.features(pixels) - teacher.features(pixels)).norm()
    assert 0 < difference < 0.02 * before.features(pixels).norm()
    objective = make_objective(rounded, 0, 1)
    prompter, clean = objective.prompter, teacher.observe(pixels)
    drawn = prompter.draw(6, torch.Generator(), pixels, per="image")
    gains = prompter.log_gains(drawn.latents)
    prompted = prompter.apply(pixels, gains, drawn.strengths)
    terms = explore_loss(teacher, prompted, clean, gains, drawn.latents, rounded.recipe.explore)
    terms["explore_loss"].backward()
    gradients = [p.grad for p in prompter.generator.parameters()]
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients)
    assert {t.dtype for t in terms.values()} == {torch.float32}
    assert {m.mean.dtype for m in clean.moments.values()} == {torch.float32}


def test_a_teacher_that_has_a_precision_keeps_it(tiny_teacher):
    own = Teacher("mine", copy.deepcopy(tiny_teacher), num_features=10, mean=None, std=None,
                  input_size=None, head=None, head_kind="none", precision="float16")  # fmt: skip
    (opened,) = open_teachers(
        OneTeacherConfig.model_construct(), own, ["a"], torch.rand(2, 3, 16, 16), False, mixed=True
    )
    assert opened.precision == "float16"
    assert own.precision == "float16"


def test_kept_features_and_measured_moments_have_a_file_for_each_precision(opened, tmp_path):
    experiments = [opened(engine=engine, objective={"name": "ekd"}) for engine in ({}, BFLOAT16)]
    config = OneTeacherConfig(views="clean")
    values = [
        keep_features(e.teachers[:1], [config], [e.loader(0)], "none", tmp_path)[0].values
        for e in experiments
    ]
    assert len(list((tmp_path / "features").glob("*.npy"))) == 2
    assert not np.array_equal(*values)
    settings = [_settings(e.teachers[0], config, 16, None) for e in experiments]
    assert [one["precision"] for one in settings] == ["full", "bfloat16"]


def test_predictions_of_a_run_are_those_of_its_own_precision(opened):
    plain, rounded = (
        opened(engine=engine, objective={"name": "supervised"}) for engine in ({}, BFLOAT16)
    )
    loader = plain.held_out_loader("val")
    (first, second) = (predict(e.build_student(), loader, 4) for e in (plain, rounded))
    assert first.dtype == second.dtype == np.float64
    assert 0 < np.abs(first - second).max() < 0.02


def test_float64_is_refused(make_recipe):
    with pytest.raises(ConfigError) as raised:
        make_recipe(engine=BFLOAT16, training={"dtype": "float64"})
    assert str(raised.value) == (
        "engine.mixed_precision is 'bfloat16' with training.dtype = 'float64', which mixed "
        "precision does not round; set engine.mixed_precision = 'no', or training.dtype = "
        "'float32' (in the given config)"
    )


@pytest.mark.parametrize("channels_last", [True, False])
def test_students_have_the_memory_layout_of_the_recipe(channels_last, opened):
    student = opened(engine={"channels_last": channels_last}).build_student()
    weight = student.backbone.layer2[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) == channels_last
    assert weight.is_contiguous() != channels_last


def test_a_run_with_the_other_layout_is_near(run):
    first, second = (
        run(engine={"channels_last": value}, objective={"name": "supervised"})
        for value in (True, False)
    )
    losses = [run.rounds["train_loss"].to_numpy() for run in (first, second)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use (CUDA)")
@pytest.mark.parametrize("engine", [BFLOAT16, {}, {"channels_last": False}])
def test_a_run_on_a_gpu_is_near_that_on_a_cpu(engine, run):
    there, here = (
        run(engine={**engine, "device": device}, **METHODS["fopro"]) for device in ("cuda", "cpu")
    )
    assert there.rounds["train_loss"].to_numpy() == pytest.approx(
        here.rounds["train_loss"].to_numpy(), rel=0.05
    )
