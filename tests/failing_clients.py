"""Clients that fail as they are told."""

import pytest

from clients import node

PLAIN = {"objective": {"name": "supervised"}}
CONTINUE = {"failures": {"policy": "continue"}}
RETRY = {"failures": {"policy": "retry"}}


def broken():
    return RuntimeError("disk on fire")


@pytest.fixture
def failing(monkeypatch):
    """Make clients raise, by (round, client); returns who was asked to train."""

    def install(plan):
        asked = []
        train = node.Node.train

        def maybe(self, partition_id, arrays, state, round_number, *rest, **options):
            asked.append((round_number, partition_id))
            if errors := plan.get((round_number, partition_id)):
                raise errors.pop(0)
            return train(self, partition_id, arrays, state, round_number, *rest, **options)

        monkeypatch.setattr(node.Node, "train", maybe)
        return asked

    return install
