"""Whether robust strategies bear one hospital of six that sends wrong updates.

    python benchmarks/byzantine.py [--seeds 3] [--rounds 6] [--picture PNG] [key=value ...]

Six hospitals with 150 handwritten digits each (scikit-learn's own, 16 px, which any student learns
in seconds), the same mix of classes at each; ``--alpha 1`` divides the classes unequally. Every
strategy runs without an attacker, and with hospital 0 sending NaN, its update reversed and five
times as long, or its update times 100 (``faults`` of the recipe). Shown is the balanced accuracy on
test of the student of the last round, as the best one on val may be from before the attack told.
Bulyan is not among the strategies: it needs 7 clients to bear one.

A strategy stays within noise of its own clean run where the paired differences over seeds are
compatible with none: |mean| <= 2 standard errors, or below one point of accuracy. With a few seeds
that is a rough rule, and the table says by how much each falls.
"""

import argparse
import itertools
import logging
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

from fedkd import config, seeding
from fedkd.data.images import LabelledImages
from fedkd.errors import ClientFailure, UpdateRefused
from fedkd.recipe import Recipe
from server import simulate
from server.evaluation import on_the_server, report_test
from server.pictures.style import BLUE, GREEN, LIGHT, ORANGE, RED, write_figure

NUM_HOSPITALS, IMAGES_EACH, NUM_VAL = 6, 150, 100
CLOSE = 0.01
"""A difference in balanced accuracy that is no collapse whatever its standard error."""
STRATEGIES = {
    "fedavg": [],
    "fedmedian": [],
    "fedtrimmedavg": ["strategy.trim=0.2"],
    "krum": ["strategy.num_malicious=1"],
    "multikrum": ["strategy.num_malicious=1", "strategy.num_selected=4"],
}
_LIAR = "faults.byzantine=['0']"
ATTACKS = {
    "clean": [],
    "NaN": [_LIAR, "faults.attack='nan'"],
    "sign flip x 5": [_LIAR, "faults.attack=sign_flip", "faults.attack_scale=5"],
    "scale x 100": [_LIAR, "faults.attack=scale", "faults.attack_scale=100"],
}
COLOURS = (BLUE, GREEN, ORANGE, RED)
RECIPE = [
    "name=byzantine",
    "objective.name=supervised",
    "augmentation.name=none",
    "training.batch_size=16",
    "training.learning_rate=3e-3",
    "evaluation.personalised=false",
    "failures.policy=continue",
    "engine.num_threads=1",
]
Job = tuple[str, str, int, float | None, list[str]]
"""Strategy, attack, seed, how classes are divided, and the recipe as overrides."""


def digits(seed: int, alpha: float | None) -> dict[str, Any]:
    """Hospitals, val and test of one seed, as arguments of ``simulate``."""
    data = load_digits()
    pixels = np.repeat(np.repeat(data.images * 15.9375, 2, axis=1), 2, axis=2).astype(np.uint8)
    rng = seeding.rng(seed, "benchmark-digits")
    order = rng.permutation(len(pixels))

    def images(rows: np.ndarray, name: str = "all") -> LabelledImages:
        three = np.repeat(pixels[rows][:, None], 3, axis=1)
        names = tuple(map(str, range(10)))
        return LabelledImages(three, data.target[rows], names, site_names=(name,))

    num_train = NUM_HOSPITALS * IMAGES_EACH
    train = order[:num_train]
    if alpha is not None:
        # Each class in random shares, then cut into hospitals of one size.
        shares = rng.dirichlet([alpha] * NUM_HOSPITALS, 10)
        wishes = [rng.choice(NUM_HOSPITALS, p=shares[label]) for label in data.target[train]]
        train = train[np.argsort(wishes, kind="stable")]
    parts = np.split(train, NUM_HOSPITALS)
    return {
        "sites": [images(rows, f"hospital-{n}") for n, rows in enumerate(parts)],
        "val": images(order[num_train : num_train + NUM_VAL]),
        "test": images(order[num_train + NUM_VAL :]),
    }


def measure(job: Job) -> dict[str, Any]:
    """Balanced accuracy on test of the last student, and how the attacker fared."""
    strategy, attack, seed, alpha, overrides = job
    row = {"strategy": strategy, "attack": attack, "seed": seed}
    recipe = config.load(Recipe, None, overrides)
    try:
        result = simulate(recipe, **digits(seed, alpha))
    except (ClientFailure, UpdateRefused) as error:
        # No student is left that predicts anything: as good as guessing.
        return {**row, "balanced_accuracy": 0.1, "error": str(error).splitlines()[0]}
    experiment, arrays = result.board.experiment, dict(result.student.state_dict())
    test, _ = report_test(experiment, on_the_server(experiment), arrays, len(result.rounds))
    weights = result.clients.loc[result.clients["partition_id"] == 0, "weight"]
    return {
        **row,
        "balanced_accuracy": test.balanced_accuracy,
        "attacker_weight": float(weights.max()) if len(weights) else 0.0,
        "refused": int(result.rounds["num_failed"].sum()),
        "finite": all(bool(tensor.isfinite().all()) for tensor in arrays.values()),
    }


