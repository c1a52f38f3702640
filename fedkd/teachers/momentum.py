"""Momentum contrast (MoCo v2): a queue of keys from a slowly moving encoder."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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


def new_queue(num_keys: int, dim: int, generator: torch.Generator) -> Tensor:
    """A queue of random keys of unit length, float (num_keys, dim)."""
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
