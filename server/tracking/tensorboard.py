"""TensorBoard: the numbers of each round, the recipe and the test scores of a run."""

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from fedkd import config
from fedkd.errors import ConfigError, DependencyError
from fedkd.experiment import Experiment
from server.scoreboard import Observer, Scoreboard
from server.tracking.scalars import final_scalars, flat, scalars

FOLDER = "tensorboard"
"""Its folder in the run directory."""


class TensorBoard(Observer):
    """Writes ``<run>/tensorboard``; look at many runs with ``tensorboard --logdir runs``.

    Raises:
        DependencyError: The extra ``tracking`` is not installed.
    """

    def __init__(self) -> None:
        try:
            self._make_writer = import_module("torch.utils.tensorboard").SummaryWriter
        except ImportError as error:
            raise DependencyError(
                f"tracking has 'tensorboard', which cannot be imported ({error}); install the "
                "extra: pip install 'fedkd[tracking]', or leave it out: tracking=[]"
            ) from None

    def run_started(self, experiment: Experiment, path: Path | None) -> None:
        """Open the files and write the recipe; ConfigError if the run writes no directory."""
        if path is None:
            raise ConfigError(
                "tracking has 'tensorboard', which writes into the run directory, but this run "
                "leaves none (output is None); give an output, or leave it out: tracking=[]"
            )
        self._recipe = experiment.recipe
        self._folder = path / FOLDER
        goes_on = self._folder.exists()
        self._writer = self._make_writer(str(self._folder))
        if not goes_on:
            self._write_text("config", config.dump(experiment.recipe))

    def run_resumed(self, board: Scoreboard) -> None:
        """Hide rounds that come again."""
        self._writer.close()
        self._writer = self._make_writer(str(self._folder), purge_step=len(board.rounds) + 1)

    def round_finished(self, board: Scoreboard) -> None:
        """Write the round's numbers."""
        for tag, value in scalars(board).items():
            self._writer.add_scalar(tag, value, board.rounds[-1]["round"])
        self._writer.flush()

    def run_ended(self, board: Scoreboard | None, summary: Mapping[str, Any]) -> None:
        """Write the summary, of a finished run the test scores with the recipe's keys; close."""
        self._write_text("summary", json.dumps(summary, indent=2))
        if board is not None:
            keys = flat(self._recipe.model_dump(mode="json"))
            plain = {k: v if isinstance(v, bool | int | float | str) else json.dumps(v)
                     for k, v in keys.items()}  # fmt: skip
            # Without a name of its own it makes a folder that is called after the time.
            self._writer.add_hparams(
                plain, final_scalars(board), run_name=".", global_step=board.best_round
            )
        self._writer.close()

    def _write_text(self, tag: str, text: str) -> None:
        # Indented by four it is code in Markdown, which TensorBoard shows as it is.
        self._writer.add_text(tag, "".join(f"    {line}\n" for line in text.splitlines()))
