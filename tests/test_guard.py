"""What is refused of a reply, by name and with the reason; and that nothing refused is summed."""

import copy
import io
import math

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict

from fedkd import wire
from fedkd.errors import FedkdError, UpdateRefused
from fedkd.seeding import rng
from strategies.arrays import HeldArray
from strategies.factory import STRATEGIES
from strategies.guard import distance
from strategies.roll import call_roll
from tests.hand_made_replies import Federation, update

ENOUGH = {"krum": {"num_malicious": 1}, "multikrum": {"num_malicious": 1, "num_selected": 2},
          "bulyan": {"num_malicious": 1}}  # fmt: skip
KNOWN = {"num_classes": 2, "num_held_out": {"val": [3] * 8, "test": [2] * 8}}


def federation(name="fedavg", num=2, **setup):
    updates = [update(i, float(i + 1), 3 + i, scores=(float(i), 1.0)) for i in range(num)]
    return Federation(name, updates, options=ENOUGH.get(name), **{**KNOWN, **setup})


def refusal(change, name="fedavg", **setup):
    """The text when client 1's reply is changed."""
    made = federation(name, **setup)
    replies = made.replies()
    change(replies[1])
    with pytest.raises(UpdateRefused) as caught:
        made.strategy.check(replies[1])
    with pytest.raises(UpdateRefused) as again:
        made.strategy.aggregate_train(1, replies)
    assert str(again.value) == str(caught.value)
    return str(caught.value)


def metric(key, value):
    def change(reply):
        record = dict(reply.content[wire.METRICS])
        record[key] = value
        if value is None:
            del record[key]
        reply.content = RecordDict(
            {wire.ARRAYS: reply.content[wire.ARRAYS], wire.METRICS: MetricRecord(record)}
        )

    return change


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        (wire.PARTITION_ID, 0, "client 1 says that it is client 0"),
        (wire.PARTITION_ID, 1.0, "client 1 does not say which client it is"),
        (wire.PARTITION_ID, None, "client 1 does not say which client it is"),
        (wire.NUM_EXAMPLES, None, "client 1 sent no metric 'num-examples'"),
        (wire.SECONDS, None, "client 1 sent no metric 'seconds'"),
        (wire.SUM + "loss", None, "client 1 sent no metric 'sum.loss'"),
        (wire.NUM_EXAMPLES, -4, "client 1 sent 'num-examples' with the value -4; it must be "
         "whole, from 0 to 2^53"),
        (wire.NUM_SEEN, 2.5, "client 1 sent 'num-seen' with the value 2.5; it must be whole, "),
        (wire.NUM_STEPS, 2**60, "client 1 sent 'num-steps' with the value 1.15292e+18; it must"),
        (wire.NUM_STEPS, 0, "client 1 sent num-examples 4, num-seen 4 and num-steps 0, which "
         "contradict each other"),
        (wire.NUM_EXAMPLES, [4], "client 1 sent 'num-examples' as a list"),
        (wire.SECONDS, -1.0, "client 1 sent seconds -1; it must be >= 0"),
        (wire.SECONDS, math.inf, "client 1 sent 'seconds' that is not finite"),
        (wire.MEAN + "prior", math.nan, "client 1 sent 'mean.prior' that is not finite"),
        (wire.MEAN + "round", 7.0, "client 1 sent 'mean.round', the name of a column of the "
         "server's"),
        (wire.MEAN + "val_mcc", 1.0, "client 1 sent 'mean.val_mcc', the name of a column of the"),
        (wire.SUM + "loss", 1e31, "client 1 sent 'sum.loss' beyond 1e+30 in size; its training "
         "diverged"),
        (wire.CLASS_COUNTS, 3, "client 1 sent 'class-counts' as no list"),
        (wire.CLASS_COUNTS, [1, -1], "client 1 sent 'class-counts' with the value -1; it must"),
        (wire.CLASS_COUNTS, [1, 1, 1], "client 1 sent 3 values of class-counts; expected 2, as "
         "there are 2 classes"),
        (wire.CLASS_LOSSES, [1.0, math.nan], "client 1 sent 'class-losses' that is not finite"),
        (wire.CONFUSION, [1, 0, 2], "client 1 sent 3 values of confusion; expected 4, as there"),
        (wire.CONFUSION, [1, 0, -2, 1], "client 1 sent 'confusion' with the value -2; it must"),
        (wire.PROBABILITIES, [0.5] * 5, "client 1 sent probabilities, 5 values, for 2 classes: "
         "no whole rows"),
        (wire.PROBABILITIES, [0.5] * 4, "client 1 sent probabilities of 2 images; its part of "
         "val has 3"),
        (wire.PROBABILITIES, [0.5] * 4 + [1.5, -0.5], "client 1 sent probabilities from -0.5 to "
         "1.5"),
        (wire.PROBABILITIES, [0.5] * 4 + [0.9, 0.9], "client 1 sent probabilities of an image "
         "that do not sum to 1"),
        ("x" * 5000, math.nan, f"client 1 sent {'x' * 80!r} that is not finite"),
    ],
)  # fmt: skip
def test_a_metric_that_cannot_be_used_is_refused_by_name(key, value, text):
    assert refusal(metric(key, value)).startswith(text)


