"""How far the classes of each client are from those of all clients together."""

import numpy as np
import numpy.typing as npt

from fedkd.data.images import Integers


def label_divergence(counts: Integers) -> npt.NDArray[np.float64]:
    """Jensen-Shannon divergence of each client's label distribution from the pooled one, in bits.

    JSD(p, q) = H((p + q) / 2) - (H(p) + H(q)) / 2 with H in bits. The pooled distribution q is that
    of all clients' images together, this client's included.

    Args:
        counts: Images per client and class, int (num_clients, num_classes), >= 0.

    Returns:
        float64 (num_clients,), 0 (the same mix of classes; so it is for a single client) to 1
        (nothing in common); NaN for a client without images.

    Source: Lin, "Divergence Measures Based on the Shannon Entropy", IEEE Trans. Inf. Theory 37(1),
    1991.
    """
    own = counts.sum(axis=1, keepdims=True)
    parts = np.divide(counts, own, out=np.full(counts.shape, np.nan), where=own > 0)
    pooled = counts.sum(axis=0) / max(int(counts.sum()), 1)
    value = _entropy((parts + pooled) / 2) - (_entropy(parts) + _entropy(pooled)) / 2
    # Rounding may leave -1e-17 where p = q.
    return np.clip(value, 0.0, 1.0)


def _entropy(shares: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Over the last axis, in bits; 0 log 0 is 0."""
    logs = np.log2(shares, out=np.zeros_like(shares), where=shares != 0)
    result: npt.NDArray[np.float64] = -(shares * logs).sum(axis=-1)
    return result
