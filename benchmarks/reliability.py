"""Whether a run that is killed goes on to the same numbers, and whether a long run stays flat.

    python benchmarks/reliability.py kill [--moments 50] [--engine inprocess] [--seed 0]
    python benchmarks/reliability.py soak [--rounds 500] [--clients 50]
    python benchmarks/reliability.py cost [--student resnet18] [--size 64] [--images 96] [--pairs 2]
    python benchmarks/reliability.py all

``kill`` trains two tiny recipes to the end: FoPro-KD (Fourier prompts, Adam) with momentum on the
server, and MOON (Adam) with Adam on the server. Then it starts each anew, kills it with SIGKILL at
a moment drawn evenly over the time in which it has a run directory, resumes it, kills that again,
``--kills`` times in all, and lets it end. Each kill is one of the moments. It prints for each run
whether the students' hashes, all scores and the rows of rounds.csv and clients.csv but for seconds
are those of the run that was left alone, and exits with 1 if any is not. Runs that end before they
are killed are started again, and no moment is counted.

``soak`` runs many rounds of many small clients in this process and prints resident memory and open
files; it exits with 1 if memory has grown by more than 3 % between the rounds 20 to 40 and the
last 20, or if there are more open files.

``cost`` runs pairs with and without checkpoints, six clients with Adam on random images, and prints
the median time of a round of each, from one told round to the next.

``all`` is the proof of docs/reliability.md in full, some two hours on two cores: both of these, on
the engines inprocess and ray, then ``fuzz.py`` and ``byzantine.py`` beside this file. It goes on
after a failure and exits with 1 if there was any.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from overhead import make_experiment

from fedkd import config, seeding
from fedkd.recipe import Recipe
from server.scoreboard import Observer
from server.simulation import run as run_experiment
from server.simulation import simulate

FEDKD = (sys.executable, "-c", "import sys; from server.cli import main; sys.exit(main())")
SMALL = {
    "num_rounds": 6,
    "data": {"name": "lesions", "size": 32, "num_train": 160, "num_val_per_class": 4},
    "engine": {"num_threads": 1, "device": "cpu"},
}
RECIPES = {
    "fopro-fedavgm": {
        "objective": {"name": "fopro"},
        "strategy": {"name": "fedavgm"},
        "explore": {"warm_up_steps": 2, "steps_per_round": 1, "batch_size": 8},
    },
    "moon-fedadam": {"objective": {"name": "moon"}, "strategy": {"name": "fedadam"}},
}


@dataclass(frozen=True)
class Result:
    """What must be the same in every run of a recipe."""

    summary: str
    rounds: str
    clients: str

    @classmethod
    def of(cls, run: Path) -> "Result":
        """Read a finished run."""
        summary = json.loads((run / "summary.json").read_text())
        kept = ("student_sha256", "best_student_sha256", "best_round", "num_rounds", "val", "test")
        return cls(
            json.dumps({key: summary[key] for key in kept}, sort_keys=True),
            *(_without_seconds(run / name) for name in ("rounds.csv", "clients.csv")),
        )


def _without_seconds(path: Path) -> str:
    table = pd.read_csv(path, dtype=str)
    return str(table[[c for c in table if "seconds" not in str(c)]].to_csv(index=False))


def status(run: Path) -> str:
    """What a run's summary says of it."""
    return str(json.loads((run / "summary.json").read_text())["status"])


def run_directories(output: Path) -> list[Path]:
    """Those of a folder that have a summary."""
    return sorted(path.parent for path in output.glob("*/*/summary.json"))


