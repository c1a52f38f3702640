"""MoCo: hospitals make a teacher together, without labels, by momentum contrast."""

from collections.abc import Mapping

import torch
from torch import Tensor

from clients.objective import OnStep, Stateless
from fedkd import seeding
from fedkd.data.loading import Loader
from fedkd.models.student import MOCO_PROJECTION, Student
from fedkd.pretraining.momentum import enqueue_, follow_, new_queue, queue_nt_xent
from fedkd.pretraining.simclr import random_views
from fedkd.recipe import MoCoConfig
from fedkd.training import Losses

_KEY = "key."


class MoCo(Stateless):
    """L = InfoNCE of one random view of each image against another one and a queue of others.

    The query is the student's, the key that of a momentum encoder which begins each round as the
    received student, so that only the student travels (our choice). The queue stays with the
    client; it holds at most half as many keys as the client has images (our choice): one image in
    six then has its own key of the epoch before among its negatives, and with as many keys as
    images every second one would. Labels are never read.

    Args:
        config: Section ``moco``.
        seed: The experiment's.
        partition_id: Names this client's random streams.

    Source: He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR
    2020; Chen et al., "Improved Baselines with Momentum Contrastive Learning", 2020 (MoCo v2: head
    of two layers, temperature 0.2). Differs: the views are those of ``random_views``, and batches
    are not shuffled for BatchNorm, as there is one device.
    """

    clip_norm: float | None = None

    def __init__(self, config: MoCoConfig, seed: int, partition_id: int) -> None:
        self._config = config
        self._seed = seed
        self._partition_id = partition_id
        self._key: Student | None = None
        self._draws: torch.Generator | None = None
        self._queue: Tensor | None = None
        self._position = 0

    def state(self) -> dict[str, Tensor]:
        """The queue, float (num_keys, 128), and the place of its oldest key."""
        assert self._queue is not None, "start_round() comes first"
        return {"queue": self._queue.clone(), "position": torch.tensor(self._position)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from :meth:`state`."""
        self._queue, self._position = state["queue"].clone(), int(state["position"])

    def start_round(
        self, student: Student, loader: Loader, round_number: int, on_step: OnStep | None = None
    ) -> dict[str, float]:
        """Start the momentum encoder from the received student; random keys in the first round."""
        keys = (round_number, self._partition_id)
        self._key = student.frozen_copy().train()
        self._draws = seeding.generator(self._seed, "moco-views", *keys)
        if self._queue is None:
            generator = seeding.generator(self._seed, "moco-queue", self._partition_id)
            self._queue = new_queue(
                self._config.queue_size, len(loader), MOCO_PROJECTION, generator
            )
        self._queue = self._queue.to(loader.device, loader.dtype)
        return {}

    def loss(self, student: Student, pixels: Tensor, labels: Tensor) -> Losses:
        """Loss of a batch; the queue then holds its keys."""
        assert self._key is not None, "start_round() comes first"
        assert self._draws is not None, "start_round() comes first"
        assert self._queue is not None, "start_round() comes first"
        size = self._config.view_size or min(pixels.shape[-2:])
        # Drawn and resampled on the CPU in float32, whatever device and dtype training has.
        images = pixels.float().cpu()
        first, second = (random_views(images, size, self._draws).to(pixels) for _ in range(2))
        query = student.project(first)
        with torch.no_grad():
            follow_(self._key, student, self._config.momentum)
            key = self._key.project(second)
        # A copy, as the backward pass reads these keys after the queue has taken the new ones.
        queue = self._queue.clone()
        per_example = queue_nt_xent(query, key, queue, self._config.temperature)
        self._position = enqueue_(self._queue, self._position, key)
        total = per_example.mean()
        return Losses(total, per_example, {"loss": total, "loss_contrastive": total})

    def step_state(self) -> dict[str, Tensor]:
        """The queue, the momentum encoder and the generator of the views."""
        assert self._key is not None, "start_round() comes first"
        assert self._draws is not None, "start_round() comes first"
        key = {_KEY + name: tensor for name, tensor in self._key.state_dict().items()}
        return {**self.state(), "draws": self._draws.get_state(), **key}

    def load_step_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from :meth:`step_state`."""
        assert self._key is not None, "start_round() comes first"
        assert self._draws is not None, "start_round() comes first"
        self.load_state(state)
        self._draws.set_state(state["draws"].cpu())
        key = {n.removeprefix(_KEY): t for n, t in state.items() if n.startswith(_KEY)}
        self._key.load_state_dict(key)

    def scores(
        self, student: Student, pixels: Tensor, labels: Tensor, target: Tensor | None
    ) -> Tensor:
        """Never asked for: recipes with a strategy that scores classes are refused."""
        raise AssertionError("moco has no scores of classes")
