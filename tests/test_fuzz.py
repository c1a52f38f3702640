"""Fuzzing in a reduced form (benchmarks/fuzz.py has it in full), and that it notices defects."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from server import cli

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import fuzz  # noqa: E402
import fuzz_cases  # noqa: E402

# The files of the other kinds; recipes need none.
CASES = {"tables": 8, "images": 5, "checkpoints": 8}


@pytest.fixture(scope="module")
def writes():
    return fuzz.Writes()


@pytest.fixture(scope="module")
def materials(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz") / "materials"
    fuzz_cases.make_materials(folder)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def run_case(tmp_path, writes, monkeypatch):
    """A function that runs a case as a worker of the benchmark does."""
    monkeypatch.setenv("FEDKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path / "matplotlib"))
    monkeypatch.delenv("FEDKD_DATA", raising=False)

    def run(kind, number, materials):
        folder = tmp_path / f"{kind}-{number}"
        case = fuzz_cases.make(kind, number, 7, materials, folder)
        result = fuzz.run_case(case, writes)
        shutil.rmtree(folder)
        return result

    return run


def test_spoiled_recipes_open_or_are_refused_in_a_line(run_case, tmp_path):
    results = [run_case("recipes", number, tmp_path) for number in range(30)]
    assert [result for result in results if result["problems"]] == []
    assert {result["exit"] for result in results} == {0, 2}


@pytest.mark.parametrize("kind", CASES)
def test_spoiled_files_are_read_or_refused_in_a_line(kind, run_case, materials):
    results = [run_case(kind, number, materials) for number in range(CASES[kind])]
    assert [result for result in results if result["problems"]] == []
    assert 2 in {result["exit"] for result in results}


def test_same_number_is_the_same_case(tmp_path):
    made = [fuzz_cases.make("recipes", 3, 7, tmp_path, tmp_path / name) for name in "ab"]
    assert made[0].arguments == made[1].arguments
    texts = [(one.folder / "case.toml").read_bytes() for one in made]
    assert texts[0] == texts[1]


def raise_one(arguments):
    raise KeyError("x")


def write_elsewhere(arguments):
    path = Path(tempfile.gettempdir(), "fedkd-fuzz-elsewhere")
    path.write_text("")
    path.unlink()
    return 0


def change_input(arguments):
    Path("case.toml").write_text("")
    return 0


def say_nothing(arguments):
    return 2


def say_much(arguments):
    print("fedkd: x\n" * 100, file=sys.stderr)
    return 2


def leave_an_empty_folder(arguments):
    Path("out").mkdir()
    print("fedkd: x", file=sys.stderr)
    return 2


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        (raise_one, "raised KeyError: 'x'"),
        (lambda _: 1, "exit code 1"),
        (write_elsewhere, "writes elsewhere: open "),
        (change_input, "writes elsewhere: open "),
        (say_nothing, "exit code 2 without a line that says why"),
        (say_much, "100 lines of errors"),
        (leave_an_empty_folder, "leaves an empty folder"),
    ],
)
def test_each_kind_of_defect_is_noticed(command, problem, run_case, monkeypatch, tmp_path):
    monkeypatch.setattr(cli, "main", command)
    found = run_case("recipes", 1, tmp_path)["problems"]
    assert len(found) >= 1
    assert found[0].startswith(problem)


def test_changed_input_is_noticed_even_if_no_file_was_opened_by_python(
    run_case, monkeypatch, tmp_path
):
    monkeypatch.setattr(
        cli, "main", lambda _: subprocess.run(["truncate", "-s", "1", "case.toml"]).returncode
    )
    assert run_case("recipes", 1, tmp_path)["problems"] == ["changed case.toml"]


def test_a_case_that_hangs_is_noticed_and_its_process_killed(tmp_path, monkeypatch):
    worker = fuzz.Worker(tmp_path, tmp_path, 0)
    sleeping = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    worker._process = sleeping
    assert worker.ask("recipes", 0, 0.2)["problems"] == ["takes longer than 0.2 s"]
    assert sleeping.poll() == -9
