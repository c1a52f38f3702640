"""What the class scores of mas cost a client: a round with the scoring pass over one without.

    python benchmarks/scoring_pass.py [--config configs/quickstart.toml] [--pairs 5] [key=value ...]

Pairs alternate; a round is the second one of client 0: fopro's warm-up is not in it, nor is the
teacher's part of the scoring, which is done in the first round and kept. The pass cannot be fused
with the first epoch: its losses are of the received student in eval mode on plain images, those of
the epoch of a student that changes at every step, in train mode, on augmented images.
"""

import argparse
import statistics
import time

from clients.node import Node
from fedkd import config
from fedkd.experiment import open_experiment
from fedkd.recipe import Recipe


def main() -> None:
    """Print the ratio of each pair and their median."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/quickstart.toml")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_args()
    recipe = config.load(Recipe, options.config, options.overrides)
    node = Node(open_experiment(recipe))
    arrays = node.initial_arrays()
    started = time.perf_counter()
    node.train(0, arrays, {}, 1)
    plain = time.perf_counter() - started
    _, state = node.train(0, arrays, {}, 1, score_classes=True)
    print(f"first round: {plain:.3f} s without, {time.perf_counter() - started - plain:.3f} s with")

    def seconds(score_classes: bool) -> float:
        started = time.perf_counter()
        node.train(0, arrays, state, 2, score_classes=score_classes)
        return time.perf_counter() - started

    ratios = []
    for _ in range(options.pairs):
        without, scored = seconds(False), seconds(True)
        ratios.append(scored / without)
        print(f"{without:.3f} s without, {scored:.3f} s with: {ratios[-1]:.3f}")
    print(
        f"median {statistics.median(ratios):.3f} (from {min(ratios):.3f} to {max(ratios):.3f}), "
        f"{recipe.objective.name}, {len(node.experiment.loader(0))} images"
    )


if __name__ == "__main__":
    main()
