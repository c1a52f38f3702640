"""The cases of `benchmarks/fuzz.py`: what is spoiled, how, and which command then reads it."""

import io
import json
import shutil
import tomllib
import types
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
NUM_IMAGES = 36
CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")


@dataclass
class Case:
    """A command and the files that it reads.

    Attributes:
        folder: All of them, and the working directory.
        arguments: Of the command line.
        may_change: Folders that the command may write to.
        output: Folder of its output.
        uses_temporary: Whether it may write to the system's folder of temporary files.
        call: Instead of a command: what no command reads.
    """

    folder: Path
    arguments: list[str]
    may_change: list[Path] = field(default_factory=list)
    output: Path = Path("nowhere")
    uses_temporary: bool = False
    call: Callable[[], None] | None = None


def make(kind: str, number: int, seed: int, materials: Path, folder: Path) -> Case:
    """The case of this number, its files written into ``folder``, which is new."""
    from fedkd import seeding

    rng = seeding.rng(seed, f"fuzz/{kind}", number)
    folder.mkdir(parents=True)
    makers = {
        "recipes": _recipe,
        "tables": _table,
        "images": _images,
        "checkpoints": _checkpoint,
    }
    case = makers[kind](rng, materials, folder)
    case.output = folder / "out"
    case.may_change.append(case.output)
    return case


# What is spoiled.