def test_probabilities_of_its_own_part_are_taken():
    made = federation()
    replies = made.replies()
    metric(wire.PROBABILITIES, [0.25, 0.75] * 3)(replies[1])
    made.strategy.check(replies[1])


def test_scores_that_mas_reads_must_be_there_and_be_finite():
    assert refusal(metric(wire.CLASS_SCORES, None), "mas") == (
        "client 1 sent no metric 'class-scores'"
    )
    text = refusal(metric(wire.CLASS_SCORES, [math.nan, 1.0]), "mas")
    assert text == "client 1 sent 'class-scores' that is not finite"
    made = federation("fedavg")
    replies = made.replies()
    metric(wire.CLASS_SCORES, None)(replies[1])
    made.strategy.check(replies[1])


def test_a_reply_without_records_is_refused():
    def keep(*names):
        def change(reply):
            reply.content = RecordDict({name: reply.content[name] for name in names})

        return change

    assert refusal(keep(wire.METRICS)) == "client 1 sent no arrays"
    assert refusal(keep(wire.ARRAYS)) == "client 1 sent no metrics"
    assert refusal(keep()) == "client 1 sent no arrays"


def array(name, made):
    def change(reply):
        reply.content[wire.ARRAYS][name] = made

    return change


def test_bytes_that_are_no_array_are_refused_and_never_unpickled():
    pickled = Array("object", (1,), "numpy.ndarray", b"")
    file = io.BytesIO()
    np.save(file, np.array([print], object), allow_pickle=True)
    pickled.data = file.getvalue()
    for bad in (
        pickled,
        Array("float32", (3,), "numpy.ndarray", b"\x93NUMPY\x01\x00"),
        Array("float32", (3,), "numpy.ndarray", b"nonsense"),
        Array("float32", (3,), "numpy.ndarray", Array(np.zeros(3, np.float32)).data[:-4]),
    ):
        assert refusal(array("w", bad)).startswith("client 1 sent w in a form that cannot be read")


@pytest.mark.parametrize(
    ("name", "values", "text"),
    [
        ("w", np.array([1, np.inf, np.nan], np.float32), "client 1 sent 2 values of w that are"),
        ("w", np.zeros(3, ">f4"), "client 1 sent w as >f4 (3,); expected float32 (3,)"),
        ("w", np.zeros(0, np.float32), "client 1 sent w as float32 (0,); expected float32 (3,)"),
        ("running_var", np.array([1, -1e-9]), "client 1 sent a variance below 0 in running_var"),
        ("num_batches_tracked", np.array(2**62), "client 1 sent num_batches_tracked beyond 2^53"),
    ],
)
def test_an_array_that_cannot_be_used_is_refused_by_name(name, values, text):
    assert refusal(array(name, Array(values))).startswith(text)


