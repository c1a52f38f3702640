"""The roof: engines that run a federation, evaluation, results, and the command line.

``from server import simulate`` is the Python face of ``fedkd run``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from server.scoreboard import Observer
    from server.simulation import Simulation, simulate

__all__ = ["Observer", "Simulation", "simulate"]


def __getattr__(name: str) -> Any:
    """Import on first use: ``fedkd --help`` passes through here and must not wait for torch."""
    if name in __all__:
        return getattr(import_module("server.simulation"), name)
    raise AttributeError(f"module 'server' has no attribute {name!r}")
