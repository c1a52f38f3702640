"""Differential privacy around one of Flower's strategies: clip each client's update, add noise.

The clipping and the noise are Flower's own. What is settled here: which tensors it sees (all
floating-point ones together, BatchNorm statistics included; no integers), where its noise comes
from, and what is done to the noisy result.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    Strategy,
)

from fedkd import seeding, wire
from fedkd.aggregation import PrivacyConfig
from fedkd.errors import ConfigError
from strategies.arrays import HeldArray

SMALLEST_VARIANCE = 1e-5
"""Floor of noisy running variances: torch's eps of BatchNorm, which is added to them anyway. Our
choice; below it a variance hardly matters, and below 0 there is no square root."""
VARIANCE = "running_var"
GUARD = "guard"
CLIPPING_NORM = "clipping_norm"
Arrays = Mapping[str, npt.NDArray[Any]]


def with_privacy(
    inner: Strategy,
    config: PrivacyConfig,
    seed: int,
    num_sampled: int,
    received: Callable[[], Arrays],
) -> Strategy:
    """The strategy, or with noise a wrapper of Flower's around it.

    Args:
        inner: Averages or picks students; a step of an optimiser is not covered by the noise.
        config: Section ``privacy``; ``none`` gives ``inner`` back.
        seed: The experiment's, of which the noise of each round is derived.
        num_sampled: Clients of a round, all of which must be among the replies: noise has the
            standard deviation noise_multiplier * clipping_norm / num_sampled.
        received: Gives all arrays that the clients received in this round.

    Raises:
        ConfigError: With ``adaptive``, the clients are too few for the noise.
    """
    if config.name == "none":
        return inner
    return PrivateStrategy(inner, config, seed, num_sampled, received)


class PrivateStrategy(Strategy):
    """One of Flower's wrappers, which sees the arrays that it can handle and must.

    See :func:`with_privacy` for the arguments.

    Source: McMahan et al., "Learning Differentially Private Recurrent Language Models", ICLR 2018
    (fixed); Andrew et al., "Differentially Private Learning with Adaptive Clipping", NeurIPS 2021
    (adaptive).
    """

    def __init__(
        self,
        inner: Strategy,
        config: PrivacyConfig,
        seed: int,
        num_sampled: int,
        received: Callable[[], Arrays],
    ) -> None:
        self._seed = seed
        self._received = received
        self.wrapper = (
            _adaptive(inner, config, num_sampled)
            if config.name == "adaptive"
            else DifferentialPrivacyServerSideFixedClipping(
                inner, config.noise_multiplier, config.clipping_norm, num_sampled
            )
        )

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord, MetricRecord | None]:
        """The noisy aggregate of all floating-point arrays; integers are left out."""
        before = {n: v for n, v in self._received().items() if np.issubdtype(v.dtype, np.floating)}
        shown = list(replies)
        for reply in shown:
            # Taken out first: Flower warns where a record is replaced by one of another type.
            own = cast(ArrayRecord, reply.content.pop(wire.ARRAYS))
            reply.content[wire.ARRAYS] = _guarded({name: own[name].numpy() for name in before}, 1.0)
        self.wrapper.current_arrays = _guarded(before, 0.0)
        # Flower draws its noise from NumPy's global generator.
        with seeding.isolated_numpy(self._seed, "privacy", server_round):
            noisy, metrics = self.wrapper.aggregate_train(server_round, shown)
        assert noisy is not None, "Flower refused replies that were checked"
        released = {name: _released(name, noisy[name], v.shape) for name, v in before.items()}
        return ArrayRecord(released), metrics

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """The norm at which updates are clipped, float64 (); ``adaptive`` moves it each round."""
        return {CLIPPING_NORM: np.array(self.wrapper.clipping_norm, np.float64)}

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from it."""
        self.wrapper.clipping_norm = float(state[CLIPPING_NORM])

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Clients are sampled by the strategy around this one."""
        raise TypeError("SeededStrategy.configure_train samples the clients")

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Clients are asked by the strategy around this one."""
        raise TypeError("SeededStrategy.configure_evaluate asks the clients")

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Nothing to aggregate."""
        return None

    def summary(self) -> None:
        """Log the settings."""
        self.wrapper.summary()


def _adaptive(
    inner: Strategy, config: PrivacyConfig, num_sampled: int
) -> DifferentialPrivacyServerSideAdaptiveClipping:
    # Flower counts clipped clients with a noise of a twentieth of the clients, and can hide the
    # count in no more than twice that.
    if config.noise_multiplier >= num_sampled / 10:
        raise ConfigError(
            f"privacy.noise_multiplier is {config.noise_multiplier:g} with {num_sampled} clients a "
            f"round; privacy.name = 'adaptive' takes less than a tenth of them, "
            f"{num_sampled / 10:g}; lower it, or choose fixed"
        )
    wrapper = DifferentialPrivacyServerSideAdaptiveClipping(
        inner,
        config.noise_multiplier,
        num_sampled,
        initial_clipping_norm=config.clipping_norm,
        target_clipped_quantile=config.target_quantile,
    )
    # Flower (1.41) feeds the fraction of clipped clients to the rule of Andrew et al., which is
    # about those that are not clipped: the norm runs away from the quantile. With the other sign
    # it is the rule for the fraction that is clipped.
    wrapper.clip_norm_lr = -wrapper.clip_norm_lr
    return wrapper


def _guarded(arrays: Arrays, value: float) -> ArrayRecord:
    """The arrays, and a last one without which an update of norm 0 would divide by 0.

    1e-30 changes no norm, and the draw of noise for it comes after all others. Arrays of no
    dimension get one, as Flower scales in place and NumPy's scalars cannot be changed.
    """
    guarded = ArrayRecord({name: HeldArray(np.atleast_1d(v)) for name, v in arrays.items()})
    guarded[GUARD] = HeldArray(np.array([value * 1e-30]))
    return guarded


def _released(name: str, array: Array, shape: tuple[int, ...]) -> Array:
    """The array as it may be seen: whatever is made of it now costs no privacy."""
    values = array.numpy().reshape(shape)
    return HeldArray(np.maximum(values, SMALLEST_VARIANCE) if name.endswith(VARIANCE) else values)
