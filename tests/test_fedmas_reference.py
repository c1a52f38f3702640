"""Figures of Fed-MAS in float64: of fedkd through the public face, and of our oracle step by step.

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
from server import simulate
from tests import fedmas_inputs as inputs
from tests import fedmas_program as program

REFERENCE = json.loads((Path(__file__).parent / "data/fedmas_reference.json").read_text())
CASES = {
    "c01_fedavg_bsm_1c": 1e-6,
    "c08_fedmas_avg_1c": 1e-9,
    "c09_fedmas_avg_3c": 1e-9,
    "v10_mas_teacher_always_eval": 1e-9,
}


def labelled(pixels, labels):
    return LabelledImages(pixels, np.asarray(labels), tuple("abcde"))


def recipe(case, student):
    """A case of the oracle as a config of fedkd."""
    values = {
        "num_rounds": case.num_rounds,
        "student": {"name": student},
        "objective": {
            "name": case.objective,
            "loss": case.loss,
            "lambda_f": case.lambda_f,
            "balanced_distillation": case.balanced_distillation,
        },
        "training": {
            "dtype": "float64",
            "shuffle": False,
            "drop_last": True,
            "batch_size": case.batch_size,
            "local_epochs": case.local_epochs,
            "optimizer": case.optimizer,
            "learning_rate": case.learning_rate,
            "weight_decay": case.weight_decay,
        },
        "schedule": {"name": case.schedule, "milestone": case.milestone},
        "strategy": {"name": case.strategy},
        "augmentation": {"name": "none"},
        "evaluation": {"personalised": False},
        "engine": {"device": "cpu"},
    }
    if case.ramp_down_after is not None:
        values["objective"]["ramp_down_after"] = case.ramp_down_after
    if case.objective == "fedprox":
        values["fedprox"] = {"mu": case.mu}
    if case.objective == "moon":
        keys = ("mu", "temperature", "frozen_mode")
        values["moon"] = {key: getattr(case, key) for key in keys}
    return values


def resnet18():
    network = torchvision.models.resnet18()
    network.fc = nn.Identity()
    return network


def inputs_of(name):
    """The case, its initial student, its sites, the test images and the teacher."""
    c = REFERENCE["cases_f64"][name]["config"]
    case = program.Case(
        objective={"fedavg": "supervised", "fedmas": "ekd"}[c["method"]],
        loss=c["loss_fn_name"].lower(),
        strategy={"avg": "fedavg", "mas": "mas"}[c["aggregate_method"]],
        num_rounds=c["comm_round"],
        batch_size=c["batch_size"],
        local_epochs=c["epochs"],
        learning_rate=c["lr"],
        weight_decay=c["wd"],
        lambda_f=c["free_u"],
    )
    student = program.initialise(program.Network(case, resnet18(), 512, 512))
    sites = [
        (inputs.train_images(k), inputs.LABELS[f"train{k}"]) for k in range(c["client_number"])
    ]
    teacher = program.initialise(resnet18(), "teacher.") if case.objective == "ekd" else None
    return case, student, sites, inputs.test_images(), teacher


def check_aggregate(expected, state, logits, tolerance):
    """Compare tensors (norms, sums, sampled entries), test logits and predictions."""
    state = {name.removeprefix("backbone."): tensor for name, tensor in state.items()}
    for name, (l2, total, entries) in expected["global"]["tensors"].items():
        values = state[name].double().flatten().numpy()
        assert np.linalg.norm(values) == pytest.approx(l2, rel=tolerance), name
        assert values.sum() == pytest.approx(total, abs=tolerance * np.abs(values).sum()), name
        assert values[inputs.sample_indices(len(values))] == pytest.approx(
            entries, rel=10 * tolerance, abs=tolerance
        ), name
    norms = [expected["global"][key] for key in ("params_l2", "bn_stats_l2")]
    assert [norm_of_parameters(state), norm_of_statistics(state)] == pytest.approx(
        norms, rel=tolerance
    )
    assert logits[0].tolist() == pytest.approx(expected["logits_test0"], rel=100 * tolerance)
    assert "".join(map(str, logits.argmax(1).tolist())) == expected["pred"]


def norm_of_parameters(state):
    return norm(t for name, t in state.items() if "running" not in name and "num_b" not in name)


def norm_of_statistics(state):
    return norm(t for name, t in state.items() if "running" in name)


def norm(tensors):
    return sum(t.square().sum().item() for t in tensors) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize(("name", "tolerance"), CASES.items())
def test_a_run_has_the_figures_of_fed_mas(name, tolerance):
    rounds = REFERENCE["cases_f64"][name]["rounds"]
    case, student, sites, pixels, teacher = inputs_of(name)
    test = labelled(pixels, inputs.LABELS["test"])
    result = simulate(
        recipe(case, "resnet18"),
        sites=[labelled(*site) for site in sites],
        val=test,
        test=test,
        teacher=teacher,
        initial_student=student.float().state_dict(),
    )
    for number, expected in enumerate(rounds, start=1):
        clients = result.clients[result.clients["round"] == number]
        assert clients["num_examples"].tolist() == [c["num_samples"] for c in expected["clients"]]
        assert clients["weight"].tolist() == pytest.approx(expected["agg_weights"], rel=tolerance)
        for (_, row), client in zip(clients.iterrows(), expected["clients"], strict=True):
            assert row["loss"] == pytest.approx(np.mean(client["step_loss"]), rel=tolerance)
            if case.objective == "ekd":
                assert [row["loss_supervised"], row["loss_distillation"]] == pytest.approx(
                    [client["loss_sup"], client["loss_free"]], rel=tolerance
                )
        row = result.rounds.iloc[number - 1]
        assert row["val_balanced_accuracy"] == pytest.approx(expected["bal_acc"], rel=1e-9)
    with torch.no_grad():
        logits = result.student(torch.from_numpy(pixels).double()).logits
    check_aggregate(rounds[-1], result.student.state_dict(), logits, tolerance)
    # An integer buffer is the largest of the clients' counts; Fed-MAS's is their truncated mean.
    steps = max(len(client["step_loss"]) for client in rounds[-1]["clients"])
    counts = result.student.state_dict()["backbone.bn1.num_batches_tracked"]
    assert counts == case.num_rounds * steps


@pytest.mark.slow
@pytest.mark.parametrize(("name", "tolerance"), CASES.items())
def test_the_oracle_has_every_figure_of_fed_mas(name, tolerance):
    rounds = REFERENCE["cases_f64"][name]["rounds"]
    for expected, known in zip(rounds, program.run(*inputs_of(name)), strict=True):
        assert known["weights"] == pytest.approx(expected["agg_weights"], rel=tolerance)
        for figures, client in zip(expected["clients"], known["clients"], strict=True):
            state = client["state"]
            pairs = {
                "num_samples": client["num_samples"],
                "lr": client["lr"],
                "step_loss": client["loss"],
                "step_grad_norm_preclip": client.get("norm"),
                "loss_sup": np.mean(client["loss_supervised"]),
                "loss_free": np.mean(client.get("loss_distillation", 0.0)),
                "class_weights": client["class_weights"],
                "class_losses": client["class_losses"],
                "robust_factor": client["robust_factor"],
                "local_params_l2": norm_of_parameters(state),
                "local_bn_l2": norm_of_statistics(state),
            }
            # Later counts start from the aggregate's, which is a truncated mean in Fed-MAS.
            if expected["round"] == 0:
                pairs["local_nbt"] = state["backbone.bn1.num_batches_tracked"].item()
            for key in pairs.keys() & figures.keys():
                figure = np.squeeze(figures[key])
                assert np.squeeze(pairs[key]) == pytest.approx(figure, rel=tolerance), key
        check_aggregate(expected, known["state"], known["logits"], tolerance)