def test_large_values_that_are_finite_are_taken():
    """Their squares are beyond float32, which the quick look at them sums."""
    made = federation()
    made.updates[1][0]["w"] = np.full(3, 3e38, np.float32)
    made.round()


def test_values_apart_in_memory_are_looked_at_one_by_one():
    made = federation()
    replies = made.replies()
    strided = np.array([1, 9, 1, 9, np.nan, 9], np.float32)[::2]
    array("w", HeldArray(strided))(replies[1])
    with pytest.raises(UpdateRefused, match="1 values of w"):
        made.strategy.check(replies[1])


# The norm


def test_an_update_beyond_the_norm_is_refused_and_one_at_it_is_taken():
    """Client 1 moves w from 0 to 2 in each of 3 entries: sqrt(12) = 3.4641."""
    assert refusal(lambda reply: None, max_update_norm=3.464) == (
        "client 1 sent an update of norm 3.464; failures.max_update_norm is 3.464: raise it, "
        "or lower training.learning_rate"
    )
    made = federation(max_update_norm=3.4642)
    assert made.round()["w"] == pytest.approx([(3 * 1 + 4 * 2) / 7] * 3)


def test_the_norm_counts_parameters_alone_and_not_statistics_of_batches():
    made = federation(max_update_norm=3.5)
    made.updates[1][0]["running_var"] = np.full(2, 1e6)
    made.round()


def test_the_norm_is_right_where_squares_leave_the_range_of_floats():
    a, b = np.array([3e200, 4e200]), np.zeros(2)
    assert distance(a, b) == pytest.approx(5e200)
    assert distance(np.array([3e-200, 4e-200]), b) == pytest.approx(5e-200)
    assert distance(np.array([1.7e308]), np.array([-1.7e308])) == math.inf
    assert distance(np.array([3e38, 3e38], np.float32), np.zeros(2, np.float32)) == pytest.approx(
        3e38 * math.sqrt(2)
    )
    assert distance(np.zeros(0), np.zeros(0)) == 0
    assert distance(np.ones(4), np.ones(4)) == 0


# Who answers


def test_two_replies_of_one_client_and_a_stranger_s_are_refused():
    made = federation()
    replies = made.replies()
    with pytest.raises(UpdateRefused, match="^client 1 sent two replies$"):
        made.strategy.aggregate_train(1, [*replies, replies[1]])
    replies[1].metadata.__dict__["_src_node_id"] = 4711
    with pytest.raises(UpdateRefused, match="^node 4711 sent a reply, but is none of the feder"):
        made.strategy.aggregate_train(1, replies)


@pytest.mark.parametrize("content", [{}, {wire.METRICS: MetricRecord({"other": 1})}])
def test_a_roll_call_names_the_node_that_does_not_say_who_it_is(content):
    class Grid:
        def get_node_ids(self):
            return [100]

        def send_and_receive(self, messages, timeout=None):
            made = federation()
            (first, _) = made.replies()
            first.content = RecordDict(content)
            return [first]

    with pytest.raises(FedkdError, match="^node 100 (sent no metrics|does not say which client)"):
        call_roll(Grid(), 1)


def test_an_evaluation_reply_is_measured_by_the_split_that_was_asked_for():
    made = federation()
    replies = made.replies()
    values = {wire.PARTITION_ID: 1, wire.PROBABILITIES: [0.5] * 4}
    replies[1].content = RecordDict({wire.METRICS: MetricRecord(values)})
    made.strategy.check_evaluation(replies[1], "test")
    with pytest.raises(UpdateRefused, match="of 2 images; its part of val has 3"):
        made.strategy.check_evaluation(replies[1], "val")
    values[wire.PROBABILITIES][0] = math.nan
    replies[1].content = RecordDict({wire.METRICS: MetricRecord(values)})
    with pytest.raises(UpdateRefused, match="client 1 sent 'probabilities' that is not finite"):
        made.strategy.aggregate_evaluate(1, replies[1:])
    replies[1].content = RecordDict({wire.METRICS: MetricRecord({wire.PARTITION_ID: 1})})
    with pytest.raises(UpdateRefused, match="client 1 sent no metric 'probabilities'"):
        made.strategy.check_evaluation(replies[1], "val")


