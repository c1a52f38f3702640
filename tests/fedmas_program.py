"""The program that Fed-MAS's users know, with fedkd's corrections, in plain PyTorch and float64.

An oracle for whole runs, written from a description of what that program does and not from fedkd's
code. Corrections: the teacher is always in eval mode, Adam and AdamW have the configured learning
rate, LDAM's heads are trained, every method works with every loss and schedule, MOON's frozen
networks may be in eval mode, a single round is never re-weighted, integer buffers keep the largest
count, and the aggregate of every round counts.
"""

import copy
import math
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from tests import fedmas_inputs as inputs

NUM_CLASSES = inputs.NUM_CLASSES


@dataclass(frozen=True)
class Case:
    """Settings of a run, under the names that fedkd's config has for them."""

    objective: str = "supervised"
    loss: str = "ce"
    strategy: str = "fedavg"
    num_rounds: int = 2
    batch_size: int = 8
    local_epochs: int = 1
    optimizer: str = "sgd"
    learning_rate: float = 0.01
    weight_decay: float = 1e-4
    schedule: str = "constant"
    milestone: int = 60
    lambda_f: float = 3.0
    ramp_down_after: int | None = None
    balanced_distillation: bool = False
    mu: float = 0.45
    temperature: float = 0.5
    frozen_mode: str = "eval"

    def is_late(self, r):
        """Whether round r = 0, 1 ... belongs to the last fifth."""
        return r >= max(1, math.floor(0.8 * self.num_rounds))


class Cosine(nn.Module):
    """LDAM's classifier; its weight is (features, classes)."""

    def __init__(self, num_features):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_features, NUM_CLASSES))

    def forward(self, x):
        return F.normalize(x, dim=1) @ F.normalize(self.weight, dim=0)


class Network(nn.Module):
    """Backbone and heads of a method; gives logits, projection and logits of the second head."""

    def __init__(self, case, backbone, width, teacher_width):
        super().__init__()

        def head(num_features):
            if case.loss == "ldam":
                return nn.Sequential(OrderedDict(ldam=Cosine(num_features)))
            return nn.Linear(num_features, NUM_CLASSES)

        self.backbone = copy.deepcopy(backbone)
        self.objective = case.objective
        if case.objective == "moon":
            self.p1, self.p2 = nn.Linear(width, width), nn.Linear(width, 256)
        elif case.objective == "ekd":
            norm, last = nn.BatchNorm1d(width), nn.Linear(width, teacher_width)
            self.p_free = nn.Sequential(nn.Linear(width, width), norm, nn.ReLU(), last)
            self.fc_free = head(teacher_width)
        self.fc = head(256 if case.objective == "moon" else width)

    def forward(self, x):
        features = self.backbone(x)
        if self.objective == "moon":
            projection = self.p2(self.p1(features).relu())
            return self.fc(projection), projection, None
        if self.objective == "ekd":
            projection = self.p_free(features)
            return self.fc(features), projection, self.fc_free(projection)
        return self.fc(features), None, None


def initialise(network, prefix=""):
    """The network in float64, with the weights that belong to the names of its tensors."""
    names = list(network.state_dict())
    shapes = [(n.removeprefix("backbone."), t.shape) for n, t in network.state_dict().items()]
    values = [torch.from_numpy(value) for value in inputs.init_all(shapes, prefix).values()]
    network.load_state_dict(dict(zip(names, values, strict=True)))
    # The order of the channels in memory makes ResNet-18 twice as fast.
    return network.to(torch.float64, memory_format=torch.channels_last)


def effective_number(n, beta):
    weights = torch.where(n > 0, (1 - beta) / (1 - beta**n), 0.0)
    return weights * (n > 0).sum() / weights.sum()


