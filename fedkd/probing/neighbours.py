"""k nearest neighbours: what frozen features are worth without any training."""

import torch
import torch.nn.functional as F
from torch import Tensor

_AT_ONCE = 1024


def knn_probabilities(
    bank: Tensor,
    bank_labels: Tensor,
    features: Tensor,
    num_classes: int,
    *,
    k: int = 20,
    temperature: float = 0.07,
    balanced: bool = True,
    leave_one_out: bool = False,
) -> Tensor:
    """Class probabilities by the labels of the k most similar features of a bank.

    A neighbour votes exp(cosine / temperature), divided by the number of the bank's images of its
    class if ``balanced`` (our choice: with long tails the vote of a rare class is otherwise lost).

    Args:
        bank: Features with known labels, float (num_bank, D); at least one other than the image
            that is asked about.
        bank_labels: Int64 (num_bank,).
        features: Float (num, D).
        num_classes: Classes without an image in the bank get probability 0.
        k: Neighbours; all of the bank if it has fewer.
        temperature: > 0.
        balanced: Weigh votes by the inverse size of their class.
        leave_one_out: ``features`` is the bank itself; no image is its own neighbour.

    Returns:
        Float64 (num, num_classes), rows sum to 1.
    Source: Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination",
    CVPR 2018 (k = 200 and temperature 0.07 on ImageNet).
    """
    bank, features = (F.normalize(values.double(), dim=1) for values in (bank, features))
    counts = torch.bincount(bank_labels, minlength=num_classes).clamp(min=1).double()
    weights = 1 / counts if balanced else torch.ones_like(counts)
    k = min(k, len(bank) - leave_one_out)
    parts = []
    for start in range(0, len(features), _AT_ONCE):
        similarity = features[start : start + _AT_ONCE] @ bank.T
        if leave_one_out:
            rows = torch.arange(len(similarity), device=similarity.device)
            similarity[rows, start + rows] = -torch.inf
        nearest, places = similarity.topk(k, dim=1)
        labels = bank_labels[places]
        # The largest vote is 1: exp does not underflow for all neighbours at once.
        votes = ((nearest - nearest[:, :1]) / temperature).exp() * weights[labels]
        sums = votes.new_zeros(len(votes), num_classes).scatter_add_(1, labels, votes)
        parts.append(sums / sums.sum(1, keepdim=True))
    return torch.cat(parts) if parts else features.new_zeros(0, num_classes)
