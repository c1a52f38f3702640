"""Noise on the aggregate: what is clipped, what is noised, and what nobody may learn."""

import json
import logging

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg

from fedkd import wire
from fedkd.aggregation import PrivacyConfig
from fedkd.errors import ConfigError
from server.engines.inprocess import InProcessGrid
from strategies.base import SeededStrategy, Setup
from strategies.privacy import SMALLEST_VARIANCE, with_privacy

RECEIVED = {
    "w": np.array([1.0, 1.0, 1.0], np.float32),
    "scale": np.array(0.0, np.float64),
    "running_var": np.array([2.0], np.float32),
    "num_batches_tracked": np.array(7, np.int64),
}


class Equal(SeededStrategy):
    """All clients weigh the same."""

    def weigh(self, metrics, server_round):
        return [1.0] * len(metrics)


def student(w=(0, 0, 0), scale=0.0, var=0.0, count=9):
    """What a client sends that moved by so much."""
    moved = {"w": w, "scale": scale, "running_var": [var]}
    sent = {n: RECEIVED[n] + np.asarray(m, RECEIVED[n].dtype) for n, m in moved.items()}
    return {**sent, "num_batches_tracked": np.array(count, np.int64)}


def record(arrays):
    return ArrayRecord({name: Array(np.asarray(value)) for name, value in arrays.items()})


class Round:
    """A strategy under privacy, and clients that answer with what they are given."""

    def __init__(self, students, seed=0, num_examples=None, strategy=Equal, **privacy):
        examples = num_examples or [10] * len(students)
        app = ClientApp()

        @app.query()
        def query(message, context):
            own = MetricRecord({wire.PARTITION_ID: context.node_config["partition-id"]})
            return Message(RecordDict({wire.METRICS: own}), reply_to=message)

        @app.train()
        def train(message, context):
            number = context.node_config["partition-id"]
            counts = (wire.NUM_EXAMPLES, wire.NUM_SEEN, wire.NUM_STEPS)
            metrics = dict.fromkeys(counts, examples[number])
            metrics |= {wire.PARTITION_ID: number, wire.SUM + "loss": 1.0, wire.SECONDS: 0.5}
            arrays = record(students[number])
            content = {wire.ARRAYS: arrays, wire.METRICS: MetricRecord(metrics)}
            return Message(RecordDict(content), reply_to=message)

        self.grid = InProcessGrid(app, len(students))
        config = PrivacyConfig(**{"name": "fixed", **privacy})
        self.strategy = strategy(Setup(len(students), 10, seed, privacy=config))

    def play(self, number=1):
        sent = self.strategy.configure_train(number, record(RECEIVED), ConfigRecord(), self.grid)
        arrays, _ = self.strategy.aggregate_train(number, self.grid.send_and_receive(sent))
        return {name: array.numpy() for name, array in arrays.items()}


def test_one_norm_over_all_floating_tensors_is_clipped():
    # Norms sqrt(4^2 + 4^2 + 2^2 + 8^2) = 10 and 0.5: the first is scaled by 0.2, the second kept.
    students = [student((4, 4, 0), scale=2.0, var=8.0), student((0, 0, 0.5))]
    new = Round(students, noise_multiplier=0, clipping_norm=2.0).play()
    np.testing.assert_allclose(new["w"], [1.4, 1.4, 1.25], rtol=1e-6)
    np.testing.assert_allclose(new["scale"], 0.2)
    np.testing.assert_allclose(new["running_var"], [2.8], rtol=1e-6)
    assert new["scale"].shape == ()
    assert {n: v.dtype for n, v in new.items()} == {n: v.dtype for n, v in RECEIVED.items()}


def test_counts_of_batches_are_not_released():
    new = Round([student(count=9), student((1, 0, 0), count=99)], noise_multiplier=0).play()
    assert new["num_batches_tracked"] == 7


@pytest.mark.parametrize("name", ["fixed", "adaptive"])
def test_who_moves_nothing_stays_in_the_denominator(name):
    # (1, 0, 0) of one client, nothing of two: one of them without an image.
    three = [student((1, 0, 0)), student(), student()]
    new = Round(three, num_examples=[10, 10, 0], noise_multiplier=0, name=name).play()
    np.testing.assert_allclose(new["w"], [4 / 3, 1, 1], rtol=1e-6)


def test_noise_is_noise_multiplier_times_clipping_norm_by_clients(monkeypatch):
    monkeypatch.setitem(RECEIVED, "w", np.zeros(200_000, np.float32))
    students = [student(np.zeros(200_000)) for _ in range(4)]
    new = Round(students, noise_multiplier=3.0, clipping_norm=2.0).play()
    # 3 * 2 / 4; the standard error of the deviation is 1.5 / sqrt(400 000) = 0.0024.
    assert new["w"].std() == pytest.approx(1.5, abs=0.012)
    assert new["w"].mean() == pytest.approx(0, abs=0.017)
    # Every tensor has its own.
    assert new["scale"] != 0


def test_noise_is_of_seed_and_round_and_leaves_the_global_generator_alone():
    students = [student((1, 0, 0)), student((0, 1, 0))]
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first = Round(students).play()
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002
    np.random.random(5)  # noqa: NPY002
    assert (Round(students).play()["w"] == first["w"]).all()
    assert (Round(students).play(2)["w"] != first["w"]).all()
    assert (Round(students, seed=1).play()["w"] != first["w"]).all()


