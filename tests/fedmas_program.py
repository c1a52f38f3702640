"""The program that FedMAS's users know, with fedkd's corrections, in plain PyTorch and float64.

Written from a description of what the program does, not from fedkd's code, of which it uses only
the networks: an oracle for whole runs. Corrections: the teacher is always in eval mode, Adam and
AdamW have the configured learning rate and work everywhere, LDAM's heads are trained, MOON's frozen
networks may be in eval mode, a single round is never re-weighted, integer buffers keep the largest
count, and the aggregate of every round counts.
"""

import copy
import dataclasses
import math
from collections import OrderedDict

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from tests import fedmas_inputs as inputs

NUM_CLASSES = inputs.NUM_CLASSES


@dataclasses.dataclass(frozen=True)
class Case:
    """Settings of a run, under the names that fedkd has for them."""

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
    num_clients: int = 3
    network: str = "resnet8"

    @classmethod
    def of_figures(cls, config):
        """The case that a config in fedmas_reference.json describes."""
        return cls(
            objective={"fedavg": "supervised", "fedmas": "ekd"}[config["method"]],
            loss=config["loss_fn_name"].lower(),
            strategy={"avg": "fedavg", "mas": "mas"}[config["aggregate_method"]],
            num_rounds=config["comm_round"],
            batch_size=config["batch_size"],
            local_epochs=config["epochs"],
            learning_rate=config["lr"],
            weight_decay=config["wd"],
            lambda_f=float(config["free_u"]),
            num_clients=config["client_number"],
            network="resnet18",
        )

    def recipe(self):
        """The same run as a config of fedkd."""
        method = {"mu": self.mu}
        if self.objective == "moon":
            method |= {"temperature": self.temperature, "frozen_mode": self.frozen_mode}
        return {
            "num_rounds": self.num_rounds,
            "student": {"name": self.network},
            "objective": {
                "name": self.objective,
                "loss": self.loss,
                "lambda_f": self.lambda_f,
                "ramp_down_after": self.ramp_down_after,
                "balanced_distillation": self.balanced_distillation,
            },
            **({self.objective: method} if self.objective in ("fedprox", "moon") else {}),
            "training": {
                "optimizer": self.optimizer,
                "learning_rate": self.learning_rate,
                "weight_decay": self.weight_decay,
                "batch_size": self.batch_size,
                "local_epochs": self.local_epochs,
                "dtype": "float64",
                "shuffle": False,
                "drop_last": True,
            },
            "schedule": {"name": self.schedule, "milestone": self.milestone},
            "strategy": {"name": self.strategy},
            "augmentation": {"name": "none"},
            "evaluation": {"personalised": False},
            "engine": {"device": "cpu"},
        }

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
    """Backbone and heads of a method, with the initial weights that the tensors' names give."""

    def __init__(self, case, backbone, width, teacher_width):
        super().__init__()
        self.backbone = copy.deepcopy(backbone)

        def head(num_features):
            if case.loss == "ldam":
                return nn.Sequential(OrderedDict(ldam=Cosine(num_features)))
            return nn.Linear(num_features, NUM_CLASSES)

        if case.objective == "moon":
            self.p1, self.p2, self.fc = nn.Linear(width, width), nn.Linear(width, 256), head(256)
        else:
            self.fc = head(width)
        if case.objective == "ekd":
            self.p_free = nn.Sequential(
                nn.Linear(width, width),
                nn.BatchNorm1d(width),
                nn.ReLU(),
                nn.Linear(width, teacher_width),
            )
            self.fc_free = head(teacher_width)
        initialise(self)
        self.double()

    def forward(self, x):
        """Logits, projection and logits of the second head; None where there is none."""
        features = self.backbone(x)
        if hasattr(self, "p1"):
            projection = self.p2(self.p1(features).relu())
            return self.fc(projection), projection, None
        if not hasattr(self, "p_free"):
            return self.fc(features), None, None
        projection = self.p_free(features)
        return self.fc(features), projection, self.fc_free(projection)


def initialise(network, prefix=""):
    """Give a network the weights that belong to the names of its tensors."""
    state = network.state_dict()
    plain = [(name.removeprefix("backbone."), tuple(t.shape)) for name, t in state.items()]
    values = inputs.init_all(plain, prefix)
    network.load_state_dict(
        {name: torch.from_numpy(v) for name, v in zip(state, values.values(), strict=True)}
    )


