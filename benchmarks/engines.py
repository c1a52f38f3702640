"""What the engines cost: against a bare loop, against each other, at the start and in memory.

    python benchmarks/engines.py [speed] [overhead] [start] [memory] [--pairs 3]

Each figure comes from a process of its own, so that imports and start-up are paid by whoever needs
them; sides of a pair alternate. All engines train the same students: a pair whose student_sha256
differs is an error. Images are random, only time and memory matter. `benchmarks/overhead.py` has
the bare loop, `benchmarks/scale.py` the number of clients.

- speed: rounds of real training, ray with 2 workers against in process, 1 thread per client.
- overhead: the same job with next to nothing to train (2 images of 32 px per client) and a student
  of 11 million parameters: a round's time without its clients' own seconds, one worker each.
- start: from the call of `simulate` to the end of round 1, less the time of round 2.
- memory: what a further client adds to a worker (anonymous) and to all processes together (PSS).
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

Job = dict[str, Any]
Figures = dict[str, Any]


def measure(job: Job) -> Figures:
    """Run a job in a process of its own."""
    command = [sys.executable, __file__, "--job", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{job} failed:\n{done.stdout}\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def run_job(job: Job) -> Figures:
    """What a process of its own does: one run, watched."""
    begun = time.perf_counter()
    # Imported here: the parent stays light, and the time of importing belongs to the run.
    from memory import memory
    from overhead import make_experiment

    from server.scoreboard import Observer, Scoreboard
    from server.simulation import run

    class Watch(Observer):
        """Notes when rounds end, and what the processes hold then."""

        def __init__(self) -> None:
            self.ends: list[float] = []
            self.memory: dict[str, float] = {}

        def round_finished(self, board: Scoreboard) -> None:
            self.ends.append(time.perf_counter() - begun)
            if not job.get("memory"):
                return
            family = [os.getpid(), *descendants(os.getpid())]
            held = [memory(process) for process in family]
            workers = [held[n]["own"] for n, one in enumerate(family) if "ray::" in title(one)]
            self.memory = {
                "worker_own": max(workers, default=0.0),
                "all_pss": sum(one["PSS"] for one in held),
            }

    experiment = make_experiment(
        job["clients"], job["images"], job["student"], job["size"], job["rounds"], job["recipe"]
    )
    watch = Watch()
    result = run(experiment, observers=[watch])
    client_seconds = result.clients.groupby("round")["seconds"].sum().tolist()
    return {
        "sha": result.summary["student_sha256"],
        "seconds": result.rounds["seconds"].tolist(),
        "client_seconds": client_seconds,
        "ends": watch.ends,
        **watch.memory,
    }


def descendants(process: int) -> list[int]:
    """Ids of all processes that a process has started, and those have."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [found for child in map(int, children) for found in (child, *descendants(child))]


def title(process: int) -> str:
    """What a process calls itself."""
    return Path(f"/proc/{process}/cmdline").read_text()


def job(engine: str, **values: Any) -> Job:
    """A job of six clients with ResNet-18, unless said otherwise."""
    workers = values.pop("workers", 1)
    training = {"keep_optimizer_state": values.pop("state", True)}
    where = {"name": engine, "num_threads": 1, "num_workers": workers, "device": "cpu"}
    recipe = {"engine": where, "training": training, "evaluation": {"personalised": False}}
    defaults = {"clients": 6, "images": 2, "student": "resnet18", "size": 32, "rounds": 3}
    return {**defaults, **values, "recipe": recipe}


def same(figures: list[Figures]) -> None:
    """Refuse figures of jobs that did not compute the same."""
    if len({one["sha"] for one in figures}) != 1:
        sys.exit("the engines trained different students: these figures compare nothing")


def steady(figures: Figures) -> float:
    """Median seconds of the rounds after the first."""
    return statistics.median(figures["seconds"][1:])


