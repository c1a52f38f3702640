"""The repository as a Flower app."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent


def environment(home):
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    own = {"FLWR_HOME": str(home), "FLWR_DISABLE_UPDATE_CHECK": "1", "PYTHONPATH": str(ROOT)}
    return {**os.environ, **own, "PATH": path, "FLWR_TELEMETRY_ENABLED": "0"}


@pytest.mark.slow
def test_the_bundle_is_small_and_holds_code_and_recipes_alone(tmp_path):
    app = tmp_path / "fedkd"
    ignored = shutil.ignore_patterns("__pycache__", ".*", "runs", "build", "dist", "tests")
    shutil.copytree(ROOT, app, ignore=ignored)
    subprocess.run(
        ["flwr", "build", "--app", str(app)],
        check=True,
        cwd=tmp_path,
        env=environment(tmp_path / "home"),
        capture_output=True,
    )
    [bundle] = tmp_path.glob("*.fab")
    assert bundle.stat().st_size < 10 * 2**20
    names = [name for name in zipfile.ZipFile(bundle).namelist() if not name.startswith(".info/")]
    tops = {name.partition("/")[0] for name in names}
    files = {"README.md", "LICENSE", "pyproject.toml"}
    assert tops == {"clients", "configs", "fedkd", "server", "strategies", *files}
    code = {str(path.relative_to(app)) for path in app.glob("fedkd/**/*.py")}
    assert code <= set(names)
    assert "configs/quickstart.toml" in names
    assert "fedkd/teachers/weights/default.json" in names


def test_what_is_said_of_the_project_twice_is_the_same():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    [told] = project["tool"]["uv"]["dependency-metadata"]
    assert told["name"] == project["project"]["name"]
    assert told["version"] == project["project"]["version"]