def start(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start the command ``fedkd``; what it prints is appended to a file."""
    with log.open("ab") as out:
        return subprocess.Popen([*FEDKD, *arguments], stdout=out, stderr=out)


def finish(arguments: list[str], log: Path) -> None:
    """Run the command ``fedkd`` to its end."""
    if code := start(arguments, log).wait():
        sys.exit(f"fedkd {' '.join(arguments)} ended with {code}: see {log}")


def kill_at(arguments: list[str], log: Path, output: Path, after_s: float) -> bool:
    """Kill a command so long after there is a run directory that is running; False if it ended."""
    process = start(arguments, log)
    while process.poll() is None and "running" not in map(status, run_directories(output)):
        time.sleep(0.01)
    try:
        process.wait(after_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True
    return False


def kill(options: argparse.Namespace) -> int:
    """Kill, resume and compare; returns the number of runs that differ."""
    rng = seeding.rng(options.seed, "kill")
    wrong = moments = attempt = 0
    with tempfile.TemporaryDirectory() as given:
        folder = Path(given)
        expected: dict[str, tuple[Result, float]] = {}
        for name, changes in RECIPES.items():
            values = {**SMALL, **changes, "name": name}
            values["engine"] = {**SMALL["engine"], "name": options.engine}
            if options.engine != "inprocess":
                values["engine"]["num_workers"] = 2
            path = folder / f"{name}.toml"
            path.write_text(config.dump(config.build(Recipe, values)))
            output, began = folder / "alone" / name, time.monotonic()
            finish(["run", str(path), f"output={output}"], folder / "log")
            (run,) = run_directories(output)
            created = (run / "config.toml").stat().st_mtime
            seconds = time.time() - created
            expected[name] = Result.of(run), seconds
            print(f"{name}: {time.monotonic() - began:.0f} s, of which {seconds:.1f} s are hit")
        while moments < options.moments:
            name = tuple(RECIPES)[attempt % len(RECIPES)]
            output = folder / f"{attempt:03d}" / name
            log = folder / f"{attempt:03d}.log"
            attempt += 1
            result, seconds = expected[name]
            arguments = ["run", str(folder / f"{name}.toml"), f"output={output}"]
            hit: list[float] = []
            # Each of them gets a part of the run, or the first would leave little to the others.
            for moment in np.sort(rng.uniform(0, seconds, options.kills)):
                after = float(moment) - sum(hit)
                if not kill_at(arguments, log, output, after):
                    break
                hit.append(after)
                (run,) = run_directories(output)
                arguments = ["resume", str(run)]
            (run,) = run_directories(output)
            if status(run) != "finished":
                finish(["resume", str(run)], log)
            same = Result.of(run) == result
            wrong += not same
            moments += len(hit)
            times = ", ".join(f"{one:.2f}" for one in hit)
            print(
                f"{moments:3} moments, {name}: killed after {times or 'its end'} s, "
                f"{'the same' if same else 'NOT THE SAME'}",
                flush=True,
            )
            if not same and options.keep:
                (run.parent / "log").write_bytes(log.read_bytes())
                output.rename(Path(options.keep) / f"{options.engine}-{attempt:03d}")
    print(f"{options.engine}: {moments} moments in {attempt} runs, {wrong} runs not the same")
    return wrong


class Watch(Observer):
    """Notes resident memory and open files after every round, and says them now and then."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.rss_mb: list[float] = []
        self.num_files: list[int] = []

    def round_finished(self, board: object) -> None:
        """The run directory has been told before."""
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.rss_mb.append(pages * os.sysconf("SC_PAGESIZE") / 1e6)
        self.num_files.append(len(list(Path("/proc/self/fd").iterdir())))
        done = len(self.rss_mb)
        if done in (1, 20) or done % self.every == 0:
            print(f"round {done:4}  {self.rss_mb[-1]:7.1f} MB  {self.num_files[-1]} files")
            sys.stdout.flush()


def soak(options: argparse.Namespace) -> int:
    """Run many rounds; returns 1 if memory or the number of open files has grown."""
    recipe = {
        **SMALL,
        "num_rounds": options.rounds,
        "num_clients": options.clients,
        "data": {**SMALL["data"], "size": 16, "num_train": 16 * options.clients},
        "partition": {"name": "dirichlet", "alpha": 100.0},
        "objective": {"name": "supervised"},
        "strategy": {"name": "fedavgm"},
    }
    watch = Watch(max(1, options.rounds // 10))
    with tempfile.TemporaryDirectory() as output:
        simulate(recipe, output=output, observers=[watch])
        size = sum(path.stat().st_size for path in Path(output).rglob("*") if path.is_file())
    early = statistics.mean(watch.rss_mb[19:40])
    late = statistics.mean(watch.rss_mb[-20:])
    files = watch.num_files[19], max(watch.num_files[19:])
    print(
        f"RSS from {early:.1f} MB (rounds 20 to 40) to {late:.1f} MB (last 20): "
        f"{late / early - 1:+.1%}; open files {files[0]}, at most {files[1]}; run directory "
        f"{size / 1e6:.1f} MB"
    )
    return int(late > 1.03 * early or files[1] > files[0])


class Clock(Observer):
    """Notes when rounds are told, which is before their checkpoint is written."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def round_finished(self, board: object) -> None:
        """The tables are written."""
        self.times.append(time.perf_counter())


def cost(options: argparse.Namespace) -> int:
    """Compare rounds with and without checkpoints; returns 0."""
    ratios = []
    for pair in range(options.pairs):
        seconds: dict[int, float] = {}
        for every in (0, 1) if pair % 2 == 0 else (1, 0):
            changes = {
                "engine": {"num_threads": 1, "device": "cpu"},
                "checkpoint": {"every": every},
            }
            shape = (options.images, options.student, options.size, options.rounds)
            experiment, clock = make_experiment(6, *shape, changes), Clock()
            with tempfile.TemporaryDirectory(dir=options.folder) as output:
                run_experiment(experiment, output=output, observers=[clock])
            seconds[every] = float(np.median(np.diff(clock.times)))
        ratios.append(seconds[1] / seconds[0])
        print(f"a round without {seconds[0]:.2f} s, with {seconds[1]:.2f} s: {ratios[-1]:.2f}")
    print(f"median of {options.pairs} pairs: {statistics.median(ratios):.2f}")
    return 0


def everything(options: argparse.Namespace) -> int:
    """Run all parts one after the other; returns the number of those that failed."""
    failed = 0
    for part in ("reliability.py kill", "reliability.py kill --engine ray", "reliability.py soak",
                 "fuzz.py", "byzantine.py"):  # fmt: skip
        print(f"\n{part}", flush=True)
        name, *arguments = part.split()
        script = Path(__file__).with_name(name)
        failed += subprocess.run([sys.executable, str(script), *arguments]).returncode != 0
    return failed


def main() -> None:
    """Print what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("kill")
    one.add_argument("--moments", type=int, default=50, help="kills in all, at least")
    one.add_argument("--kills", type=int, default=3, help="kills of one run")
    one.add_argument("--engine", default="inprocess", choices=("inprocess", "ray", "flower"))
    one.add_argument("--seed", type=int, default=0, help="of the moments")
    one.add_argument("--keep", help="folder for runs that are not the same")
    one.set_defaults(call=kill)
    other = commands.add_parser("soak")
    other.add_argument("--rounds", type=int, default=500)
    other.add_argument("--clients", type=int, default=50)
    other.set_defaults(call=soak)
    third = commands.add_parser("cost")
    third.add_argument("--student", default="resnet18")
    third.add_argument("--size", type=int, default=64, help="side of the images in px")
    third.add_argument("--images", type=int, default=96, help="training images of each client")
    third.add_argument("--rounds", type=int, default=4)
    third.add_argument("--pairs", type=int, default=2)
    third.add_argument("--folder", help="where the run directories are made")
    third.set_defaults(call=cost)
    commands.add_parser("all").set_defaults(call=everything)
    options = parser.parse_args()
    print(
        f"{platform.platform()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the "
        "beginning"
    )
    sys.exit(min(1, options.call(options)))


if __name__ == "__main__":
    main()
