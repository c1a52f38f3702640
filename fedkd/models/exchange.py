"""Which tensors of a student travel, and which stay with each client."""

from typing import Literal

from torch import nn

ExchangeName = Literal[
    "all", "backbone", "without_projector", "without_classifier", "without_batchnorm", "nothing"
]

PROJECTORS = ("p_free", "p1", "p2")
CLASSIFIERS = ("fc", "fc_free")


def local_names(student: nn.Module, exchange: ExchangeName) -> frozenset[str]:
    """Names of the tensors that stay with the client, buffers included; empty with ``"all"``.

    ``backbone``: all heads stay. ``without_projector`` and ``without_classifier``: only those heads
    do. ``without_batchnorm``: parameters and statistics of every BatchNorm layer stay, heads
    included. ``nothing``: all stay, so that every hospital trains alone.

    Source: Li et al., "FedBN: Federated Learning on Non-IID Features via Local Batch
    Normalization", ICLR 2021; Arivazhagan et al., "Federated Learning with Personalization Layers",
    2019 (a local classifier).
    """
    if exchange == "nothing":
        return frozenset(student.state_dict())
    kept: tuple[str, ...] = {
        "all": (),
        "backbone": PROJECTORS + CLASSIFIERS,
        "without_projector": PROJECTORS,
        "without_classifier": CLASSIFIERS,
        "without_batchnorm": tuple(
            name
            for name, module in student.named_modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
        ),
    }[exchange]
    prefixes = tuple(f"{name}." for name in kept)
    return frozenset(name for name in student.state_dict() if name.startswith(prefixes))
