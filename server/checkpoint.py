"""All that the rest of a run depends on, written as it goes, and read back when it is resumed.

``checkpoint/`` of a run directory holds, for each of the latest rounds, ``round-<r>.json`` (the
manifest, written last) and ``round-<r>.safetensors``; the best student, once; the tables' rows, to
which each checkpoint appends; and folders in which others write: what clients remember, and replies
of the round that is under way. When the run has finished, all of it is removed.
"""

import logging
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy.typing as npt
import torch
from filelock import FileLock
from safetensors import SafetensorError

from clients import state_folder
from clients.node import State
from fedkd.checkpointing import CheckpointConfig
from fedkd.errors import ConfigError
from server import board_state
from server.checkpoint_files import (
    MALFORMED,
    Groups,
    Unusable,
    check_manifest,
    manifest_path,
    manifest_paths,
    read_manifest,
    write_manifest,
    write_tensors,
)
from server.checkpoint_reading import ARRAYS, BEST, BEST_OWN, OWN, ROWS, STRATEGY, ReadCheckpoint
from server.evaluation import Arrays
from server.opened_run import open_run
from server.run_lock import hold
from server.scoreboard import Observer, Scoreboard, student_arrays

FORMAT = 1
"""Of the manifest and the files that it names; a checkpoint of another format is refused."""
FOLDER = "checkpoint"
STATES = "clients"
REPLIES = "replies"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """Where a run goes on.

    Attributes:
        round: The last one that is done.
        arrays: What travels, as it was after that round.
        strategy: What :meth:`strategies.base.SeededStrategy.state` gave.
    """

    round: int
    arrays: Arrays
    strategy: dict[str, npt.NDArray[Any]]


