"""Where commands print: results on stdout, progress and the log on stderr."""

import logging
import sys
from pathlib import Path

from rich.console import Console

from fedkd.errors import ConfigError, plain

OURS = ("fedkd", "clients", "strategies", "server")
"""Packages whose log is shown from INFO on; others' from WARNING on."""


def stdout() -> Console:
    """Console of the results; wide if it is no terminal."""
    return Console(width=None if sys.stdout.isatty() else 120)


def stderr() -> Console:
    """Console of the progress."""
    return Console(stderr=True, width=None if sys.stderr.isatty() else 160)


def make_folder(path: Path, option: str = "--output") -> Path:
    """The folder of a command's files, made if it is missing.

    Raises:
        ConfigError: It cannot be made; ``option`` is what names another.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cannot make the folder {path}: {error}; choose another {option}"
        ) from None
    return path


def log_to_stderr() -> None:
    """Show the log, a line each, on stderr."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[_Stderr()], force=True)


class _Stderr(logging.Handler):
    """Prints log lines on what stderr is at that moment: a progress bar may have replaced it."""

    def filter(self, record: logging.LogRecord) -> bool:
        ours = record.name.partition(".")[0] in OURS
        return ours or record.levelno >= logging.WARNING

    def emit(self, record: logging.LogRecord) -> None:
        print(plain(self.format(record)), file=sys.stderr)
