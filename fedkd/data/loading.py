"""From the shared image store to a batch on the device."""

from collections.abc import Generator, Sequence
from contextlib import closing

import numpy as np
import torch
from torch import Tensor

from fedkd.data.images import Integers, LabelledImages
from fedkd.data.pixels import Array, read_batches


def in_order(num_images: int, batch_size: int) -> list[Integers]:
    """Positions 0..num_images-1 in batches, of which the last may be smaller; none for no image."""
    starts = range(0, num_images, batch_size)
    return [np.arange(start, min(start + batch_size, num_images)) for start in starts]


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
        return self._to_device(self.data.images[self.indices[positions]])

    def batch(self, positions: Integers) -> tuple[Tensor, Tensor]:
        """Pixels and labels (int64) of the images at these positions."""
        return self.pixels(positions), torch.from_numpy(self.labels[positions]).to(self.device)

    def batches(self, plan: Sequence[Integers]) -> Generator[tuple[Tensor, Tensor], None, None]:
        """What :meth:`batch` gives for each element of ``plan``, in order.

        Images that come from files are decoded ahead of their use, by threads that end with the
        generator: close it (``contextlib.closing``) if it may not be read to its end.
        """
        with closing(read_batches(self.data.images, (self.indices[p] for p in plan))) as read:
            for positions, images in zip(plan, read, strict=True):
                labels = torch.from_numpy(self.labels[positions])
                yield self._to_device(images), labels.to(self.device)

    def _to_device(self, images: Array) -> Tensor:
        """``images`` is a copy already, which nobody else has."""
        pixels = torch.from_numpy(images)
        if self.device.type == "cuda":
            pixels = pixels.pin_memory()
        values = pixels.to(self.device, non_blocking=True).to(self.dtype)
        # In place: the division costs no second array, which is most of its time.
        return values.div_(255) if pixels.dtype == torch.uint8 else values
