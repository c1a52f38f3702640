"""What clients remember, in a run's folder, to resume from: a file for each client and round."""

import logging
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError

from clients.state_file import (
    TRAINED_IN,
    UNREADABLE,
    State,
    read_notes,
    read_state,
    write_state,
)

logger = logging.getLogger(__name__)

_FILE = re.compile(r"round-(\d+)\.safetensors", re.ASCII)
_SILENCE_S = 10.0
_told: set[Path] = set()


def recall(
    folder: Path | None, partition_id: int, held: State, before_round: int | None = None
) -> State:
    """What a client remembers: what a memory holds, or, where that cannot serve, its file's.

    A memory is empty when a run is resumed. It is too new when a client has finished a round whose
    reply came too late, and is asked again: the bits would not be those of the first answer.

    Args:
        folder: Of all clients' files; None gives back what is held.
        partition_id: Which client.
        held: By a memory, perhaps empty.
        before_round: The round that the client is to train in; None if it does not train.
    """
    if folder is None:
        return held
    if held and (before_round is None or int(held[TRAINED_IN]["round"]) < before_round):
        return held
    return load(folder, partition_id, before_round)


def keep(folder: Path | None, partition_id: int, round_number: int, state: State) -> None:
    """Save what a client remembers after a round, if there is a folder; the run goes on if not.

    Where it cannot be written an empty file is left, if that can be: :func:`check` then names the
    client, and does not take an older file for its latest.
    """
    if folder is None:
        return
    try:
        save(folder, partition_id, round_number, state)
    except UNREADABLE as error:
        path = _path(folder, partition_id, round_number)
        warn_once(path, error)
        try:
            path.touch()
        except OSError as second:
            logger.debug("nor can an empty file: %s", second)
    else:
        snapshot_of(folder, partition_id).unlink(missing_ok=True)


def save(folder: Path, partition_id: int, round_number: int, state: State) -> None:
    """Write the state of one client after a round, whole or not at all; folders are made.

    Raises:
        OSError, safetensors.SafetensorError: It cannot be written.
    """
    path = _path(folder, partition_id, round_number)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_state(state, path, notes={"round": round_number, "client": partition_id})


def load(folder: Path, partition_id: int, before_round: int | None = None) -> State:
    """The state in the latest whole file of a client; empty if there is none.

    What is damaged is as if it were not there, and is told.

    Args:
        folder: Of all clients.
        partition_id: Which client.
        before_round: Only files of earlier rounds; None takes any. Who evaluates takes the latest:
            a state also knows what the client was after the best round.
    """
    for number, path in reversed(_files(folder / str(partition_id))):
        if before_round is None or number < before_round:
            try:
                return _read(path, partition_id, number)
            except UNREADABLE as error:
                logger.warning(
                    "client %d: %s cannot be read (%s); an earlier one is taken, or none",
                    partition_id,
                    path,
                    error,
                )
    return {}


def prune(folder: Path, kept_rounds: Collection[int]) -> None:
    """Remove what no checkpoint needs.

    For every kept round the latest file of each client up to it stays, and so do all files of
    rounds after the last kept one. What a client has left of a training in a round that is over
    goes.

    Args:
        folder: Of all clients; need not be there.
        kept_rounds: Rounds of the checkpoints that stay; none removes nothing.
    """
    if not kept_rounds:
        return
    last = max(kept_rounds)
    for client in _clients(folder):
        found = _files(client)
        needed = {max((n for n, _ in found if n <= kept), default=0) for kept in kept_rounds}
        for number, path in found:
            if number <= last and number not in needed:
                path.unlink(missing_ok=True)
        snapshot = snapshot_of(folder, int(client.name))
        if snapshot.exists() and _round_of(snapshot) <= last:
            snapshot.unlink(missing_ok=True)


def forget_after(folder: Path, round_number: int, but: Collection[int] = ()) -> None:
    """Remove files of later rounds, and unfinished ones, before a run goes on after a round.

    Args:
        folder: Of all clients; need not be there.
        round_number: Of the checkpoint; 0 means that the run begins anew.
        but: Partition ids of clients that keep their file of the round right after it, as their
            replies of that round are stored.
    """
    for client in _clients(folder):
        last = round_number + (int(client.name) in but)
        for number, path in _files(client):
            if number > last:
                path.unlink(missing_ok=True)
        for part in client.glob(".*.part.safetensors"):
            part.unlink(missing_ok=True)


def latest(folder: Path, round_number: int) -> dict[int, int]:
    """By partition id, the round of each client's latest file up to a round."""
    found = {
        int(client.name): [number for number, _ in _files(client) if number <= round_number]
        for client in _clients(folder)
    }
    return {client: max(found[client]) for client in sorted(found) if found[client]}


def check(folder: Path, trained: Mapping[int, int]) -> list[int]:
    """Partition ids, of those given, whose file of the round is damaged or missing.

    Reads all of them, and says so when that takes long.

    Args:
        folder: Of all clients.
        trained: By partition id, the round.
    """
    wanting = []
    told = time.monotonic()
    for place, (partition_id, number) in enumerate(trained.items()):
        try:
            _read(_path(folder, partition_id, number), partition_id, number)
        except UNREADABLE:
            wanting.append(partition_id)
        if time.monotonic() - told > _SILENCE_S:
            told = time.monotonic()
            logger.info("reading what clients remember: %d of %d ...", place + 1, len(trained))
    return wanting


def snapshot_of(folder: Path, partition_id: int) -> Path:
    """The file of a client that is in the middle of its training."""
    return folder / str(partition_id) / "training.safetensors"


def warn_once(path: Path, error: Exception) -> None:
    """Say that a client's file cannot be written, once in each process for the folder of a run."""
    folder = path.parent.parent
    if folder not in _told:
        _told.add(folder)
        logger.warning(
            "cannot write what resuming needs, %s (%s); the run goes on, but it cannot be resumed "
            "from here, nor where that happens again, of which nothing more is said; make room "
            "there, or set checkpoint.every=0",
            path,
            error,
        )


def _path(folder: Path, partition_id: int, round_number: int) -> Path:
    return folder / str(partition_id) / f"round-{round_number}.safetensors"


def _read(path: Path, partition_id: int, round_number: int) -> State:
    state, notes = read_state(path), read_notes(path)
    if notes != (expected := {"round": round_number, "client": partition_id}):
        raise SafetensorError(f"{path} is damaged: it says {notes}, expected {expected}")
    return state


def _round_of(path: Path) -> float:
    """The round in the notes of a file; 0 if it cannot be read."""
    try:
        return float(read_notes(path)["round"])
    except (*UNREADABLE, KeyError, ValueError):
        return 0.0


def _clients(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from (path for path in folder.iterdir() if path.name.isdecimal())


def _files(client: Path) -> Sequence[tuple[int, Path]]:
    """Rounds and files of one client, sorted; none if it has no folder."""
    if not client.is_dir():
        return []
    found = ((_FILE.fullmatch(path.name), path) for path in client.iterdir())
    # Reading a pipe would not end.
    return sorted((int(m[1]), path) for m, path in found if m and path.is_file())
