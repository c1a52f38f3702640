"""The Grid in this process."""

import pytest
import torch
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedkd.errors import ConfigError
from server.engines.inprocess import InProcessGrid
from strategies.arrays import HeldArray, hold, view


@pytest.fixture
def grid():
    """Three nodes that count their calls; node 1 can be told to raise."""
    app = ClientApp()
    calls = []

    @app.train()
    def train(message, context):
        number = context.node_config["partition-id"]
        calls.append(number)
        order = message.content.config_records["config"]
        if order["fail"] == number:
            raise ValueError("broken disk")
        times = context.state.metric_records.get("calls", {"times": 0})["times"] + 1
        context.state["calls"] = MetricRecord({"times": times})
        metrics = MetricRecord({"number": number, "times": times})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    made = InProcessGrid(app, 3)
    made.calls = calls
    return made


def orders(grid, nodes, fail=-1):
    content = RecordDict({"config": ConfigRecord({"fail": fail})})
    return [grid.create_message(content, "train", node, "1") for node in nodes]


def numbers(replies):
    return [(r.content.metric_records["metrics"]["number"],
             r.content.metric_records["metrics"]["times"]) for r in replies]  # fmt: skip


def test_every_node_has_its_partition_and_answers_with_it(grid):
    nodes = list(grid.get_node_ids())
    assert len(set(nodes)) == 3
    assert [node.node_id for node in grid.get_nodes()] == nodes
    replies = list(grid.send_and_receive(orders(grid, nodes)))
    assert numbers(replies) == [(0, 1), (1, 1), (2, 1)]
    assert [reply.metadata.src_node_id for reply in replies] == nodes


def test_replies_come_back_in_the_order_in_which_they_are_asked_for_and_once(grid):
    nodes = list(grid.get_node_ids())
    ids = list(grid.push_messages(orders(grid, nodes)))
    assert len(set(ids)) == 3
    assert numbers(grid.pull_messages(ids[::-1])) == [(2, 1), (1, 1), (0, 1)]
    assert list(grid.pull_messages(ids)) == []
    assert list(grid.pull_messages(["unknown"])) == []


def test_a_nodes_context_is_its_own_and_stays(grid):
    nodes = list(grid.get_node_ids())
    grid.send_and_receive(orders(grid, nodes[:1]))
    assert numbers(grid.send_and_receive(orders(grid, nodes[::-1]))) == [(2, 1), (1, 1), (0, 2)]


def test_a_client_that_raises_answers_with_its_traceback_and_later_ones_are_not_asked(grid):
    nodes = list(grid.get_node_ids())
    replies = list(grid.send_and_receive(orders(grid, nodes, fail=1)))
    assert grid.calls == [0, 1]
    assert [reply.has_error() for reply in replies] == [False, True]
    assert "Traceback" in replies[1].error.reason
    assert replies[1].error.reason.rstrip().endswith("ValueError: broken disk")
    assert replies[1].metadata.src_node_id == nodes[1]


def test_grids_do_not_share_nodes(grid):
    other = InProcessGrid(ClientApp(), 2)
    grid.send_and_receive(orders(grid, grid.get_node_ids()))
    assert all(not context.state for context in other._contexts.values())
    assert len(list(other.get_node_ids())) == 2


def test_a_grid_made_after_another_leaves_the_first_working(grid):
    InProcessGrid(ClientApp(), 1)
    assert numbers(grid.send_and_receive(orders(grid, list(grid.get_node_ids())[:1]))) == [(0, 1)]


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam"])
def test_no_array_of_a_reply_is_serialised(run, monkeypatch, strategy):
    def serialise(self):
        raise AssertionError("nothing travels")

    before = run(strategy={"name": strategy})
    monkeypatch.setattr(HeldArray, "data", property(serialise))
    after = run(strategy={"name": strategy})
    assert after.summary["student_sha256"] == before.summary["student_sha256"]


def test_a_reply_that_is_held_is_the_clients_own_tensors():
    tensors = {"weight": torch.ones(2, 3), "steps": torch.tensor(4)}
    record = hold(tensors)
    assert {name: (a.dtype, a.shape) for name, a in record.items()} == {
        "weight": ("float32", (2, 3)),
        "steps": ("int64", ()),
    }
    tensors["weight"][1, 2] = 7
    assert view(record["weight"])[1, 2] == 7


def test_a_time_limit_that_one_process_cannot_keep_is_refused(run):
    with pytest.raises(ConfigError, match=r"failures.timeout_s is 5, but engine.name is 'inproc"):
        run(failures={"timeout_s": 5})
    assert run(failures={"timeout_s": 5}, centralized=True).summary["engine"] == "none"
