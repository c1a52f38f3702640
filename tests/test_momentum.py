import copy
import math

import pytest
import torch
from torch import nn

from fedkd import seeding
from fedkd.models.small_resnet import SmallResNet
from fedkd.pretraining.momentum import (
    MomentumContrast,
    enqueue_,
    follow_,
    new_queue,
    queue_nt_xent,
)
from fedkd.teachers.stored import build_head


def draws(*shape, key=0, dtype=torch.float32):
    return torch.randn(*shape, generator=seeding.generator(key, "momentum"), dtype=dtype)


def test_loss_of_orthogonal_keys_is_written_out_by_hand():
    # Each query equals its key and is orthogonal to both keys of the queue: log(e^5 + 2) - 5.
    axes = torch.eye(4)
    loss = queue_nt_xent(axes[:2], axes[:2], axes[2:], 0.2)
    assert loss.tolist() == pytest.approx([math.log(math.exp(5) + 2) - 5] * 2, rel=1e-4)


def test_loss_ignores_lengths_and_gives_the_key_no_gradient():
    query, key = draws(3, 4, key=1).requires_grad_(), draws(3, 4, key=2).requires_grad_()
    queue = new_queue(5, 99, 4, seeding.generator(0, "queue"))
    loss = queue_nt_xent(query, key, queue, 0.2)
    torch.testing.assert_close(loss, queue_nt_xent(100 * query, key / 100, queue, 0.2))
    loss.sum().backward()
    assert query.grad.abs().sum() > 0
    assert key.grad is None


def test_loss_has_the_right_gradient():
    query = draws(3, 4, key=1, dtype=torch.float64).requires_grad_()
    key, queue = draws(3, 4, key=2, dtype=torch.float64), draws(5, 4, key=3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a: queue_nt_xent(a, key, queue, 0.5), (query,))


def test_oldest_keys_are_overwritten_first():
    queue = torch.zeros(3, 2)
    position = enqueue_(queue, 0, torch.tensor([[2.0, 0.0], [0.0, 3.0]]))
    assert (position, queue.tolist()) == (2, [[1, 0], [0, 1], [0, 0]])
    position = enqueue_(queue, position, torch.tensor([[-1.0, 0.0], [0.0, -1.0]]))
    assert (position, queue.tolist()) == (1, [[0, -1], [0, 1], [-1, 0]])


def test_more_keys_than_the_queue_holds_leave_the_last():
    queue = torch.zeros(2, 1)
    enqueue_(queue, 0, torch.tensor([[1.0], [1.0], [-1.0]]))
    assert sorted(queue.flatten().tolist()) == [-1, 1]


def test_slow_network_moves_by_one_minus_the_momentum_and_keeps_its_buffers():
    slow, fast = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
    nn.init.constant_(slow.weight, 1.0)
    nn.init.constant_(fast.weight, 2.0)
    fast.running_mean.fill_(7)
    follow_(slow, fast, 0.9)
    assert slow.weight.item() == pytest.approx(1.1)
    assert slow.running_mean.item() == 0


def learner(momentum=0.9):
    with seeding.isolated(0, "momentum"):
        backbone, head = SmallResNet((4, 6), all_stages=True), build_head("plain", 6, 5, 3)
    return MomentumContrast(
        backbone,
        head,
        new_queue(8, 99, 3, seeding.generator(0, "queue")),
        momentum=momentum,
        temperature=0.2,
        bfloat16=False,
    )


def test_a_forward_pass_is_queue_loss_of_fast_query_and_slow_key():
    moco = learner()
    for parameter in moco.backbone.parameters():  # fast and slow differ
        parameter.data += 0.1
    first, second, queue = draws(4, 3, 8, 8, key=1), draws(4, 3, 8, 8, key=2), moco.queue.clone()
    other = copy.deepcopy(moco)
    follow_(other.slow_backbone, other.backbone, 0.9)
    with torch.no_grad():
        query = other.head(other.backbone(first)[:, -6:])
        key = other.slow_head(other.slow_backbone(second)[:, -6:])
    expected = queue_nt_xent(query, key, queue, 0.2).mean()
    torch.testing.assert_close(moco(first, second), expected)
    torch.testing.assert_close(moco.queue[:4], nn.functional.normalize(key, dim=1))
    assert torch.equal(moco.queue[4:], queue[4:])
    assert int(moco.position) == 4


def test_only_the_fast_networks_are_trained():
    moco = learner()
    moco(draws(4, 3, 8, 8, key=1), draws(4, 3, 8, 8, key=2)).backward()
    trained = {name.partition(".")[0] for name, p in moco.named_parameters() if p.grad is not None}
    assert trained == {"backbone", "head"}


def test_with_a_momentum_of_zero_the_slow_networks_are_copies():
    moco = learner(momentum=0.0)
    for parameter in moco.backbone.parameters():
        parameter.data += 0.1
    moco(draws(4, 3, 8, 8, key=1), draws(4, 3, 8, 8, key=2))
    pairs = zip(moco.backbone.parameters(), moco.slow_backbone.parameters(), strict=True)
    assert all(torch.equal(fast, slow) for fast, slow in pairs)