class Checkpoints:
    """Writes the checkpoints of a run, and gives back the latest whole one.

    As a context manager it holds the run: no other process can go on with it. They are all removed
    when the block ends well: the run has finished.

    Args:
        run: The run directory.
        config: Section ``checkpoint``.
        identity: What a checkpoint must have in common with the run that reads it.
        notes: Told in ``checkpoints_missed`` of the rounds after which none could be written.
        resumes: The run goes on: what is there is read.
    """

    def __init__(
        self,
        run: Path,
        config: CheckpointConfig,
        identity: Mapping[str, Any],
        notes: dict[str, Any] | None = None,
        resumes: bool = False,
    ) -> None:
        self.folder = run / FOLDER
        self.states = self.folder / STATES
        self.replies = self.folder / REPLIES
        self.resumes = resumes
        self._run = run
        self._config = config
        self._identity = {"format": FORMAT, **identity}
        self._notes = {} if notes is None else notes
        # By round, what the manifests of the checkpoints that are there say.
        self._manifests: dict[int, dict[str, Any]] = {}
        self._rows = board_state.Rows()
        self._lock: FileLock | None = None

    def __enter__(self) -> Self:
        """Hold the run.

        Raises:
            ConfigError: Another process does, or has finished it; or the folder cannot be written.
        """
        self._lock = hold(self._run, self.folder)
        if self.resumes:
            if open_run(self._run).summary.get("status") == "finished":
                self._remove()
                self._lock.release()
                raise ConfigError(f"{self._run} was finished by another process meanwhile")
            # Of writes that were cut short; what they would have replaced is there still.
            for part in self._run.rglob(".*.part*"):
                part.unlink(missing_ok=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let go of the run."""
        if error is None:
            self._remove()
        if self._lock is not None:
            self._lock.release()

    def restore(
        self,
        board: Scoreboard,
        initial: Arrays,
        observer: Observer | None = None,
        replied: Callable[[int, Arrays], Collection[int]] | None = None,
    ) -> Checkpoint | None:
        """The latest checkpoint that is whole; the board becomes what it was then.

        Later ones, and what clients have written in later rounds, are removed: those rounds come
        again.

        Args:
            board: Of this run, without any round yet.
            initial: What travels before the first round: its names, shapes and dtypes stay.
            observer: Told that the run goes on.
            replied: Gives, for the first round that comes and the arrays that it begins with, the
                clients whose replies are stored.

        Returns:
            None if the run begins: it is new, or was interrupted before any checkpoint.

        Raises:
            ConfigError: There are checkpoints, and none is whole; or of another recipe or format.
        """
        if not self.resumes:
            return None
        found = self._latest(board, initial)
        last = found.round if found else 0
        for number, path in manifest_paths(self.folder).items():
            if number not in self._manifests and not path.is_dir():
                path.unlink()
        kept = replied(last + 1, found.arrays if found else initial) if replied else ()
        state_folder.forget_after(self.states, last, kept)
        done = "no round had been finished" if not last else f"after round {last}"
        what = "only what follows the last round is left" if self._is_last(board, last) else (
            f"with round {last + 1} of {board.experiment.recipe.num_rounds}"
        )  # fmt: skip
        logger.info("%s goes on (%s), %s", self._run, done, what)
        self._notes["resumed_after"] = [*self._notes.get("resumed_after", []), last]
        if observer:
            observer.run_resumed(board)
        return found

    def save(
        self,
        round_number: int,
        arrays: Arrays,
        board: Scoreboard,
        strategy: Mapping[str, npt.NDArray[Any]] | None = None,
        pooled: State | None = None,
    ) -> bool:
        """Write a checkpoint if one is due: every so many rounds, and after the last.

        If it cannot be written, a warning says so, the one before stays and the run goes on.

        Args:
            round_number: The round that is done.
            arrays: What travels.
            board: After that round.
            strategy: What the strategy remembers.
            pooled: In centralized training, what its one client remembers.

        Returns:
            Whether one was written.
        """
        if not self._config.every or (
            round_number % self._config.every and not self._is_last(board, round_number)
        ):
            return False
        try:
            if pooled is not None:
                state_folder.save(self.states, 0, round_number, pooled)
            self._write(round_number, arrays, board, strategy or {})
            self._prune()
        except (OSError, SafetensorError) as error:
            logger.warning(
                "no checkpoint after round %d, the one before stays; it is tried again when the "
                "next one is due: %s", round_number, error,
            )  # fmt: skip
            self._notes.setdefault("checkpoints_missed", []).append(round_number)
            return False
        return True

    def _remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.folder.exists():
            logger.warning("%s cannot be removed; nothing needs it any more", self.folder)

    def _is_last(self, board: Scoreboard, round_number: int) -> bool:
        return round_number >= board.experiment.recipe.num_rounds or board.is_exhausted

    def _write(
        self,
        number: int,
        arrays: Arrays,
        board: Scoreboard,
        strategy: Mapping[str, npt.NDArray[Any]],
    ) -> None:
        rows = self._rows.append(self.folder / ROWS, board)
        named, best = f"round-{number}.safetensors", f"best-{board.best_round}.safetensors"
        tensors: Groups = {ARRAYS: arrays, STRATEGY: strategy, OWN: board.own}
        described = {named: write_tensors(self.folder / named, tensors)}
        before = self._manifests[max(self._manifests)]["files"] if self._manifests else {}
        described[best] = before.get(best) or write_tensors(
            self.folder / best, {BEST: board.best_arrays, BEST_OWN: board.best_own}
        )
        manifest = {
            **self._identity,
            "round": number,
            "rows": rows.described(),
            "files": described,
            "clients": self._trained(number, board),
            # Their order, which safetensors does not keep: distances and momenta go by position.
            "names": {ARRAYS: list(arrays), BEST: list(board.best_arrays)},
            "best": {"round": board.best_round, "val": board_state.plain(board.best_val)},
            "seconds": board.seconds,
            "where": _where(board),
        }
        write_manifest(manifest_path(self.folder, number), manifest)
        self._rows = rows
        self._manifests[number] = manifest

    def _trained(self, number: int, board: Scoreboard) -> dict[int, int]:
        """By client, the round of the file that it goes on from.

        That of its last row, so that no earlier file stands in for one that could not be written;
        or a later one: a client also remembers rounds that were aggregated without its reply.
        """
        trained = state_folder.latest(self.states, number)
        for row in board.clients:
            client = int(row["partition_id"])
            trained[client] = max(trained.get(client, 0), row["round"])
        return trained

    def _prune(self) -> None:
        """Remove what the latest checkpoints do not need, manifests first."""
        for number in sorted(self._manifests)[: -self._config.keep]:
            manifest_path(self.folder, number).unlink(missing_ok=True)
            del self._manifests[number]
        needed = {name for manifest in self._manifests.values() for name in manifest["files"]}
        for path in self.folder.glob("*.safetensors"):
            if path.name not in needed:
                path.unlink()
        # Clients that are asked for the best student of all are to remember that round.
        best = {manifest["best"]["round"] for manifest in self._manifests.values()}
        state_folder.prune(self.states, sorted(best | set(self._manifests)))

    def _latest(self, board: Scoreboard, initial: Arrays) -> Checkpoint | None:
        paths = manifest_paths(self.folder)
        found, reasons = None, []
        for number, path in paths.items():
            try:
                manifest = read_manifest(path)
                self._check_identity(path, manifest)
                check_manifest(path, manifest)
                if found is None:
                    found = self._read(number, manifest, board, initial)
                self._manifests[number] = manifest
            except Unusable as reason:
                reasons.append(str(reason))
        if paths and found is None:
            raise ConfigError(
                f"no checkpoint in {self.folder} is whole ({'; '.join(reasons)}); start the run "
                f"anew: fedkd run {self._run / 'config.toml'}"
            )
        if found and found.round < max(paths):
            logger.warning(
                "the checkpoint after round %d is damaged (%s); the one after round %d is used",
                max(paths),
                reasons[0],
                found.round,
            )
        return found

    def _check_identity(self, path: Path, manifest: Mapping[str, Any]) -> None:
        for key, value in self._identity.items():
            if manifest.get(key) != value:
                raise ConfigError(
                    f"{path} has {key} {manifest.get(key)!r}, but this run has {value!r}: its "
                    "config.toml was changed, or another version of fedkd wrote it; go on with "
                    "the one that began it"
                )

    def _read(
        self, number: int, manifest: Mapping[str, Any], board: Scoreboard, initial: Arrays
    ) -> Checkpoint:
        """All files of a checkpoint, checked before the board is changed."""
        try:
            read = ReadCheckpoint.of(self.folder, number, manifest, initial)
            trained = {int(client): int(last) for client, last in manifest["clients"].items()}
        except MALFORMED as error:
            told = " ".join(str(error).split())[:200]
            raise Unusable(f"what follows from round-{number}.json is damaged: {told}") from None
        if lost := state_folder.check(self.states, trained):
            raise Unusable(f"what clients {lost} remember is missing or damaged")
        if (now := _where(board)) != (then := manifest["where"]):
            logger.warning("the run was on %s, and goes on on %s: the last bits may differ",
                           then, now)  # fmt: skip
        read.rows.put_into(board)
        board.latest, board.best_arrays = student_arrays(read.arrays), read.best
        board.own, board.best_own = read.own, read.best_own
        board.best_round, board.best_val = read.best_round, read.best_val
        board.go_on(read.seconds)
        self._rows = read.rows.written
        return Checkpoint(number, read.arrays, read.strategy)


def _where(board: Scoreboard) -> str:
    """What can change the last bits and is not in the recipe's hash."""
    return f"{board.experiment.device}, threads of torch: {torch.get_num_threads()}"
