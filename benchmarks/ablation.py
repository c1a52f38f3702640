"""The honest experiment: do Fourier prompts help a long-tailed student, and is it they that do?

    FEDKD_DATA=<folder> python benchmarks/ablation.py [--output FOLDER] [--seeds 5] [--workers 2]
    python benchmarks/ablation.py --report        # docs/results.csv and the tables of results.md
    ... --size 128 --device cuda --init imagenet --student resnet18      # untested: needs a GPU

Finished cells are kept in the output folder and not run again; failed ones are noted with their
error, the others go on, and the next start tries them again.

Protocol. It was written down, and committed, before the first test score was looked at.

* Images: HAM10000 at 32 px, its splits by lesion (column ``split``; val 1003, test 2008 images).
  Of the training images 826 stay: nv 400, mel 208, bkl 109, bcc 57, akiec 29, vasc 15, df 8, drawn
  anew for every seed. Augmentation: one of the 8 flips and quarter turns.
* Settings: ``single``, one client that has all images; ``sites``, the four sources of acquisition
  as hospitals, federated averaging.
* Seeds 0 to 4. A seed decides training images, initial student and order of images; all methods of
  a seed share these, so that differences are taken pair by pair.
* Student: resnet8 from random weights, Adam, learning rate 0.001, batches of 32, NUM_ROUNDS rounds
  of one epoch. The round that is best on val (balanced accuracy) is tested, once.
* Methods: CE and BSM (no teacher); EKD; and EKD whose teacher sees images through random gains
  (jitter, with and without frequency 0), amplitudes of other images of the batch (amplitude mix),
  FPG, and FPG with AKD (gamma 0.3). One prompt per batch, strengths per image, all else as fedkd's
  defaults. FPG warms up for 60 steps and then has 2 per round (single), or 20 and 1 at each
  hospital (sites).
* Teachers: ``mobilenet_v2``, ImageNet supervised, at 65 px; ``default``, the embedded one.
* Jitter is as large as what FPG learns: a pilot of seed 100, which trains the generators as FPG
  does (they do not depend on the student) and sees no test image, gives the mean absolute log-gain
  over latents, bins and hospitals: ``prompts.magnitude`` of the jitter.
* Probe: a linear probe on each teacher's features of the same training images, beside raw pixels
  and the teacher's untrained network.
* No hyper-parameter is tuned. NUM_ROUNDS alone was chosen by how long cells take.
* Scores on test: balanced accuracy (the primary one), MCC, recall of the tail (akiec, vasc, df).
  Comparisons: each method minus BSM, each minus EKD of the same teacher, FPG and FPG + AKD minus
  jitter. Intervals: 95 %, Student's t over the paired differences of the seeds. P-values are
  corrected by Holm's method over all comparisons of a score, both settings and both teachers
  together.
"""

import argparse
import json
import math
import multiprocessing
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from ablation_cells import NUM_ROUNDS, Cell, Scale, plan, plan_pilots
from ablation_report import COLUMNS, METRICS, write_report

from clients.factory import make_objective
from fedkd import files, seeding
from fedkd.device import choose_device
from fedkd.experiment import open_data, open_experiment
from fedkd.fourier.generators.factory import make_generator
from fedkd.probing import worth
from fedkd.probing.controls import Reader
from fedkd.recipe import Recipe
from fedkd.teachers.loading import open_teacher
from server import simulate

ROOT = Path(__file__).parents[1]
NUM_LATENTS = 256
QUIET_S = 10.0


def pilot(recipe: Recipe) -> dict[str, Any]:
    """Train the generators of FPG and measure how large their gains are."""
    experiment = open_experiment(recipe)
    size = experiment.splits.train.images.shape[1:]
    student = experiment.build_student()
    rng = seeding.generator(recipe.seed, "ablation-latents")
    learned = []
    for client in range(experiment.num_clients):
        objective = make_objective(experiment, client, 1)
        for number in range(1, recipe.num_rounds + 1):
            objective.start_round(student, experiment.loader(client), number)
        generator = make_generator(recipe.prompts, *size)
        assert generator is not None
        prefix = "generator."
        state = {
            k.removeprefix(prefix): t for k, t in objective.state().items() if k.startswith(prefix)
        }
        generator.load_state_dict(state)
        latents = torch.randn(NUM_LATENTS, generator.latent_dim, generator=rng)
        with torch.no_grad():
            learned.append(generator(latents).abs().mean().item())
    target = sum(learned) / len(learned)

    return {"learned": learned, "mean_abs_log_gain": target, "magnitude": round(target, 4)}


def probe(recipe: Recipe) -> dict[str, Any]:
    """What the teacher's features and its controls are worth on test, by a linear probe."""
    device = choose_device(recipe.engine.device, "engine.device")
    splits, _ = open_data(recipe)
    teacher = open_teacher(recipe.teacher).to(device).to(memory_format=torch.channels_last)
    reader = Reader(device, recipe.evaluation.batch_size, lambda *_: None)
    features = worth.read_features(recipe.teacher, teacher, splits, reader, recipe.seed, True)
    rows = worth.judge(splits, features, reader, recipe.seed, ("linear",))
    return {
        "rows": [
            {"method": f"probe: {row.features}"}
            | {name: row.scores.scalars()[name] for name in METRICS}
            for row in rows
            if row.split == "test"
        ]
    }


