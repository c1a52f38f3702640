"""Errors that a user can cause and mend; the command line prints their text and exits with 2."""

import re
from collections.abc import Sequence

_NUM_SHOWN = 5
# Control characters but tab and line feed, and those that turn the direction of writing.
_COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def first_of(names: Sequence[str]) -> str:
    """The first five of many names, as a text shows them; dots stand for the others."""
    return ", ".join(names[:_NUM_SHOWN]) + (", ..." if len(names) > _NUM_SHOWN else "")


def plain(text: str) -> str:
    """The text without characters that command a terminal: a hospital's errors may hold any."""
    return _COMMANDS.sub("\ufffd", text)


class FedkdError(Exception):
    """Base of all errors whose text is meant for the user.

    The text says what is wrong, the value seen, what is allowed and the next step.
    """


class ConfigError(FedkdError):
    """A recipe or an override is wrong: unknown key, value out of range, impossible combination."""


class DataError(FedkdError):
    """A data set cannot be used: missing file, broken image, unknown label, empty split."""


class FetchError(FedkdError):
    """A file cannot be downloaded or unpacked: no such address, wrong hash, disk full, bad path."""


class PartitionError(FedkdError):
    """The training images cannot be divided over the clients as the config asks."""


class TeacherError(FedkdError):
    """A teacher cannot be loaded: missing file, wrong hash, wrong keys, wrong input size."""


class StudentError(FedkdError):
    """A student cannot be built or initialised as the config asks."""


class DependencyError(FedkdError):
    """An optional package is missing; the text names the extra that installs it."""


class ClientFailure(FedkdError):
    """One or more clients raised; the text names each, with its FedkdError or a traceback."""


class UpdateRefused(FedkdError):
    """A client's reply may not enter the aggregate: non-finite values, wrong names or shapes."""
