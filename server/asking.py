"""Asking clients, and what is done with those that fail: ``failures`` of the recipe.

An engine answers for a client that raised, died or was late with an error; nothing is decided
there. What a client says failed, counts whatever it is, also a text that says what the user is to
mend: it may be one hospital's disk, which is what ``continue`` is for. So does a reply that may not
be used. A mistake in the recipe is every client's: then no round has survivors, every one keeps the
student that it began with, and the run ends with exit code 1 and those texts.
"""

import logging
from collections.abc import Iterable, Sequence

from flwr.app import ArrayRecord, Message
from flwr.serverapp import Grid

from fedkd.errors import ClientFailure, UpdateRefused
from fedkd.experiment import Experiment
from server.failures import Doing, Failure, in_one_line, reasons
from server.round_replies import RoundReplies
from server.scoreboard import Observer, Scoreboard
from server.signals import safe_place
from strategies.base import SeededStrategy

logger = logging.getLogger(__name__)


class Asker:
    """Sends messages to clients, and follows the recipe's policy where one fails.

    Args:
        grid: Reaches the clients.
        strategy: Knows which node has which partition, and checks what clients send.
        experiment: Its recipe has the policy.
        board: Failures are noted there.
        observer: Told of each.
        replies: What clients replied before the run was interrupted; they are not asked again.
    """

    def __init__(
        self,
        grid: Grid,
        strategy: SeededStrategy,
        experiment: Experiment,
        board: Scoreboard,
        observer: Observer | None = None,
        replies: RoundReplies | None = None,
    ) -> None:
        self._grid = grid
        self._strategy = strategy
        self._names = experiment.partition.client_names
        self._config = experiment.recipe.failures
        self._dropout, self._faults = experiment.recipe.faults.dropout, experiment.faults
        self._board = board
        self._observer = observer
        self.num_failed = 0
        self._replies = replies
        if self._config.policy == "continue" and experiment.predicts_locally:
            logger.warning(
                "failures.policy is 'continue', but with strategy.exchange = %r nobody else can "
                "predict a client's part of val and test: the run ends where one fails to evaluate",
                experiment.recipe.strategy.exchange,
            )

    def train(self, messages: Iterable[Message], round_number: int) -> list[Message]:
        """The answers of a round that may be aggregated.

        None of them if, under ``continue``, more than ``failures.max_fraction`` failed: too few
        are left to stand for all. ``num_failed`` says how many it were.

        Raises:
            ClientFailure: Clients failed, and the policy does not go on without them.
        """
        sent = list(messages)
        present, dropped = self._without_dropouts(sent, round_number)
        asked, answers = self._without_known(present, round_number)
        new, failed = self._ask(asked, round_number, "train") if asked else ([], [])
        answers += new
        failed += dropped
        self.num_failed = len(failed)
        if self._config.policy != "continue":
            self._end(failed)
            return answers
        accepted = []
        numbers = self._strategy.partition_ids
        # Stored ones came first: failures are noted in the order of an uninterrupted run.
        for answer in sorted(answers, key=lambda one: numbers[one.metadata.src_node_id]):
            number = numbers[answer.metadata.src_node_id]
            try:
                self._strategy.check(answer)
            except UpdateRefused as error:
                failed.append(self._note(round_number, number, "train", 1, str(error)))
            else:
                accepted.append(answer)
        self.num_failed = len(failed)
        fraction, allowed = len(failed) / len(sent), self._config.max_fraction
        if fraction > allowed or not accepted:
            names = ", ".join(f.name for f in sorted(failed, key=lambda f: f.partition_id))
            self._keep(
                round_number,
                f"{len(failed)} of {len(sent)} clients failed ({names}), a fraction of "
                f"{fraction:.2g}, and failures.max_fraction is {allowed:g}",
            )
            return []
        return accepted

    def aggregate(self, answers: Sequence[Message], round_number: int) -> ArrayRecord | None:
        """The new global arrays; None if the round keeps those that it began with.

        Under ``continue`` that is so without answers, and where the strategy can make nothing of
        them: too few for it, or a step of the server's to values that are not finite.

        Raises:
            UpdateRefused: The same, with another policy, or an answer that may not be used.
        """
        if not answers and self._config.policy == "continue":
            return None
        try:
            return self._strategy.aggregate_train(round_number, answers)[0]
        except UpdateRefused as error:
            if self._config.policy != "continue":
                raise
            self._keep(round_number, str(error))
            return None

    def _without_dropouts(
        self, messages: Sequence[Message], round_number: int
    ) -> tuple[list[Message], list[Failure]]:
        """Messages that are sent, and failures of the clients that ``faults.dropout`` takes."""
        probability, numbers = self._dropout, self._strategy.partition_ids
        reason = f"it dropped out, as faults.dropout = {probability:g} simulates"
        asked, failed = [], []
        for message in messages:
            number = numbers[message.metadata.dst_node_id]
            if probability and self._faults.drops_out(round_number, number):
                failed.append(self._note(round_number, number, "train", 1, reason))
            else:
                asked.append(message)
        return asked, failed

    def evaluate(
        self, messages: Iterable[Message], round_number: int, split: str | None = None
    ) -> list[Message]:
        """The answers of all clients: each predicts images of a split that no other one can.

        Raises:
            ClientFailure: A client failed, with ``retry`` as often as it may be asked.
            UpdateRefused: An answer may not be used.
        """
        answers, failed = self._ask(list(messages), round_number, "evaluate")
        for answer in answers:
            self._strategy.check_evaluation(answer, split)
        if failed and self._config.policy == "continue":
            raise ClientFailure(
                f"{failed[0].name} did not evaluate after round {round_number}: a round can be "
                "aggregated without a client (failures.policy = 'continue'), but with this "
                "strategy.exchange nobody else can predict its part of val and test; set "
                f"failures.policy = 'retry', or mend what it says:\n{reasons(failed)}"
            )
        self._end(failed)
        return answers

    def _without_known(
        self, messages: Sequence[Message], round_number: int
    ) -> tuple[list[Message], list[Message]]:
        """The messages that are still to be sent, and the answers to the others."""
        if self._replies is None or not messages:
            return list(messages), []
        numbers = self._strategy.partition_ids
        by_number = {numbers[m.metadata.dst_node_id]: m for m in messages}
        known = self._replies.begin(round_number, by_number)
        return [m for n, m in by_number.items() if n not in known], list(known.values())

    def _ask(
        self, messages: Sequence[Message], round_number: int, doing: Doing
    ) -> tuple[list[Message], list[Failure]]:
        """What was answered, and the last failure of each client that did not, by partition id."""
        config = self._config
        answers: list[Message] = []
        failed: list[Failure] = []
        safe_place()
        for attempt in range(1, (config.retries if config.policy == "retry" else 0) + 2):
            replies = self._grid.send_and_receive(messages, timeout=config.timeout_s)
            good, bad = self._sort_out(messages, replies)
            answers += good
            failed = [
                self._note(round_number, number, doing, attempt, bad[number])
                for number in sorted(bad)
            ]
            if not failed:
                break
            numbers = self._strategy.partition_ids
            messages = [_again(m) for m in messages if numbers[m.metadata.dst_node_id] in bad]
        return answers, failed

    def _sort_out(
        self, messages: Sequence[Message], replies: Iterable[Message]
    ) -> tuple[list[Message], dict[int, str]]:
        """Answers, and why others failed, by partition id."""
        numbers = self._strategy.partition_ids
        asked = {m.metadata.message_id: m.metadata.dst_node_id for m in messages}
        silent = {m.metadata.dst_node_id for m in messages}
        answers, failed = [], {}
        for reply in replies:
            # Flower's own error replies (a node that has gone) come from the SuperLink.
            told = reply.metadata
            node = asked.get(told.reply_to_message_id, told.src_node_id)
            if node not in silent:
                logger.warning("a reply of node %d that nobody waits for is not used", node)
                continue
            silent.discard(node)
            if reply.has_error():
                failed[numbers[node]] = reply.error.reason or "it gave no reason"
            elif told.src_node_id != node:
                failed[numbers[node]] = f"another node, {told.src_node_id}, answered in its place"
            else:
                answers.append(reply)
        # With stop, an engine need not ask the others once one has failed.
        if not (failed and self._config.policy == "stop"):
            limit = self._config.timeout_s
            within = "" if limit is None else f" within {limit:g} s (failures.timeout_s)"
            failed |= {numbers[node]: f"it did not answer{within}" for node in silent}
        return answers, failed

    def _note(
        self, round_number: int, number: int, doing: Doing, attempt: int, reason: str
    ) -> Failure:
        name = self._names[number]
        failure = Failure(round_number, number, name, doing, attempt, reason)
        logger.warning(
            "round %d: %s failed to %s, attempt %d: %s",
            round_number,
            failure.name,
            doing,
            attempt,
            in_one_line(reason),
        )
        self._board.failures.append(failure)
        if self._observer:
            self._observer.client_failed(self._board)
        return failure

    def _keep(self, round_number: int, why: str) -> None:
        logger.warning(
            "round %d keeps the student that it began with: %s; the run goes on, and will end with "
            "exit code 1",
            round_number,
            why,
        )

    def _end(self, failed: Sequence[Failure]) -> None:
        """End the run if a client failed to the end."""
        if not failed:
            return
        if self._config.policy != "retry":
            raise ClientFailure(reasons(failed))
        attempts = failed[0].attempt
        raise ClientFailure(
            "\n".join(
                f"{f.name} was asked {attempts} times to {f.doing} in round {f.round} and failed "
                f"each time (failures.retries is {self._config.retries}); the last time: "
                f"{f.reason}"
                for f in failed
            )
        )


def _again(message: Message) -> Message:
    """The same message, new: a message that was sent has an id, and a time to live."""
    told = message.metadata
    return Message(
        content=message.content,
        message_type=told.message_type,
        dst_node_id=told.dst_node_id,
        group_id=told.group_id,
    )