def effective_number(n, beta):
    weights = torch.where(n > 0, (1 - beta) / (1 - beta**n), 0.0)
    return weights * (n > 0).sum() / weights.sum()


def supervised(case, logits, y, n, late):
    """Loss per example and its weight; the loss of a batch is the weighted mean."""
    weights = torch.ones_like(n)
    if case.loss in ("bsm", "logit_adjustment"):
        logits = logits + torch.log(n / n.sum() + 1e-12)
    elif case.loss == "lcc":
        logits = logits - 0.5 * n.clamp(min=1e-8) ** -0.25
    elif case.loss == "cb":
        weights = effective_number(n, 0.9999)
    elif case.loss == "rw":
        weights = torch.where(n > 0, n.sum() / (NUM_CLASSES * n), 0.0)
    elif case.loss == "ldam":
        margins = torch.where(n > 0, n**-0.25, 0.0)
        margins = margins * 0.5 / margins.max()
        logits = 30 * (logits - margins * F.one_hot(y, NUM_CLASSES))
        weights = effective_number(n, 0.9999 if late else 0.0)
    losses = F.cross_entropy(logits, y, reduction="none")
    if case.loss.startswith("focal"):
        p = torch.exp(-losses)
        losses = (1 - (p.detach() if case.loss == "focal_detached" else p)) ** 2 * losses
    return losses, weights[y]


def weighted_mean(losses, weights):
    return (losses * weights).sum() / weights.sum()


def distance(p, t):
    return 2 - 2 * F.cosine_similarity(p, t, eps=1e-12)


class Client:
    """A hospital: its images, its optimiser's state and, for MOON, its previous network."""

    def __init__(self, case, pixels, labels, network, teacher):
        self.case, self.teacher = case, teacher
        x, y = torch.from_numpy(pixels).double(), torch.tensor(labels)
        size = case.batch_size
        self.batches = [
            (x[i : i + size], y[i : i + size]) for i in range(0, len(y) - size + 1, size)
        ]
        self.n = torch.bincount(y, minlength=NUM_CLASSES).double()
        self.num_samples = len(self.batches) * size
        self.network, self.received = copy.deepcopy(network), copy.deepcopy(network)
        self.previous = copy.deepcopy(network)
        self.rate = case.learning_rate
        parameters, decay = list(self.network.parameters()), case.weight_decay
        self.optimizer = {
            "sgd": lambda: torch.optim.SGD(
                parameters, self.rate, momentum=0.9, nesterov=True, weight_decay=decay
            ),
            "adam": lambda: torch.optim.Adam(parameters, self.rate, weight_decay=decay),
            "adamw": lambda: torch.optim.AdamW(parameters, self.rate, weight_decay=decay),
        }[case.optimizer]()

    def train(self, r, state):
        """Round r = 0, 1 ... from the received state; everything that is known afterwards."""
        case = self.case
        self.network.load_state_dict(state)
        self.received.load_state_dict(state)
        a, c = torch.zeros(NUM_CLASSES).double(), torch.zeros(NUM_CLASSES).double()
        if case.strategy != "fedavg":
            self.network.eval()
            with torch.no_grad():
                for x, y in self.batches:
                    a += self._by_class(self._loss(r, x, y)[2], y)
        self.network.train()
        for frozen in (self.received, self.previous):
            frozen.train(case.frozen_mode == "train")
        for group in self.optimizer.param_groups:
            group["lr"] = self._next_rate(r)
        steps = []
        for x, y in self.batches * case.local_epochs:
            self.optimizer.zero_grad()
            total, terms, _, of_classes = self._loss(r, x, y)
            total.backward()
            norm = float("nan")
            if case.objective in ("ekd", "moon"):
                norm = nn.utils.clip_grad_norm_(self.network.parameters(), 5.0).item()
            self.optimizer.step()
            if of_classes is not None:
                c += self._by_class(of_classes.detach(), y)
            values = {name: term.item() for name, term in terms.items()}
            steps.append({"loss": total.item(), "norm": norm, **values})
        self.previous.load_state_dict(self.network.state_dict())
        return {
            "num_samples": self.num_samples,
            "lr": self.rate,
            **{name: [step[name] for step in steps] for name in steps[0]},
            "class_weights": a.numpy(),
            "class_losses": c.numpy(),
            "robust_factor": self._robust_factor(a, c) if a.any() else 0.0,
            "state": copy.deepcopy(self.network.state_dict()),
        }

    def _next_rate(self, r):
        case = self.case
        if case.schedule == "cosine":
            arc = 1 + math.cos(math.pi * (r + 1) / case.num_rounds)
            self.rate = 1e-4 + (case.learning_rate - 1e-4) / 2 * arc
        elif case.schedule == "multi_step" and r >= case.milestone:
            self.rate *= 0.1
        return self.rate

    def _loss(self, r, x, y):
        """Total, its terms, the loss per example of the scores and that of the class losses."""
        case, late = self.case, self.case.is_late(r)
        out1, p, out2 = self.network(x)
        losses, weights = supervised(case, out1, y, self.n, late)
        total = sup = weighted_mean(losses, weights)
        terms = {"loss_supervised": sup}
        if case.objective == "fedprox":
            pairs = zip(self.network.parameters(), self.received.parameters(), strict=True)
            terms["loss_proximal"] = (
                case.mu / 2 * sum(((w - v.detach()) ** 2).sum() for w, v in pairs)
            )
            total = total + terms["loss_proximal"]
        elif case.objective == "moon":
            with torch.no_grad():
                others = [self.received(x)[1], self.previous(x)[1]]
            cosines = torch.stack([F.cosine_similarity(p, z) for z in others], dim=1)
            target = torch.zeros(len(y), dtype=torch.long)
            contrastive = F.cross_entropy(cosines / case.temperature, target)
            terms["loss_contrastive"] = contrastive
            total = total + case.mu * contrastive
        elif case.objective == "ekd":
            total = total + weighted_mean(*supervised(case, out2, y, self.n, late))
            if case.lambda_f == 0:
                return total, terms, losses, losses
            free = distance(p, self.teacher(x))
            v = effective_number(self.n, 0.9999 if late and case.balanced_distillation else 0.0)
            balanced = free * v[y]
            terms["loss_distillation"] = balanced.mean()
            total = total + self._lambda(r) * balanced.mean()
            return total, terms, free, balanced
        return total, terms, losses, losses

    def _lambda(self, r):
        s, t = self.case.ramp_down_after, self.case.num_rounds
        if s is None or r < s:
            return self.case.lambda_f
        return self.case.lambda_f * (1 - min(1, (r - s) / (t - s)))

    def _by_class(self, losses, y):
        sums = torch.zeros(NUM_CLASSES).double().index_add(0, y, losses)
        return sums / self.n.clamp(min=1)

    def _robust_factor(self, a, c):
        z = a != 0
        if self.case.strategy == "mas_inv":
            c = torch.where(z & (c != 0), 1 / c, 0.0)
        return ((a / a.sum()) * (c / c.sum()))[z].sum().item()


