"""From the shared image store to a batch on the device."""

import numpy as np
import torch
from torch import Tensor

from fedkd.data.images import Integers, LabelledImages


class Loader:
    """One client's view of a shared store: positions 0..n-1 stand for its own images.

    Nothing is copied until a batch is read, so a further client costs only its indices.

    Args:
        data: The store that all clients share.
        indices: Rows of the store that belong to this client, int64 (n,).
        device: Where batches go.
        dtype: Floating-point type of the pixels.
    """

    def __init__(
        self,
        data: LabelledImages,
        indices: Integers,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.data = data
        self.indices = indices
        self.labels = data.labels[indices]
        self.device = device
        self.dtype = dtype

    def __len__(self) -> int:
        return len(self.indices)

    def class_counts(self) -> Integers:
        """Images per class, int64 (num_classes,)."""
        return np.bincount(self.labels, minlength=self.data.num_classes).astype(np.int64)

    def pixels(self, positions: Integers) -> Tensor:
        """Pixels (len(positions), 3, height, width); uint8 images become values in [0, 1]."""
        images = torch.from_numpy(self.data.images[self.indices[positions]])
        values = images.to(self.device).to(self.dtype)
        return values / 255 if images.dtype == torch.uint8 else values

    def batch(self, positions: Integers) -> tuple[Tensor, Tensor]:
        """Pixels and labels (int64) of the images at these positions."""
        return self.pixels(positions), torch.from_numpy(self.labels[positions]).to(self.device)
