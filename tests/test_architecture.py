"""Reads the four packages' source: which file imports which, and what may not be called."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "server": {"server", "clients", "strategies", "fedkd"},
    "clients": {"clients", "fedkd"},
    "strategies": {"strategies", "fedkd"},
    "fedkd": {"fedkd"},
}
# Flower and Ray stay out of the ground floor.
NOT_IN_FEDKD = {"flwr", "ray"}
# Packages of extras: imported where they are used, never with the module.
OPTIONAL = {"flwr_datasets", "datasets", "timm", "medmnist", "tensorboard", "onnx", "onnxruntime"}
NUMPY_RANDOM = {"default_rng", "Generator", "SeedSequence", "BitGenerator", "PCG64"}
NUMPY_STATE = {"get_state", "seed", "set_state"}
TORCH_SEEDS = {
    "torch.manual_seed",
    "torch.random.manual_seed",
    "torch.seed",
    "torch.cuda.manual_seed",
}


def parse(root):
    """Syntax tree and file of every module under the four packages, by dotted name."""
    trees = {}
    for package in MAY_IMPORT:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            trees[name] = (ast.parse(path.read_text(encoding="utf-8")), path)
    return trees


def bindings(name, tree, path):
    """(local name, dotted origin, node) of each import in a module, however deep in its code."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.asname or alias.name.partition(".")[0], alias.name, node
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
                above = package[: len(package) - node.level + 1]
                base = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                yield alias.asname or alias.name, f"{base}.{alias.name}", node
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func).endswith("import_module")
            and isinstance(node.args[0], ast.Constant)
        ):
            yield "", str(node.args[0].value), node


def graph(trees):
    """Modules that each module imports. ``from package import name`` is the module ``package.name``
    if there is one, else ``package``."""
    edges = {name: set() for name in trees}
    for name, (tree, path) in trees.items():
        for _, origin, _ in bindings(name, tree, path):
            target = origin.removesuffix(".*")
            while target and target not in trees:
                target = target.rpartition(".")[0]
            edges[name] |= {target} - {""}
    return edges


def bad_arrows(trees):
    found = []
    for name, (tree, path) in trees.items():
        package = name.partition(".")[0]
        for _, origin, _ in bindings(name, tree, path):
            top = origin.partition(".")[0]
            at_home = top in MAY_IMPORT and top not in MAY_IMPORT[package]
            if at_home or (package == "fedkd" and top in NOT_IN_FEDKD):
                found.append(f"{name} -> {origin}")
    return found


def circle(trees):
    try:
        graphlib.TopologicalSorter(graph(trees)).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def early_extras(trees):
    """Optional packages that are imported outside functions."""
    found = []
    for name, (tree, path) in trees.items():
        inside = {
            id(node)
            for function in ast.walk(tree)
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
            for node in ast.walk(function)
        }
        for _, origin, node in bindings(name, tree, path):
            if origin.partition(".")[0] in OPTIONAL and id(node) not in inside:
                found.append(f"{name}:{node.lineno} imports {origin}")
    return found


def forbidden_uses(trees):
    """Global random numbers and unsafe loading."""
    found = []
    for name, (tree, path) in trees.items():
        origins = {}
        for local, origin, node in bindings(name, tree, path):
            # ``import a.b`` binds a; other forms bind what they name.
            origins[local] = local if origin.startswith(f"{local}.") else origin
            if origin.partition(".")[0] == "random":
                found.append(f"{name}:{node.lineno} random")
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute | ast.Name):
                used = origin_of(node, origins)
                allowed = NUMPY_RANDOM | (NUMPY_STATE if name == "fedkd.seeding" else set())
                if used.startswith("numpy.random.") and used.split(".")[2] not in allowed:
                    found.append(f"{name}:{node.lineno} {used}")
                if used in TORCH_SEEDS and name != "fedkd.seeding":
                    found.append(f"{name}:{node.lineno} {used}")
            if isinstance(node, ast.Call):
                called = origin_of(node.func, origins)
                options = {option.arg: ast.unparse(option.value) for option in node.keywords}
                if called == "torch.load" and options.get("weights_only") != "True":
                    found.append(f"{name}:{node.lineno} torch.load without weights_only=True")
                if called == "numpy.random.default_rng" and not (node.args or options):
                    found.append(f"{name}:{node.lineno} default_rng without a seed")
    return found


def origin_of(node, origins):
    first, *rest = ast.unparse(node).split(".")
    return ".".join([origins.get(first, f"local {first}"), *rest])


@pytest.fixture(scope="module")
def house():
    return parse(ROOT)


@pytest.fixture
def plant(tmp_path):
    """Writes files, ``{"fedkd/a.py": source}``, and parses them as a house of their own."""

    def write(files):
        for path, source in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(source)
        return parse(tmp_path)

    return write


def test_the_house_is_read(house):
    assert {"fedkd.errors", "fedkd.seeding"} <= house.keys()
    assert "fedkd.errors" in graph(house)["fedkd.config"]


def test_arrows_between_packages_point_down(house):
    assert bad_arrows(house) == []


