"""The device that a config names."""

import torch

from fedkd.errors import ConfigError


def choose_device(name: str, key: str) -> torch.device:
    """The torch device of ``auto`` (the GPU if there is one), ``cpu``, ``cuda``, ``cuda:1`` ...

    Args:
        name: As written in the config.
        key: The config key it stands under, for the error.

    Raises:
        ConfigError: No such device, or torch sees no GPU.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(
            f"{key} is {name!r}; it must be auto, cpu, cuda or cuda:<number>"
        ) from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"{key} is {name!r}; it must be auto, cpu, cuda or cuda:<number>")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"{key} is {name!r} but torch sees no GPU; use cpu or auto")
    return device