def train(recipe: Recipe) -> dict[str, Any]:
    """Scores of the round that is best on val, and the last round's priors where there are any."""
    done = simulate(recipe)
    assert done.board.test is not None
    assert done.board.best_val is not None
    last = done.rounds.iloc[-1]
    return {
        **{name: done.board.test.scalars()[name] for name in METRICS},
        "val_balanced_accuracy": done.board.best_val.balanced_accuracy,
        "best_round": done.board.best_round,
        **{name: float(last[name]) for name in ("prior_clean", "prior") if name in last},
        "client_images": done.clients.groupby("client")["num_examples"].first().to_dict(),
        "student_sha256": done.summary["best_student_sha256"],
    }


def commit() -> str:
    """Last commit that touched the packages, marked if they have been changed since."""

    def git(*arguments: str) -> str:
        asked = ["git", *arguments, "--", "fedkd", "clients", "strategies", "server"]
        done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    return git("log", "-1", "--format=%H") + ("+changes" if git("diff", "HEAD") else "")


def work(cell: Cell, folder: Path) -> str:
    """Run a cell and write its result, or its error; returns the error, "" if there is none."""
    assert cell.recipe is not None
    torch.set_num_threads(1)
    started, error = time.perf_counter(), ""
    found: dict[str, Any] = {}
    try:
        found = {"pilot": pilot, "probe": probe}.get(cell.method, train)(cell.recipe)
    except Exception as problem:  # whatever it is, the other cells go on
        error = f"{type(problem).__name__}: {problem}"
        found = {"error": error}
    found |= {
        "seconds": time.perf_counter() - started,
        "recipe_hash": cell.recipe.hash(),
        "commit": commit(),
        "recipe": cell.recipe.model_dump(mode="json"),
    }
    path = cell.path(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as part:
        part.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return error


def run(cells: Sequence[Cell], folder: Path, pool: Executor, do: Any = work) -> int:
    """Run what is not finished; returns the number of failures."""
    todo = [
        cell for cell in cells if cell.recipe and "error" in (cell.result(folder) or {"error": ""})
    ]
    say(f"{len(todo)} of {len(cells)} cells to run")
    started, failed, num_done = time.monotonic(), 0, 0
    pending = {pool.submit(do, cell, folder): cell for cell in todo}
    while pending:
        done, _ = wait(pending, timeout=QUIET_S, return_when=FIRST_COMPLETED)
        for future in done:
            cell, error = pending.pop(future), future.result()
            num_done, failed = num_done + 1, failed + bool(error)
            say(f"{cell.name}: {f'FAILED, {error}' if error else 'finished'}")
        left = (time.monotonic() - started) / num_done * len(pending) if num_done else math.nan
        end = time.strftime("%H:%M", time.localtime(time.time() + left)) if num_done else "?"
        running = ", ".join(cell.name for future, cell in pending.items() if future.running())
        say(
            f"{num_done}/{len(todo)} done, {failed} failed, end about {end}; now or next: {running}"
        )
    return failed


def say(text: str) -> None:
    """Progress goes to stderr, without scores: nobody looks before the end."""
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


def collect(cells: Sequence[Cell], folder: Path) -> pd.DataFrame:
    """A row per cell, run or not; a probe has one for each kind of features."""
    rows = []
    for cell in cells:
        found = cell.result(folder) or {}
        status = "missing" if not found else "failed" if "error" in found else "finished"
        about = {"setting": cell.setting, "method": cell.method, "teacher": cell.teacher,
                 "seed": cell.seed, "status": status, **found}  # fmt: skip
        rows += [{**about, **row} for row in found.get("rows", [{}])]
    return pd.DataFrame(rows).reindex(columns=list(COLUMNS))


def main() -> None:
    """Run the cells, or write the report of those that are there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each")
    parser.add_argument("--only", default="", metavar="REGEX",
                        help="of setting.method.teacher.seed")  # fmt: skip
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs",
                        help="folder of results.csv and results.md")  # fmt: skip
    for name, kind in (("size", int), ("device", str), ("init", str), ("student", str)):
        parser.add_argument(f"--{name}", type=kind, default=getattr(Scale, name))
    parser.add_argument("--rounds", type=int, default=NUM_ROUNDS)
    options = parser.parse_args()
    scale = Scale(options.size, options.device, options.init, options.student, options.rounds)
    if options.report:
        cells = [*plan_pilots(scale), *plan(scale, options.seeds, options.output)]
        write_report(collect(cells, options.output), options.docs)
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    pool = ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn"))
    try:
        failed = run(plan_pilots(scale), options.output, pool)
        cells = plan(scale, options.seeds, options.output)
        chosen = [cell for cell in cells if re.search(options.only, cell.name)]
        failed += run(chosen, options.output, pool)
    except BrokenProcessPool:
        sys.exit("a worker process died, of lack of memory mostly; start the same command again")
    finally:
        pool.shutdown(cancel_futures=True)
    if failed:
        sys.exit(f"{failed} cells failed; the next start tries them again")


if __name__ == "__main__":
    main()
