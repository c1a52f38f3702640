"""``fedkd pretrain``: a teacher of one's own, with a progress bar."""

import argparse
import logging
import time
from contextlib import ExitStack
from pathlib import Path

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from fedkd import config
from fedkd.pretraining.config import PretrainConfig
from fedkd.pretraining.pretrain import checkpoint_path
from fedkd.pretraining.pretrain import pretrain as pretrain_teacher
from server import terminal
from server.progress import QUIET_S
from server.signals import gently, safe_place

logger = logging.getLogger(__name__)


def pretrain(options: argparse.Namespace) -> None:
    """Pre-train, or go on where an interrupted command stopped, and print the path."""
    terminal.log_to_stderr()
    settings = config.load(PretrainConfig, options.config, options.overrides)
    folder = terminal.make_folder(Path(options.output or "teachers"))
    console = terminal.stderr()
    spoke = time.monotonic()
    stretch = ExitStack()
    with (
        stretch,
        Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        ) as bar,
    ):
        training = False
        task = bar.add_task("pre-training", total=settings.steps)

        def show(step: int, total: int, values: dict[str, float]) -> None:
            nonlocal spoke, training
            if not training:  # reading the images before the first step can be stopped anywhere
                stretch.enter_context(gently())
                training = True
            rate = values["images_per_s"]
            text = f"loss {values['loss']:.3f}  {rate:.0f} images/s"
            bar.update(task, completed=step, description=f"pre-training  {text}")
            if not console.is_terminal and time.monotonic() - spoke > QUIET_S:
                spoke = time.monotonic()
                left = (total - step) * settings.batch_size / rate
                logger.info("step %d/%d  %s  %.0f min left", step, total, text, left / 60)
            safe_place()
            if step == total:
                stretch.close()

        try:
            path = pretrain_teacher(settings, folder, show)
        except KeyboardInterrupt:
            _say_how_to_go_on(checkpoint_path(settings, folder))
            raise
    print(path)


def _say_how_to_go_on(checkpoint: Path) -> None:
    if checkpoint.exists():
        logger.warning("stopped; the same command goes on from %s", checkpoint)
    else:
        logger.warning("stopped before the first checkpoint; the same command starts anew")
