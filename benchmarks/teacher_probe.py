"""What teachers of several seeds are worth on HAM10000: a linear probe against three controls.

`fedkd probe` says it of one teacher and any data set; this adds seeds and k-means patches.

    python benchmarks/teacher_probe.py WEIGHTS.safetensors ... [--test]

Several files are taken for training seeds of one recipe: their mean and spread are shown, and the
bootstrap compares their mean. Without --test, only the validation split is scored: choose there,
and read the test split once. Images are found through FEDKD_DATA; features are cached
in FEDKD_CACHE (default ~/.cache/fedkd).
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor, nn

from fedkd import files, paths, seeding
from fedkd.data.catalog import load_splits
from fedkd.data.dead_leaves import dead_leaves
from fedkd.data.images import SPLITS
from fedkd.data.sets.ham10000 import Ham10000Config
from fedkd.fetching import hash_file
from fedkd.models.small_resnet import resnet10
from fedkd.pretraining.config import PretrainConfig
from fedkd.pretraining.images import normalize
from fedkd.pretraining.statistics import measure_statistics
from fedkd.probing.controls import raw_pixels
from fedkd.probing.linear import Probe, lesion_bootstrap, linear_probe, score
from fedkd.teachers.stored import build_head, load_pretrained, round_weights

READING_SIZE = 64
Pixels = npt.NDArray[np.uint8]
Features = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Lesions:
    """HAM10000, decoded: pixels (num_images, 3, 64, 64) and columns of its table."""

    pixels: Pixels
    labels: npt.NDArray[np.int64]
    lesion_ids: npt.NDArray[np.str_]
    splits: npt.NDArray[np.str_]

    def rows(self, split: str) -> npt.NDArray[np.bool_]:
        """Which images belong to a split."""
        return np.asarray(self.splits == split)


def read_ham10000() -> Lesions:
    """Decode once, then take from the cache."""
    splits = load_splits(Ham10000Config(size=READING_SIZE, split_column="split"))
    parts = [getattr(splits, name) for name in SPLITS]
    # In the order of the image ids, on which the draws of the controls hang.
    order = np.argsort(np.concatenate([part.ids for part in parts]))
    return Lesions(
        np.concatenate([np.asarray(part.images) for part in parts])[order],
        np.concatenate([part.labels for part in parts])[order],
        np.concatenate([part.groups for part in parts])[order],
        np.repeat(SPLITS, [len(part) for part in parts])[order],
    )


def note(text: str) -> None:
    """Progress goes to stderr, the table to stdout."""
    print(text, file=sys.stderr, flush=True)


def save(path: Path, array: npt.NDArray[np.generic]) -> None:
    """Write an array so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as part:
        np.save(part, array)


def cached(key: str, compute: Callable[[], Features]) -> Features:
    """Features from the cache, or computed and put there; the key says all they depend on."""
    name = hashlib.sha256(key.encode()).hexdigest()[:24]
    path = paths.cache_dir() / f"features-{name}.npy"
    if not path.exists():
        note(f"computing the features of {key}")
        save(path, compute())
    return np.asarray(np.load(path), dtype=np.float32)


@torch.inference_mode()
def network_features(network: nn.Module, pixels: Pixels) -> Features:
    """Features of all images at the reading size, (num_images, num_features)."""
    network = network.eval().to(memory_format=torch.channels_last)
    features = []
    for start in range(0, len(pixels), 128):
        chunk = torch.from_numpy(pixels[start : start + 128]).float() / 255
        features.append(network(normalize(chunk)))
    return torch.cat(features).numpy()


def teacher_features(path: Path, pixels: Pixels) -> Features:
    """Features by the stored weights, as whoever loads the file gets them."""
    return network_features(load_pretrained(path).backbone, pixels)


def untrained_features(seed: int, pixels: Pixels) -> Features:
    """By the same network with its first weights, and BatchNorm statistics measured as ours are."""
    with seeding.isolated(seed, "probe-untrained"):
        backbone, head = resnet10(), build_head("batchnorm", 256, 256, 128)
    round_weights(backbone)
    images = torch.from_numpy(dead_leaves(1024, READING_SIZE, seed))
    measure_statistics(backbone, head, images, PretrainConfig(seed=seed, statistics_batches=10))
    return network_features(backbone, pixels)


def patch_features(data: Lesions, seed: int, num_centres: int, num_pools: int) -> Features:
    """Soft assignment of whitened 6 x 6 patches at 32 px to k-means centres, pooled by area.

    Source: Coates, Lee, Ng, "An Analysis of Single-Layer Networks in Unsupervised Feature
    Learning", AISTATS 2011 (the "triangle" activation). Centres are learned on the training split.
    """
    images = nn.functional.avg_pool2d(torch.from_numpy(data.pixels).float() / 255, 2)
    rng = seeding.rng(seed, "probe-patches")
    train = np.flatnonzero(data.rows("train"))
    sample = _patches(images[torch.from_numpy(rng.choice(train, 2000, replace=False))])
    sample = sample.flatten(0, 1)[torch.from_numpy(rng.integers(0, 2000 * 27 * 27, 100_000))]
    mean = sample.mean(0)
    values, vectors = torch.linalg.eigh((sample - mean).T @ (sample - mean) / len(sample))
    whiten = vectors @ torch.diag((values + 0.1).rsqrt()) @ vectors.T
    centres = torch.from_numpy(
        MiniBatchKMeans(num_centres, batch_size=4096, n_init=1, random_state=seed)
        .fit(((sample - mean) @ whiten).numpy())
        .cluster_centers_
    )
    pooled = []
    for start in range(0, len(images), 64):
        chunk = images[start : start + 64]
        patches = (_patches(chunk) - mean) @ whiten
        distances = torch.cdist(patches, centres.expand(len(chunk), -1, -1))
        activity = (distances.mean(2, keepdim=True) - distances).relu()
        maps = activity.transpose(1, 2).reshape(len(chunk), num_centres, 27, 27)
        pooled.append(nn.functional.adaptive_avg_pool2d(maps, num_pools).flatten(1))
    return torch.cat(pooled).numpy()


