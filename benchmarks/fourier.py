"""What Fourier prompts cost, relative to plain EKD.

    python benchmarks/fourier.py [--config configs/quickstart.toml] [--pairs 5] [key=value ...]

First the parts: each runs once per turn, next to an EKD step of the same turn, so that both meet
the same machine; shown are medians of their ratios, with the smallest and the largest. Then whole
trainings of one client over all rounds of the recipe (--rounds), with all that lies in them:
warm-up, first views and renewals in their true proportion, without evaluation on val and test.

Times are those of this process on the CPU, which other processes disturb less than they do the
clock; --wall, and a GPU, take the clock. Real images: data.name=ham10000 data.size=64.
"""

import argparse
import re
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn

from clients.ekd import EKD
from clients.node import Node, State
from fedkd import config, seeding
from fedkd.data.augment import DIHEDRAL
from fedkd.data.loading import in_order
from fedkd.experiment import Experiment, open_experiment
from fedkd.fourier.explore import Explorer
from fedkd.fourier.generators.factory import GENERATORS, make_generator
from fedkd.fourier.prompter import Prompter
from fedkd.losses.factory import make_loss
from fedkd.recipe import Recipe
from fedkd.training import make_optimizer

RENDERING_TARGET, BANK_TARGET = 0.05, 0.8
NUM_VIEWS = 3


class Clock:
    """Seconds of a call, on the processor or on the wall."""

    def __init__(self, wall: bool, device: torch.device) -> None:
        self.device = device
        self.read = time.perf_counter if wall or device.type != "cpu" else time.process_time

    def __call__(self, run: Callable[[], object]) -> float:
        """Time of a call, to the end of what it has given the GPU to do."""
        started = self.read()
        run()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return self.read() - started


def show(what: str, seconds: list[float], ekd: list[float]) -> float:
    """Print one row; returns the median of the ratios to EKD."""
    ratios = [own / other for own, other in zip(seconds, ekd, strict=True)]
    shown = 1000 * median(seconds)
    middle, low, high = median(ratios), min(ratios), max(ratios)
    print(f"{what:<44}{shown:11.1f}{middle:9.3f}   {low:.3f} to {high:.3f}", flush=True)
    return middle


def head(what: str) -> None:
    """Print the titles of a table."""
    print(f"\n{what:<44}{'ms':>11}{'of EKD':>9}   min to max")


def make_step(experiment: Experiment, pixels: Tensor, labels: Tensor) -> Callable[[], None]:
    """A training step of plain EKD, the teacher's pass in it."""
    recipe = experiment.recipe
    counts = torch.from_numpy(experiment.loader(0).class_counts()).to(pixels)
    loss = make_loss(recipe.objective.loss, recipe.losses, counts, 1, recipe.num_rounds)
    ekd = EKD(loss, experiment.teacher_of(0), recipe.objective.lambda_f)
    student = experiment.build_student().train()
    optimizer = make_optimizer(recipe.training, student.parameters(), 1e-3)

    def step() -> None:
        losses = ekd.loss(student, pixels, labels)
        optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 5.0)
        optimizer.step()

    return step


def make_prompter(experiment: Experiment, **changes: object) -> Prompter:
    """An untrained one."""
    settings = experiment.recipe.prompts.model_copy(update=changes)
    with seeding.isolated(0, "benchmark"):
        generator = make_generator(settings, *experiment.splits.train.images.shape[1:])
    if generator is not None:
        generator.to(experiment.device, experiment.dtype)
    return Prompter(settings, generator)


def parts(experiment: Experiment, pixels: Tensor) -> dict[str, Callable[[], object]]:
    """What is timed beside an EKD step."""
    rng = seeding.generator(0, "benchmark")

    def rendering(prompter: Prompter) -> Callable[[], object]:
        return torch.no_grad()(lambda: prompter(pixels, rng))

    conv = make_prompter(experiment, generator="conv", form="gain")
    with torch.no_grad():
        drawn = conv.draw(len(pixels), rng, pixels, per="batch")
        gains = conv.log_gains(drawn.latents)
    table = {
        "FFT and gain": torch.no_grad()(lambda: conv.apply(pixels, gains, drawn.strengths)),
    }
    for name in GENERATORS:
        # Of amplitude_mix each image has a partner of its own.
        for per in ("image",) if name == "amplitude_mix" else ("image", "batch"):
            prompter = make_prompter(experiment, generator=name, form="gain", per=per)
            table[f"rendering {name}, per {per}"] = rendering(prompter)
    own = make_prompter(experiment, generator="conv", form="gain")
    explorer = Explorer(own, experiment.teacher_of(0), experiment.recipe.explore)
    images = pixels[: experiment.recipe.explore.batch_size]
    table[f"exploration step, {len(images)} images"] = lambda: explorer.step(images, rng)
    return table


