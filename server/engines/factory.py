"""Engines by name."""

from importlib import import_module
from typing import cast

from fedkd.engine import EngineName
from server.engines.clients import Engine


def make_engine(name: EngineName) -> Engine:
    """The engine that the config names.

    Its module is imported here and not before: who stays in process does not wait for Ray.
    """
    return cast(Engine, import_module(f"server.engines.{name}"))
