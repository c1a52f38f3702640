"""Spoiled recipes, and the commands that read them."""

import json
import shutil
import tomllib
import types
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np
from fuzz_materials import ROOT, Case, write
from fuzz_spoiling import spoil_text

_VALUES = (
    "-1", "0", "1", "2", "3", "0.5", "-0.5", "1e308", "-1e308", "1e-320", "nan", "inf", "-inf",
    "1" + "0" * 30, "9223372036854775807", "9223372036854775808", "-9223372036854775808", "true",
    "1979-05-27", "07:32:00", '""', '" "', '"x"', '"all"', '"\\u0000"', '"a\\u0000b"', '"ü€😀"',
    '"\\n"', f'"{"a" * 5000}"', '"../../up"', '"/"', '"~"', '"~nobody/x"', '"${NOPE}"', '"$"',
    '"none"', '"auto"', '"[/bold]"', '"%s{}"', "[]", "[[]]", "[1, 2]", "[0, 0, 0]", "[-1, 1e400]",
    '["a", "a"]', "{}", "{a = 1}", '{name = "x"}', "{name = 1}", "[{}]", '"\\u202e"', "0x7f", "1_0",
    "[nan]", "{name = []}", '"1"', '"1e999"',
)  # fmt: skip
_LINES = (
    "", "=", "[", "]", "[[x]]", "[a.b.c.d]", "x", "x =", "= 1", "'''", '"""', "[data", "data = 1",
    "[data]", "extends = 1", 'extends = ""', 'extends = "."', 'extends = "case.toml"',
    'extends = "other.toml"', 'extends = "no\\u0000"', 'extends = "/"', 'extends = ["case.toml"]',
    'name = "twice"', "a.b = 1\na.b.c = 2", "x = " + "[" * 3000, "x = " + "{a=" * 3000,
    "é = 1", '"" = 1', '"a.b" = 2', "x" * 20000 + " = 1", ".".join("ab" * 800) + " = 1",
    "x = " + "9" * 6000, "[" + ".".join("ab" * 800) + "]",
)  # fmt: skip


_SMALL = """
name = "small"
num_rounds = 1
[data]
size = 16
num_train = 60
num_val_per_class = 1
num_test_per_class = 1
[objective]
name = "supervised"
[training]
batch_size = 8
"""


def _keys(model: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Annotation and field of all dotted keys of a model; of a union those of all its members."""
    from fedkd.config import Section

    found: dict[str, tuple[Any, Any]] = {}
    for name, one in model.model_fields.items():
        key = f"{prefix}{one.alias or name}"
        found[key] = (one.annotation, one)
        for inner in _inner(one.annotation):
            if isinstance(inner, type) and issubclass(inner, Section):
                found |= _keys(inner, f"{key}.")
    return found


def _inner(annotation: Any) -> list[Any]:
    arguments = get_args(annotation)
    return (
        [annotation, *(x for one in arguments for x in _inner(one))] if arguments else [annotation]
    )


def _fitting(rng: np.random.Generator, annotation: Any, one: Any) -> str:
    """A value of the right kind, often at the end of its range."""
    kinds = [x for x in _inner(annotation) if x is not types.NoneType]
    plain = [x for x in kinds if x in (int, float, bool, str)]
    words = [x for kind in kinds if get_origin(kind) is Literal for x in get_args(kind)]
    if words and (not plain or rng.random() < 0.7):
        return json.dumps(words[int(rng.integers(0, len(words)))])
    if bool in plain:
        return ("true", "false")[int(rng.integers(0, 2))]
    if int in plain or float in plain:
        ends = [v for m in one.metadata for k in ("ge", "le", "gt", "lt")
                if (v := getattr(m, k, None)) is not None]  # fmt: skip
        near = [e + d for e in ends for d in (-1, -1e-9, 0, 1e-9, 1)]
        numbers = [*near, 0, 1, 2, 3, 7, 0.1, 0.5, 0.9, 1000, 10**6, 10**12, 1e300, 1e-300]
        value = numbers[int(rng.integers(0, len(numbers)))]
        return str(int(value) if int in plain and abs(value) < 1e15 else float(value))
    return _VALUES[int(rng.integers(0, len(_VALUES)))]


def recipe(rng: np.random.Generator, materials: Path, folder: Path) -> Case:
    """A spoiled recipe."""
    from fedkd.recipe import Recipe

    path = folder / "case.toml"
    files = sorted((ROOT / "configs").glob("*.toml"))
    command = rng.choice(["config", "partition", "check", "run"], p=[0.7, 0.18, 0.1, 0.02])
    texts = [file.read_text() for file in files]
    text = texts[int(rng.integers(0, len(texts)))] if command == "config" else _SMALL
    for file in files:
        if f'extends = "{file.name}"' in text:
            shutil.copy(file, folder)
    overrides: list[str] = []
    keys = _keys(Recipe)
    style = int(rng.integers(0, 5))
    if command != "config" and style == 0:
        style = 2
    if style == 0:
        content = spoil_text(rng, text)
    elif style == 1:
        lines = text.split("\n")
        odd = _LINES[int(rng.integers(0, len(_LINES)))]
        lines.insert(int(rng.integers(0, len(lines) + 1)), odd)
        content = "\n".join(lines).encode()
        write(folder / "other.toml", 'extends = "case.toml"\n')
    else:
        content = text.encode()
        number = int(rng.integers(1, (3, 3, 4)[style - 2])) if rng.random() < 0.9 else 8
        for key in rng.choice(sorted(keys), number, replace=False):
            annotation, one = keys[key]
            odd = style == 2 or rng.random() < 0.05
            value = (
                _VALUES[int(rng.integers(0, len(_VALUES)))]
                if odd
                else _fitting(rng, annotation, one)
            )
            if rng.random() < 0.05:
                key = "".join(c for c in key if rng.random() > 0.15) + rng.choice(["", ".x", "é"])
            overrides.append(f"{key}={value}")
        if rng.random() < 0.4:
            # The same in the file, where it can be.
            try:
                content = _as_file(text, overrides)
                overrides = []
            except (ValueError, TypeError, KeyError):
                pass
    if rng.random() < 0.03:
        overrides.append(str(rng.choice(["", "=", "x", "a..b=1", ".=1", "name", "a=1=2", "é=1"])))
    path.write_bytes(content)
    if command == "config":
        return Case(folder, ["config", "case.toml", *overrides])
    # What is valid but endless is no defect: later overrides win.
    bounded = ["num_rounds=1", "output=out", "engine.name=inprocess", "explore.warm_up_steps=1",
               "training.local_epochs=1", "compare.seeds=[0]"]  # fmt: skip
    if command == "check":
        return Case(folder, ["data", "check", "case.toml", *overrides])
    return Case(folder, [str(command), "case.toml", *overrides, *bounded])


def _as_file(text: str, overrides: list[str]) -> bytes:
    import tomli_w

    values = tomllib.loads(text)
    for one in overrides:
        key, _, value = one.partition("=")
        place = values
        *parts, last = key.split(".")
        for part in parts:
            place = place.setdefault(part, {})
        place[last] = tomllib.loads(f"v = {value}")["v"]
    return tomli_w.dumps(values).encode()
