"""Runs that were interrupted: which can go on, and as what."""

import json
import logging
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fedkd import config
from fedkd.engine import WHERE
from fedkd.errors import ConfigError, DataError
from fedkd.experiment import Experiment, open_experiment
from fedkd.models import states
from fedkd.recipe import Recipe
from server.checkpoint import FOLDER
from server.opened_run import OpenedRun, open_run
from server.run_lock import hold

logger = logging.getLogger(__name__)


class InterruptedRun(OpenedRun):
    """The directory of a run that has not finished; its recipe is what it goes on with."""

    def experiment(self, **given: Any) -> Experiment:
        """The experiment, opened as the run had it.

        Args:
            **given: What :func:`fedkd.experiment.open_experiment` is given instead of what the
                recipe names; the same as then.

        Raises:
            ConfigError: The run was given other things then; or the initial student differs.
            DataError: Its images are divided otherwise than then.
            FedkdError: What :func:`fedkd.experiment.open_experiment` raises.
        """
        now = {
            "images": given.get("sites") is not None,
            "teacher": given.get("teacher") is not None,
            "initial_student": given.get("initial_student") is not None,
        }
        then = set(self.summary.get("given", ()))
        if lacking := sorted(then - {name for name, is_given in now.items() if is_given}):
            names = {"images": "sites=..., val=..., test=..."}
            arguments = ", ".join(names.get(name, f"{name}=...") for name in lacking)
            raise ConfigError(
                f"{self.path} was given its own {' and '.join(lacking).replace('_', ' ')} in "
                "Python, which its config.toml does not name; go on there: "
                f"server.resume({str(self.path)!r}, {arguments})"
            )
        if more := sorted(name for name, is_given in now.items() if is_given and name not in then):
            raise ConfigError(
                f"{self.path} was not given its own {' and '.join(more).replace('_', ' ')} when it "
                "began; leave it out"
            )
        if (torch := self.summary.get("versions", {}).get("torch")) != version("torch"):
            logger.warning(
                "%s was begun with torch %s, and this is %s: the last bits may differ",
                self.path, torch, version("torch"),
            )  # fmt: skip
        experiment = open_experiment(self.recipe, **given)
        if experiment.partition.hash != self.summary["partition_hash"]:
            raise DataError(
                f"the images of {self.path} are divided otherwise than when it began (partition "
                f"hash {experiment.partition.hash[:12]}, then "
                f"{str(self.summary['partition_hash'])[:12]}); give it the images that it had"
            )
        for name, digest in experiment.given_sha256().items():
            if digest != (had := self.summary.get("given_sha256", {}).get(name)):
                raise ConfigError(
                    f"the {name} given to {self.path} differ from what it was given when it began "
                    f"(sha256 {digest[:12]}, then {str(had)[:12]}); give it the same, hospitals in "
                    "the same order"
                )
        initial = states.sha256(experiment.build_student().state_dict())
        if initial != (begun := self.summary.get("initial_student_sha256")):
            raise ConfigError(
                f"the initial student of {self.path} is another than when it began (sha256 "
                f"{initial[:12]}, then {str(begun)[:12]}); give it the one that it had, and the "
                f"versions that its summary.json names (torch {torch})"
            )
        return experiment


def open_interrupted(
    path: Path, overrides: Sequence[str] = (), recipe: Recipe | None = None
) -> InterruptedRun:
    """A run directory that can go on.

    Args:
        path: The directory.
        overrides: ``key=value`` of what changes no number.
        recipe: Instead of the run's own config: one of the same hash.

    Raises:
        ConfigError: It is none, has finished, is still running, was at hospitals, has no
            checkpoint; or an override may change a number.
    """
    run = open_run(path)
    if run.summary.get("status") == "finished":
        raise ConfigError(
            f"{path} has finished: there is nothing to resume; `fedkd report {path}` shows it"
        )
    if run.summary.get("at_hospitals"):
        raise ConfigError(
            f"{path} was a run at hospitals, whose clients' states are there and not in its "
            "checkpoints; start it anew with `flwr run`"
        )
    if not (path / FOLDER).is_dir():
        raise ConfigError(
            f"{path} has no checkpoints: checkpoint.every was 0, `flwr run` began it, or they were "
            f"removed; start it anew: fedkd run {path / 'config.toml'}"
        )
    # Only a look, before images are read for minutes; the run itself holds it.
    hold(path, path / FOLDER).release()
    for text in overrides:
        _check_changes_no_number(text)
    if recipe is None:
        recipe = config.load(Recipe, path / "config.toml", overrides)
    if recipe.hash() != (begun := run.summary.get("config_hash")):
        raise ConfigError(
            f"{path / 'config.toml'} is not the recipe that the run began with (hash "
            f"{recipe.hash()[:8]}, then {str(begun)[:8]}): it was changed, or another version of "
            f"fedkd wrote it ({run.summary.get('versions', {}).get('fedkd')}, this is "
            f"{version('fedkd')}); go on with that one, or start anew: fedkd run "
            f"{path / 'config.toml'}"
        )
    return InterruptedRun(path, recipe, run.summary)


def unfinished_run(recipe: Recipe, mode: str, output: Path) -> Path | None:
    """The newest run directory of this very recipe in a folder that can go on, if there is one."""
    wanted, short = (mode, recipe.hash()), recipe.hash()[:8]
    found = {}
    for path in output.glob(f"{recipe.name}/*-{short}*/summary.json"):
        # Of two that began in the same second the second one's name ends in -2.
        match = re.fullmatch(rf"(\d+-\d+)-{short}(?:-(\d+))?", path.parent.name)
        try:
            summary = json.loads(path.read_text(encoding="utf-8"))
            key = summary["mode"], summary["config_hash"]
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            continue
        goes_on = summary.get("status") != "finished" and (path.parent / FOLDER).is_dir()
        if match and key == wanted and goes_on:
            found[match[1], int(match[2] or 1)] = path.parent
    return found[max(found)] if found else None


def _check_changes_no_number(text: str) -> None:
    key = text.partition("=")[0].strip()
    section, _, name = key.partition(".")
    if (
        key == "tracking"
        or (section == "checkpoint" and name)
        or (section == "engine" and name in WHERE)
    ):
        return
    where = ", ".join(f"engine.{name}" for name in sorted(WHERE))
    raise ConfigError(
        f"override {text!r} is refused: `fedkd resume` takes what changes no number, {where}, "
        "checkpoint.* and tracking; for anything else start a new run: fedkd run CONFIG"
    )
