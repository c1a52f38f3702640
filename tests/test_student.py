import pytest
import torch

from fedkd.errors import StudentError
from fedkd.models import states
from fedkd.models.factory import STUDENTS, StudentConfig, build_student
from fedkd.models.student import load_initial


def build(name="resnet8", **options):
    defaults = {"num_classes": 5, "num_teacher_features": 12, "seed": 0}
    return build_student(StudentConfig(name=name), **{**defaults, **options})


@pytest.mark.parametrize("name", list(STUDENTS))
def test_every_student_gives_logits_and_a_projection(name):
    student = build(name).eval()
    out = student(torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0)))
    assert out.logits.shape == out.projected_logits.shape == (2, 5)
    assert out.projection.shape == (2, 12)
    assert out.features.shape == (2, student.fc.in_features)


def test_the_heads_have_the_names_of_fed_mas():
    names = [n for n in build().state_dict() if not n.startswith("backbone.")]
    assert {n.split(".")[0] for n in names} == {"fc", "p_free", "fc_free"}
    assert {"p_free.0.weight", "p_free.1.running_mean", "p_free.3.bias"} <= set(names)


def test_a_student_without_teacher_has_no_projector():
    student = build(num_teacher_features=None).eval()
    assert student(torch.rand(1, 3, 32, 32)).projection is None
    assert not any("free" in name for name in student.state_dict())


def test_equal_seeds_give_equal_bits_and_leave_the_global_generator_alone():
    before = torch.random.get_rng_state()
    first, second, other = build(), build(), build(seed=1)
    assert states.sha256(first.state_dict()) == states.sha256(second.state_dict())
    assert states.sha256(first.state_dict()) != states.sha256(other.state_dict())
    assert torch.equal(before, torch.random.get_rng_state())


def test_normalisation_is_applied_and_does_not_travel():
    plain, scaled = build(normalize=False).eval(), build().eval()
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    torch.testing.assert_close(plain((x - mean) / std).logits, scaled(x).logits)
    assert set(plain.state_dict()) == set(scaled.state_dict())


def test_initial_weights_may_have_torchvision_names():
    source, target = build(seed=1), build(seed=2)
    given = {n.removeprefix("backbone."): t for n, t in source.state_dict().items()}
    load_initial(target, given)
    assert states.sha256(target.state_dict()) == states.sha256(source.state_dict())


def test_initial_weights_that_do_not_fit_are_listed():
    state = build(num_classes=6).state_dict()
    del state["fc.bias"]
    state["extra"] = torch.zeros(1)
    with pytest.raises(
        StudentError,
        match=r"5 problem.*missing fc.bias, unexpected extra, fc.weight "
        r"has shape \(6, 64\), expected \(5, 64\)",
    ):
        load_initial(build(), state)


def test_cosine_classifiers_give_the_cosines_of_their_inputs():
    student = build_student(
        StudentConfig(), num_classes=3, num_teacher_features=5, seed=0, cosine=True
    ).eval()
    assert {n for n in student.state_dict() if n.startswith("fc")} == {
        "fc.weight",
        "fc_free.weight",
    }
    out = student(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    for inputs, weight, logits in (
        (out.features, student.fc.weight, out.logits),
        (out.projection, student.fc_free.weight, out.projected_logits),
    ):
        expected = torch.nn.functional.cosine_similarity(inputs[:, None], weight[None], dim=2)
        torch.testing.assert_close(logits, expected)


def test_initial_cosine_classifiers_may_have_the_names_and_shape_of_fed_mas():
    student = build_student(
        StudentConfig(), num_classes=3, num_teacher_features=5, seed=0, cosine=True
    )
    state = {name: tensor + 1 for name, tensor in student.state_dict().items()}
    named = {
        name.replace(".weight", ".ldam.weight") if name.startswith("fc") else name: tensor.T
        if name.startswith("fc")
        else tensor
        for name, tensor in state.items()
    }
    load_initial(student, named)
    assert states.sha256(student.state_dict()) == states.sha256(state)


def test_teacher_initialisation_takes_the_teachers_backbone():
    teacher = build("resnet10", seed=9)
    config = StudentConfig(name="resnet10", init="teacher")
    student = build_student(
        config, num_classes=5, num_teacher_features=12, seed=0, teacher_backbone=teacher.backbone
    )
    assert torch.equal(student.backbone.conv1.weight, teacher.backbone.conv1.weight)
    assert student.backbone.conv1.weight is not teacher.backbone.conv1.weight


def test_teacher_initialisation_needs_the_same_architecture():
    config = StudentConfig(name="resnet8", init="teacher")
    with pytest.raises(StudentError, match="different architectures"):
        build_student(
            config,
            num_classes=5,
            num_teacher_features=12,
            seed=0,
            teacher_backbone=build("resnet10").backbone,
        )


def test_small_networks_have_no_imagenet_weights():
    with pytest.raises(StudentError, match="has no ImageNet weights"):
        build_student(
            StudentConfig(init="imagenet"), num_classes=5, num_teacher_features=None, seed=0
        )


def test_imagenet_weights_are_read_from_torchs_cache(tmp_path, monkeypatch):
    import torchvision

    weights = torchvision.models.ResNet18_Weights.DEFAULT
    source = torchvision.models.resnet18()
    monkeypatch.setattr(type(weights), "get_state_dict", lambda self, **_: source.state_dict())
    student = build_student(
        StudentConfig(name="resnet18", init="imagenet"),
        num_classes=5,
        num_teacher_features=None,
        seed=0,
    )
    assert torch.equal(student.backbone.conv1.weight, source.conv1.weight)


def test_imagenet_weights_that_cannot_be_had_say_where_to_put_them(tmp_path, monkeypatch):
    import torchvision

    def fail(self, **_):
        raise OSError("no network")

    monkeypatch.setattr(type(torchvision.models.ResNet18_Weights.DEFAULT), "get_state_dict", fail)
    with pytest.raises(StudentError, match="offline, put the file of https://.*resnet18.* into"):
        build_student(
            StudentConfig(name="resnet18", init="imagenet"),
            num_classes=5,
            num_teacher_features=None,
            seed=0,
        )


def test_the_hash_sees_names_dtypes_shapes_and_bits():
    base = {"a": torch.zeros(2, 3)}
    others = [
        {"b": torch.zeros(2, 3)},
        {"a": torch.zeros(3, 2)},
        {"a": torch.zeros(2, 3, dtype=torch.int32)},
        {"a": torch.full((2, 3), -0.0)},
    ]
    hashes = {states.sha256(state) for state in [base, *others]}
    assert len(hashes) == 5
    assert states.sha256({"a": torch.zeros(3, 2).t()}) == states.sha256(base)
