"""k nearest neighbours: what frozen features are worth without any training."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fedkd.data.images import Integers

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
    leave_out: Integers | None = None,
) -> Tensor:
    """Class probabilities by the labels of the k most similar features of a bank.

    A neighbour votes exp(cosine / temperature), divided by the number of the bank's images of its
    class if ``balanced`` (our choice: with long tails the vote of a rare class is otherwise lost).

    Args:
        bank: Features with known labels, float (num_bank, D).
        bank_labels: Int64 (num_bank,).
        features: Float (num, D).
        num_classes: Classes without an image in the bank get probability 0.
        k: Neighbours; all of the bank if it has fewer.
        temperature: > 0.
        balanced: Weigh votes by the inverse size of their class.
        leave_out: Int64 (num_bank,), the lesion or patient that each image shows, of at least two:
            ``features`` is the bank itself, and each image is predicted as if those of the bank
            that show the same were not there. None leaves out nothing.

    Returns:
        Float64 (num, num_classes), rows sum to 1.
    Source: Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination",
    CVPR 2018 (k = 200 and temperature 0.07 on ImageNet).
    """
    bank, features = (F.normalize(values.double(), dim=1) for values in (bank, features))
    classes = F.one_hot(bank_labels, num_classes).double()
    shown = None if leave_out is None else torch.from_numpy(leave_out).to(bank.device)
    k = min(k, len(bank))
    parts = []
    for start in range(0, len(features), _AT_ONCE):
        similarity = features[start : start + _AT_ONCE] @ bank.T
        counts = classes.sum(0).expand(len(similarity), -1)
        if shown is not None:
            same = shown[start : start + _AT_ONCE, None] == shown
            similarity[same] = -torch.inf  # no vote, where it is among the k at all
            counts = counts - same.double() @ classes
        nearest, places = similarity.topk(k, dim=1)
        labels = bank_labels[places]
        # The largest vote is 1: exp does not underflow for all neighbours at once.
        votes = ((nearest - nearest[:, :1]) / temperature).exp()
        if balanced:
            votes /= counts.clamp(min=1).gather(1, labels)
        sums = votes.new_zeros(len(votes), num_classes).scatter_add_(1, labels, votes)
        parts.append(sums / sums.sum(1, keepdim=True))
    return torch.cat(parts) if parts else features.new_zeros(0, num_classes)