def test_no_circle_of_files(house):
    assert circle(house) == []


def test_optional_packages_are_imported_where_they_are_used(house):
    assert early_extras(house) == []


def test_no_global_random_numbers_and_no_unsafe_loading(house):
    assert forbidden_uses(house) == []


@pytest.mark.parametrize(
    ("path", "source", "arrow"),
    [
        ("clients/a.py", "import strategies.b", "clients.a -> strategies.b"),
        ("clients/a.py", "from server import b", "clients.a -> server.b"),
        ("strategies/a.py", "def f():\n    from clients.b import c", "strategies.a -> clients.b.c"),
        ("fedkd/x/a.py", "import flwr.common as common", "fedkd.x.a -> flwr.common"),
        ("fedkd/a.py", "def f():\n    import ray", "fedkd.a -> ray"),
        (
            "fedkd/a.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from clients import b",
            "fedkd.a -> clients.b",
        ),
        (
            "strategies/a.py",
            "import importlib\nimportlib.import_module('clients.b')",
            "strategies.a -> clients.b",
        ),
    ],
)
def test_a_planted_bad_arrow_is_found(plant, path, source, arrow):
    assert bad_arrows(plant({path: source})) == [arrow]


def test_allowed_arrows_pass(plant):
    trees = plant(
        {
            "server/a.py": "import clients.b, strategies.b\nfrom fedkd import b\nimport flwr, ray",
            "clients/b.py": "from fedkd import b\nimport flwr",
            "strategies/b.py": "from fedkd import b\nfrom .c import d",
            "fedkd/b.py": "def f():\n    import flwr_datasets",
        }
    )
    assert bad_arrows(trees) == early_extras(trees) == forbidden_uses(trees) == []


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"fedkd/a.py": "import fedkd.b", "fedkd/b.py": "from fedkd import a"}, {"a", "b"}),
        ({"fedkd/a.py": "from . import b", "fedkd/b.py": "from .a import name"}, {"a", "b"}),
        (
            {"fedkd/a.py": "def f():\n    from .b import c", "fedkd/b.py": "import fedkd.a"},
            {"a", "b"},
        ),
        (
            {
                "fedkd/x/__init__.py": "from .deep import y",
                "fedkd/x/deep.py": "from ..a import y",
                "fedkd/a.py": "from fedkd.x import y",
            },
            {"x", "x.deep", "a"},
        ),
        (
            {
                "fedkd/a.py": "import fedkd.b",
                "fedkd/b.py": "import fedkd.c",
                "fedkd/c.py": "import typing\nif typing.TYPE_CHECKING:\n    import fedkd.a",
            },
            {"a", "b", "c"},
        ),
    ],
)
def test_a_planted_circle_is_found(plant, files, expected):
    assert set(circle(plant(files))) == {f"fedkd.{name}" for name in expected}


def test_a_submodule_imported_through_its_package_is_no_circle(plant):
    trees = plant(
        {
            "fedkd/__init__.py": "from fedkd import b",
            "fedkd/a.py": "",
            "fedkd/b.py": "from fedkd import a",
        }
    )
    assert graph(trees)["fedkd.b"] == {"fedkd.a"}
    assert circle(trees) == []


def test_a_planted_early_extra_is_found(plant):
    trees = plant({"fedkd/a.py": "from timm import models\ndef f():\n    import timm"})
    assert early_extras(trees) == ["fedkd.a:1 imports timm.models"]


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import random", "random"),
        ("from random import choice", "random"),
        ("import numpy as np\nnp.random.rand(3)", "numpy.random.rand"),
        ("import numpy\nnumpy.random.seed(0)", "numpy.random.seed"),
        ("from numpy import random\nrandom.rand(3)", "numpy.random.rand"),
        ("from numpy.random import rand\nrand(3)", "numpy.random.rand"),
        ("import numpy.random as nr\nnr.shuffle([])", "numpy.random.shuffle"),
        ("import numpy as np\nnp.random.default_rng()", "default_rng without a seed"),
        ("import torch\ntorch.manual_seed(0)", "torch.manual_seed"),
        ("import torch\ntorch.load('a')", "torch.load without weights_only=True"),
        ("from torch import load\nload('a')", "torch.load without weights_only=True"),
        (
            "import torch\ntorch.load('a', weights_only=False)",
            "torch.load without weights_only=True",
        ),
    ],
)
def test_a_planted_forbidden_use_is_found(plant, source, found):
    assert forbidden_uses(plant({"fedkd/a.py": source})) == [
        f"fedkd.a:{source.count(chr(10)) + 1} {found}"
    ]


def test_derived_generators_and_safe_loading_pass(plant):
    source = (
        "import numpy as np\nimport torch\nimport torch.nn as nn\n"
        "rng = np.random.default_rng(np.random.SeedSequence(0))\n"
        "def draw(rng: np.random.Generator): return rng.random(3)\n"
        "torch.load('a', weights_only=True)\ntorch.random.fork_rng()\n"
    )
    assert forbidden_uses(plant({"fedkd/a.py": source})) == []
