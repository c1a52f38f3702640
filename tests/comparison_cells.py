"""Cells of comparisons, made by hand or drawn, as an outcome has them."""

import numpy as np
import pandas as pd

from fedkd import seeding


def cells_of(scores, setting="", metric="balanced_accuracy", **more):
    """{arm: scores by seed}; None is a cell that failed, and a missing arm has no cell."""
    rows = [
        {
            "setting": setting,
            "arm": arm,
            "seed": seed,
            "status": "failed" if value is None else "finished",
            "error": "ValueError: no luck" if value is None else "",
            "run": "" if value is None else f"{arm}-{seed}",
            metric: np.nan if value is None else value,
            **{name: np.nan if value is None else values[arm][seed]
               for name, values in more.items()},
        }
        for arm, values_of_arm in scores.items()
        for seed, value in enumerate(values_of_arm)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def drawn(num_arms, num_seeds, settings=("",), gain=0.0, baselines=True):
    """Arms named after strategies, with all measures; ``gain`` of the last one over the others."""
    names = ["fedavg", *(f"strategy_{number}" for number in range(1, num_arms))]
    names += ["local", "pooled"] if baselines else []
    rows = []
    for place, setting in enumerate(settings):
        rng = seeding.rng(7, "drawn", place)
        luck = rng.normal(0, 0.02, num_seeds)
        for arm in names:
            level = 0.6 + {"local": -0.15, "pooled": 0.12}.get(arm, rng.normal(0, 0.004))
            level += gain * (arm == names[num_arms - 1])
            for seed in range(num_seeds):
                score = level + luck[seed] + rng.normal(0, 0.008)
                rows.append(
                    {
                        "setting": setting, "arm": arm, "seed": seed, "status": "finished",
                        "error": "", "run": f"{setting}{arm}-{seed}", "balanced_accuracy": score,
                        "mcc": score - 0.1, "macro_f1": score - 0.05, "kappa": score - 0.12,
                        "macro_auroc": score + 0.2, "recall_head": score + 0.2,
                        "recall_medium": score, "recall_tail": score - 0.3 + rng.normal(0, 0.03),
                        "worst_site_balanced_accuracy": score - 0.1 + rng.normal(0, 0.02),
                        "site_sd_balanced_accuracy": 0.05 + abs(rng.normal(0, 0.01)),
                        "ece": 0.1 + abs(rng.normal(0, 0.02)), "accuracy": score + 0.1,
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


def few(cells):
    """Only the measures that sentences and drawings speak of, which is faster."""
    return cells.drop(
        columns=["mcc", "macro_f1", "kappa", "macro_auroc", "site_sd_balanced_accuracy", "accuracy"]
    )
