"""Strategies by name."""

from collections.abc import Callable
from typing import NamedTuple

from fedkd.aggregation import StrategyConfig
from strategies.base import SeededStrategy, Setup
from strategies.fedavg import FedAvg
from strategies.mas import MAS
from strategies.mas_drw import MASDRW
from strategies.mas_inv import MASInv


class Entry(NamedTuple):
    """A strategy and the line that describes it."""

    build: Callable[..., SeededStrategy]
    description: str


STRATEGIES: dict[str, Entry] = {
    "fedavg": Entry(FedAvg, "weights are numbers of images (McMahan et al. 2017)"),
    "mas": Entry(MAS, "weights are robust factors of class losses (Elbatel et al. 2023)"),
    "mas_inv": Entry(MASInv, "mas, with inverted class losses in the robust factor"),
    "mas_drw": Entry(MASDRW, "fedavg; in the last fifth of the rounds, images x robust factor"),
}


def make_strategy(config: StrategyConfig, setup: Setup) -> SeededStrategy:
    """The strategy that the recipe names.

    Args:
        config: Section ``strategy``.
        setup: What every strategy is told.

    Raises:
        ConfigError: The clients of a round are too few for it.
    """
    return STRATEGIES[config.name].build(setup, **config.options())
