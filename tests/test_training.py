import numpy as np
import pytest
import torch
from torch import nn

from fedkd import config, seeding
from fedkd.errors import ConfigError
from fedkd.recipe import Recipe
from fedkd.training import (
    Losses,
    TrainingConfig,
    batches,
    epoch_order,
    load_optimizer_state,
    make_optimizer,
    num_examples_per_epoch,
    optimizer_state,
    train_epochs,
)


@pytest.mark.parametrize(
    ("num", "drop_last", "sizes"),
    [
        (8, False, [4, 4]),
        (10, False, [4, 4, 2]),
        (9, False, [4, 5]),
        (5, False, [5]),
        (3, False, [3]),
        (10, True, [4, 4]),
        (3, True, []),
    ],
)
def test_batches_cover_the_order_and_none_has_a_single_image(num, drop_last, sizes):
    order = np.arange(num)[::-1].copy()
    parts = batches(order, 4, drop_last)
    assert [len(part) for part in parts] == sizes
    used = sum(sizes)
    assert np.concatenate([*parts, np.zeros(0, int)]).tolist() == order[:used].tolist()
    assert used == num_examples_per_epoch(num, TrainingConfig(batch_size=4, drop_last=drop_last))


def regression(optimizer="sgd", **options):
    """One weight at 1, no bias; loss 0.5 (w x - y)^2 over two batches."""
    config = TrainingConfig(
        optimizer=optimizer, learning_rate=0.1, batch_size=2, shuffle=False, **options
    )
    net = nn.Linear(1, 1, bias=False).double()
    net.weight.data.fill_(1.0)
    x = torch.tensor([[1.0], [2.0], [3.0], [1.0]], dtype=torch.float64)
    labels = torch.tensor([0, 1, 1, 0])

    def loss(pixels, targets):
        per_example = 0.5 * net(pixels).squeeze(1) ** 2
        return Losses(per_example.mean(), per_example, {"loss": per_example.mean()})

    optimizer = make_optimizer(config, net.parameters(), config.learning_rate)

    def run(orders, clip_norm=None):
        return train_epochs(
            net, optimizer, config,
            load_batches=lambda plan: ((x[rows], labels[rows]) for rows in plan),
            loss=loss, orders=orders, num_classes=3, clip_norm=clip_norm, augment=lambda p: p,
        )  # fmt: skip

    return net, optimizer, run


def test_plain_sgd_and_its_sums_by_hand():
    net, _, run = regression(momentum=0.0)
    sums = run([np.arange(4)])
    # Batch 1: x = 1, 2: mean loss 0.5 * (1 + 4) / 2 = 1.25, gradient w * 2.5 -> w = 0.75.
    # Batch 2: x = 3, 1: mean loss 0.5 * 0.5625 * (9 + 1) / 2, gradient 0.75 * 5 -> w = 0.375.
    assert net.weight.item() == pytest.approx(0.375, rel=1e-12)
    second = 0.5 * 0.5625
    assert sums.num_seen == 4
    assert sums.terms["loss"] == pytest.approx(1.25 * 2 + second * 5 * 2, rel=1e-12)
    expected = [0.5 + second * 1, 2.0 + second * 9, 0.0]
    assert sums.class_losses.tolist() == pytest.approx(expected, rel=1e-12)
    assert sums.class_seen.tolist() == [2, 2, 0]


def test_clipping_bounds_the_step():
    net, _, run = regression(momentum=0.0)
    run([np.arange(2)], clip_norm=0.5)
    assert net.weight.item() == pytest.approx(1 - 0.1 * 0.5, rel=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_an_optimizer_continues_from_its_state_to_the_bit(name):
    order = [np.arange(4)]
    whole, _, run_whole = regression(name)
    run_whole(order)
    run_whole(order)
    first, optimizer, run_first = regression(name)
    run_first(order)
    second, other, run_second = regression(name)
    second.load_state_dict(first.state_dict())
    load_optimizer_state(other, {k: v.clone() for k, v in optimizer_state(optimizer).items()})
    run_second(order)
    assert torch.equal(whole.weight, second.weight)


def test_no_state_leaves_a_fresh_optimizer():
    net, optimizer, _ = regression("adam")
    load_optimizer_state(optimizer, {})
    assert optimizer_state(optimizer) == {}


def test_an_order_without_a_full_batch_trains_nothing():
    net, _, run = regression(drop_last=True)
    sums = run([np.arange(1)])
    assert (sums.num_seen, sums.terms, net.weight.item()) == (0, {}, 1.0)
    assert sums.class_losses.tolist() == [0.0, 0.0, 0.0]


LABELS = np.array([0] * 90 + [2] * 9 + [3])


def test_a_shuffled_order_is_a_permutation_and_an_unshuffled_one_is_natural():
    rng = seeding.rng(0, "order")
    shuffled = epoch_order(LABELS, TrainingConfig(), rng)
    assert sorted(shuffled) == list(range(100))
    assert list(shuffled) != list(range(100))
    assert list(epoch_order(LABELS, TrainingConfig(shuffle=False), rng)) == list(range(100))


def test_balanced_draws_have_all_present_classes_equally_often():
    draws = [
        epoch_order(LABELS, TrainingConfig(sampling="balanced"), seeding.rng(0, "order", number))
        for number in range(60)
    ]
    assert {len(order) for order in draws} == {100}
    counts = np.bincount(LABELS[np.concatenate(draws)], minlength=4)
    # 6000 draws, 2000 expected per class; 5 standard deviations are 183. Class 1 has no image.
    assert counts[1] == 0
    assert abs(counts[[0, 2, 3]] - 2000).max() < 183


def test_balanced_draws_depend_on_the_generator_alone():
    settings = TrainingConfig(sampling="balanced")
    first, again, other = (
        epoch_order(LABELS, settings, seeding.rng(0, "order", number)) for number in (1, 1, 2)
    )
    assert first.tolist() == again.tolist() != other.tolist()


def test_balanced_draws_cannot_keep_an_order():
    with pytest.raises(ConfigError, match="sampling is 'balanced' with training.shuffle = false"):
        config.build(Recipe, {"training": {"sampling": "balanced", "shuffle": False}})


def test_reading_of_images_ends_with_the_training_also_when_it_fails():
    net, _, _ = regression()
    closed = []

    def load_batches(plan):
        try:
            for rows in plan:
                yield torch.ones(len(rows), 1, dtype=torch.float64), torch.zeros(len(rows)).long()
        finally:
            closed.append(len(plan))

    def fail(pixels, labels):
        raise RuntimeError("no loss")

    config = TrainingConfig(batch_size=2)
    with pytest.raises(RuntimeError, match="no loss") as error:
        train_epochs(
            net, make_optimizer(config, net.parameters(), 0.1), config,
            load_batches=load_batches, loss=fail, orders=[np.arange(4)], num_classes=1,
            clip_norm=None, augment=lambda pixels: pixels,
        )  # fmt: skip
    # The traceback still holds the loop's frame: it is not the end of the generator that did it.
    assert error.tb is not None
    assert closed == [2]
