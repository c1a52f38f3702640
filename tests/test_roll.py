"""The roll call: whom it waits for, and what it refuses."""

import logging

import pytest
from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedkd import wire
from fedkd.errors import ClientFailure, FedkdError
from server.engines.inprocess import InProcessGrid
from strategies import roll
from strategies.roll import call_roll


@pytest.fixture
def clock(monkeypatch):
    """A clock that only sleeping moves."""

    class Clock:
        now = 0.0

        def monotonic(self):
            return self.now

        def sleep(self, seconds):
            self.now += seconds

    made = Clock()
    monkeypatch.setattr(roll, "time", made)
    return made


class Joining(InProcessGrid):
    """Nodes that connect at given seconds, in an order that is not that of their partitions."""

    def __init__(self, clock, seconds):
        app = ClientApp()

        @app.query()
        def query(message, context):
            number = context.node_config["partition-id"]
            if number == 9:
                raise ValueError("no disk")
            metrics = MetricRecord({wire.PARTITION_ID: number})
            return Message(RecordDict({wire.METRICS: metrics}), reply_to=message)

        super().__init__(app, len(seconds))
        self._clock, self._seconds = clock, seconds

    def get_node_ids(self):
        nodes = zip(self._contexts, self._seconds, strict=True)
        return [node for node, second in nodes if second <= self._clock.now][::-1]


def test_it_waits_for_the_number_of_clients_and_sorts_them_by_partition(clock):
    grid = Joining(clock, [0, 40, 3])
    answers = call_roll(grid, 3)
    assert list(answers) == [0, 1, 2]
    assert [reply.metadata.src_node_id for reply in answers.values()] == list(grid._contexts)
    assert 40 <= clock.now < 41


def test_without_a_number_it_takes_those_that_are_there_when_nobody_else_has_joined(clock):
    assert list(call_roll(Joining(clock, [5, 12, 21, 60]), None)) == [0, 1, 2]
    assert 31 <= clock.now < 32


def test_silence_while_waiting_is_broken_every_ten_seconds(clock, caplog):
    with caplog.at_level(logging.INFO):
        call_roll(Joining(clock, [0, 35]), 2)
    assert caplog.messages == ["1 of 2 clients are connected ..."] * 3


@pytest.mark.parametrize(
    ("number", "seconds", "text"),
    [
        (2, [0, 9_999], "1 of 2 clients connected within 60 s; start the others, or lower "),
        (None, [9_999], "0 of any clients connected within 60 s; start them"),
    ],
)
def test_clients_that_never_connect_are_counted(clock, number, seconds, text):
    with pytest.raises(FedkdError, match=text):
        call_roll(Joining(clock, seconds), number, timeout_s=60)


@pytest.mark.parametrize(
    ("numbers", "error", "text"),
    [
        ((0, 0), FedkdError, "two clients have partition 0; give each its own"),
        ((0, 2), FedkdError, r"clients have the partitions \[0, 2\]; expected 0 to 1"),
        ((0, 9), ClientFailure, "(?s)failed: .*ValueError: no disk"),
    ],
)
def test_partitions_that_do_not_fit_are_refused(clock, numbers, error, text):
    grid = Joining(clock, [0, 0])
    for context, number in zip(grid._contexts.values(), numbers, strict=True):
        context.node_config["partition-id"] = number
    with pytest.raises(error, match=text):
        call_roll(grid, 2)