def run(options: argparse.Namespace) -> pd.DataFrame:
    """One row for each strategy, attack and seed."""
    jobs: list[Job] = []
    for seed, strategy, attack in itertools.product(range(options.seeds), STRATEGIES, ATTACKS):
        ours = [f"seed={seed}", f"num_rounds={options.rounds}", f"strategy.name={strategy}"]
        ours += [*RECIPE, *STRATEGIES[strategy], *ATTACKS[attack], *options.overrides]
        jobs.append((strategy, attack, seed, options.alpha, ours))
    rows: list[dict[str, Any]] = []
    started = time.perf_counter()
    with ProcessPoolExecutor(options.workers, get_context("spawn"), logging.disable) as pool:
        for number, row in enumerate(pool.map(measure, jobs), 1):
            rows.append(row)
            print(
                f"{number}/{len(jobs)} {row['strategy']}, {row['attack']}, seed {row['seed']}: "
                f"{row['balanced_accuracy']:.3f} {row.get('error', '')} "
                f"({time.perf_counter() - started:.0f} s)",
                flush=True,
            )
    return pd.DataFrame(rows)


def table(found: pd.DataFrame) -> str:
    """Mean ± sd of balanced accuracy as Markdown, and what is not within noise of the clean run."""
    scores = found.set_index(["strategy", "attack", "seed"])["balanced_accuracy"].unstack("attack")
    lines = [f"| strategy | {' | '.join(ATTACKS)} |", f"|---{'|---' * len(ATTACKS)}|"]
    outside = []
    for name in STRATEGIES:
        own, cells = scores.loc[name], []
        for attack in ATTACKS:
            values, differences = own[attack], own[attack] - own["clean"]
            cells.append(f"{values.mean():.3f} ± {values.std():.3f}")
            error = differences.std() / np.sqrt(len(differences))
            if abs(differences.mean()) > max(CLOSE, 2 * error):
                cells[-1] += " *"
                outside.append(f"{name} under {attack} ({differences.mean():+.3f})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines.append(
        f"\n* Not within noise of its own clean run: {'; '.join(outside)}." if outside else ""
    )
    nan = found[found["attack"] == "NaN"]
    lines.append(
        f"NaN: {nan['refused'].sum():.0f} updates refused in {len(nan)} runs, largest weight of "
        f"the attacker {nan['attacker_weight'].max():g}, {int(nan['finite'].sum())} students "
        "finite."
    )
    return "\n".join(lines)


def draw(found: pd.DataFrame, path: Path) -> None:
    """Bars of the means, with a dot for each seed."""
    with rc_context(LIGHT.style()):
        figure = Figure(figsize=(8, 3.6), dpi=120, layout="constrained")
        axes = figure.add_subplot()
        width = 0.8 / len(ATTACKS)
        for number, (attack, colour) in enumerate(zip(ATTACKS, COLOURS, strict=True)):
            for place, strategy in enumerate(STRATEGIES):
                own = found[(found["strategy"] == strategy) & (found["attack"] == attack)]
                x = place + (number - (len(ATTACKS) - 1) / 2) * width
                values = own["balanced_accuracy"]
                label = attack if place == 0 else None
                axes.bar(x, values.mean(), 0.9 * width, color=colour, alpha=0.75, label=label)
                axes.plot([x] * len(values), values, ".", color=LIGHT.ink, markersize=4)
        axes.axhline(0.1, color=LIGHT.soft, linewidth=1, linestyle=":")
        beside = axes.get_yaxis_transform()
        axes.text(1.0, 0.1, " guessing", transform=beside, va="center", fontsize=8)
        axes.set_xticks(range(len(STRATEGIES)), list(STRATEGIES))
        axes.set_ylim(0, 1)
        axes.set_ylabel("balanced accuracy on test")
        axes.set_title("One hospital of six sends wrong updates", loc="left")
        figure.legend(loc="outside lower center", ncols=len(ATTACKS))
        write_figure(figure, path)


def main() -> None:
    """Run all, print the table, draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--alpha", type=float, help="divide classes unequally; default equally")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_args()
    found = run(options)
    print(f"\n{options.seeds} seeds, {options.rounds} rounds\n\n{table(found)}")
    if options.picture:
        draw(found, options.picture)
        print(options.picture)


if __name__ == "__main__":
    main()
