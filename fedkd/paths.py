"""Paths that recipes name, and where fedkd keeps what it can make again."""

import os
import re
from pathlib import Path

from fedkd.errors import ConfigError


def expand(text: str, key: str) -> Path:
    """A path from a recipe, with ``~`` and ``${VARIABLE}`` filled in.

    Args:
        text: As written in the recipe.
        key: The config key it stands under, for the error.

    Raises:
        ConfigError: A variable that is not set.
    """
    for name in re.findall(r"\$\{(\w+)\}", text):
        if not os.environ.get(name):
            raise ConfigError(
                f"{key} is {text!r} but the environment variable {name} is not set; "
                f"start the command with {name}=<folder>, or write the path itself"
            )
    return Path(os.path.expandvars(text)).expanduser()


def find_recipe(text: str) -> Path:
    """The recipe that a Flower run names by the key ``config`` of its run config.

    It is looked for in the working directory, then beside the packages: a Flower app runs from an
    unpacked copy, in whatever working directory.

    Raises:
        ConfigError: It is in neither.
    """
    beside = Path(__file__).resolve().parents[1]
    tried = [folder / expand(text, "config") for folder in (Path.cwd(), beside)]
    for path in tried:
        if path.is_file():
            return path
    raise ConfigError(
        f"the run config names the recipe config = {text!r}, which is neither {tried[0]} nor "
        f"{tried[1]}; start the run with --run-config 'config=\"<path of a recipe>\"', as it is on "
        "every machine or in the app"
    )


def data_dir() -> Path:
    """``$FEDKD_DATA``, the folder of all data sets; ConfigError if it is not set."""
    given = os.environ.get("FEDKD_DATA")
    if not given:
        raise ConfigError(
            "the environment variable FEDKD_DATA is not set; start the command with "
            "FEDKD_DATA=<folder>, the folder in which all data sets are kept"
        )
    return Path(given).expanduser()


def cache_dir() -> Path:
    """``$FEDKD_CACHE``, or fedkd's folder in the user's cache directory (XDG)."""
    if given := os.environ.get("FEDKD_CACHE"):
        return Path(given).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "fedkd"


def teachers_dir() -> Path:
    """``$FEDKD_TEACHERS``, the folder of teachers' weights; by default one in the cache."""
    if given := os.environ.get("FEDKD_TEACHERS"):
        return Path(given).expanduser()
    return cache_dir() / "teachers"