# A server's optimiser


def test_what_an_optimiser_remembers_is_as_before_after_a_round_that_it_refused():
    spoilt, clean = (federation("fedadam") for _ in range(2))
    expected = [clean.round(1), clean.round(3)]
    assert spoilt.round(1)["w"].tolist() == expected[0]["w"].tolist()
    finite = spoilt.updates
    # The sum of two is beyond float32, and so is the step.
    spoilt.updates = copy.deepcopy(finite)
    for arrays, _ in spoilt.updates:
        arrays["w"][:] = 3.4e38
    with np.errstate(all="ignore"), pytest.raises(UpdateRefused, match="server's own step"):
        spoilt.round(2)
    spoilt.updates = finite
    assert spoilt.round(3)["w"].tolist() == expected[1]["w"].tolist()


# Fuzzing

NUMBERS = [math.nan, math.inf, -math.inf, -1, -1.0, 0, 0.5, 1e30, -1e30, 1e308, 2**53, 2**63 - 1]
WRONG = [np.nan, np.inf, -np.inf, 1e38, -1e38, 3.4e38, 0.0, -1.0]


def spoil(reply, draws):
    """Change a reply in one of the ways in which a broken client, or a liar, might."""
    kind = draws.integers(8)
    arrays, metrics = (dict(reply.content[name]) for name in (wire.ARRAYS, wire.METRICS))
    key = str(draws.choice(sorted(metrics)))
    value = NUMBERS[draws.integers(len(NUMBERS))]
    name = str(draws.choice(sorted(arrays)))
    values = arrays[name].numpy().copy()
    if kind == 0:
        metrics[key] = value
    elif kind == 1:
        metrics[key] = [value] * int(draws.integers(4))
    elif kind == 2:
        del metrics[key]
    elif kind == 3:
        metrics[str(draws.choice(["mean.x", "mean.round", "sum.kl", "probabilities", "?"]))] = value
    elif kind == 4:
        with np.errstate(all="ignore"):
            wrong = np.array(WRONG[draws.integers(len(WRONG))]).astype(values.dtype)
        values.reshape(-1)[draws.integers(values.size)] = wrong
        arrays[name] = Array(values)
    elif kind == 5:
        arrays[name] = Array(
            np.zeros(draws.integers(3, size=draws.integers(3)), str(draws.choice(list("fdi"))))
        )
    elif kind == 6:
        data = bytearray(Array(values).data)
        data[draws.integers(len(data))] ^= int(draws.integers(1, 256))
        arrays[name] = Array(str(values.dtype), values.shape, "numpy.ndarray", bytes(data))
    else:
        del arrays[name]
    reply.content = RecordDict(
        {wire.ARRAYS: ArrayRecord(arrays), wire.METRICS: MetricRecord(metrics)}
    )


@pytest.mark.parametrize("name", sorted(STRATEGIES))
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_no_strategy_lets_a_spoilt_reply_make_it_raise_or_learn_what_is_not_finite(name):
    """Either the reply is refused in words, or the new student is finite."""
    made, refused = federation(name, num=8), 0
    for case in range(60):
        draws = rng(case, "fuzz", 0)
        replies = made.replies(10)
        for number in draws.choice(8, size=draws.integers(1, 3), replace=False):
            spoil(replies[number], draws)
        try:
            arrays, _ = made.strategy.aggregate_train(10, replies)
        except UpdateRefused:
            refused += 1
            continue
        assert all(np.isfinite(one.numpy()).all() for one in arrays.values())
        for report in made.strategy.reports:
            told = np.concatenate([np.ravel(value) for value in report.metrics.values()])
            assert np.isfinite([report.weight, *told]).all()
    assert 20 < refused < 60, "the draws are to spoil most replies, and not all"
