"""How files are spoiled: bytes, texts, tables, JSON, tensors."""

import json
from pathlib import Path
from typing import Any

import numpy as np


def spoil_bytes(rng: np.random.Generator, content: bytes, times: int = 1) -> bytes:
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


def spoil_text(rng: np.random.Generator, text: str) -> bytes:
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
            return spoil_bytes(rng, text.encode(), int(rng.integers(1, 4)))
    return "\n".join(lines).encode()


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


def spoil_table(rng: np.random.Generator, path: Path) -> None:
    """Spoil the cells of a table, or its text."""
    text = path.read_text(encoding="utf-8")
    path.write_bytes(_cells(rng, text) if rng.random() < 0.6 else spoil_text(rng, text))


def spoil_json(rng: np.random.Generator, path: Path) -> None:
    """Another value somewhere in a JSON file, or its text spoiled."""
    text = path.read_text(encoding="utf-8")
    if rng.random() < 0.3:
        path.write_bytes(spoil_text(rng, text))
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


def spoil_any(rng: np.random.Generator, path: Path) -> None:
    """Spoil a file as its ending suggests, or remove it."""
    style = rng.random()
    if style < 0.1:
        path.unlink()
    elif path.suffix == ".safetensors":
        spoil_tensors(rng, path)
    elif path.suffix == ".json":
        spoil_json(rng, path)
    elif path.suffix in (".csv", ".toml"):
        path.write_bytes(spoil_text(rng, path.read_text(encoding="utf-8")))
    else:
        path.write_bytes(spoil_bytes(rng, path.read_bytes()))


def spoil_tensors(rng: np.random.Generator, path: Path) -> None:
    """Spoil a safetensors file: its bytes, its header, or its tensors."""
    content = path.read_bytes()
    style = rng.random()
    end = 8 + int.from_bytes(content[:8], "little")
    if style < 0.25:
        path.write_bytes(spoil_bytes(rng, content, int(rng.integers(1, 3))))
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


def spoil_pth(rng: np.random.Generator, path: Path) -> None:
    """Spoil a file of PyTorch: its bytes, its tensors, or what it holds at all."""
    import pickle

    import torch

    style = rng.random()
    if style < 0.5:
        path.write_bytes(spoil_bytes(rng, path.read_bytes(), int(rng.integers(1, 3))))
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
