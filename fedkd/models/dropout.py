"""Dropout and stochastic depth that draw from a generator of their own.

torch's own draw from the generator of the whole process: then what a client computes would depend
on who trained before it, and on other threads.
"""

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth


class SeededDropout(nn.Module):
    """Dropout of single values, of whole examples or of the whole batch.

    In train mode what is left out becomes 0 and what is kept is divided by 1 - p; in eval mode
    nothing changes. The numbers are drawn on the CPU, so that they are the same on all devices.

    Args:
        p: Probability of being left out, in [0, 1].
        generator: On the CPU; of whoever seeds it.
        axes: Leading axes along which each entry has a draw of its own: None means all (dropout), 1
            examples and 0 the batch (stochastic depth).

    Source: Srivastava et al., "Dropout", JMLR 2014; Huang et al., "Deep Networks with Stochastic
    Depth", ECCV 2016. Differs from torch.nn.Dropout and torchvision.ops.StochasticDepth only in the
    numbers that are drawn.
    """

    def __init__(self, p: float, generator: torch.Generator, axes: int | None = None) -> None:
        super().__init__()
        self.p = p
        self._generator = generator
        self._axes = axes

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs of any shape (batch, ...)."""
        if not self.training or not self.p:
            return inputs
        factors: Tensor = self._draw(inputs)
        return inputs * factors

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _draw(self, inputs: Tensor) -> Tensor:
        """0 or 1 / (1 - p), in a shape that multiplies the inputs."""
        axes = inputs.ndim if self._axes is None else self._axes
        shape = [size if axis < axes else 1 for axis, size in enumerate(inputs.shape)]
        kept = torch.empty(shape).bernoulli_(1 - self.p, generator=self._generator)
        return (kept / (1 - self.p) if self.p < 1 else kept).to(inputs)


def seed_dropout(network: nn.Module, generator: torch.Generator) -> None:
    """Put :class:`SeededDropout` in place of a network's Dropout and StochasticDepth."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Dropout):
                setattr(module, name, SeededDropout(child.p, generator))
            elif isinstance(child, StochasticDepth):
                axes = 1 if child.mode == "row" else 0
                setattr(module, name, SeededDropout(child.p, generator, axes))
