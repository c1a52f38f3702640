"""Folders of a command's files: nothing of another question is written over, nothing empty left."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fedkd import files
from fedkd.errors import ConfigError
from server import terminal


@contextmanager
def output_folder(
    given: Path | str | None, default: Path, command: str, question: Mapping[str, Any]
) -> Iterator[Path]:
    """Make the folder; the block writes into it, all that is slow included.

    A note ``.made-by-<command>.json`` is left beside the files, by which the same command with the
    same question is known: its files are made anew, also if it was ended in the middle. Those of
    another question are refused at once in a folder that the user named; by default a folder beside
    is taken, whose name ends in -2 and so on. Ended by an error, the block leaves no empty folder.

    Args:
        given: The folder that the user named, if he did.
        default: Otherwise.
        command: Its files are ``<command>.*`` and ``<command>_*``.
        question: What the files hang on, as plain values.

    Raises:
        ConfigError: Files of another question are there, or the folder cannot be made.
    """
    text = json.dumps(question, sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()
    path = default if given is None else Path(given)
    number = 1
    while there := _of_another_question(path, command, digest):
        if given is not None:
            raise ConfigError(
                f"{path} has {', '.join(there)} already, of another command, other settings or "
                "other data; nothing is written over: choose another --output, or remove them"
            )
        number += 1
        path = default.with_name(f"{default.name}-{number}")
    note = _note(path, command)
    missing = [one for one in (path, *path.parents) if not one.exists()]
    terminal.make_folder(path)
    try:
        try:
            with files.replacing(note) as part:
                part.write_text(digest + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"cannot write to {path}: {error}; choose another --output") from None
        yield path
    finally:
        if not _made(path, command):
            note.unlink(missing_ok=True)
        for one in missing:
            with suppress(OSError):  # It is not empty.
                one.rmdir()


def _note(path: Path, command: str) -> Path:
    return path / f".made-by-{command}.json"


def _made(path: Path, command: str) -> list[str]:
    there = [*path.glob(f"{command}.*"), *path.glob(f"{command}_*")]
    return sorted(file.name for file in there)


def _of_another_question(path: Path, command: str, digest: str) -> list[str]:
    """Names of a command's files in a folder, unless they are of this very question."""
    note = _note(path, command)
    try:
        known = note.read_text(encoding="utf-8").strip() if note.is_file() else ""
        return [] if known == digest else _made(path, command)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot read the folder {path}: {error}; choose another --output"
        ) from None


def new_file(path: Path) -> None:
    """Refuse (ConfigError) a file of ``--output`` that is there already."""
    if path.exists():
        raise ConfigError(
            f"--output {path} is there already, and nothing is written over; name another file, or "
            "remove it"
        )
