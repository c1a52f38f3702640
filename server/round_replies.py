"""What clients have replied in the round that is under way, kept so that nobody is asked again.

A run that ends in the middle of a round leaves the replies that it had in its checkpoint folder.
The resumed run takes them for the answers of these clients, if it sends the very arrays that they
had been sent: aggregate, reports and rows are then those of a run that never ended.
"""

import hashlib
import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, cast

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from clients import state_folder
from fedkd import files, wire
from fedkd.checkpointing import CheckpointConfig
from server.checkpoint_files import MALFORMED
from strategies.arrays import HeldArray, HeldRecord, view

logger = logging.getLogger(__name__)

_KEY = "reply"

Arrays = Mapping[str, npt.NDArray[Any]]


class _Stored(NamedTuple):
    arrays: Arrays
    metrics: MetricRecord
    sent: str


class RoundReplies:
    """Keeps the replies of a round, and writes them now and then, and when the run breaks off.

    Only in rounds that begin at a checkpoint (or at the start): nobody resumes elsewhere. As a
    context manager it writes what is not written yet if the block ends with any error. Replies are
    held, not copied.

    Args:
        folder: For the files, ``round-<r>-client-<n>.safetensors``; made when it is needed.
        config: How often checkpoints are made, at least once, and how often replies are written
            within a round.
        states: Of what clients remember, see :mod:`clients.state_folder`: a reply serves only with
            what its client remembered then.
    """

    def __init__(self, folder: Path, config: CheckpointConfig, states: Path | None = None) -> None:
        assert config.every, "a run without checkpoints is not resumed"
        self._folder = folder
        self._states = states
        self._config = config
        self._round = 0
        self._began = False
        self._sent: ArrayRecord | None = None
        self._digest = ""
        self._waiting: dict[int, RecordDict] = {}
        self._saved_s = time.monotonic()
        self._is_told = False

    def __enter__(self) -> Self:
        """Nothing is read or written yet."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write what is not written yet, if the run breaks off."""
        if error is not None:
            self.write()

    def begin(self, round_number: int, messages: Mapping[int, Message]) -> dict[int, Message]:
        """A round begins; the replies to some of its messages that an earlier process has left.

        These are given out in the first round of a process only: later the clients' memories are of
        this process, and have not seen what they replied in another one.

        Args:
            round_number: From 1.
            messages: To the clients that train, by partition id, all with the same arrays; at least
                one.

        Returns:
            Replies of the clients that need not be asked, by partition id.
        """
        is_first, self._began = not self._began, True
        self._round, self._waiting, self._digest = round_number, {}, ""
        self._sent = next(iter(messages.values())).content.array_records[wire.ARRAYS]
        self._saved_s = time.monotonic()
        if not is_first or not self._files(round_number):
            return {}
        stored = self._stored(round_number, self._sent_digest())
        found = {
            number: Message(_content(stored[number]), reply_to=message)
            for number, message in messages.items()
            if number in stored
        }
        if found:
            logger.info(
                "%d of %d clients had replied in round %d before the run was interrupted",
                len(found),
                len(messages),
                round_number,
            )
        return found

    def clients(self, round_number: int, sent: Arrays) -> frozenset[int]:
        """Partition ids of the clients that :meth:`begin` will not have asked.

        Args:
            round_number: The first one of a resumed run.
            sent: The global arrays that it begins with.
        """
        return frozenset(self._stored(round_number, digest(sent)))

    def replied(self, reply: Message) -> None:
        """Keep a client's good reply; see :class:`server.engines.clients.Clients`."""
        if (self._round - 1) % self._config.every:
            return
        # Its content alone: strategies put another one into the message.
        number = cast(int, reply.content.metric_records[wire.METRICS][wire.PARTITION_ID])
        self._waiting[number] = reply.content
        self.tick()

    def tick(self) -> None:
        """Write if it is time; called at every step of a client."""
        every_s = self._config.every_s
        if every_s and self._waiting and time.monotonic() - self._saved_s >= every_s:
            self.write()

    def write(self) -> None:
        """Write all that is not written yet; what cannot be written is told once."""
        while self._waiting:
            number, content = next(iter(self._waiting.items()))
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._save(number, content)
            except (OSError, SafetensorError) as error:
                if not self._is_told:
                    self._is_told = True
                    logger.warning(
                        "replies of round %d cannot be kept in %s (%s); a resumed run asks these "
                        "clients again, unless there is room by then",
                        self._round,
                        self._folder,
                        error,
                    )
                break
            del self._waiting[number]
        self._saved_s = time.monotonic()

    def clear(self) -> None:
        """Remove all of them: the round's checkpoint is written."""
        self._waiting, self._sent = {}, None
        if self._folder.is_dir():
            for path in self._folder.iterdir():  # what a killed process was writing as well
                path.unlink(missing_ok=True)

    def _save(self, number: int, content: RecordDict) -> None:
        record = content.array_records[wire.ARRAYS]
        arrays = {name: np.asarray(view(array), order="C") for name, array in record.items()}
        if not all(np.isfinite(values).all() for values in arrays.values()):
            return  # it is refused, which is no reason not to ask again
        about = {
            "round": self._round,
            "partition_id": number,
            "sent": self._sent_digest(),
            "metrics": dict(content.metric_records[wire.METRICS]),
            # Tensors of a file have no order of their own.
            "names": list(arrays),
        }
        about["sha256"] = _checksum(arrays, about)
        with files.replacing(self._folder / _name(self._round, number)) as part:
            save_file(arrays, part, {_KEY: json.dumps(about)})

    def _stored(self, round_number: int, sent: str) -> dict[int, _Stored]:
        found = {}
        for path in self._files(round_number):
            try:
                number, one = _read(path, round_number)
            except MALFORMED as error:
                logger.warning(
                    "%s cannot be used, its client is asked again: %s",
                    path,
                    " ".join(str(error).split()) or type(error).__name__,
                )
                continue
            if one.sent != sent:
                logger.warning("%s answers another student; its client is asked again", path)
            elif self._states and state_folder.check(self._states, {number: round_number}):
                logger.warning(
                    "%s cannot be used, its client is asked again: what it remembered then is "
                    "missing or damaged",
                    path,
                )
            else:
                found[number] = one
        return found

    def _sent_digest(self) -> str:
        if not self._digest:
            assert self._sent is not None, "no round has begun"
            self._digest = digest({name: view(array) for name, array in self._sent.items()})
        return self._digest

    def _files(self, round_number: int) -> list[Path]:
        pattern = f"round-{round_number}-client-*.safetensors"
        # Reading a pipe would not end.
        return sorted(path for path in self._folder.glob(pattern) if path.is_file())


