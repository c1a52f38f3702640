"""qfedavg on hand-made replies, and against Flower's own class."""

import flwr.serverapp.strategy as flower
import numpy as np
import pytest

from fedkd import wire
from fedkd.errors import UpdateRefused
from tests.hand_made_replies import Federation, record, update


def start(updates, **options):
    return Federation("qfedavg", updates, options=options)


def test_a_step_by_hand():
    # q = 1, L = 1 / 0.5 = 2; three entries each 1 and 4 away: |w_k - w|^2 = 3 and 48.
    # sum F L (w_k - w) = 2 x 2 x 1 + 4 x 2 x 4 = 36; h_k = 1 x L^2 |w_k - w|^2 + L F_k:
    # 4 x 3 + 2 x 2 = 16 and 4 x 48 + 2 x 4 = 200.
    federation = start([update(0, 1.0, 10, loss=2.0), update(1, 4.0, 30, loss=4.0)], q=1,
                       client_learning_rate=0.5)  # fmt: skip
    assert federation.round()["w"] == pytest.approx([36 / 216] * 3)
    assert federation.weights() == pytest.approx([2 / 6, 4 / 6])


def test_q_0_weighs_clients_equally_and_ignores_its_rate():
    updates = [update(0, 1.0, 10, loss=2.0), update(1, 4.0, 30, loss=9.0)]
    for rate in (0.01, 1.0):
        federation = start(updates, q=0, client_learning_rate=rate)
        assert federation.round()["w"] == pytest.approx([2.5] * 3)
        assert federation.weights() == [0.5, 0.5]


def test_a_higher_loss_draws_the_student_and_numbers_of_images_do_not():
    def mean(loss, num):
        updates = [update(0, 1.0, 10), update(1, -1.0, num, loss=loss)]
        return start(updates, q=1, client_learning_rate=1e3).round()["w"][0]

    assert mean(1.0, 10) == pytest.approx(mean(1.0, 1000), abs=1e-6)
    assert mean(5.0, 10) < -0.5 < mean(1.0, 10)


def test_the_loss_is_a_mean_over_the_images_that_were_seen():
    arrays, metrics = update(0, 1.0, 10, loss=2.0)
    metrics[wire.NUM_SEEN] = 40  # four local epochs
    metrics[wire.SUM + "loss"] = 80.0
    federation = start([(arrays, metrics), update(1, 4.0, 30, loss=4.0)], q=1)
    assert federation.weights() == pytest.approx([2 / 6, 4 / 6])


def test_buffers_are_averaged_by_images():
    updates = [update(0, 1.0, 10, loss=2.0), update(1, 4.0, 30, loss=9.0)]
    assert start(updates, q=1).round()["running_var"].tolist() == [3.25] * 2


def test_a_round_is_that_of_flowers_own_class():
    rng = np.random.default_rng(0)
    updates = [update(i, rng.normal(size=3), 3 + i, loss=0.5 + i) for i in range(3)]
    federation = start(updates, q=0.7, client_learning_rate=0.2)
    federation.received = update(0, rng.normal(size=3))[0]
    flowers = flower.QFedAvg(client_learning_rate=0.2, q=0.7)
    flowers.current_arrays = record({"w": federation.received["w"]})
    expected = federation.by_flower(flowers)["w"]
    got = federation.round()["w"]
    assert got == pytest.approx(expected.astype(np.float32), rel=1e-6)
    assert not np.allclose(got, federation.received["w"])


def test_a_second_round_starts_at_what_was_received():
    federation = start([update(0, 2.0)], q=0)
    federation.received = federation.round()
    federation.updates = [update(0, 5.0)]
    assert federation.round(2)["w"] == pytest.approx([5.0] * 3)


def test_no_reply_is_written_to():
    updates = [update(0, 1.0), update(1, 4.0)]
    federation = start(updates, q=1)
    federation.round()
    assert [arrays["w"].tolist() for arrays, _ in updates] == [[1.0] * 3, [4.0] * 3]


def test_a_loss_that_is_not_finite_is_refused():
    with pytest.raises(UpdateRefused, match="client 1 sent 'sum.loss' that is not finite"):
        start([update(0, 1.0), update(1, 4.0, loss=np.nan)], q=1).round()
