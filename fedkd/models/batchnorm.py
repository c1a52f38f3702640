"""BatchNorm statistics measured anew."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def batchnorms(*networks: nn.Module) -> list[_BatchNorm]:
    """All BatchNorm layers, whatever their number of dimensions."""
    return [m for network in networks for m in network.modules() if isinstance(m, _BatchNorm)]


@contextmanager
def measured_anew(*networks: nn.Module) -> Iterator[None]:
    """Running statistics become plain averages over the batches that run within the block.

    Layers are measured together, each behind the batch statistics of those before it. Afterwards
    the networks are in eval mode; within, BatchNorm alone is in train mode.
    """
    norms = batchnorms(*networks)
    momenta = [norm.momentum for norm in norms]
    for network in networks:
        network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
        norm.train()
    yield
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
