"""The learning rate of each round.

It is a function of the round alone, so a client that joins only some rounds has the right one.
"""

import difflib
import json
import math
import warnings
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch.optim import SGD, lr_scheduler

from fedkd.config import Section
from fedkd.errors import ConfigError

SCHEDULES = {
    "constant": "the initial learning rate in every round",
    "cosine": "cosine from the initial rate, reaching min_learning_rate in the last round",
    "multi_step": "the initial rate for `milestone` rounds, then times `factor` every round",
    "torch": "a scheduler of torch.optim.lr_scheduler, stepped once per round",
}

# They need what a recipe cannot say: a metric, a function, other schedulers.
_UNUSABLE = {
    "LRScheduler",
    "ReduceLROnPlateau",
    "LambdaLR",
    "MultiplicativeLR",
    "ChainedScheduler",
    "SequentialLR",
}
TORCH_SCHEDULERS = sorted(set(lr_scheduler.__all__) - _UNUSABLE)


class ScheduleConfig(Section):
    """Learning rate by round, starting from training.learning_rate."""

    name: Literal["constant", "cosine", "multi_step", "torch"] = "constant"
    """Rule; see `fedkd list`. Rates change between rounds, never within one."""
    min_learning_rate: float = Field(default=1e-4, ge=0)
    """cosine: rate of the last round. The first round is already below the initial rate, and an
    initial rate below this one rises to it."""
    milestone: int = Field(default=60, ge=0)
    """multi_step: rounds that keep the initial rate."""
    factor: float = Field(default=0.1, gt=0, le=1)
    """multi_step: multiplies the rate once in every round after those, so it compounds."""
    scheduler: str = ""
    """torch: class in torch.optim.lr_scheduler, such as CosineAnnealingLR. The first round has the
    rate that it starts with. Only its rate is used, not the momentum that some of them change."""
    options: dict[str, Any] = {}
    """torch: arguments of the scheduler by name, such as T_max = 10, in rounds where torch says
    steps or epochs."""

    @model_validator(mode="after")
    def _torch_takes_the_options(self) -> "ScheduleConfig":
        try:
            json.dumps(self.options, allow_nan=False)
        except (TypeError, ValueError):
            raise ValueError(
                f"schedule.options are {self.options}; they must be finite numbers, true, false, "
                "strings and lists of them"
            ) from None
        if self.name == "torch":
            try:
                _torch_rates(self, initial=0.1, num_rounds=1)
            except ConfigError as error:
                raise ValueError(str(error)) from None
        elif self.scheduler and "name" not in self.model_fields_set:
            raise ValueError(
                f"schedule.scheduler is {self.scheduler!r}, but schedule.name is not given; "
                "set it to 'torch'"
            )
        return self


def learning_rates(config: ScheduleConfig, initial: float, num_rounds: int) -> list[float]:
    """The learning rate of each round, the first round first.

    With r = 0 ... T - 1 for the T rounds: cosine is min + (initial - min) / 2 * (1 + cos(pi (r + 1)
    / T)); multi_step is initial * factor^(r - milestone + 1) from r = milestone on.

    Args:
        config: Which rule.
        initial: training.learning_rate, > 0.
        num_rounds: T, at least 1.

    Returns:
        ``num_rounds`` rates, finite and >= 0.

    Raises:
        ConfigError: The torch scheduler refuses, or gives a rate that is negative or not finite.
    Source: cosine and multi_step are ``adjust_learning_rate`` and ``multi_step`` of the Fed-MAS
    code (Elbatel et al., DeCaF 2023).
    """
    rounds = range(num_rounds)
    match config.name:
        case "constant":
            return [initial for _ in rounds]
        case "cosine":
            low = config.min_learning_rate
            return [
                low + (initial - low) / 2 * (1 + math.cos(math.pi * (r + 1) / num_rounds))
                for r in rounds
            ]
        case "multi_step":
            return [initial * config.factor ** max(0, r + 1 - config.milestone) for r in rounds]
        case "torch":
            return _torch_rates(config, initial, num_rounds)


def _torch_rates(config: ScheduleConfig, initial: float, num_rounds: int) -> list[float]:
    name = config.scheduler
    if name not in TORCH_SCHEDULERS:
        near = difflib.get_close_matches(name, TORCH_SCHEDULERS, n=3)
        allowed = f"it must be one of {', '.join(TORCH_SCHEDULERS)}"
        if name in _UNUSABLE:
            allowed = f"that takes a metric, a function or other schedulers; {allowed}"
        elif near:
            allowed = f"did you mean {' or '.join(near)}?"
        raise ConfigError(f"schedule.scheduler is {name!r}; {allowed}")
    # Some schedulers insist on an optimiser that has a momentum.
    optimizer = SGD([torch.zeros(1)], lr=initial)
    rates: list[float] = []
    # torch warns of habits that only matter in training.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            scheduler = getattr(lr_scheduler, name)(optimizer, **config.options)
            for _ in range(num_rounds):
                if rates:
                    scheduler.step()
                rates.append(float(optimizer.param_groups[0]["lr"]))
        # Whatever torch raises here, of whichever type, comes from the options.
        except Exception as error:
            where = f" in round {len(rates) + 1} of {num_rounds}" if rates else ""
            reason = str(*error.args[:1]).partition("\n")[0]
            raise ConfigError(
                f"schedule.options are {config.options}, but {name} refused them{where}: {reason}; "
                f"give the arguments of torch.optim.lr_scheduler.{name}"
            ) from None
    for number, rate in enumerate(rates, start=1):
        if not math.isfinite(rate) or rate < 0:
            raise ConfigError(
                f"schedule.options are {config.options}, but {name} then gives the rate {rate:g} "
                f"in round {number}; it must be finite and at least 0: change the options"
            )
    return rates
