"""Derived randomness: every draw comes from (seed, purpose, keys), never from a global generator.

The same config, seed and machine give the same bits, whatever the order in which clients run,
because a stream depends on what it is for and not on what was drawn before it.
"""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

# The global generators are those of all threads.
_ISOLATED = threading.RLock()


def _sequence(seed: int, purpose: str, keys: tuple[int, ...]) -> np.random.SeedSequence:
    # Eight bytes of SHA-256 name the purpose: stable over processes, unlike hash().
    name = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "little")
    return np.random.SeedSequence([seed, name, *keys])


def rng(seed: int, purpose: str, *keys: int) -> np.random.Generator:
    """NumPy generator of the stream named by its arguments.

    Args:
        seed: The experiment's seed, >= 0.
        purpose: What the draws are for, such as ``"sample"`` or ``"augment"``.
        *keys: Further non-negative coordinates, by convention round, partition id, epoch.

    Returns:
        A fresh generator; equal arguments give equal streams.
    """
    return np.random.default_rng(_sequence(seed, purpose, keys))


def torch_seed(seed: int, purpose: str, *keys: int) -> int:
    """63-bit integer of the stream named by its arguments, for APIs that want a plain seed."""
    return int(_sequence(seed, purpose, keys).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(
    seed: int, purpose: str, *keys: int, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Torch generator of the stream named by its arguments; see :func:`rng`."""
    return torch.Generator(device=device).manual_seed(torch_seed(seed, purpose, *keys))


@contextmanager
def isolated(seed: int, purpose: str, *keys: int) -> Iterator[None]:
    """Run code that draws from torch's global CPU generator on a derived stream.

    Layer initialisers are such code.

    The global generator's state is put back afterwards, so nothing outside depends on it. Threads
    wait for each other.
    """
    with _ISOLATED, torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, purpose, *keys))
        yield


@contextmanager
def isolated_numpy(seed: int, purpose: str, *keys: int) -> Iterator[None]:
    """The same for code that draws from NumPy's global generator, as Flower's noise does."""
    with _ISOLATED:
        before = np.random.get_state()  # noqa: NPY002
        np.random.seed(_sequence(seed, purpose, keys).generate_state(8))  # noqa: NPY002
        try:
            yield
        finally:
            np.random.set_state(before)  # noqa: NPY002
