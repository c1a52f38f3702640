"""Figures of Fed-MAS in float64, through the public face.

Source: the public Fed-MAS code (commit 6f20ae4), run on CPU with the inputs of fedmas_inputs.py;
tests/data/fedmas_reference.json holds what it printed.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from fedkd.data.images import LabelledImages
from fedkd.losses.balanced_softmax import balanced_softmax
from fedkd.losses.cross_entropy import cross_entropy
from fedkd.losses.distillation import feature_distillation
from fedkd.models.factory import StudentConfig, build_student
from server import simulate
from tests import fedmas_inputs as inputs

REFERENCE = json.loads((Path(__file__).parent / "data/fedmas_reference.json").read_text())
CLASSES = tuple("abcde")


def images(pixels, labels):
    return LabelledImages(pixels, np.asarray(labels), CLASSES)


def sites(num):
    return [images(inputs.train_images(c), inputs.LABELS[f"train{c}"]) for c in range(num)]


def teacher():
    net = torchvision.models.resnet18()
    net.fc = nn.Identity()
    shapes = [(name, tuple(t.shape)) for name, t in net.state_dict().items()]
    state = inputs.init_all(shapes, prefix="teacher.")
    net.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    return net


def initial_student(num_teacher_features):
    student = build_student(
        StudentConfig(name="resnet18"),
        num_classes=5,
        num_teacher_features=num_teacher_features,
        seed=0,
    )
    shapes = [(n.removeprefix("backbone."), t.shape) for n, t in student.state_dict().items()]
    return {name: torch.from_numpy(value) for name, value in inputs.init_all(shapes).items()}


def run(case):
    c = REFERENCE["cases_f64"][case]["config"]
    distils = c["method"] == "fedmas"
    test = images(inputs.test_images(), inputs.LABELS["test"])
    recipe = {
        "num_rounds": c["comm_round"],
        "student": {"name": "resnet18"},
        "objective": {
            "name": "ekd" if distils else "supervised",
            "loss": c["loss_fn_name"].lower(),
            "lambda_f": c["free_u"],
        },
        "strategy": {"name": {"avg": "fedavg"}.get(c["aggregate_method"], c["aggregate_method"])},
        "augmentation": {"name": "none"},
        "training": {
            "dtype": "float64",
            "shuffle": False,
            "drop_last": True,
            "batch_size": c["batch_size"],
            "local_epochs": c["epochs"],
            "optimizer": "sgd",
            "learning_rate": c["lr"],
            "weight_decay": c["wd"],
        },
    }
    return simulate(
        recipe,
        sites=sites(c["client_number"]),
        val=test,
        test=test,
        teacher=teacher() if distils else None,
        initial_student=initial_student(512 if distils else None),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "tolerance"),
    [
        ("c01_fedavg_bsm_1c", 1e-6),
        ("c08_fedmas_avg_1c", 1e-9),
        ("c09_fedmas_avg_3c", 1e-9),
        ("v10_mas_teacher_always_eval", 1e-9),
    ],
)
def test_a_run_has_the_figures_of_fed_mas(case, tolerance):
    rounds = REFERENCE["cases_f64"][case]["rounds"]
    result = run(case)
    for number, expected in enumerate(rounds, start=1):
        clients = result.clients[result.clients["round"] == number]
        assert clients["num_examples"].tolist() == [c["num_samples"] for c in expected["clients"]]
        assert clients["weight"].tolist() == pytest.approx(expected["agg_weights"], rel=tolerance)
        for (_, row), client in zip(clients.iterrows(), expected["clients"], strict=True):
            assert row["loss"] == pytest.approx(np.mean(client["step_loss"]), rel=tolerance)
        row = result.rounds.iloc[number - 1]
        assert row["val_balanced_accuracy"] == pytest.approx(expected["bal_acc"], rel=1e-9)
    last = rounds[-1]
    state = {n.removeprefix("backbone."): t for n, t in result.student.state_dict().items()}
    for name, (norm, _, entries) in last["global"]["tensors"].items():
        values = state[name].double().flatten().numpy()
        assert np.linalg.norm(values) == pytest.approx(norm, rel=tolerance), name
        assert values[inputs.sample_indices(len(values))] == pytest.approx(
            entries, rel=10 * tolerance, abs=tolerance
        ), name
    with torch.no_grad():
        logits = result.student(torch.from_numpy(inputs.test_images()).double()).logits
    assert logits[0].tolist() == pytest.approx(last["logits_test0"], rel=100 * tolerance)
    assert "".join(map(str, logits.argmax(1).tolist())) == last["pred"]


@pytest.mark.parametrize("counts", ["counts_missing", "counts_full"])
@pytest.mark.parametrize(("name", "loss"), [("CE", cross_entropy), ("BSM", balanced_softmax)])
def test_losses_have_the_figures_of_fed_mas(counts, name, loss):
    fixture, expected = inputs.loss_fixture(), REFERENCE["pure"]["losses"][counts]
    logits = torch.from_numpy(fixture["logits"]).double().requires_grad_()
    targets = torch.tensor(expected["targets"])
    value = loss(logits, targets, torch.tensor(fixture[counts]).double()).mean()
    value.backward()
    assert value.item() == pytest.approx(expected[name]["value"], rel=1e-9)
    assert logits.grad.norm().item() == pytest.approx(expected[name]["grad_l2"], rel=1e-9)
    assert logits.grad[0].tolist() == pytest.approx(expected[name]["grad_row0"], rel=1e-8)


def test_distillation_has_the_figures_of_fed_mas():
    fixture, expected = inputs.loss_fixture(), REFERENCE["pure"]["losses"]["counts_full"]
    student, teacher_features = (
        torch.from_numpy(fixture[name]).double() for name in ("student", "teacher")
    )
    value = feature_distillation(student, teacher_features)
    assert value.tolist() == pytest.approx(expected["l2_plain"]["value"], rel=1e-9)
