"""Client weights and aggregates of Fed-MAS: figures of the reference file, through aggregation."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from strategies.mas import robust_factor
from tests.hand_made_replies import Federation, update

REFERENCE = json.loads((Path(__file__).parent / "data/fedmas_reference.json").read_text())
RULES = REFERENCE["pure"]["agg_rules"]
NAMES = {"avg": "fedavg", "mas": "mas", "mas_inv": "mas_inv", "mas_DRW": "mas_drw"}
SCORED_ROUNDS = REFERENCE["cases_f64"]["v10_mas_teacher_always_eval"]["rounds"]


@pytest.mark.parametrize("key", list(RULES))
def test_aggregates_have_the_figures_of_fed_mas(key):
    method, r, num_rounds = re.fullmatch(r"[a-d]_(.+)_round(\d)of(\d)", key).groups()
    figures = RULES[key]
    updates = [
        # Scored in two classes, trained in the first alone: the factor is R * 1, inverted or not.
        update(k, k + 1.0, num, count, scores=(factor, 1 - factor), losses=(1.0, 0.0))
        for k, (num, factor, count) in enumerate(
            zip(
                figures["num_samples"],
                figures["robust_factor"],
                figures["int_buffer_inputs"],
                strict=True,
            )
        )
    ]
    federation = Federation(NAMES[method], updates, num_rounds=int(num_rounds))
    aggregate = federation.round(int(r) + 1)
    weights = [report.weight for report in federation.strategy.reports]
    assert weights == pytest.approx(figures["cw"], rel=1e-12)
    # Printed with 12 digits.
    mean = figures["w_mean_of_client_number"]
    assert aggregate["running_var"].tolist() == pytest.approx([mean] * 2, rel=1e-11)
    # Fed-MAS averages integers and cuts off the fraction (int_buffer); ours keep the largest.
    assert aggregate["num_batches_tracked"] == max(figures["int_buffer_inputs"])


@pytest.mark.parametrize(
    "expected", SCORED_ROUNDS, ids=lambda expected: f"round {expected['round']}"
)
def test_robust_factors_have_the_figures_of_fed_mas(expected):
    updates = []
    for client in expected["clients"]:
        scores, losses = np.array(client["class_weights"]), np.array(client["class_losses"])
        assert robust_factor(scores, losses) == pytest.approx(client["robust_factor"], rel=1e-11)
        # Sums travel: of 3 images of each class that was scored, and of none of the others.
        counts = 3 * (scores > 0)
        sums = {"scores": scores * counts, "losses": losses * counts, "counts": counts.tolist()}
        updates.append(update(client["client"], 0.0, client["num_samples"], **sums))
    federation = Federation("mas", updates)
    federation.round(expected["round"] + 1)
    weights = [report.weight for report in federation.strategy.reports]
    assert weights == pytest.approx(expected["agg_weights"], rel=1e-11)