def train(experiment: Experiment, num_rounds: int) -> None:
    """The client's part of a whole training."""
    node = Node(experiment)
    arrays, state = node.initial_arrays(), State()
    for number in range(1, num_rounds + 1):
        reply, state = node.train(0, arrays, state, number)
        arrays = reply.arrays


def trainings(options: argparse.Namespace) -> dict[str, Experiment]:
    """What is compared end to end, plain EKD first, which asks the teacher in every step."""
    fixed = [*options.overrides, "num_clients=1"]
    if options.rounds:
        fixed.append(f"num_rounds={options.rounds}")

    def opened(*changes: str) -> Experiment:
        return open_experiment(config.load(Recipe, options.config, [*fixed, *changes]))

    table = {
        "ekd": opened("objective.name=ekd", "teacher.views=augmented"),
        "fopro, a prompt per image": opened("objective.name=fopro", "prompts.per=image"),
        "fopro, a prompt per batch": opened("objective.name=fopro", "prompts.per=batch"),
    }
    # Views of the plain image cost one teacher pass each; those of all flips and turns eight, but
    # then the teacher is asked about the very image that the student sees.
    views = ["clean"]
    if table["ekd"].recipe.augmentation.name in DIHEDRAL:
        views.append("dihedral")
    for view in views:
        table[f"fopro, rolling bank, {view} views"] = opened(
            "objective.name=fopro",
            f"prompts.kept_views={NUM_VIEWS}",
            f"teacher.views={view}",
            f"explore.steps_per_round={options.bank_steps}",
        )
    return table


def verdict(what: str, value: float, target: float) -> None:
    """Say whether a target is met."""
    word = "met" if value <= target else "NOT met"
    print(f"target {word}: {what} {value:.3f}, at most {target} is wanted")


def main() -> None:
    """Print both tables and what they say of the targets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/quickstart.toml")
    parser.add_argument("--turns", type=int, default=15, help="of the parts")
    parser.add_argument(
        "--pairs", type=int, default=3, help="of whole trainings; 0 leaves them out"
    )
    parser.add_argument(
        "--only", default="", metavar="REGEX", help="of whole trainings, which are beside ekd"
    )
    parser.add_argument("--rounds", type=int, help="of whole trainings; default the recipe's")
    parser.add_argument("--bank-steps", type=int, default=8, help="exploration steps per renewal")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--wall", action="store_true", help="take the clock on the wall")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    fixed = [*options.overrides, "num_clients=1", "objective.name=fopro"]
    experiment = open_experiment(config.load(Recipe, options.config, fixed))
    recipe, loader = experiment.recipe, experiment.loader(0)
    clock = Clock(options.wall, experiment.device)
    (pixels, labels), *_ = loader.batches(in_order(len(loader), recipe.training.batch_size)[:1])
    print(
        f"{recipe.data.name} at {pixels.shape[-1]} px, {len(loader)} images, batches of "
        f"{len(pixels)}, teacher {recipe.teacher.name}, student {recipe.student.name}, "
        f"{options.threads} thread(s), {clock.read.__name__}"
    )
    step, table = make_step(experiment, pixels, labels), parts(experiment, pixels)
    for run in (step, *table.values()):
        run()  # the first one is slower
    seconds: dict[str, list[float]] = {name: [] for name in table}
    ekd: dict[str, list[float]] = {name: [] for name in table}
    for _ in range(options.turns):
        for name, run in table.items():
            ekd[name].append(clock(step))
            seconds[name].append(clock(run))
    head(f"part, median of {options.turns}")
    steps = [time for times in ekd.values() for time in times]
    show("EKD step", steps, steps)
    ratios = {name: show(name, seconds[name], ekd[name]) for name in table}
    shared = "rendering conv, per batch"
    verdict(f"{shared}, of an EKD step", ratios[shared], RENDERING_TARGET)
    if options.pairs:
        whole_trainings(options, clock)


def whole_trainings(options: argparse.Namespace, clock: Clock) -> None:
    """The second table."""
    table = {
        name: opened
        for name, opened in trainings(options).items()
        if name == "ekd" or re.search(options.only, name)
    }
    num_rounds = table["ekd"].recipe.num_rounds
    seconds: dict[str, list[float]] = {name: [] for name in table}
    for pair in range(options.pairs):
        names = list(table) if pair % 2 == 0 else list(table)[::-1]
        for name in names:
            seconds[name].append(clock(lambda name=name: train(table[name], num_rounds)))
            print(f"  turn {pair + 1}: {name} {seconds[name][-1]:.1f} s", flush=True)
    head(f"training of {num_rounds} rounds, median of {options.pairs}")
    for name, times in seconds.items():
        ratio = show(name, times, seconds["ekd"])
        if "bank" in name:
            verdict(f"{name}, of uncached EKD", ratio, BANK_TARGET)


if __name__ == "__main__":
    main()
