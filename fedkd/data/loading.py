"""From the shared image store to a batch on the device."""

from collections.abc import Generator, Sequence
from contextlib import closing

import numpy as np
import torch
from torch import Tensor

from fedkd.data.ahead import read_ahead
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
        prefetch: Batches of :meth:`batches` that a thread reads, pins and sends ahead to a GPU; 0
            reads each when its turn comes. Without effect on a CPU. The numbers are the same.
    """

    def __init__(
        self,
        data: LabelledImages,
        indices: Integers,
        device: torch.device,
        dtype: torch.dtype,
        prefetch: int = 0,
    ) -> None:
        self.data = data
        self.indices = indices
        self.labels = data.labels[indices]
        self.device = device
        self.dtype = dtype
        self.prefetch = prefetch

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
        return self.pixels(positions), self._send(self.labels[positions])

    def batches(self, plan: Sequence[Integers]) -> Generator[tuple[Tensor, Tensor], None, None]:
        """What :meth:`batch` gives for each element of ``plan``, in order.

        Images that come from files are decoded ahead of their use, and those for a GPU are sent
        ahead, by threads that end with the generator: close it (``contextlib.closing``) if it may
        not be read to its end.
        """
        if self.device.type == "cuda" and self.prefetch:
            return self._ahead(plan)
        return self._one_by_one(plan)

    def _one_by_one(self, plan: Sequence[Integers]) -> Generator[tuple[Tensor, Tensor], None, None]:
        with closing(read_batches(self.data.images, (self.indices[p] for p in plan))) as read:
            for positions, images in zip(plan, read, strict=True):
                yield self._to_device(images), self._send(self.labels[positions])

    def _ahead(self, plan: Sequence[Integers]) -> Generator[tuple[Tensor, Tensor], None, None]:
        """Copies run on a stream of their own, beside the steps on the caller's.

        As torch documents for its streams: the caller's waits for the copy of its batch, and is
        noted as a user of the memory, which is not given to another batch before.
        """
        side = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

        def sent() -> Generator[tuple[Tensor, Tensor, torch.cuda.Event], None, None]:
            with closing(read_batches(self.data.images, (self.indices[p] for p in plan))) as read:
                for positions, images in zip(plan, read, strict=True):
                    # Not around the yield: the stream is the thread's, and others run after it.
                    with torch.cuda.stream(side):
                        pixels, labels = self._to_device(images), self._send(self.labels[positions])
                        copied = side.record_event()
                    yield pixels, labels, copied

        with closing(read_ahead(sent(), self.prefetch)) as ahead:
            for pixels, labels, copied in ahead:
                current = torch.cuda.current_stream(self.device)
                current.wait_event(copied)
                pixels.record_stream(current)
                labels.record_stream(current)
                yield pixels, labels

    def _send(self, array: Array) -> Tensor:
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()  # of other memory, a copy makes the program wait
        return tensor.to(self.device, non_blocking=True)

    def _to_device(self, images: Array) -> Tensor:
        """``images`` is a copy already, which nobody else has."""
        sent = self._send(images)
        values = sent.to(self.dtype)
        # In place: the division costs no second array, which is most of its time.
        return values.div_(255) if sent.dtype == torch.uint8 else values
