"""The roof: engines that run a federation, evaluation, results, and the command line.

``from server import simulate`` is the Python face of ``fedkd run``, ``resume`` that of
``fedkd resume``, ``write_report`` that of ``fedkd report``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from server.reporting.report import write_report
    from server.scoreboard import Observer
    from server.simulation import Simulation, resume, simulate

__all__ = ["Observer", "Simulation", "resume", "simulate", "write_report"]
_MODULES = {
    "Observer": "server.scoreboard",
    "Simulation": "server.simulation",
    "resume": "server.simulation",
    "simulate": "server.simulation",
    "write_report": "server.reporting.report",
}


def __getattr__(name: str) -> Any:
    """Import on first use: ``fedkd --help`` passes through here and must not wait for torch."""
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'server' has no attribute {name!r}")