def _patches(images: Tensor) -> Tensor:
    """All 6 x 6 patches, each with its own brightness and contrast removed: (batch, 729, 108)."""
    patches = nn.functional.unfold(images, 6).transpose(1, 2)
    centred = patches - patches.mean(2, keepdim=True)
    return centred / (centred.var(2, keepdim=True) + 10 / 255**2).sqrt()


def control_features(data: Lesions) -> dict[str, list[Features]]:
    """What a teacher has to beat; three seeds where there is something to draw."""
    controls = {
        "raw 16x16 pixels": [raw_pixels(torch.from_numpy(data.pixels).float() / 255).numpy()],
        "untrained network": [
            cached(f"untrained {seed}", partial(untrained_features, seed, data.pixels))
            for seed in range(3)
        ],
    }
    # 480 features each, as many as the teacher has.
    for centres, pools in ((480, 1), (120, 2)):
        controls[f"k-means patches, {centres} x {pools * pools} areas"] = [
            cached(
                f"patches {centres} {pools} {seed}",
                partial(patch_features, data, seed, centres, pools),
            )
            for seed in range(3)
        ]
    return controls


def probe(data: Lesions, features: Features) -> Probe:
    """Linear probe with the strength chosen on val."""
    train, val, test = (data.rows(split) for split in SPLITS)
    return linear_probe(
        features[train], data.labels[train], features[val], data.labels[val], features[test]
    )


def row(data: Lesions, name: str, probes: Sequence[Probe], split: str) -> dict[str, object]:
    """Mean and sample deviation of both scores over the probes of one kind of features."""
    labels = data.labels[data.rows(split)]
    reached = [score(getattr(one, split), labels) for one in probes]
    accuracy = np.array([one.balanced_accuracy for one in reached])
    auroc = np.array([one.macro_auroc for one in reached])
    several = len(probes) > 1
    return {
        "features": name,
        "split": split,
        "seeds": len(probes),
        "balanced_accuracy": round(float(accuracy.mean()), 4),
        "balanced_accuracy_sd": round(float(accuracy.std(ddof=1)), 4) if several else None,
        "macro_auroc": round(float(auroc.mean()), 4),
        "macro_auroc_sd": round(float(auroc.std(ddof=1)), 4) if several else None,
        "each_balanced_accuracy": [round(float(value), 4) for value in accuracy],
        "each_macro_auroc": [round(float(value), 4) for value in auroc],
        "strengths": [one.strength for one in probes],
    }


def compare(data: Lesions, ours: Sequence[Probe], other: Sequence[Probe], split: str) -> str:
    """Difference of mean balanced accuracies with its 95 % lesion-bootstrap interval."""
    rows = data.rows(split)
    difference = lesion_bootstrap(
        data.labels[rows],
        np.stack([getattr(one, split).argmax(1) for one in ours]),
        np.stack([getattr(one, split).argmax(1) for one in other]),
        data.lesion_ids[rows],
        seed=0,
    )
    value, low, high = (100 * x for x in (difference.value, difference.low, difference.high))
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def main() -> None:
    """Print the table, and with --card put it into the card."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", nargs="*", type=Path, help="files that fedkd pretrain wrote")
    parser.add_argument("--test", action="store_true", help="score the test split, too")
    parser.add_argument("--stages", action="store_true", help="also probe the last stage alone")
    parser.add_argument("--no-controls", dest="controls", action="store_false")
    parser.add_argument("--card", type=Path, help="put the table into this card of a teacher")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    data = read_ham10000()
    kinds = control_features(data) if given.controls else {}
    if given.weights:
        kinds["teacher"] = [
            cached(
                f"teacher {hash_file(path)}",
                partial(teacher_features, path, data.pixels),
            )
            for path in given.weights
        ]
        if given.stages:
            kinds["teacher, last stage only"] = [x[:, -256:] for x in kinds["teacher"]]
    probes = {}
    for name, matrices in kinds.items():
        note(f"fitting the probes of {name}")
        probes[name] = [probe(data, matrix) for matrix in matrices]
    table = []
    for split in ("val", "test") if given.test else ("val",):
        for name, fitted in probes.items():
            line = row(data, name, fitted, split)
            if given.weights and name != "teacher":
                line["teacher_minus_this"] = compare(data, probes["teacher"], fitted, split)
            table.append(line)
    print(pd.DataFrame(table).drop(columns="strengths").to_string(index=False))
    if given.card:
        card = json.loads(given.card.read_text(encoding="utf-8"))
        card["probe"] = {
            "command": " ".join(
                ["python benchmarks/teacher_probe.py", *(path.name for path in given.weights)]
                + ["--test"] * given.test
                + ["--stages"] * given.stages
            ),
            "weights_sha256": [hash_file(path) for path in given.weights],
            "data": "HAM10000 at 64 px, split by lesion: 7004 train, 1003 val, 2008 test",
            "differences": "balanced accuracy in points, mean over seeds, 95 % lesion bootstrap",
            "table": table,
        }
        with files.replacing(given.card) as part:
            part.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
