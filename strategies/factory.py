"""Strategies by name."""

from collections.abc import Callable
from typing import NamedTuple

from fedkd.aggregation import StrategyConfig
from strategies.base import SeededStrategy, Setup
from strategies.bulyan import Bulyan
from strategies.class_balanced import ClassBalanced
from strategies.fedadagrad import FedAdagrad
from strategies.fedadam import FedAdam
from strategies.fedavg import FedAvg
from strategies.fedavgm import FedAvgM
from strategies.fedmedian import FedMedian
from strategies.fednova import FedNova
from strategies.fedprox import FedProx
from strategies.fedtrimmedavg import FedTrimmedAvg
from strategies.fedyogi import FedYogi
from strategies.krum import Krum
from strategies.mas import MAS
from strategies.mas_drw import MASDRW
from strategies.mas_inv import MASInv
from strategies.multikrum import MultiKrum
from strategies.qfedavg import QFedAvg
from strategies.uniform import Uniform


class Entry(NamedTuple):
    """A strategy and the line that describes it."""

    build: Callable[..., SeededStrategy]
    description: str


STRATEGIES: dict[str, Entry] = {
    "fedavg": Entry(FedAvg, "weights are numbers of images (McMahan et al. 2017)"),
    "uniform": Entry(Uniform, "all clients weigh the same"),
    "class_balanced": Entry(ClassBalanced, "every class has one vote, shared by its images (ours)"),
    "fednova": Entry(FedNova, "fedavg, updates normalised by local steps (Wang et al. 2020)"),
    "fedprox": Entry(FedProx, "fedavg, and clients stay near what they received (Li et al. 2020)"),
    "fedavgm": Entry(FedAvgM, "the server steps by momentum (Hsu et al. 2019)"),
    "fedadagrad": Entry(FedAdagrad, "the server steps by Adagrad (Reddi et al. 2021)"),
    "fedadam": Entry(FedAdam, "the server steps by Adam (Reddi et al. 2021)"),
    "fedyogi": Entry(FedYogi, "the server steps by Yogi (Reddi et al. 2021)"),
    "qfedavg": Entry(QFedAvg, "clients with a high loss weigh more (Li et al. 2020)"),
    "fedmedian": Entry(FedMedian, "median of the clients, number by number (Yin et al. 2018)"),
    "fedtrimmedavg": Entry(FedTrimmedAvg, "mean without the extreme clients (Yin et al. 2018)"),
    "krum": Entry(Krum, "the client nearest to the others (Blanchard et al. 2017)"),
    "multikrum": Entry(MultiKrum, "mean of the clients nearest to the others"),
    "bulyan": Entry(Bulyan, "multikrum's choice, then its middle values (El Mhamdi et al. 2018)"),
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
