"""Fuzzing of everything that users hand in: recipes, tables, images, checkpoints.

    python benchmarks/fuzz.py [--kinds recipes,tables,images,checkpoints] [--cases 1] [--seed 0]

Each case is a command of `fedkd` on files that were spoiled on purpose (`fuzz_cases.py`). The seed,
the kind and its number decide it: `--only KIND:NUMBER` makes it again. A case is a defect if the
command

- raises, or ends with another exit code than 0 (all is well) or 2 (something for the user to mend);
- shows a traceback, an error whose lines do not begin with "fedkd: ", more than 40 of them, or one
  too long to read;
- changes a file that was there, other than in the folder that it may write to, or opens one
  elsewhere for writing (an audit hook of Python sees that; libraries in C could pass it by);
- leaves an empty folder, or takes longer than the limit: its process is killed, another goes on.

Prints a table and ends with exit code 1 if there are defects; the input of each is then kept.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]
import fuzz_cases  # noqa: E402

ROOT = fuzz_cases.ROOT

CASES = {"recipes": 2000, "tables": 500, "images": 500, "checkpoints": 200}
"""Cases of each kind in full."""
LIMIT_S = 60.0
MAX_LINES = 40
MAX_WIDTH = 4000
MAX_BYTES = 6 * 2**30
"""Private memory of a worker: a file that makes fedkd ask for more is a defect."""

Result = dict[str, Any]


class Writes:
    """Notes the files outside some folders that this process opens for writing, moves or removes.

    Attributes:
        allowed: Folders in which anything may be written; None switches it off.
        seen: What was done elsewhere.
    """

    def __init__(self) -> None:
        self.allowed: list[str] | None = None
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.allowed is None:
            return
        if event == "open":
            path, _, flags = arguments
            if not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND):
                return
            paths = [path]
        elif event in ("os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree"):
            # Relative to an open folder, as rmtree does it: the hashes show what became of it.
            paths = (
                [] if arguments[-1] not in (-1, None) and event != "os.truncate" else arguments[:1]
            )
        elif event in ("os.rename", "os.link", "os.symlink"):
            paths = [*arguments[:2]]
        else:
            return
        for path in paths:
            if isinstance(path, int) or path is None:
                continue
            whole = os.path.abspath(os.fsdecode(path))
            if whole.startswith("/dev/") or any(
                whole == one or whole.startswith(one + os.sep) for one in self.allowed
            ):
                continue
            # Files of the system's folder of temporary ones are nobody's input.
            if event == "os.mkdir" and os.path.isdir(whole):
                continue
            self.seen.append(f"{event} {whole}")


def run_case(case: fuzz_cases.Case, writes: Writes) -> Result:
    """Run a command in this process; says what is wrong with how it ended."""
    from server.cli import main

    before = _hashes(case.folder, case.may_change)
    there = case.output.is_dir()
    out, err = io.StringIO(), io.StringIO()
    writes.seen = []
    code: Any = "raised"
    problems = []
    where = Path.cwd()
    started = time.perf_counter()
    os.chdir(case.folder)
    writes.allowed = [
        *(str(path) for path in case.may_change),
        os.environ["FEDKD_CACHE"],
        os.environ["MPLCONFIGDIR"],
        tempfile.gettempdir() if case.uses_temporary else os.environ["FEDKD_CACHE"],
    ]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = call(case.call) if case.call else main(case.arguments)
    except SystemExit as error:  # of argparse
        code = error.code
    except BaseException as error:
        problems.append(f"raised {type(error).__name__}: {str(error)[:300]}")
    finally:
        writes.allowed = None
        os.chdir(where)
    text = err.getvalue()
    if code not in (0, 2) and not problems:
        problems.append(f"exit code {code}")
    if "Traceback" in text or "Traceback" in out.getvalue():
        problems.append("shows a traceback")
    told = [line for line in text.splitlines() if line.startswith("fedkd: ")]
    if code == 2 and not told and "usage:" not in text:
        problems.append("exit code 2 without a line that says why")
    if code == 2 and any(not line[len("fedkd: ") :].strip() for line in told):
        problems.append("an empty line as error")
    # The log stands before the error, and nothing behind it.
    lines = text.rstrip("\n").split("\n")
    if code == 2 and told and "usage:" not in text and not lines[-1].startswith("fedkd: "):
        problems.append(f"lines that are no error behind the error: {lines[-1][:100]!r}")
    if len(told) > MAX_LINES:
        problems.append(f"{len(told)} lines of errors")
    longest = max((len(line) for line in told), default=0)
    if longest > MAX_WIDTH:
        problems.append(f"a line of {longest} characters")
    problems += [f"writes elsewhere: {what}" for what in writes.seen[:3]]
    after = _hashes(case.folder, case.may_change)
    if changed := sorted(name for name in {*before, *after} if before.get(name) != after.get(name)):
        problems.append(f"changed {', '.join(changed[:3])}")
    if code == 2 and not there and case.output.is_dir() and not any(case.output.rglob("*")):
        problems.append("leaves an empty folder")
    return {
        "exit": code,
        "problems": problems,
        "seconds": time.perf_counter() - started,
        "arguments": case.arguments,
        "stderr": text[-3000:],
    }


def call(function: Callable[[], None]) -> int:
    """As the command line does it: the text of a SystemExit on stderr, and exit code 2."""
    try:
        function()
    except SystemExit as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _hashes(folder: Path, but: list[Path]) -> dict[str, str]:
    """SHA-256 of all files in a folder, but of those in some others."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not any(path.is_relative_to(other) for other in but):
            found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def work(materials: Path, scratch: Path, seed: int) -> None:
    """A worker: reads lines ``KIND NUMBER``, answers each with a line of JSON."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    used = int(Path("/proc/self/statm").read_text().split()[5]) * 4096
    resource.setrlimit(resource.RLIMIT_DATA, (MAX_BYTES + used,) * 2)
    writes = Writes()
    for line in sys.stdin:
        kind, number = line.split()
        folder = scratch / f"{kind}-{number}"
        shutil.rmtree(folder, ignore_errors=True)
        case = fuzz_cases.make(kind, int(number), seed, materials, folder)
        result = run_case(case, writes)
        answers.write(json.dumps(result, default=str) + "\n")
        answers.flush()


class Worker:
    """A process that runs cases, killed and started anew if one takes too long."""

    def __init__(self, materials: Path, scratch: Path, seed: int) -> None:
        self._arguments = [str(materials), str(scratch), str(seed)]
        self._scratch = scratch
        self._process: subprocess.Popen[str] | None = None

    def ask(self, kind: str, number: int, limit_s: float) -> Result:
        """The result of a case, a hang or the death of its process included."""
        if self._process is None:
            self._start()
        process = self._process
        assert process is not None
        assert process.stdin is not None
        process.stdin.write(f"{kind} {number}\n")
        process.stdin.flush()
        answer = _read_line(process, limit_s)
        if answer:
            return json.loads(answer)
        code = process.poll()
        self.stop()
        what = f"takes longer than {limit_s:g} s" if code is None else f"process ended with {code}"
        return {"exit": "-", "problems": [what], "seconds": limit_s, "stderr": "", "arguments": []}

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _start(self) -> None:
        home = self._scratch.parent
        environment = {
            **os.environ,
            "FEDKD_CACHE": str(home / "cache"),
            "MPLCONFIGDIR": str(home / "matplotlib"),
            "OMP_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        }
        environment.pop("FEDKD_DATA", None)
        environment.pop("FEDKD_TEACHERS", None)
        self._log = (home / "worker.log").open("a")
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--work", *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
        )


def _read_line(process: "subprocess.Popen[str]", limit_s: float) -> str:
    """A line that the process writes within the limit; "" if it does not."""
    from threading import Thread

    found: list[str] = []
    assert process.stdout
    reader = Thread(target=lambda out=process.stdout: found.append(out.readline()), daemon=True)
    reader.start()
    reader.join(limit_s)
    return found[0] if found else ""


def fuzz(counts: dict[str, list[int]], seed: int, home: Path, limit_s: float) -> int:
    """Run the cases; prints a table and returns the number of defects."""
    materials, scratch = home / "materials", home / "cases"
    scratch.mkdir(parents=True)
    print("making what is spoiled: images, runs, teachers ...", file=sys.stderr, flush=True)
    fuzz_cases.make_materials(materials)
    rows, defects, spoke = [], 0, time.monotonic()
    worker = Worker(materials, scratch, seed)
    try:
        for kind, numbers in counts.items():
            codes: Counter[Any] = Counter()
            seconds, bad = [], 0
            for done, number in enumerate(numbers, 1):
                # The first case of a process pays for its imports.
                result = worker.ask(kind, number, limit_s)
                codes[result["exit"]] += 1
                seconds.append(result["seconds"])
                folder = scratch / f"{kind}-{number}"
                if result["problems"]:
                    bad += 1
                    kept = home / "defects" / folder.name
                    shutil.copytree(folder, kept, dirs_exist_ok=True, symlinks=True)
                    (kept / "result.json").write_text(json.dumps(result, indent=2))
                    print(f"{kind}:{number} {'; '.join(result['problems'])}", flush=True)
                shutil.rmtree(folder, ignore_errors=True)
                if time.monotonic() - spoke > 8:
                    spoke = time.monotonic()
                    print(f"{kind} {done}/{len(numbers)}, {bad} defects", file=sys.stderr)
            rows.append((kind, len(numbers), codes[0], codes[2], bad, max(seconds, default=0)))
            defects += bad
    finally:
        worker.stop()
    print(f"{'kind':12} {'cases':>6} {'exit 0':>7} {'exit 2':>7} {'defects':>8} {'longest s':>10}")
    for kind, num, good, refused, bad, longest in rows:
        print(f"{kind:12} {num:6} {good:7} {refused:7} {bad:8} {longest:10.1f}")
    return defects


def main() -> int:
    """Parse arguments and fuzz."""
    if sys.argv[1:2] == ["--work"]:
        work(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
        return 0
    parser = argparse.ArgumentParser(description="Fuzz what users hand in.")
    parser.add_argument("--kinds", default=",".join(CASES))
    parser.add_argument("--cases", type=float, default=1.0, help="factor of the number of cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit-s", type=float, default=LIMIT_S)
    parser.add_argument("--only", metavar="KIND:NUMBER", help="one case")
    parser.add_argument("--output", type=Path, help="an empty folder, or none yet")
    options = parser.parse_args()
    home = (options.output or Path(tempfile.mkdtemp(prefix="fedkd-fuzz-"))).resolve()
    if home.is_dir() and any(home.iterdir()):
        parser.error(f"{home} is not empty")
    kinds = options.kinds.split(",")
    counts = {kind: list(range(max(1, round(CASES[kind] * options.cases)))) for kind in kinds}
    if options.only:
        kind, _, number = options.only.partition(":")
        counts = {kind: [int(number)]}
    defects = fuzz(counts, options.seed, home, options.limit_s)
    if defects:
        print(f"{defects} defects; their input and what was said is in {home / 'defects'}")
    elif not options.output:
        shutil.rmtree(home)
    return 1 if defects else 0


if __name__ == "__main__":
    sys.exit(main())
