"""Strategies on hand-made replies, with the arithmetic written out."""

import flwr.serverapp.strategy
import numpy as np
import pytest
from flwr.app import Array, Error, Message, RecordDict

from fedkd import wire
from fedkd.aggregation import StrategyConfig
from fedkd.errors import ClientFailure, FedkdError, UpdateRefused
from strategies.arrays import HeldArray
from strategies.base import Setup
from strategies.factory import STRATEGIES, make_strategy
from tests.hand_made_replies import GLOBAL, Federation, record, update

STEPPING = {"fedavgm", "fedadagrad", "fedadam", "fedyogi", "qfedavg"}
"""Strategies whose student is not where the clients are."""
AVERAGING = sorted(set(STRATEGIES) - STEPPING)
ROBUST = {"fedmedian", "fedtrimmedavg", "krum", "multikrum", "bulyan"}


def test_fedavg_weighs_by_images():
    federation = Federation("fedavg", [update(0, 1.0, 10), update(1, 4.0, 30)])
    assert federation.round()["w"].tolist() == [0.25 * 1 + 0.75 * 4] * 3
    assert federation.weights() == [0.25, 0.75]


def test_fedavg_never_asks_for_scores():
    assert Federation("fedavg", [update(0)]).scoring_rounds(5) == []


@pytest.mark.parametrize("number", [1, 10])
@pytest.mark.parametrize("name", list(STRATEGIES))
def test_the_order_of_replies_changes_no_bit(name, number):
    rng = np.random.default_rng(0)
    updates = [
        update(
            i, rng.normal(), int(rng.integers(1, 99)), scores=rng.random(2), losses=rng.random(2)
        )
        for i in range(5)
    ]
    first = Federation(name, updates).round(number)
    second = Federation(name, updates).round(number, reverse=True)
    assert all(np.array_equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("number", [1, 10])
@pytest.mark.parametrize("name", AVERAGING)
def test_equal_clients_leave_their_student_and_weights_sum_to_one(name, number):
    federation = Federation(name, [update(i, 0.3, 1 + i) for i in range(3)])
    assert federation.round(number)["w"] == pytest.approx(np.full(3, np.float32(0.3)))
    assert sum(report.weight for report in federation.strategy.reports) == pytest.approx(1)


@pytest.mark.parametrize("number", [1, 10])
@pytest.mark.parametrize("name", list(STRATEGIES))
def test_clients_that_stay_where_they_were_leave_the_student_unchanged(name, number):
    federation = Federation(name, [update(i, 0.3, 1 + i, steps=1 + i) for i in range(3)])
    arrays, _ = update(0, 0.3)
    federation.received = arrays
    out = federation.round(number)
    assert out["w"] == pytest.approx(arrays["w"], abs=1e-6)
    assert out["running_var"] == pytest.approx(arrays["running_var"], rel=1e-12)
    assert sum(report.weight for report in federation.strategy.reports) == pytest.approx(1)


# A median or trimmed mean of -0.0 is 0.0; the others of ROBUST need three clients.
@pytest.mark.parametrize("number", [1, 10])
@pytest.mark.parametrize("name", sorted(set(AVERAGING) - ROBUST))
def test_one_client_passes_through_bit_for_bit(name, number):
    arrays, metrics = update(0)
    arrays["w"] = np.array([0.1, -0.0, 1e-40], np.float32)
    out = Federation(name, [(arrays, metrics)]).round(number)
    assert all(out[key].tobytes() == arrays[key].tobytes() for key in arrays)


@pytest.mark.parametrize("name", list(STRATEGIES))
def test_dtypes_are_kept_and_counts_take_the_largest(name):
    counts = (9, 12, 11)
    updates = [update(i, 1.0 + i, 3, count=count) for i, count in enumerate(counts)]
    out = Federation(name, updates).round()
    assert {key: value.dtype.name for key, value in out.items()} == {
        "w": "float32", "running_var": "float64", "num_batches_tracked": "int64",
    }  # fmt: skip
    assert out["num_batches_tracked"] == 12


@pytest.mark.parametrize("name", list(STRATEGIES))
def test_a_client_without_examples_changes_no_bit(name):
    rng = np.random.default_rng(1)
    updates = [update(i, rng.normal(), 2 + i, steps=1 + i, loss=1 + i) for i in range(4)]
    absent = update(4, 99.0, 0, steps=0, counts=(5, 5), scores=(0, 0), losses=(0, 0))
    with_it = Federation(name, [*updates, absent])
    out, without = with_it.round(10), Federation(name, updates).round(10)
    assert all(np.array_equal(out[key], without[key]) for key in out)
    assert with_it.strategy.reports[4].weight == 0


def test_uniform_weighs_no_images():
    federation = Federation("uniform", [update(0, 1.0, 10), update(1, 4.0, 30)])
    assert federation.round()["w"].tolist() == [2.5] * 3
    assert federation.weights() == [0.5, 0.5]


def test_fedprox_weighs_as_fedavg_and_sends_its_mu():
    federation = Federation("fedprox", [update(0, 1.0, 10), update(1, 4.0, 30)], proximal_mu=0.25)
    assert federation.round()["w"].tolist() == [3.25] * 3
    assert federation.told()[wire.PROXIMAL_MU] == 0.25


@pytest.mark.parametrize("name", sorted(set(STRATEGIES) - {"fedprox"}))
def test_no_other_strategy_asks_for_a_proximal_term(name):
    told = Federation(name, [update(i) for i in range(3)], proximal_mu=0.25).told()
    assert wire.PROXIMAL_MU not in told


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_update_that_is_not_finite_is_refused_by_name(value):
    federation = Federation("fedavg", [update(0), update(1, value)])
    with pytest.raises(UpdateRefused, match="client 1 sent 3 values of w that are not finite"):
        federation.round()


def test_an_update_with_another_shape_or_dtype_is_refused():
    arrays, metrics = update(0)
    arrays["w"] = np.zeros(3, np.float64)
    with pytest.raises(UpdateRefused, match="client 0 sent w as float64.*expected float32"):
        Federation("fedavg", [(arrays, metrics)]).round()


def test_an_update_with_other_names_is_refused():
    arrays, metrics = update(0)
    arrays["x"] = arrays.pop("w")
    with pytest.raises(UpdateRefused, match="other arrays than it received; the first: w"):
        Federation("fedavg", [(arrays, metrics)]).round()


def test_weights_that_sum_to_nothing_are_refused():
    with pytest.raises(UpdateRefused, match="cannot be normalised"):
        Federation("fedavg", [update(0, num_examples=0)]).round()


def test_a_client_that_raises_stops_the_round_with_name_and_traceback():
    federation = Federation("fedavg", [update(0), RuntimeError("disk on fire")])
    with pytest.raises(ClientFailure, match=r"(?s)client 1 failed: Traceback.*disk on fire"):
        federation.round()


def test_sampling_depends_on_seed_and_round_alone():
    config = StrategyConfig(fraction_train=0.3)
    strategies = [make_strategy(config, Setup(20, 10, seed, 0.3)) for seed in (0, 0, 1)]
    first, again, other = ([s.sample(r) for r in range(1, 9)] for s in strategies)
    assert first == again
    assert first != other
    assert len({tuple(ids) for ids in first}) > 1
    assert all(len(set(ids)) == 6 and ids == sorted(ids) for ids in first)


def test_at_least_one_client_trains():
    assert len(make_strategy(StrategyConfig(), Setup(5, 10, 0, 0.01)).sample(1)) == 1


def test_only_the_sampled_clients_are_asked():
    federation = Federation("fedavg", [update(i, float(i), 1) for i in range(6)], fraction=0.5)
    federation.round(number=3)
    asked = [report.partition_id for report in federation.strategy.reports]
    assert asked == federation.strategy.sample(3)


def test_two_clients_with_one_partition_are_refused():
    federation = Federation("fedavg", [update(0), update(1)])
    for context in federation.grid._contexts.values():
        context.node_config["partition-id"] = 0
    with pytest.raises(FedkdError, match="two clients have partition 0"):
        federation.round()


def test_an_error_reply_without_a_known_node_is_still_an_error():
    federation = Federation("fedavg", [update(0)])
    federation.strategy.call_roll(federation.grid)
    message = federation.grid.create_message(RecordDict(), "train", 100, "1")
    reply = Message(Error(2, "gone"), reply_to=message)
    with pytest.raises(ClientFailure, match="client 0 failed: gone"):
        federation.strategy.aggregate_train(1, [reply])


def test_a_held_array_travels_as_flowers_own():
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    held, own = HeldArray(values), Array(values)
    assert (held.dtype, held.shape, held.stype) == (own.dtype, own.shape, own.stype)
    assert held.data == own.data
    assert held.object_id == own.object_id
    assert held.numpy() is values


class Stepping(flwr.serverapp.strategy.FedAvg):
    """A server optimiser that adds 100 to whatever it sees."""

    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        return record({name: array.numpy() + 100 for name, array in arrays.items()}), metrics


def with_prompts(monkeypatch, shared, updates, name="fedavg", inner=None):
    """The new student and prompts of clients whose prompts are 10 times their students."""
    generator = wire.PROMPTS + "generator"
    monkeypatch.setitem(GLOBAL, generator, np.zeros(2, np.float32))
    for arrays, _ in updates:
        arrays[generator] = np.full(2, 10 * arrays["w"][0], np.float32)
    federation = Federation(name, updates)
    by_examples = shared == "by_examples"
    config = StrategyConfig(name=name)
    setup = Setup(len(updates), 10, 0, prompts_by_examples=by_examples)
    federation.strategy = make_strategy(config, setup)
    if inner:
        federation.strategy._inner = inner
    out = federation.round()
    return out["w"][0].item(), out[generator].tolist()


@pytest.mark.parametrize(
    ("name", "shared", "student", "prompts"),
    [
        ("fedavg", "by_strategy", 0.25 * 1 + 0.75 * 4, 32.5),
        ("fedavg", "by_examples", 0.25 * 1 + 0.75 * 4, 32.5),
        # Robust factors 1 (one class) and 1/2 (two alike): weights 2/3 and 1/3.
        ("mas", "by_strategy", 2 / 3 * 1 + 1 / 3 * 4, 20.0),
        ("mas", "by_examples", 2 / 3 * 1 + 1 / 3 * 4, 32.5),
    ],
)
def test_shared_prompts_are_weighed_as_they_are_told(monkeypatch, name, shared, student, prompts):
    updates = [
        update(0, 1.0, 10, scores=(1.0, 0.0), losses=(1.0, 0.0), counts=(1, 0)),
        update(1, 4.0, 30),
    ]
    w, generator = with_prompts(monkeypatch, shared, updates, name)
    assert w == pytest.approx(student)
    assert generator == pytest.approx([prompts] * 2)


@pytest.mark.parametrize("shared", ["by_examples", "by_strategy"])
def test_a_server_optimiser_never_touches_prompts(monkeypatch, shared):
    updates = [update(0, 1.0, 10), update(1, 4.0, 30)]
    inner = Stepping(weighted_by_key="weight")
    w, generator = with_prompts(monkeypatch, shared, updates, inner=inner)
    assert w == pytest.approx(103.25)
    assert generator == pytest.approx([32.5] * 2)


def test_prompts_cannot_be_weighed_by_images_that_nobody_has(monkeypatch):
    updates = [update(number, num_examples=0) for number in range(2)]
    with pytest.raises(UpdateRefused, match=r"weights \[0.0, 0.0\] cannot be normalised"):
        with_prompts(monkeypatch, "by_examples", updates, "mas")
