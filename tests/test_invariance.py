"""What may not change a bit: the order of clients, the number of workers, who else takes part."""

import copy
import itertools

import pytest

from clients.app import ContextMemory, make_app
from clients.factory import OBJECTIVES
from clients.node import Node
from fedkd.experiment import open_experiment
from fedkd.models import states
from fedkd.schedules import learning_rates
from server.engines import inprocess

EVERYTHING = {
    "training": {"optimizer": "sgd", "sampling": "balanced", "local_epochs": 2},
    "augmentation": {"name": "dihedral_jitter"},
    "strategy": {"name": "mas", "fraction_train": 0.7, "exchange": "without_batchnorm"},
    "schedule": {"name": "cosine"},
}


def everything(objective):
    """Every option that the objective takes: moco reads no label and makes one student."""
    config = {"objective": {"name": objective}, **EVERYTHING}
    if objective == "moco":
        config["training"] = {**config["training"], "sampling": "uniform"}
        config["strategy"] = {"fraction_train": 0.7}
    return config


BANK = {"prompts": {"kept_views": 2, "renew_every": 2}, "augmentation": {"name": "none"}}
CASES = [*((name, {}) for name in OBJECTIVES), ("fopro", BANK)]


def sha(result):
    return result.summary["student_sha256"], result.summary["test"]


@pytest.mark.parametrize(("objective", "more"), CASES)
def test_more_workers_change_no_bit(run, opened, teacher, monkeypatch, objective, more):
    config = {**everything(objective), **more, "num_rounds": 3}
    one = run(**config)
    used = []

    def several(_open_node, _memory, _pack):
        """Two workers, each with its own network, that take turns; state travels."""
        workers = itertools.cycle([Node(opened(teacher=teacher, **config)) for _ in range(2)])

        def next_node(_context):
            used.append(next(workers))
            return used[-1]

        return make_app(next_node, ContextMemory())

    monkeypatch.setattr(inprocess, "make_app", several)
    assert sha(run(**config)) == sha(one)
    assert len(set(map(id, used))) == 2


@pytest.mark.parametrize(("objective", "more"), CASES)
def test_a_client_alone_does_what_it_does_among_others(
    run, opened, teacher, monkeypatch, objective, more
):
    config = {**everything(objective), **more, "num_rounds": 5}
    config["strategy"] = {**config["strategy"], "fraction_train": 0.4}
    calls = []
    train = Node.train

    def record(self, *arguments, **options):
        given = copy.deepcopy((arguments, options))
        reply, state = train(self, *arguments, **options)
        calls.append((given, states.sha256(reply.arrays), copy.deepcopy(state)))
        return reply, state

    monkeypatch.setattr(Node, "train", record)
    result = run(**config)
    monkeypatch.undo()
    clients = [arguments[0] for (arguments, _), *_ in calls]
    assert len(calls) == 5
    assert 1 < len(set(clients)) < 5, "nobody joins twice, or everybody is the same"
    for (arguments, options), expected, state in calls:
        node = Node(opened(teacher=teacher, **config))
        reply, again = node.train(*arguments, **options)
        assert states.sha256(reply.arrays) == expected
        assert all(states.sha256(again[part]) == states.sha256(state[part]) for part in state)
    # The rate is that of the round, however often the client has joined.
    recipe = result.board.experiment.recipe
    rates = learning_rates(recipe.schedule, recipe.training.learning_rate, 5)
    rounds = result.clients["round"]
    assert result.clients["learning_rate"].tolist() == [rates[r - 1] for r in rounds]


@pytest.mark.parametrize("objective", ["supervised", "fedprox", "moon", "ekd"])
def test_hospitals_in_another_order_train_to_the_same_bits(
    make_recipe, hospitals, teacher, objective
):
    """Without draws a hospital's number says nothing; with them it names its streams."""
    recipe = make_recipe(
        objective={"name": objective}, training={"shuffle": False}, augmentation={"name": "none"}
    )
    backwards = {**hospitals, "sites": hospitals["sites"][::-1]}
    first, second = (
        Node(open_experiment(recipe, **data, teacher=teacher)) for data in (hospitals, backwards)
    )
    arrays = first.initial_arrays()
    for client in range(3):
        reply, state = first.train(client, arrays, {}, 1, score_classes=True)
        other, other_state = second.train(2 - client, arrays, {}, 1, score_classes=True)
        assert states.sha256(reply.arrays) == states.sha256(other.arrays)
        assert all(states.sha256(state[p]) == states.sha256(other_state[p]) for p in state)
        own = {"partition-id", "seconds"}
        assert {k: v for k, v in reply.metrics.items() if k not in own} == {
            k: v for k, v in other.metrics.items() if k not in own
        }