def test_a_noisy_variance_stays_above_the_floor_and_a_mean_may_be_negative():
    seen = [
        Round([student(), student()], seed=seed, noise_multiplier=50.0).play() for seed in range(9)
    ]
    variances = np.array([new["running_var"] for new in seen])
    assert variances.min() == np.float32(SMALLEST_VARIANCE)
    assert variances.max() > 2
    assert min(new["w"].min() for new in seen) < 0


def test_the_adaptive_norm_goes_towards_the_quantile():
    # Norms 1, 2, 3, 4; half of them shall be clipped: the norm ends between 2 and 3.
    for start in (0.1, 50.0):
        clients = [student((size, 0, 0)) for size in (1, 2, 3, 4)]
        played = Round(clients, name="adaptive", noise_multiplier=0, clipping_norm=start)
        norms = []
        for number in range(1, 51):
            played.play(number)
            norms.append(played.strategy._inner.wrapper.clipping_norm)
        assert norms[0] == pytest.approx(start * np.exp(0.1 if start < 1 else -0.1))
        assert norms[-1] == pytest.approx(2.5, abs=0.6)


def test_adaptive_needs_ten_times_as_many_clients_as_noise():
    with pytest.raises(ConfigError) as caught:
        Round([student()] * 4, name="adaptive", noise_multiplier=0.4)
    assert str(caught.value) == (
        "privacy.noise_multiplier is 0.4 with 4 clients a round; privacy.name = 'adaptive' takes "
        "less than a tenth of them, 0.4; lower it, or choose fixed"
    )
    Round([student()] * 4, name="adaptive", noise_multiplier=0.39).play()


def test_without_privacy_flowers_strategy_is_used_as_it_is():
    inner = FlowerFedAvg()
    assert with_privacy(inner, PrivacyConfig(), 0, 3, dict) is inner


def test_flower_has_nothing_to_warn_of_in_a_whole_round(caplog):
    logging.getLogger("flwr").addHandler(caplog.handler)
    try:
        Round([student((1, 0, 0)), student()], num_examples=[1, 0]).play()
    finally:
        logging.getLogger("flwr").removeHandler(caplog.handler)
    assert not caplog.records


@pytest.mark.parametrize(
    "name", ["fednova", "fedavgm", "fedadagrad", "fedadam", "fedyogi", "qfedavg"]
)
def test_a_step_of_the_server_is_refused(make_recipe, name):
    with pytest.raises(ConfigError) as caught:
        make_recipe(strategy={"name": name}, privacy={"name": "fixed"})
    assert (
        f"strategy.name is '{name}' with privacy.name = 'fixed', but Flower's wrapper adds its "
        "noise after the server's own step, where clipping no longer bounds what one client "
        "changes; choose uniform, or set privacy.name = 'none'"
    ) in str(caught.value)


@pytest.mark.parametrize("name", ["krum", "multikrum", "bulyan"])
def test_a_strategy_that_leaves_clients_out_is_refused(make_recipe, name):
    text = f"strategy.name is '{name}' with privacy.name = 'fixed', but noise that reckons with all"
    with pytest.raises(ConfigError, match=text):
        make_recipe(strategy={"name": name}, privacy={"name": "fixed"})


def test_shared_prompts_are_refused(make_recipe):
    text = "prompts.shared is 'by_examples' with privacy.name = 'adaptive', but prompts would trav"
    with pytest.raises(ConfigError, match=text):
        make_recipe(prompts={"shared": "by_examples"}, privacy={"name": "adaptive"})


def test_centralized_training_adds_no_noise_and_says_so(run):
    with pytest.raises(ConfigError, match="centralized training aggregates nothing to which noise"):
        run(centralized=True, objective={"name": "supervised"}, privacy={"name": "fixed"})


def test_a_private_run_is_reproducible_and_its_summary_says_what_is_known(run, tmp_path):
    config = {"objective": {"name": "supervised"}, "training": {"learning_rate": 1e-3}}
    noisy = {"name": "fixed", "noise_multiplier": 0.5, "clipping_norm": 0.1}
    first = run(privacy=noisy, output=tmp_path, **config)
    again = run(privacy=noisy, **config)
    assert first.summary["student_sha256"] == again.summary["student_sha256"]
    told = json.loads((first.path / "summary.json").read_text())["privacy"]
    assert told == again.summary["privacy"]
    assert told["epsilon"] is None
    assert told["reason"].startswith("the accounting holds for strategy uniform")
    assert (told["delta"], told["rounds_accounted"]) == (1e-5, 2)
    assert "metrics, class counts and predictions on val travel" in told["not_covered"]
    # Without noise and with room for every update, only integers and rounding differ.
    loose = {"name": "fixed", "noise_multiplier": 0, "clipping_norm": 1e6}
    plain, open_ = run(**config), run(privacy=loose, **config)
    assert "privacy" not in plain.summary
    state = open_.student.state_dict()
    for name, tensor in plain.student.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(state[name], tensor, rtol=1e-4, atol=1e-5)
        else:
            assert state[name] == 0 < tensor
    moved = first.student.state_dict()["fc.weight"] - plain.student.state_dict()["fc.weight"]
    assert moved.abs().max() > 1e-3