def digest(arrays: Arrays) -> str:
    """SHA-256 of names, dtypes, shapes and bytes: equal only for equal bits in equal order."""
    total = hashlib.sha256()
    for name, values in arrays.items():
        total.update(f"{name} {values.dtype} {values.shape}\n".encode())
        total.update(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def _name(round_number: int, number: int) -> str:
    return f"round-{round_number}-client-{number}.safetensors"


def _checksum(arrays: Arrays, about: Mapping[str, Any]) -> str:
    told = {key: value for key, value in about.items() if key != "sha256"}
    return hashlib.sha256((digest(arrays) + json.dumps(told)).encode()).hexdigest()


def _read(path: Path, round_number: int) -> tuple[int, _Stored]:
    """Partition id and reply.

    Raises:
        ValueError, and whatever a broken file leads to: It is not as it was written.
    """
    with safe_open(path, framework="np") as file:
        about = json.loads((file.metadata() or {})[_KEY])
        arrays = {name: file.get_tensor(name) for name in about["names"]}
    if about["sha256"] != _checksum(arrays, about) or about["round"] != round_number:
        raise ValueError("it is damaged")
    metrics, number = MetricRecord(about["metrics"]), about["partition_id"]
    if metrics.get(wire.PARTITION_ID) != number or path.name != _name(round_number, number):
        raise ValueError("it is another client's")
    return number, _Stored(arrays, metrics, about["sent"])


def _content(stored: _Stored) -> RecordDict:
    arrays = {name: HeldArray(values) for name, values in stored.arrays.items()}
    return RecordDict({wire.ARRAYS: HeldRecord(arrays), wire.METRICS: stored.metrics})
