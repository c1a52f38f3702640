"""Values and gradients of the losses have the figures of Fed-MAS, in float64.

Source: the public Fed-MAS code (commit 6f20ae4), run on CPU with the inputs of fedmas_inputs.py.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fedkd.losses.balanced_softmax import log_prior
from fedkd.losses.distillation import feature_distillation
from fedkd.losses.effective_number import effective_number_weights, is_reweighted
from fedkd.losses.factory import LossConfig, make_loss
from fedkd.losses.ldam import margins
from fedkd.models.student import CosineClassifier
from tests import fedmas_inputs as inputs

FIGURES = json.loads((Path(__file__).parent / "data/fedmas_reference.json").read_text())["pure"][
    "losses"
]
FIXTURE = inputs.loss_fixture()
NAMES = {"CE": "ce", "BSM": "bsm", "focal": "focal_detached", "CB": "cb", "RW": "rw", "LCC": "lcc"}
ROUNDS = (0, 3, 4)
"""Fed-MAS's numbers of the rounds, of 5; ours are one more."""


@pytest.fixture(params=["counts_missing", "counts_full"])
def counts(request):
    return request.param


def tensor(name):
    return torch.from_numpy(FIXTURE[name]).double()


def counts_of(name):
    return torch.tensor(FIXTURE[name], dtype=torch.float64)


def equal(figures):
    return pytest.approx(figures, rel=1e-9, abs=0)


def check(value, inputs, expected):
    """Value and gradient."""
    value.sum().backward()
    assert value.tolist() == equal(expected["value"])
    assert inputs.grad.norm().item() == equal(expected["grad_l2"])
    assert inputs.grad[0].tolist() == equal(expected["grad_row0"])
    assert inputs.grad[4].tolist() == equal(expected["grad_row4"])


def test_every_figure_is_used(counts):
    used = {*NAMES, "targets", "BSM_none", "l2_plain", "get_effective_number_weight"}
    used |= {f"LDAM_epoch{r}_of5" for r in ROUNDS} | {f"balanced_l2_epoch{r}_of5" for r in ROUNDS}
    assert set(FIGURES[counts]) == used
    assert set(FIGURES) == {"counts_missing", "counts_full", "ClassifierLDAM_row0"}


@pytest.mark.parametrize("name", NAMES)
def test_supervised_losses_have_the_figures_of_fed_mas(counts, name):
    expected, targets = FIGURES[counts][name], torch.tensor(FIGURES[counts]["targets"])
    loss = make_loss(NAMES[name], LossConfig(), counts_of(counts), 1, 5)
    logits = tensor("logits").requires_grad_()
    check(loss.mean(loss.per_example(logits, targets), targets), logits, expected)
    if "class_weight" in expected:
        assert loss.class_weights.tolist() == equal(expected["class_weight"])
    if "adjustments" in expected:
        assert log_prior(counts_of(counts)).tolist() == equal(expected["adjustments"])


def test_balanced_softmax_per_example_has_the_figures_of_fed_mas(counts):
    targets = torch.tensor(FIGURES[counts]["targets"])
    loss = make_loss("bsm", LossConfig(), counts_of(counts), 1, 5)
    logits = tensor("logits").requires_grad_()
    check(loss.per_example(logits, targets), logits, FIGURES[counts]["BSM_none"])


@pytest.mark.parametrize("r", ROUNDS)
def test_ldam_has_the_figures_of_fed_mas(counts, r):
    expected = FIGURES[counts][f"LDAM_epoch{r}_of5"]
    targets = torch.tensor(FIGURES[counts]["targets"])
    loss = make_loss("ldam", LossConfig(), counts_of(counts), r + 1, 5)
    cosines = tensor("cos_logits").requires_grad_()
    check(loss.mean(loss.per_example(cosines, targets), targets), cosines, expected)
    assert margins(counts_of(counts), 0.5).tolist() == equal(expected["margins"])
    assert loss.class_weights.tolist() == equal(expected["class_weight"])


@pytest.mark.parametrize("r", ROUNDS)
def test_balanced_distillation_has_the_figures_of_fed_mas(counts, r):
    expected = FIGURES[counts][f"balanced_l2_epoch{r}_of5"]
    targets = torch.tensor(FIGURES[counts]["targets"])
    beta = 0.9999 if is_reweighted(r + 1, 5) else 0.0
    weights = effective_number_weights(counts_of(counts), beta)
    assert weights.tolist() == equal(expected["class_weight"])
    student = tensor("student").requires_grad_()
    value = feature_distillation(student, tensor("teacher")) * weights[targets]
    check(value, student, {**expected, "value": expected["value"][0]})


def test_distillation_has_the_figures_of_fed_mas(counts):
    student = tensor("student").requires_grad_()
    value = feature_distillation(student, tensor("teacher"))
    check(value, student, FIGURES[counts]["l2_plain"])


def test_the_cosine_classifier_has_the_figures_of_fed_mas():
    # The figures' weight is (features, classes), drawn with seed 11.
    weight = np.random.Generator(np.random.PCG64(11)).standard_normal((16, 5)).astype(np.float32)
    classifier = CosineClassifier(16, 5).double()
    with torch.no_grad():
        classifier.weight.copy_(torch.from_numpy(weight.T))
        row = classifier(tensor("student"))[0]
    assert row.tolist() == equal(FIGURES["ClassifierLDAM_row0"])


def test_effective_number_weights_have_the_figures_of_fed_mas(counts):
    weights = effective_number_weights(counts_of(counts), 0.9999)
    assert weights.tolist() == equal(FIGURES[counts]["get_effective_number_weight"])
