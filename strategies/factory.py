"""Strategies by name."""

from typing import NamedTuple

from fedkd.fourier.config import PromptsShared
from fedkd.recipe import StrategyConfig
from strategies.base import SeededStrategy
from strategies.fedavg import FedAvg
from strategies.mas import MAS
from strategies.mas_drw import MASDRW
from strategies.mas_inv import MASInv


class Entry(NamedTuple):
    """A strategy and the line that describes it."""

    build: type[SeededStrategy]
    description: str


STRATEGIES: dict[str, Entry] = {
    "fedavg": Entry(FedAvg, "weights are numbers of images (McMahan et al. 2017)"),
    "mas": Entry(MAS, "weights are robust factors of class losses (Elbatel et al. 2023)"),
    "mas_inv": Entry(MASInv, "mas, with inverted class losses in the robust factor"),
    "mas_drw": Entry(MASDRW, "fedavg; in the last fifth of the rounds, images x robust factor"),
}


def make_strategy(
    config: StrategyConfig,
    num_clients: int,
    num_rounds: int,
    seed: int,
    prompts_shared: PromptsShared = "no",
) -> SeededStrategy:
    """The strategy that the recipe names.

    Args:
        config: Section ``strategy``.
        num_clients: Clients to wait for.
        num_rounds: Rounds of the whole run.
        seed: The experiment's seed.
        prompts_shared: ``prompts.shared``: by what prompts that travel are weighed.
    """
    return STRATEGIES[config.name].build(
        num_clients=num_clients,
        num_rounds=num_rounds,
        seed=seed,
        fraction_train=config.fraction_train,
        prompts_by_examples=prompts_shared == "by_examples",
    )
