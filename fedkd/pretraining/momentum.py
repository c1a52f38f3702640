"""Momentum contrast (MoCo v2): a queue of keys from a slowly moving encoder."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedkd.pretraining.simclr import deepest_features


def queue_nt_xent(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """InfoNCE of each query against its own key and all keys of the queue.

    -log exp(q.k/T) / (exp(q.k/T) + sum over j of exp(q.queue_j/T)), all of unit length.

    Args:
        query: Embeddings of one view, float (batch, dim); normalised here.
        key: Embeddings of the other view by the momentum encoder, a constant; normalised here.
        queue: Keys of earlier batches, of unit length, float (num_keys, dim).
        temperature: T > 0.

    Returns:
        Loss per image in nats, float (batch,).
    Source: He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR
    2020 (eq. 1).
    """
    query, key = F.normalize(query, dim=1), F.normalize(key, dim=1).detach()
    positive = (query * key).sum(1, keepdim=True)
    logits = torch.cat([positive, query @ queue.T], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long, device=query.device),
                           reduction="none")  # fmt: skip


def new_queue(wanted: int, num_images: int, dim: int, generator: torch.Generator) -> Tensor:
    """A queue of random keys of unit length, float (num_keys, dim).

    Of as many keys as are wanted, but at most half as many as there are images: an image's own key
    of the epoch before would be among its negatives otherwise (our choice).
    """
    num_keys = min(wanted, max(num_images // 2, 1))
    return F.normalize(torch.randn(num_keys, dim, generator=generator), dim=1)


def enqueue_(queue: Tensor, position: int, keys: Tensor) -> int:
    """Write normalised keys over the oldest ones, in place; returns the next position.

    More keys than the queue holds leave the last of them.
    """
    keys = F.normalize(keys.detach(), dim=1)[-len(queue) :]
    places = (position + torch.arange(len(keys), device=queue.device)) % len(queue)
    queue[places] = keys.to(queue.dtype)
    return int((position + len(keys)) % len(queue))


@torch.no_grad()
def follow_(slow: nn.Module, fast: nn.Module, momentum: float) -> None:
    """Move the parameters of the momentum encoder a little towards the trained one, in place.

    theta_k <- m theta_k + (1 - m) theta_q; buffers (BatchNorm's) stay the slow one's own, which
    its forward passes in train mode update, as in the authors' code.
    """
    for own, other in zip(slow.parameters(), fast.parameters(), strict=True):
        own.mul_(momentum).add_(other, alpha=1 - momentum)


class MomentumContrast(nn.Module):
    """MoCo v2 on one machine: backbone and head, their slow copies, and the queue.

    Queries and keys pass through networks of their own in separate batches, but BatchNorm is not
    shuffled over devices as the authors do: there is one device. Differs also in the views, which
    are SimCLR's here.

    Args:
        backbone: Maps normalised images to features.
        head: Maps the deepest of them to embeddings; the authors' has no BatchNorm.
        queue: Random keys of unit length, as :func:`new_queue` makes them.
        momentum: Of the slow networks, 0..1; 0 makes them copies, 1 leaves them as they are.
        temperature: Of the loss, > 0.
        bfloat16: Run the backbones in mixed precision.
    Source: Chen et al., "Improved Baselines with Momentum Contrastive Learning", 2020.
    """

    queue: Tensor
    position: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        queue: Tensor,
        *,
        momentum: float,
        temperature: float,
        bfloat16: bool,
    ) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head
        self.slow_backbone = copy.deepcopy(backbone).requires_grad_(False)
        self.slow_head = copy.deepcopy(head).requires_grad_(False)
        self.register_buffer("queue", queue)
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))
        self.momentum, self.temperature, self.mixed = momentum, temperature, bfloat16

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """The loss of a batch of pairs of normalised views, a scalar; the queue takes the keys."""
        query = self.head(deepest_features(self.backbone, first, self.mixed))
        follow_(self.slow_backbone, self.backbone, self.momentum)
        follow_(self.slow_head, self.head, self.momentum)
        with torch.no_grad():
            key = self.slow_head(deepest_features(self.slow_backbone, second, self.mixed))
        # A copy, as the gradient needs the keys that are overwritten below.
        loss = queue_nt_xent(query, key, self.queue.clone(), self.temperature).mean()
        self.position.fill_(enqueue_(self.queue, int(self.position), key))
        return loss