def aggregation_weights(case, r, num_samples, factors):
    sizes, factors = np.array(num_samples, float), np.array(factors)
    weights = sizes
    if case.strategy in ("mas", "mas_inv"):
        weights = factors
    elif case.strategy == "mas_drw" and case.is_late(r):
        u = (1 / factors) / (1 / factors).sum()
        weights = sizes * (1 - 0.9999) / (1 - 0.9999**u)
    return weights / weights.sum()


def run(case, backbone, width, sites, test, teacher=None):
    """A row per round: what each client did, its weight, the aggregate and its test logits."""
    teacher_width = 0
    if teacher is not None:
        teacher = copy.deepcopy(teacher).double().eval().requires_grad_(False)
        teacher_width = teacher(torch.zeros(1, *test.shape[1:]).double()).shape[1]
    network = Network(case, backbone, width, teacher_width)
    clients = [Client(case, *site, network, teacher) for site in sites]
    state, rounds = network.state_dict(), []
    for r in range(case.num_rounds):
        replies = [client.train(r, state) for client in clients]
        weights = aggregation_weights(
            case, r, *([reply[k] for reply in replies] for k in ("num_samples", "robust_factor"))
        )
        state = {}
        for name in network.state_dict():
            tensors = [reply["state"][name] for reply in replies]
            if tensors[0].is_floating_point():
                state[name] = sum(w * t for w, t in zip(weights, tensors, strict=True))
            else:
                state[name] = torch.stack(tensors).amax(0)
        network.load_state_dict(state)
        with torch.no_grad():
            logits = network.eval()(torch.from_numpy(test).double())[0]
        rounds.append({"clients": replies, "weights": weights, "state": state, "logits": logits})
    return rounds
