"""The training loop of a pre-training, and the checkpoint from which it goes on."""

import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedkd import files
from fedkd.errors import TeacherError
from fedkd.pretraining.config import PretrainConfig

logger = logging.getLogger(__name__)


@dataclass
class Position:
    """How far a pre-training is.

    Attributes:
        step: Optimiser steps done.
        seconds: Time taken so far, over all starts of the command.
        history: What the probe found so far, a row each time.
    """

    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, float | None]] = field(default_factory=list)


def make_optimizer(learner: nn.Module, config: PretrainConfig) -> torch.optim.Optimizer:
    """The optimiser of all parameters that are trained."""
    trained = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    rate, decay = config.learning_rate, config.weight_decay
    if config.optimizer == "sgd":
        return torch.optim.SGD(trained, lr=rate, momentum=0.9, weight_decay=decay)
    return torch.optim.AdamW(trained, lr=rate, weight_decay=decay)


def learning_rate(step: int, config: PretrainConfig) -> float:
    """Of a step, from 0: linear warm-up, then a cosine that would reach 0 after the last."""
    warm_up = config.warm_up_steps
    if step < warm_up:
        return config.learning_rate * ((step + 1) / warm_up)
    done = (step - warm_up) / (config.steps - warm_up)
    return config.learning_rate * (0.5 * (1 + math.cos(math.pi * done)))


def train(
    learner: nn.Module,
    optimizer: torch.optim.Optimizer,
    draw: Callable[[int], tuple[Tensor, Tensor]],
    config: PretrainConfig,
    start: int,
    on_step: Callable[[int, float], None],
) -> None:
    """Train in place.

    Args:
        learner: Its forward pass maps two batches of views to their loss.
        optimizer: Of its parameters.
        draw: Gives two normalised views of the images of a step, each float (batch, 3, size, size).
        config: The recipe.
        start: Steps done before.
        on_step: Told the number of steps done and the loss.

    Raises:
        TeacherError: The loss is not finite, or the weights are not in the end.
    """
    for step in range(start, config.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        learner.train()
        loss = learner(*draw(step))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if not math.isfinite(value := loss.item()):
            raise TeacherError(
                f"the loss is {value} in step {step + 1}; start anew with a smaller learning_rate "
                f"(it is {config.learning_rate}) or more warm_up_steps"
            )
        on_step(step + 1, value)
    # The last step's are in no loss.
    if bad := [name for name, one in learner.named_parameters() if not one.isfinite().all()]:
        raise TeacherError(
            f"weights are not finite after step {config.steps}, first {bad[0]}; start anew with a "
            "smaller learning_rate, or precision = 'float32'"
        )


class Checkpoint:
    """A file with all that a pre-training needs to go on, there whole or not at all.

    Args:
        path: Of the file.
        record: What the weights depend on.
        images: Content hash of the images.
    """

    def __init__(self, path: Path, record: dict[str, Any], images: str) -> None:
        self.path = path
        self._identity = {**_flat(record), "images (their content)": images}

    def save(
        self, learner: nn.Module, optimizer: torch.optim.Optimizer, position: Position
    ) -> None:
        """Write it; TeacherError if that fails."""
        content = {
            "identity": json.dumps(self._identity),
            "learner": learner.state_dict(),
            "optimizer": optimizer.state_dict(),
            "position": vars(position),
        }
        try:
            with files.replacing(self.path) as part:
                torch.save(content, part)
        except (OSError, RuntimeError) as error:  # torch's writer raises the latter
            raise TeacherError(
                f"cannot write the checkpoint {self.path}: {error}; make room there, or choose "
                "another --output"
            ) from None

    def load(self, learner: nn.Module, optimizer: torch.optim.Optimizer) -> Position:
        """Put learner and optimiser where they were; the beginning if there is no checkpoint.

        Raises:
            TeacherError: It cannot be read, or is another recipe's or of other images.
        """
        if not self.path.exists():
            return Position()
        try:
            content = torch.load(self.path, map_location="cpu", weights_only=True)
            identity = dict(json.loads(content["identity"]))
            states = content["learner"], content["optimizer"]
            position = Position(**content["position"])
        except Exception as error:  # what damaged files raise in torch is not documented
            raise TeacherError(
                f"cannot read the checkpoint {self.path} ({type(error).__name__}); delete it to "
                "start from the beginning"
            ) from None
        if identity != self._identity:
            keys = [
                f"{key} was {identity.get(key, 'default')}, is {self._identity.get(key, 'default')}"
                for key in sorted(identity.keys() | self._identity.keys())
                if identity.get(key) != self._identity.get(key)
            ]
            raise TeacherError(
                f"the unfinished pre-training {self.path} is another one ({'; '.join(keys)}); "
                "finish it with its own config, choose another name, or delete it to start anew"
            )
        learner.load_state_dict(states[0])
        optimizer.load_state_dict(states[1])
        logger.info("going on after step %d, from %s", position.step, self.path)
        return position

    def remove(self) -> None:
        """When it is no longer needed."""
        self.path.unlink(missing_ok=True)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