def supervised(loss, logits, y, n, late):
    """Loss per example and its weight; the loss of a batch is the weighted mean."""
    weights = torch.ones_like(n)
    if loss in ("bsm", "logit_adjustment"):
        logits = logits + torch.log(n / n.sum() + 1e-12)
    elif loss == "lcc":
        logits = logits - 0.5 * n.clamp(min=1e-8) ** -0.25
    elif loss == "cb":
        weights = effective_number(n, 0.9999)
    elif loss == "rw":
        weights = torch.where(n > 0, n.sum() / (NUM_CLASSES * n), 0.0)
    elif loss == "ldam":
        margins = torch.where(n > 0, n**-0.25, 0.0)
        margins = 0.5 * margins / margins.max()
        logits = 30 * (logits - margins * F.one_hot(y, NUM_CLASSES))
        weights = effective_number(n, 0.9999 if late else 0.0)
    losses = -torch.log_softmax(logits, 1)[torch.arange(len(y)), y]
    if loss in ("focal", "focal_detached"):
        p = torch.exp(-losses)
        losses = (1 - (p.detach() if loss == "focal_detached" else p)) ** 2 * losses
    return losses, weights[y]


def weighted_mean(losses, weights):
    return (losses * weights).sum() / weights.sum()


def cosine(a, b):
    return (F.normalize(a, dim=1) * F.normalize(b, dim=1)).sum(1)


class Client:
    """A hospital: its images, its optimiser's state and, for MOON, its previous network."""

    def __init__(self, case, pixels, labels, network, teacher):
        self.case, self.teacher = case, teacher
        x, y, size = torch.from_numpy(pixels).double(), torch.tensor(labels), case.batch_size
        starts = range(0, len(y) - size + 1, size)
        self.batches = [(x[i : i + size], y[i : i + size]) for i in starts]
        self.n = torch.bincount(y, minlength=NUM_CLASSES).double()
        self.network = copy.deepcopy(network)
        self.received, self.previous = (
            copy.deepcopy(network).requires_grad_(False) for _ in range(2)
        )
        kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
        momentum = {"momentum": 0.9, "nesterov": True} if case.optimizer == "sgd" else {}
        self.optimizer = kind[case.optimizer](
            self.network.parameters(),
            lr=case.learning_rate,
            weight_decay=case.weight_decay,
            **momentum,
        )

    def train(self, r, state):
        """Round r = 0, 1 ... from the received state; everything that is known afterwards."""
        case, known = self.case, {"num_samples": len(self.batches) * self.case.batch_size}
        a, c = torch.zeros(2, NUM_CLASSES, dtype=torch.float64)
        self.network.load_state_dict(state)
        self.received.load_state_dict(state)
        if case.strategy != "fedavg":
            self.network.eval()
            with torch.no_grad():
                for x, y in self.batches:
                    a += self._per_class(self._loss(r, x, y)["score"], y)
        known["lr"] = self._set_rate(r)
        self.network.train()
        for frozen in (self.received, self.previous):
            frozen.train(case.frozen_mode == "train")
        for x, y in self.batches * case.local_epochs:
            self.optimizer.zero_grad()
            losses = self._loss(r, x, y)
            losses["loss"].backward()
            if case.objective in ("ekd", "moon"):
                losses["norm"] = nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
            self.optimizer.step()
            c += self._per_class(losses.pop("class_loss").detach(), y)
            losses.pop("score")
            for name, value in losses.items():
                known.setdefault(name, []).append(value.item())
        self.previous.load_state_dict(self.network.state_dict())
        known |= {"class_weights": a.numpy(), "class_losses": c.numpy()}
        known["robust_factor"] = self._robust_factor(a, c) if a.any() else 0.0
        return {**known, "state": copy.deepcopy(self.network.state_dict())}

    def _set_rate(self, r):
        case, group = self.case, self.optimizer.param_groups[0]
        if case.schedule == "cosine":
            arc = 1 + math.cos(math.pi * (r + 1) / case.num_rounds)
            group["lr"] = 1e-4 + (case.learning_rate - 1e-4) / 2 * arc
        elif case.schedule == "multi_step" and r >= case.milestone:
            group["lr"] *= 0.1
        return group["lr"]

    def _loss(self, r, x, y):
        """The loss, its terms, and the losses per example of scores and of class losses."""
        case, late = self.case, self.case.is_late(r)
        out1, projection, out2 = self.network(x)
        losses, weights = supervised(case.loss, out1, y, self.n, late)
        total = weighted_mean(losses, weights)
        weighted = losses * weights
        terms = {"loss_supervised": total, "score": weighted, "class_loss": weighted}
        if case.objective == "fedprox":
            pairs = zip(self.network.parameters(), self.received.parameters(), strict=True)
            term = case.mu / 2 * sum(((w - received) ** 2).sum() for w, received in pairs)
            return {"loss": total + term, **terms, "loss_proximal": term}
        if case.objective == "moon":
            others = [network(x)[1] for network in (self.received, self.previous)]
            cosines = torch.stack([cosine(projection, z) for z in others], 1) / case.temperature
            term = F.cross_entropy(cosines, torch.zeros(len(y), dtype=torch.long))
            return {"loss": total + case.mu * term, **terms, "loss_contrastive": term}
        if case.objective == "ekd":
            projected = weighted_mean(*supervised(case.loss, out2, y, self.n, late))
            total = total + projected
            terms["loss_projected"] = projected
        if case.objective == "ekd" and case.lambda_f:
            free = 2 - 2 * cosine(projection, self.teacher(x))
            v = effective_number(self.n, 0.9999 if late and case.balanced_distillation else 0.0)
            term = (v[y] * free).mean()
            total = total + self._lambda(r) * term
            terms |= {"loss_distillation": term, "score": free, "class_loss": v[y] * free}
        return {"loss": total, **terms}

    def _lambda(self, r):
        s, num_rounds = self.case.ramp_down_after, self.case.num_rounds
        if s is None or r < s:
            return self.case.lambda_f
        return self.case.lambda_f * (1 - min(1, (r - s) / (num_rounds - s)))

    def _per_class(self, losses, y):
        sums = [losses[y == label].sum() for label in range(NUM_CLASSES)]
        return torch.stack(sums) / self.n.clamp(min=1)

    def _robust_factor(self, a, c):
        z = a != 0
        if self.case.strategy == "mas_inv":
            # A class that was scored but never trained on stays at 0.
            c = torch.where(z & (c != 0), 1 / c, c)
        return (a / a.sum() * c / c.sum())[z].sum().item()


