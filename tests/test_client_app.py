"""The ClientApp: what a client remembers between rounds, and where."""

from contextlib import nullcontext

import pytest

from clients.app import ContextMemory
from clients.process_memory import ProcessMemory
from strategies.base import Setup
from strategies.factory import make_strategy

AKD = {"gamma": 0.3, "warm_up_steps": 1, "steps_per_round": 2}


def sha(run):
    return run.summary["student_sha256"]


class Forgetful(ProcessMemory):
    def save(self, context, state):
        """Drop it."""


class ForgetfulOf(ProcessMemory):
    """Drops one part of the state and puts the part of a client's first round in its place."""

    def __init__(self, part, max_bytes):
        super().__init__(max_bytes)
        self.part = part
        self.first = {}

    def load(self, context):
        state = super().load(context)
        if not state:
            return state
        first = self.first.setdefault(context.node_id, state[self.part])
        return {**state, self.part: first}


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_dropping_the_state_changes_three_rounds(run, monkeypatch, optimizer):
    config = {"objective": {"name": "ekd"}, "training": {"optimizer": optimizer}}
    kept = run(num_rounds=3, **config)
    monkeypatch.setattr("server.engines.inprocess.ProcessMemory", Forgetful)
    assert sha(run(num_rounds=3, **config)) != sha(kept)


@pytest.mark.parametrize("part", ["optimizer", "objective"])
def test_both_parts_of_the_state_matter_in_the_third_round(run, monkeypatch, part):
    kept = run(num_rounds=3)
    monkeypatch.setattr(
        "server.engines.inprocess.ProcessMemory", lambda limit: ForgetfulOf(part, limit)
    )
    assert sha(run(num_rounds=3)) != sha(kept)


@pytest.mark.parametrize("fraction", [1.0, 0.4])
@pytest.mark.parametrize("share", ["no", "by_strategy"])
def test_state_in_flowers_context_gives_the_bits_of_state_in_the_process(
    run, monkeypatch, fraction, share
):
    config = {
        "num_rounds": 3,
        "explore": AKD,
        "prompts": {"form": "mix", "shared": share},
        "strategy": {"fraction_train": fraction},
    }
    in_process = run(**config)
    monkeypatch.setattr(
        "server.engines.inprocess.ProcessMemory", lambda _: nullcontext(ContextMemory())
    )
    assert sha(run(**config)) == sha(in_process)


def test_a_client_that_is_sampled_now_and_then_keeps_its_state(run, make_recipe, monkeypatch):
    seen = []

    class Spy(ProcessMemory):
        def load(self, context):
            state = super().load(context)
            steps = state["objective"]["explorer.num_steps"].item() if state else 0
            updates = state["optimizer"]["0.step"].item() if state else 0
            seen.append((context.node_config["partition-id"], steps, updates))
            return state

    config = {"num_rounds": 5, "strategy": {"fraction_train": 0.4}}
    strategy = make_strategy(make_recipe(**config).strategy, Setup(3, 5, 0, 0.4))
    sampled = [strategy.sample(number) for number in range(1, 6)]
    rounds = {client: [r for r, ids in enumerate(sampled) if client in ids] for client in range(3)}
    assert any(max(r) - min(r) >= len(r) > 1 for r in rounds.values()), "nobody has a gap"
    monkeypatch.setattr("server.engines.inprocess.ProcessMemory", Spy)
    run(**config)
    batches = {0: 3, 1: 2, 2: 2}  # 11, 9 (the last one joins) and 6 images in batches of 4
    expected, times = [], dict.fromkeys(range(3), 0)
    for (client,) in sampled:
        done = times[client]
        expected.append((client, 2 + done if done else 0, done * batches[client]))
        times[client] += 1
    assert seen == expected
