"""Forward passes of untrained students and the teacher have the figures of Fed-MAS, in float64.

Source: the public Fed-MAS code (commit 6f20ae4), run on CPU with the inputs of fedmas_inputs.py.
"""

import json
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from fedkd.losses.distillation import feature_distillation
from fedkd.models.factory import StudentConfig, build_student
from fedkd.models.student import load_initial
from tests import fedmas_inputs as inputs

FIGURES = json.loads((Path(__file__).parent / "data/fedmas_reference.json").read_text())["pure"][
    "forward"
]
BATCH = torch.from_numpy(inputs.train_images(0)[:8]).double()


def student(**heads):
    network = build_student(
        StudentConfig(name="resnet18"),
        num_classes=5,
        seed=0,
        normalize=False,
        **{"num_teacher_features": None, **heads},
    )
    shapes = [(n.removeprefix("backbone."), t.shape) for n, t in network.state_dict().items()]
    state = {name: torch.from_numpy(value) for name, value in inputs.init_all(shapes).items()}
    load_initial(network, state)
    return network.double()


@pytest.fixture(scope="module")
def teacher_features():
    network = torchvision.models.resnet18()
    network.fc = nn.Identity()
    shapes = [(name, tuple(t.shape)) for name, t in network.state_dict().items()]
    state = inputs.init_all(shapes, prefix="teacher.")
    network.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    with torch.no_grad():
        return network.double().eval()(BATCH)


def norms(rows):
    return rows.norm(dim=1).tolist()


def equal(figures):
    return pytest.approx(figures, rel=1e-9)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_forward_passes_of_the_ekd_student_have_the_figures_of_fed_mas(mode, teacher_features):
    expected = FIGURES[f"student_{mode}"]
    with torch.no_grad():
        out = student(num_teacher_features=512).train(mode == "train")(BATCH)
    assert norms(out.features) == equal(expected["feat_l2"])
    assert norms(out.projection) == equal(expected["proj_l2"])
    assert out.logits[0].tolist() == equal(expected["out1_row0"])
    assert out.projected_logits[0].tolist() == equal(expected["out2_row0"])
    losses = feature_distillation(out.projection, teacher_features)
    assert losses.tolist() == equal(expected["l2_loss_vs_teacher_eval"])


def test_the_teachers_features_have_the_figures_of_fed_mas(teacher_features):
    expected = FIGURES["teacher_eval"]
    assert norms(teacher_features) == equal(expected["feat_l2"])
    assert teacher_features[0, :5].tolist() == equal(expected["row0_first5"])


def test_forward_passes_of_the_baselines_have_the_figures_of_fed_mas():
    for heads, key in (({}, "resnet_plain_eval"), ({"contrastive": True}, "resnet_moon_eval")):
        expected = FIGURES[key]
        with torch.no_grad():
            out = student(**heads).eval()(BATCH)
        read = out.features if out.projection is None else out.projection
        assert list(read.shape) == expected["feat_shape"]
        assert norms(read) == equal(expected["feat_l2"])
        assert out.logits[0].tolist() == equal(expected["logits_row0"])
