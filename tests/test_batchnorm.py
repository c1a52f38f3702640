"""BatchNorm statistics measured anew."""

import torch
from torch import nn

from fedkd.models.batchnorm import batchnorms, measured_anew


def test_statistics_are_plain_averages_over_the_batches_whatever_they_were():
    norm = nn.BatchNorm1d(1, momentum=0.3)
    norm(torch.tensor([[5.0], [9.0]]))
    with measured_anew(norm):
        norm(torch.tensor([[0.0], [2.0]]))  # mean 1, unbiased variance 2
        norm(torch.tensor([[3.0], [3.0]]))  # mean 3, variance 0
    assert (norm.running_mean.item(), norm.running_var.item()) == (2.0, 1.0)
    assert norm.num_batches_tracked == 2
    assert (norm.momentum, norm.training) == (0.3, False)


def test_batchnorm_alone_is_in_train_mode():
    network = nn.Sequential(nn.Linear(1, 2), nn.BatchNorm1d(2), nn.Dropout())
    with measured_anew(network):
        assert [module.training for module in network] == [False, True, False]
    assert not any(module.training for module in network)


def test_layers_of_all_dimensions_and_networks_are_found():
    first, second = (
        nn.Sequential(nn.BatchNorm2d(1), nn.Sequential(nn.BatchNorm3d(2))),
        nn.Linear(1, 1),
    )
    assert batchnorms(first, second) == [first[0], first[1][0]]
