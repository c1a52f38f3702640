"""Rehearse a deployment on one machine: a SuperLink and one SuperNode per hospital, on loopback.

    fedkd partition CONFIG --sites FOLDER
    python configs/deploy/loopback.py CONFIG --sites FOLDER [key=value ...]

Everything is as at real sites (TLS, a key pair per hospital, processes and images of their own,
nothing installed at run time), but for the network and the machines. The run is submitted, followed
and reported; whatever way the script ends, it ends exactly what it started. Exit codes: 0 the run
completed, 1 it failed, 2 it could not be started, 130 Ctrl-C, 143 SIGTERM.
"""

import argparse
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import deployment

from fedkd import config
from fedkd.data.site_folder import SITE
from fedkd.data.site_writing import SERVER
from fedkd.errors import ConfigError, FedkdError
from fedkd.experiment import open_data
from fedkd.recipe import Recipe
from server.terminal import log_to_stderr, make_folder

logger = logging.getLogger("fedkd.rehearsal")


def find_sites(folder: Path) -> tuple[list[Path], Path]:
    """Folders of the hospitals, by partition id, and of the server.

    Raises:
        ConfigError: They are not as `fedkd partition CONFIG --sites FOLDER` writes them.
    """
    hint = "write them with: fedkd partition CONFIG --sites FOLDER"
    if not folder.is_dir():
        raise ConfigError(f"--sites {folder} is no folder; {hint}")
    found = {}
    for path in sorted(folder.iterdir()):
        if (path / SITE).is_file() and (match := re.match(r"(\d+)-", path.name)):
            if int(match[1]) in found:
                raise ConfigError(f"--sites {folder} has two folders of hospital {match[1]}")
            found[int(match[1])] = path.resolve()
    if not found or sorted(found) != list(range(len(found))):
        raise ConfigError(
            f"--sites {folder} has folders with a {SITE} of the hospitals {sorted(found)}; "
            f"expected all from 0 on, called 0-<name>, 1-<name> ...; {hint}"
        )
    if not (folder / SERVER / SITE).is_file():
        raise ConfigError(f"--sites {folder} has no {SERVER}/{SITE}; {hint}")
    return [found[number] for number in range(len(found))], (folder / SERVER).resolve()


def _stop(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _prepare(options: argparse.Namespace) -> deployment.Deployment:
    """The deployment that the command line asks for; nothing is started."""
    recipe = config.load(Recipe, options.config, options.overrides)
    sites: Sequence[Path | None]
    if options.sites:
        sites, server = find_sites(options.sites)
    else:
        sites, server = [None] * len(open_data(recipe)[1].indices), None
    if recipe.num_clients not in (None, len(sites)):
        raise ConfigError(
            f"num_clients is {recipe.num_clients}, but --sites {options.sites} has folders of "
            f"{len(sites)} hospitals; write them anew for this recipe"
        )
    # Else the server begins with those who have connected when no other one does for a while.
    overrides = [*options.overrides, f"num_clients={len(sites)}"]
    recipe = config.load(Recipe, options.config, overrides)
    output = (options.output or Path(recipe.output)).resolve()
    folder = output / f"loopback-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    folder = options.folder.resolve() if options.folder else folder
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"--folder {folder} is not empty; name another one, or none")
    return deployment.Deployment(recipe, sites, server, make_folder(folder, "--folder"), output)


def main(arguments: Sequence[str] | None = None) -> int:
    """Rehearse one run; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("config", help="recipe, a TOML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config values to change")
    parser.add_argument("--sites", type=Path, help="folder of `fedkd partition CONFIG --sites`")
    parser.add_argument("--output", type=Path, help="for the run (default: the recipe's output)")
    parser.add_argument("--folder", type=Path, help="for keys and logs (default: in the output)")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _stop)
    log_to_stderr()
    deployed, code = None, 2
    try:
        deployed = _prepare(options)
        deployed.start()
        run_id = deployed.submit()
        code = 1
        return 0 if deployed.follow(run_id) else 1
    except FedkdError as error:
        logger.info("loopback: %s", error)
        return code
    except KeyboardInterrupt:
        logger.info("loopback: interrupted")
        return 130
    finally:
        if deployed:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            deployed.end()


if __name__ == "__main__":
    sys.exit(main())