def aggregation_weights(case, r, replies):
    sizes = np.array([reply["num_samples"] for reply in replies], float)
    factors = np.array([reply["robust_factor"] for reply in replies])
    weights = sizes
    if case.strategy in ("mas", "mas_inv"):
        weights = factors
    elif case.strategy == "mas_drw" and case.is_late(r):
        u = (1 / factors) / (1 / factors).sum()
        weights = sizes * (1 - 0.9999) / (1 - 0.9999**u)
    return weights / weights.sum()


def aggregate(weights, states):
    return {
        name: sum(w * state[name] for w, state in zip(weights, states, strict=True))
        if first.is_floating_point()
        else torch.stack([state[name] for state in states]).amax(0)
        for name, first in states[0].items()
    }


def run(case, network, sites, test, teacher=None):
    """Run all rounds from the weights that ``network`` has.

    Args:
        case: The settings.
        network: Initial :class:`Network`.
        sites: Pixels (n, 3, h, w) and labels of each client.
        test: Pixels of the test images.
        teacher: For ekd, maps pixels to features.

    Yields:
        For each round what each client did, its weight, the aggregate and its test logits.
    """
    if teacher is not None:
        teacher = copy.deepcopy(teacher).eval().requires_grad_(False)
    network = copy.deepcopy(network)
    clients = [Client(case, *site, network, teacher) for site in sites]
    for r in range(case.num_rounds):
        replies = [client.train(r, network.state_dict()) for client in clients]
        weights = aggregation_weights(case, r, replies)
        network.load_state_dict(aggregate(weights, [reply["state"] for reply in replies]))
        with torch.no_grad():
            logits = network.eval()(torch.from_numpy(test).double())[0]
        state = copy.deepcopy(network.state_dict())
        yield {"clients": replies, "weights": weights, "state": state, "logits": logits}
