"""benchmarks/gpu.py runs on a machine that has little more than torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ABSENT = ("flwr", "ray", "pandas", "sklearn", "scipy", "matplotlib", "rich")

# Hides packages as if they were not installed, then runs the benchmark.
PROGRAM = f"""
import runpy, sys

class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in {ABSENT} else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
sys.argv = ["gpu.py", *"--device cpu --students resnet8 --teacher resnet18 --size 16 --batch 4 \
--images 8 --repeats 1 --objectives supervised fopro --options none bfloat16".split()]
runpy.run_path("benchmarks/gpu.py", run_name="__main__")
assert not {{"flwr", "ray"}} & set(sys.modules)
"""


@pytest.mark.slow
def test_the_gpu_benchmark_prints_a_line_for_each_option_without_flwr_and_ray(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "FEDKD_TEACHERS": str(tmp_path),
                   "OMP_NUM_THREADS": "1"}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line[:3] == "| r"]
    assert [[cell.strip() for cell in row[:3]] for row in rows] == [
        ["resnet8", objective, option]
        for objective in ("supervised", "fopro")
        for option in ("none", "bfloat16")
    ]
    assert all(float(row[3]) > 0 and float(row[4]) > 0 for row in rows)
