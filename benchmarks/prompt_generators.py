"""What each generator of Fourier prompts reaches in 60 steps on HAM10000, and what a step costs.

    python benchmarks/prompt_generators.py [--sizes 32 64] [--seeds 3] [--csv table.csv]

The teacher is the embedded one; exploration has its defaults (batches of 32 training images, 60
steps, no AKD). Measured are prompts at full strength on 256 validation images, the same for all. A
seed varies the generator's initial weights, the batches and all latents. ``jitter`` has the
magnitude that ``conv`` reached with the same seed; ``identity`` is no prompt at all. The time of a
step is CPU time of this process on one thread, the median over the steps. Images are found through
FEDKD_DATA.
"""

import argparse
import math
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.progress import Progress

from fedkd import seeding
from fedkd.data.catalog import load_splits
from fedkd.data.images import LabelledImages
from fedkd.data.loading import Loader
from fedkd.data.sets.ham10000 import Ham10000Config
from fedkd.fourier.config import ExploreConfig, GeneratorName, PromptConfig
from fedkd.fourier.explore import Explorer
from fedkd.fourier.generators.factory import GENERATORS, make_generator
from fedkd.fourier.prompter import Prompter
from fedkd.fourier.quality import measure_prompts
from fedkd.teachers.config import TeacherConfig
from fedkd.teachers.frozen import Teacher
from fedkd.teachers.loading import open_teacher

NUM_HELD_OUT = 256
CONTROLS = ("identity", "jitter", "amplitude_mix")


def loader_of(images: LabelledImages, rows: np.ndarray) -> Loader:
    """Some images of a split, on the CPU."""
    return Loader(images, rows, torch.device("cpu"), torch.float32)


def configured(name: str, magnitude: float) -> PromptConfig:
    """The prompts of a row of the table; the magnitude is that of jitter."""
    if name == "identity":
        return PromptConfig(generator="jitter", magnitude=1e-9)
    chosen: GeneratorName = next(known for known in GENERATORS if known == name)
    return PromptConfig(generator=chosen, **({"magnitude": magnitude} if name == "jitter" else {}))


def one_run(
    name: str, magnitude: float, teacher: Teacher, train: Loader, held_out: Loader, seed: int
) -> dict[str, float]:
    """Train one generator and measure its prompts."""
    height, width = held_out.data.images.shape[-2:]
    config = configured(name, magnitude)
    with seeding.isolated(seed, "prompt-generator"):
        generator = make_generator(config, 3, height, width)
    prompter = Prompter(config, generator)
    times = [math.nan]
    if prompter.learns:
        explorer = Explorer(prompter, teacher, ExploreConfig(steps_per_round=0))
        rng, times = seeding.generator(seed, "explore"), []
        for rows in explorer.plan_round(len(train), seeding.rng(seed, "explore-images")):
            pixels, started = train.pixels(rows), time.process_time()
            explorer.step(pixels, rng)
            times.append(time.process_time() - started)
    pixels = held_out.pixels(np.arange(len(held_out)))
    quality = measure_prompts(teacher, prompter, pixels, seeding.generator(seed, "prior"))
    num = sum(one.numel() for one in generator.parameters()) if generator else 0
    return {**quality._asdict(), "parameters": num, "step_ms": 1000 * median(times)}


def main() -> None:
    """Measure, print one row for each generator and size, and write each run to the CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", type=int, default=[32, 64], help="of images in px")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--csv", type=Path, help="write a row for each run here, as it ends")
    given = parser.parse_args()
    torch.set_num_threads(1)
    teacher, runs = open_teacher(TeacherConfig()), []
    names = ["conv", *(name for name in GENERATORS if name not in ("conv", *CONTROLS)), *CONTROLS]
    with Progress(transient=True, console=Console(stderr=True)) as progress:
        bar = progress.add_task("", total=len(given.sizes) * given.seeds * len(names))
        for size in given.sizes:
            progress.update(bar, description=f"reading HAM10000 at {size} px")
            splits = load_splits(Ham10000Config(size=size, split_column="split"))
            train = loader_of(splits.train, np.arange(len(splits.train)))
            rows = seeding.rng(0, "held-out").choice(len(splits.val), NUM_HELD_OUT, replace=False)
            held_out = loader_of(splits.val, rows)
            for seed in range(given.seeds):
                magnitude = math.nan
                for name in names:
                    progress.update(bar, description=f"{name}, {size} px, seed {seed}")
                    values = one_run(name, magnitude, teacher, train, held_out, seed)
                    if name == "conv":
                        magnitude = values["magnitude"]
                    runs.append({"generator": name, "size": size, "seed": seed, **values})
                    if given.csv:
                        pd.DataFrame(runs).to_csv(given.csv, index=False)
                    progress.advance(bar)
                    if not progress.console.is_terminal:
                        print(f"{name}, {size} px, seed {seed}: done", file=sys.stderr, flush=True)
    print(markdown(pd.DataFrame(runs)))


def markdown(table: pd.DataFrame) -> str:
    """Mean ± sd over seeds, a row for each generator and size."""
    columns = [name for name in table if name not in ("generator", "size", "seed")]
    lines = [" | ".join(["| generator | px", *columns]) + " |", "|---" * (len(columns) + 2) + "|"]
    for (size, name), rows in table.groupby(["size", "generator"], sort=False):
        cells = [name, str(size)]
        for column in columns:
            mean, sd = rows[column].mean(), rows[column].std(ddof=1)
            digits = {"parameters": 0, "step_ms": 0, "effective_rank": 1}.get(column, 3)
            text = "" if math.isnan(mean) else f"{mean:.{digits}f}"
            cells.append(text + ("" if not sd else f" ± {sd:.{digits}f}") if text else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