def paired(pairs: int, sides: dict[str, Job]) -> list[dict[str, Figures]]:
    """Figures of both sides, which take turns in going first."""
    found = []
    for number in range(pairs):
        names = list(sides) if number % 2 == 0 else list(sides)[::-1]
        found.append({name: measure(sides[name]) for name in names})
        same(list(found[-1].values()))
    return found


def spread(values: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def speed(pairs: int, images: int) -> None:
    """Ray with two workers against in process."""
    shape = {"images": images, "size": 64, "rounds": 3}
    sides = {"inprocess": job("inprocess", **shape), "ray": job("ray", workers=2, **shape)}
    found = paired(pairs, sides)
    ratios = [steady(one["inprocess"]) / steady(one["ray"]) for one in found]
    seconds = [steady(one["inprocess"]) for one in found]
    print(f"in process, seconds a round: {spread(seconds)}")
    print(f"ray, 2 workers, times as fast (target >= 1.7): {spread(ratios)}", flush=True)


def overhead(pairs: int) -> None:
    """Seconds of a round that are not the clients' own."""
    for state in (False, True):
        shape = {"state": state, "rounds": 6}
        sides = {name: job(name, **shape) for name in ("inprocess", "ray", "flower")}
        found = paired(pairs, sides)
        own = {
            name: [
                statistics.median(
                    all_ - clients
                    for all_, clients in zip(
                        one[name]["seconds"][1:], one[name]["client_seconds"][1:], strict=True
                    )
                )
                for one in found
            ]
            for name in sides
        }
        what = "with the optimiser's state" if state else "without state"
        for name, values in own.items():
            print(f"overhead of a round, {what}, {name}: {spread(values)} s")
        ratios = [ray / flower for ray, flower in zip(own["ray"], own["flower"], strict=True)]
        print(f"ray over flower, {what} (target <= 0.5): {spread(ratios)}", flush=True)


def start(pairs: int) -> None:
    """Seconds before a first round that the second one does not take."""
    sides = {name: job(name) for name in ("inprocess", "ray", "flower")}
    for name, jobs in sides.items():
        jobs["student"] = "resnet8"
        jobs["recipe"]["engine"]["num_workers"] = None if name == "inprocess" else 2
    found = paired(pairs, sides)
    taken = {n: [one[n]["ends"][0] - one[n]["seconds"][1] for one in found] for n in sides}
    for name, values in taken.items():
        print(f"start to first round, {name}: {spread(values)} s")
    ratios = [ray / flower for ray, flower in zip(taken["ray"], taken["flower"], strict=True)]
    print(f"ray over flower (target <= 1): {spread(ratios)}", flush=True)


def further_client(pairs: int) -> None:
    """MB that a further client adds, over those of a student."""
    student = 11.2e6 * 4 / 1e6
    rows: dict[str, list[float]] = {"worker_own": [], "all_pss": []}
    for _ in range(pairs):
        few, many = (measure(job("ray", clients=n, memory=True)) for n in (2, 8))
        for key, values in rows.items():
            values.append((many[key] - few[key]) / 6 / student)
    print(f"further client, its worker's own memory over a student's: {spread(rows['worker_own'])}")
    print(
        "further client, all processes and the object store, SGD with momentum (target < 2): "
        f"{spread(rows['all_pss'])}",
        flush=True,
    )


def main() -> None:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ("speed", "overhead", "start", "memory")
    parser.add_argument("what", nargs="*", help=f"of {', '.join(names)}; default: all")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--images", type=int, default=512, help="of each client, for speed")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        print(json.dumps(run_job(options.job)))
        return
    if unknown := set(options.what) - set(names):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    load = os.getloadavg()[0]
    print(f"{platform.platform()}, {os.cpu_count()} cores, load {load:.1f} at the beginning")
    wanted = options.what or names
    if "speed" in wanted:
        speed(options.pairs, options.images)
    for name, run in (("overhead", overhead), ("start", start), ("memory", further_client)):
        if name in wanted:
            run(options.pairs)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    main()