def make_materials(folder: Path) -> None:
    """Everything whole that cases start from: images and their tables, runs, teachers."""
    from PIL import Image

    from fedkd import seeding

    rng = seeding.rng(0, "fuzz/materials")
    images = folder / "data" / "images"
    images.mkdir(parents=True)
    rows, ham, lists = ["image_id,label,site,split,patient"], [], {}
    for n in range(NUM_IMAGES):
        name, label = f"im{n:02d}", n % 3
        pixels = rng.integers(0, 256, (20, 24, 3)) // 3 + 50 * label
        ending = ("png", "jpg")[n % 2]
        Image.fromarray(pixels.astype(np.uint8)).save(images / f"{name}.{ending}")
        Image.fromarray(pixels.astype(np.uint8)).save(images / f"isic{n:02d}.jpg")
        split = ("train", "train", "val", "test")[n // 3 % 4]
        rows.append(
            f"{name}.{ending},{'abc'[label]},{('north', 'south')[n // 12 % 2]},{split},p{n}"
        )
        ham.append(f"isic{n:02d},les{n},{CLASSES[n % 7]},{('x', 'y')[n // 14 % 2]}")
        lists.setdefault(split, ["image,finding_name,finding"]).append(f"isic{n:02d},0,{n % 8}")
    _write(folder / "data" / "table.csv", "\n".join(rows) + "\n")
    _write(folder / "data" / "ham.csv", "\n".join(["image_id,lesion_id,dx,dataset", *ham]) + "\n")
    for split, lines in lists.items():
        _write(folder / "data" / f"{split}_skin1_0.01.csv", "\n".join(lines) + "\n")
    _write(folder / "data" / "recipe.toml", _RECIPE)
    _write(folder / "data" / "ham.toml", _HAM)
    _write(folder / "data" / "lists.toml", _LISTS)
    _make_runs(folder)
    _make_teachers(folder)


_RECIPE = """
name = "tiny"
num_rounds = 1
[data]
name = "folder"
images = "images"
csv = "table.csv"
site_column = "site"
group_column = "patient"
size = 16
[partition]
name = "by_site"
[objective]
name = "supervised"
[training]
batch_size = 4
[augmentation]
name = "none"
"""
_HAM = """
[data]
name = "ham10000"
images = "images"
metadata = "ham.csv"
size = 16
"""
_LISTS = """
[data]
name = "isic2019_lt"
images = "images"
lists = "."
size = 16
"""
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


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _make_runs(folder: Path) -> None:
    """A run, one that was killed, and the folders of its hospitals."""
    import contextlib
    import os

    from server.cli import main

    where = Path.cwd()
    os.chdir(folder / "data")
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            kept = "keep_students_every=1"
            done = [main(["run", "recipe.toml", f"output={folder / 'made'}", kept])]
            many = [f"output={folder / 'killed'}", "num_rounds=3", "checkpoint.every=1"]
            done.append(_stopped(lambda: main(["run", "recipe.toml", *many])))
            sites = ["--sites", str(folder / "sites"), "--output", str(folder / "divided")]
            done.append(main(["partition", "recipe.toml", *sites]))
    finally:
        os.chdir(where)
    assert done == [0, 0, 0], done
    shutil.move(next((folder / "made" / "tiny").iterdir()), folder / "run")
    shutil.move(next((folder / "killed" / "tiny").iterdir()), folder / "interrupted")


def _stopped(run: Callable[[], int]) -> int:
    """As a run that is killed after its second round leaves it: without a word about its end."""
    from server.results import RunDirectory

    class Killed(BaseException):
        pass

    def die(self: RunDirectory, board: Any) -> None:
        finished(self, board)
        if len(board.rounds) == 2:
            raise Killed

    finished, leave = RunDirectory.round_finished, RunDirectory.__exit__
    RunDirectory.round_finished = die  # type: ignore[method-assign]
    RunDirectory.__exit__ = lambda *_: None  # type: ignore[method-assign,assignment]
    try:
        run()
    except Killed:
        return 0
    finally:
        RunDirectory.round_finished = finished  # type: ignore[method-assign]
        RunDirectory.__exit__ = leave  # type: ignore[method-assign]
    return 1


def _make_teachers(folder: Path) -> None:
    import torch
    import torchvision

    from fedkd import seeding

    there = folder / "teachers"
    there.mkdir()
    for ending in ("safetensors", "json"):
        shutil.copy(ROOT / "fedkd" / "teachers" / "weights" / f"default.{ending}", there)
    with seeding.isolated(0, "fuzz/teacher"):
        network = torchvision.models.shufflenet_v2_x0_5(num_classes=4)
    torch.save(network.state_dict(), there / "weights.pth")


# How it is spoiled.

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


def _spoil_bytes(rng: np.random.Generator, content: bytes, times: int = 1) -> bytes:
    """Flip, cut, double, insert, overwrite or swap parts of a file."""
    for _ in range(times):
        size = len(content)
        at, end = sorted(int(n) for n in rng.integers(0, size + 1, 2))
        some = rng.integers(0, 256, int(rng.integers(1, 9)), np.uint8).tobytes()
        match int(rng.integers(0, 9)):
            case 0 if size:
                place = int(rng.integers(0, size))
                flipped = content[place] ^ (1 << int(rng.integers(0, 8)))
                content = content[:place] + bytes([flipped]) + content[place + 1 :]
            case 1:
                content = content[:at]
            case 2:
                content = content[:at] + content[end:]
            case 3:
                content = content[:end] + content[at:]
            case 4:
                content = content[:at] + some + content[at:]
            case 5:
                content = content[:at] + some + content[at + len(some) :]
            case 6:
                content = content[end:] + content[:end]
            case 7:
                # Where formats keep their lengths.
                at = int(rng.integers(0, min(size, 64) + 1))
                content = content[:at] + some + content[at + len(some) :]
            case _:
                content = content[:at] + b"\0" * (end - at) + content[end:]
    return content


def _spoil_text(rng: np.random.Generator, text: str) -> bytes:
    """Delete, double, swap or replace lines and characters, or write them in another encoding."""
    lines = text.split("\n")
    at, other = (int(n) for n in rng.integers(0, len(lines), 2))
    match int(rng.integers(0, 12)):
        case 0:
            del lines[at]
        case 1:
            lines.insert(other, lines[at])
        case 2:
            lines[at], lines[other] = lines[other], lines[at]
        case 3:
            marks = [n for n, mark in enumerate(text) if mark in "[]{}\"'=,.\n"]
            place = marks[int(rng.integers(0, len(marks)))]
            return (text[:place] + text[place + 1 :]).encode()
        case 4:
            place = int(rng.integers(0, len(text) + 1))
            odd = ("\0", "\r", "\u2028", "\ud7ff", '"', ",", "=", "\x1b[31m", "\x85", "é", "'''")
            return (text[:place] + odd[int(rng.integers(0, len(odd)))] + text[place:]).encode()
        case 5:
            codec = ("utf-16", "utf-8-sig", "utf-32", "utf-7")[int(rng.integers(0, 4))]
            return text.encode(codec)
        case 6:
            return text.replace("\n", "\r\n").encode()
        case 7:
            return text.replace("\n", "\r").encode()
        case 8:
            place = int(rng.integers(0, len(text) + 1))
            return text[:place].encode() + b"\xff\xfe\xe9" + text[place:].encode()
        case 9:
            return text[: int(rng.integers(0, len(text) + 1))].encode()
        case 10:
            return b""
        case _:
            return _spoil_bytes(rng, text.encode(), int(rng.integers(1, 4)))
    return "\n".join(lines).encode()


# Recipes.


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


def _recipe(rng: np.random.Generator, materials: Path, folder: Path) -> Case:
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
        content = _spoil_text(rng, text)
    elif style == 1:
        lines = text.split("\n")
        odd = _LINES[int(rng.integers(0, len(_LINES)))]
        lines.insert(int(rng.integers(0, len(lines) + 1)), odd)
        content = "\n".join(lines).encode()
        _write(folder / "other.toml", 'extends = "case.toml"\n')
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


# Tables.


def _copy_data(materials: Path, folder: Path) -> None:
    shutil.copytree(materials / "data", folder, dirs_exist_ok=True)


def _cells(rng: np.random.Generator, text: str) -> bytes:
    """Another value, or one field less or more, in some rows."""
    rows = [line.split(",") for line in text.rstrip("\n").split("\n")]
    odd = ("", " ", "nan", "NA", "-1", "1e9", "../x", "/etc/passwd", "im00.png", "im00", "train",
           "a", "é", "😀", '"', '""', "'", ";", "\t", "x\ny", '"x\ny"', "0", "=1+1",
           "<b>",
           "x" * 3000, "[/b]",
           "none", "None", ".", "..", "images", "true", "con\\x", "~", "1.0")  # fmt: skip
    for _ in range(int(rng.integers(1, 9))):
        row = rows[int(rng.integers(0, len(rows)))]
        at = int(rng.integers(0, len(row)))
        match int(rng.integers(0, 5)):
            case 0:
                del row[at]
                row = row or [""]
            case 1:
                row.insert(at, odd[int(rng.integers(0, len(odd)))])
            case 2:
                other = rows[int(rng.integers(0, len(rows)))]
                row[at] = other[min(at, len(other) - 1)] if other else ""
            case _:
                row[at] = odd[int(rng.integers(0, len(odd)))]
        if not any(rows):
            break
        rows = [one for one in rows if one] or [[""]]
    return ("\n".join(",".join(row) for row in rows) + "\n").encode()


def _spoil_table(rng: np.random.Generator, path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    path.write_bytes(_cells(rng, text) if rng.random() < 0.6 else _spoil_text(rng, text))


def _spoil_json(rng: np.random.Generator, path: Path) -> None:
    """Another value somewhere in a JSON file, or its text spoiled."""
    text = path.read_text(encoding="utf-8")
    if rng.random() < 0.3:
        path.write_bytes(_spoil_text(rng, text))
        return
    tree = json.loads(text)
    places = [(tree, key) for key in (tree if isinstance(tree, dict) else range(len(tree)))]
    for place, key in places:
        inner = place[key]
        if isinstance(inner, dict | list) and len(places) < 400:
            places += [
                (inner, k) for k in (inner if isinstance(inner, dict) else range(len(inner)))
            ]
    odd = (None, -1, 0, 1e308, float("nan"), float("inf"), 10**30, "", "x", "\0", "é", [], {}, True,
           [1], {"a": 1}, [[]], "../x", "<script>", "[/b]", -0.5, [None], "a" * 3000)  # fmt: skip
    for _ in range(int(rng.integers(1, 3))):
        place, key = places[int(rng.integers(0, len(places)))]
        if rng.random() < 0.25:
            if isinstance(place, dict):
                place.pop(key, None)
        elif isinstance(place, dict) or key < len(place):
            place[key] = odd[int(rng.integers(0, len(odd)))]
    path.write_text(json.dumps(tree), encoding="utf-8")


def _table(rng: np.random.Generator, materials: Path, folder: Path) -> Case:
    kind = rng.choice(
        ["folder", "lists", "ham", "manifest", "report", "site"],
        p=[0.35, 0.12, 0.13, 0.1, 0.2, 0.1],
    )
    if kind == "report":
        return _spoiled_run(rng, materials, folder, ["*.csv"])
    if kind == "site":
        return _site(rng, materials, folder)
    _copy_data(materials, folder)
    if kind == "folder":
        _spoil_table(rng, folder / "table.csv")
        more = rng.choice(["", "data.split_column=", "data.store=stream",
                           "data.classes=['a', 'b']", "data.require_all_sites=false"])  # fmt: skip
        overrides = [str(more)] if more else []
        if rng.random() < 0.3:
            return Case(folder, ["partition", "recipe.toml", "--output", "out", *overrides])
        return Case(folder, ["data", "check", "recipe.toml", *overrides])
    if kind == "lists":
        lists = sorted(folder.glob("*_skin1_0.01.csv"))
        _spoil_table(rng, lists[int(rng.integers(0, len(lists)))])
        return Case(folder, ["data", "check", "lists.toml"])
    if kind == "ham":
        _spoil_table(rng, folder / "ham.csv")
        return Case(folder, ["data", "check", "ham.toml"])
    shutil.copy(materials / "divided" / "partition.json", folder)
    _spoil_json(rng, folder / "partition.json")
    given = ["partition.name=file", "partition.file=partition.json"]
    return Case(folder, ["partition", "recipe.toml", "--output", "out", *given])


def _site(rng: np.random.Generator, materials: Path, folder: Path) -> Case:
    from fedkd import config
    from fedkd.errors import FedkdError
    from fedkd.recipe import Recipe
    from fedkd.site import open_site

    whole = sorted((materials / "sites").iterdir())
    hospitals = [path for path in whole if path.name != "server" and (path / "site.json").is_file()]
    shutil.copytree(hospitals[0], folder / "site")
    if rng.random() < 0.5:
        _spoil_json(rng, folder / "site" / "site.json")
    else:
        _spoil_table(rng, folder / "site" / "labels.csv")

    def call() -> None:
        try:
            open_site(config.build(Recipe, {"data": {"size": 16}}), 0, 2, folder / "site")
        except FedkdError as error:
            raise SystemExit("\n".join(f"fedkd: {x}" for x in str(error).splitlines())) from None

    return Case(folder, ["open_site"], call=call)


# Images.


def _spoiled_image(rng: np.random.Generator, whole: bytes) -> bytes:
    from PIL import Image

    style = int(rng.integers(0, 8))
    if style < 3:
        return _spoil_bytes(rng, whole, int(rng.integers(1, 4)))
    if style == 3:
        return _odd_file(rng)
    mode = str(rng.choice(["1", "L", "P", "RGBA", "CMYK", "I;16", "I", "F", "LA", "YCbCr", "LAB"]))
    shape = [(1, 1), (1, 3000), (20, 20), (3000, 1)][int(rng.integers(0, 4))]
    kinds = ("PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP", "PPM", "ICO", "TGA", "JPEG2000")
    kind = str(rng.choice(kinds))
    out = io.BytesIO()
    try:
        values = rng.integers(0, 256, (shape[1], shape[0], 3)).astype(np.uint8)
        plain = Image.fromarray(values)
        if mode == "I;16":
            plain = Image.fromarray(values[..., 0].astype(np.uint16) * 257)
        elif mode == "LAB":
            plain = Image.new("LAB", shape)
        else:
            plain = plain.convert(mode)
        plain.save(out, kind)
    except (OSError, ValueError, KeyError):
        return _odd_file(rng)
    content = out.getvalue()
    return _spoil_bytes(rng, content) if style > 5 else content


def _odd_file(rng: np.random.Generator) -> bytes:
    """Files that are no images, or say that they are huge."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (len(data).to_bytes(4, "big") + kind + data
                + zlib.crc32(kind + data).to_bytes(4, "big"))  # fmt: skip

    def png(width: int, height: int, more: bytes = b"") -> bytes:
        head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
        return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + more
                + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b""))  # fmt: skip

    files = (
        b"",
        b"\0" * 4096,
        b"\0" * 128 + b"DICM" + b"\x02\0\0\0UL\x04\0" + b"\xff" * 200,
        png(100_000, 100_000),
        png(2**31 - 1, 2**31 - 1),
        png(0, 10),
        png(12_000, 12_000),
        png(20, 20, chunk(b"zTXt", b"x\0\0" + zlib.compress(b"a" * 20_000_000))),
        png(20, 20, chunk(b"iCCP", b"x\0\0" + zlib.compress(b"a" * 20_000_000))),
        b"GIF89a"
        + b"\xff\xff\xff\xff\x80\0\0"
        + b"\0" * 6
        + b",\0\0\0\0\xff\xff\xff\xff\0\x02\0\x3b",
        b"BM" + (2**31).to_bytes(4, "little") * 12,
        b"P6\n99999 99999\n255\n",
        b"P5\n-1 5\n255\nabc",
        b"P6\n3 3\n99999999\nabc",
        b"II*\0\x08\0\0\0\xff\xff" + b"\x01" * 300,
        b"\xff\xd8\xff\xe0" + b"\xff" * 500,
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99999 99999\nshowpage\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"RIFF\xff\xff\xff\xffWEBPVP8 " + b"\xff" * 100,
        b"PK\x03\x04" + b"\0" * 100,
        b"icns\0\0\xff\xff" + b"ic07\xff\xff\xff\xff" * 20,
        b"\0\0\x01\0\xff\xff" + b"\x10" * 300,
    )
    return files[int(rng.integers(0, len(files)))]


def _images(rng: np.random.Generator, materials: Path, folder: Path) -> Case:
    _copy_data(materials, folder)
    there = sorted(path for path in (folder / "images").iterdir() if path.name.startswith("im"))
    number = int(rng.choice([1, 2, 9, len(there)], p=[0.6, 0.2, 0.1, 0.1]))
    chosen = [there[int(n)] for n in rng.choice(len(there), number, replace=False)]
    for path in chosen:
        path.write_bytes(_spoiled_image(rng, path.read_bytes()))
        if rng.random() < 0.03:
            path.unlink()
            path.mkdir()
    if rng.random() < 0.5:
        shutil.copytree(materials / "run", folder / "run")
        endings = (".png", ".jpg", ".tif", ".dcm", ".gif", ".eps", ".webp", ".bmp", ".ppm", ".icns")
        for path in chosen:
            if rng.random() < 0.5:
                path.rename(path.with_suffix(endings[int(rng.integers(0, len(endings)))]))
        names = [str(p.relative_to(folder)) for p in sorted((folder / "images").glob("im*"))]
        given = ["images"] if rng.random() < 0.5 else names
        (folder / "out").mkdir()
        return Case(folder, ["predict", "run", *given, "--output", "out/predictions.csv"])
    more = [str(rng.choice(["data.store=mapped", "data.store=stream"]))]
    return Case(folder, ["data", "check", "recipe.toml", *more])


# Checkpoints and run directories.


def _checkpoint(rng: np.random.Generator, materials: Path, folder: Path) -> Case:
    kind = rng.choice(
        ["teacher", "card", "pth", "student", "run", "resume", "pretrain"],
        p=[0.18, 0.05, 0.17, 0.2, 0.2, 0.15, 0.05],
    )
    if kind in ("teacher", "card", "pth"):
        shutil.copytree(materials / "teachers", folder, dirs_exist_ok=True)
    if kind == "teacher":
        _spoil_tensors(rng, folder / "default.safetensors")
        return Case(folder, ["teachers", str(rng.choice(["check", "card"])), "default.safetensors"])
    if kind == "card":
        _spoil_json(rng, folder / "default.json")
        return Case(folder, ["teachers", str(rng.choice(["check", "card"])), "default.safetensors"])
    if kind == "pth":
        path = folder / "weights.pth"
        _spoil_pth(rng, path)
        name = "torchvision:shufflenet_v2_x0_5"
        return Case(folder, ["teachers", "check", name, "checkpoint=weights.pth"])
    if kind == "student":
        return _spoiled_run(rng, materials, folder, ["*.safetensors"])
    if kind == "run":
        return _spoiled_run(rng, materials, folder, ["summary.json", "config.toml"])
    if kind == "pretrain":
        return _spoiled_pretraining(rng, folder)
    shutil.copytree(materials / "interrupted", folder / "run")
    shutil.copytree(materials / "data", folder, dirs_exist_ok=True)
    # Where the run's recipe names its images: relative to the working directory.
    there = sorted(p for p in (folder / "run").rglob("*") if p.is_file())
    within = [p for p in there if "checkpoint" in p.relative_to(folder / "run").parts]
    chosen = within if within and rng.random() < 0.8 else there
    _spoil_any(rng, chosen[int(rng.integers(0, len(chosen)))])
    return Case(folder, ["resume", "run"], [folder / "run"])


def _spoil_any(rng: np.random.Generator, path: Path) -> None:
    style = rng.random()
    if style < 0.1:
        path.unlink()
    elif path.suffix == ".safetensors":
        _spoil_tensors(rng, path)
    elif path.suffix == ".json":
        _spoil_json(rng, path)
    elif path.suffix in (".csv", ".toml"):
        path.write_bytes(_spoil_text(rng, path.read_text(encoding="utf-8")))
    else:
        path.write_bytes(_spoil_bytes(rng, path.read_bytes()))


def _spoil_tensors(rng: np.random.Generator, path: Path) -> None:
    """Spoil a safetensors file: its bytes, its header, or its tensors."""
    content = path.read_bytes()
    style = rng.random()
    end = 8 + int.from_bytes(content[:8], "little")
    if style < 0.25:
        path.write_bytes(_spoil_bytes(rng, content, int(rng.integers(1, 3))))
        return
    if style < 0.5:
        head = json.loads(content[8:end])
        names = sorted(head)
        name = names[int(rng.integers(0, len(names)))]
        match int(rng.integers(0, 5)):
            case 0:
                del head[name]
            case 1:
                head["__metadata__"] = {"format": "pt"}
            case 2 if name != "__metadata__":
                head[name]["shape"] = [[], [0], [2**40], [2**62, 4], [-1]][int(rng.integers(0, 5))]
            case 3 if name != "__metadata__":
                head[name]["dtype"] = str(rng.choice(["F64", "I64", "BOOL", "X", "F8_E4M3"]))
            case _ if "__metadata__" in head:
                keys = sorted(head["__metadata__"])
                odd = ["", "[]", "{}", "null", "[1e999, 0, 0]", "x", "[0,0,0]", "[-1, 10000000000]"]
                head["__metadata__"][keys[int(rng.integers(0, len(keys)))]] = str(rng.choice(odd))
        text = json.dumps(head).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])
        return
    from safetensors import safe_open
    from safetensors.torch import load, save_file

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load(content)
    _spoil_state(rng, tensors)
    save_file(tensors, path, metadata)


def _spoil_state(rng: np.random.Generator, state: dict[str, Any]) -> None:
    import torch

    names = sorted(state)
    name = names[int(rng.integers(0, len(names)))]
    tensor = state[name]
    match int(rng.integers(0, 8)):
        case 0:
            del state[name]
        case 1:
            state["more"] = torch.zeros(3)
        case 2:
            state[name] = tensor.reshape(-1)[: max(1, tensor.numel() // 2)].clone()
        case 3:
            state[name] = torch.full_like(tensor.float(), float("nan"))
        case 4:
            state[name] = tensor.double()
        case 5:
            state[name] = torch.zeros(tensor.shape, dtype=torch.int8)
        case 6:
            state[name] = torch.full_like(tensor.float(), 1e38)
        case _:
            state.clear()


def _spoil_pth(rng: np.random.Generator, path: Path) -> None:
    import pickle

    import torch

    style = rng.random()
    if style < 0.5:
        path.write_bytes(_spoil_bytes(rng, path.read_bytes(), int(rng.integers(1, 3))))
        return
    state: Any = torch.load(path, weights_only=True)
    if style < 0.75:
        _spoil_state(rng, state)
        torch.save(state, path)
        return
    odd: list[Any] = [None, [], {}, "x", 3, {"state_dict": None}, {"state_dict": {}}, {1: 2},
                      {"model": {"model": state}}, list(state.values()), {"": torch.zeros(1)},
                      {"x": torch.zeros(2, dtype=torch.complex64)},
                      {f"module.{k}": v for k, v in state.items()},
                      {k: v.tolist() for k, v in list(state.items())[:2]}]  # fmt: skip
    value = odd[int(rng.integers(0, len(odd)))]
    if rng.random() < 0.8:
        torch.save(value, path, _use_new_zipfile_serialization=bool(rng.random() < 0.7))
    else:
        path.write_bytes(pickle.dumps([1, 2, {"a": "b"}]))


def _spoiled_run(
    rng: np.random.Generator, materials: Path, folder: Path, patterns: list[str]
) -> Case:
    """A run directory with one spoiled file, and a command that reads it."""
    run = folder / "run"
    shutil.copytree(materials / "run", run)
    shutil.copytree(materials / "data", folder, dirs_exist_ok=True)
    there = sorted(path for pattern in patterns for path in run.glob(pattern))
    path = there[int(rng.integers(0, len(there)))]
    if path.suffix == ".csv" and rng.random() < 0.7:
        _spoil_table(rng, path)
    else:
        _spoil_any(rng, path)
    if path.suffix == ".csv":
        return Case(folder, ["report", "run", "--output", "out"], uses_temporary=True)
    image = "images/im01.jpg"
    which = ["best", "last", "round:1", "round:99", str(path)][int(rng.integers(0, 5))]
    commands = [
        ["evaluate", "run", "--student", which, "--output", "out"],
        ["predict", "run", image, "--student", which],
        ["report", "run", "--output", "out"],
        ["export", "run", "--format", "safetensors", "--student", which, "--output", "out/x.st"],
        ["spectrum", "run", "--images", "4", "--output", "out"],
    ]
    chances = (
        [0.3, 0.3, 0.15, 0.15, 0.1] if path.suffix == ".safetensors" else [0.25] * 3 + [0.15, 0.1]
    )
    return Case(folder, commands[int(rng.choice(len(commands), p=chances))], uses_temporary=True)


_PRETRAIN = """
name = "made"
steps = 4
warm_up_steps = 1
batch_size = 8
[images]
count = 64
"""


def _spoiled_pretraining(rng: np.random.Generator, folder: Path) -> Case:
    _write(folder / "pretrain.toml", _PRETRAIN)
    (folder / "out").mkdir()
    path = folder / "out" / "made.checkpoint.pt"
    import torch

    torch.save({"step": 1, "learner": {"x": torch.zeros(3)}}, path)
    path.write_bytes(_spoil_bytes(rng, path.read_bytes(), int(rng.integers(0, 3))))
    return Case(folder, ["pretrain", "pretrain.toml", "--output", "out"])
