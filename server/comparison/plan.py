"""The cells of a comparison: every combination of its axes and seeds, as recipes."""

import functools
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, get_args

from fedkd import config
from fedkd.aggregation import StrategyName
from fedkd.comparing import Choice
from fedkd.errors import ConfigError
from fedkd.recipe import Recipe
from server.comparison.axes import Axis, applied, chosen, label_of, read_axes
from server.comparison.measures import BASELINES, JOINT
from server.results import Mode

LOCAL, POOLED = BASELINES
_LONGEST_NAME = 120

Key = tuple[str, Mode]
"""What a run is known by: hash of its recipe, and mode."""


@dataclass(frozen=True)
class Cell:
    """One run of a comparison.

    Attributes:
        setting: The data-like values that vary, in words; "" if none varies.
        arm: Strategy and all else that varies, or the baselines ``local`` and ``pooled``.
        seed: That of the recipe.
        recipe: What is run; its name is the cell's folder.
        mode: federated, or centralized for ``pooled``.
    """

    setting: str
    arm: str
    seed: int
    recipe: Recipe
    mode: Mode

    @functools.cached_property
    def key(self) -> Key:
        """Cells of one key are one run."""
        return self.recipe.hash(), self.mode

    @property
    def label(self) -> str:
        """The cell in words."""
        return f"{self.setting + ', ' if self.setting else ''}{self.arm}, seed {self.seed}"


@dataclass(frozen=True)
class Plan:
    """What is run, and against what.

    Attributes:
        cells: Seed by seed, setting by setting, arm by arm, so that what is there after an
            interruption is balanced. Cells of one key have one recipe, that of the first.
        reference: Label of the arm that others are set against.
    """

    cells: tuple[Cell, ...]
    reference: str

    @property
    def settings(self) -> tuple[str, ...]:
        """Labels of the settings, in order."""
        return tuple(dict.fromkeys(cell.setting for cell in self.cells))

    @property
    def arms(self) -> tuple[str, ...]:
        """Labels of the arms, in order."""
        return tuple(dict.fromkeys(cell.arm for cell in self.cells))

    @property
    def runs(self) -> dict[Key, Cell]:
        """The first cell of each key."""
        return {cell.key: cell for cell in reversed(self.cells)}


class _Draft(NamedTuple):
    """A combination before it is a recipe: its parts' labels, by axis, and its values."""

    setting: tuple[str, ...]
    arm: tuple[str, ...]
    values: dict[str, Any]
    baseline: str = ""


def plan(recipe: Recipe) -> Plan:
    """All cells of a recipe's comparison, each validated.

    Axes of sections ``data``, ``long_tail``, ``partition`` and ``shortcut``, and ``num_clients``,
    make settings; all others make arms. The strategy of ``compare.reference`` and fedavg are added
    if they are not among the strategies. The baselines come once for each combination of the axes
    that mean something to them: ``local`` is fedavg with ``strategy.exchange = "nothing"``,
    ``pooled`` is trained centralized with one client and knows neither partition nor strategy; of
    both, privacy is none, as nothing travels, nor do prompts of ``local``, and no faults are
    simulated.

    A choice (a name or a table) is laid over the recipe's section; where it has another name, what
    is left of the section is :data:`server.comparison.axes.KEPT`. Cells compute with one thread
    unless the recipe says otherwise: the number of threads can change the last bits, and workers
    share the processor.

    Raises:
        ConfigError: One line for each thing that is wrong, with the cells that it concerns.
    """
    compare = recipe.compare
    _check_seeds(compare.seeds)
    base = recipe.model_dump(mode="json", exclude_none=True) | {"compare": {}}
    base["engine"].setdefault("num_threads", 1)
    strategies, reference = _strategies(recipe, base["strategy"])
    data_axes, arm_axes = read_axes(recipe, base)
    drafts = []
    for setting in _combinations(base, data_axes):
        for strategy in zip(strategies.values, strategies.labels, strict=True):
            start = applied(setting.values, strategies.key, strategy[0])
            drafts += [
                _Draft(setting.arm, (strategy[1], *draft.arm), draft.values)
                for draft in _combinations(start, arm_axes)
            ]
        for name in compare.baselines:
            drafts += [
                _Draft(setting.arm, (name, *draft.arm), _baseline(draft.values, name), name)
                for draft in _combinations(setting.values, arm_axes)
            ]
    cells = [cell for seed in compare.seeds for cell in _of_seed(drafts, seed)]
    _check_engines(cells, compare.workers)
    return Plan(_one_name_each(cells), _reference_arm(reference, cells))


def _check_seeds(seeds: Sequence[int]) -> None:
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ConfigError(
            f"compare.seeds is {list(seeds)}; it must be whole numbers from 0 on, each once, and "
            "at least one; three or more show an uncertainty"
        )


def _check_engines(cells: Sequence[Cell], workers: int) -> None:
    names = {cell.recipe.engine.name for cell in cells} - {"inprocess"}
    if names and workers > 1:
        raise ConfigError(
            f"engine.name is {min(names)!r} with compare.workers = {workers}, but each of these "
            "processes would start workers of its own for the same cores; set compare.workers = 1, "
            "or engine.name = 'inprocess'"
        )


def _strategies(recipe: Recipe, section: Mapping[str, Any]) -> tuple[Axis, str]:
    """The axis of strategies with what is always in, and the label of the reference."""
    choices: list[Choice] = list(recipe.compare.strategies) or [recipe.strategy.name]
    reference = recipe.compare.reference

    def labels(choices: Sequence[Choice]) -> list[str]:
        return [label_of(choice, section) for choice in choices]

    def named(wanted: str) -> list[str]:
        if wanted in labels(choices):
            return [wanted]
        return [
            label
            for label, choice in zip(labels(choices), choices, strict=True)
            if chosen(section, choice, "strategy")["name"] == wanted
        ]

    plain = chosen(section, "fedavg", "strategy")
    if all(chosen(section, choice, "strategy") != plain for choice in choices):
        choices.insert(0, "fedavg")
    if not named(reference):
        if reference not in get_args(StrategyName):
            raise ConfigError(
                f"compare.reference is {reference!r}; it must be a strategy, or one of "
                f"compare.strategies as it is labelled: {', '.join(map(repr, labels(choices)))}"
            )
        choices.insert(0, reference)
    if len(found := named(reference)) > 1:
        raise ConfigError(
            f"compare.reference is {reference!r}, of which compare.strategies has several; name "
            f"one of them as it is labelled: {' or '.join(map(repr, found))}"
        )
    return Axis("strategy", choices, labels(choices)), found[0]


def _combinations(values: dict[str, Any], axes: Sequence[Axis]) -> list[_Draft]:
    """Values with every combination of the axes; labels, as ``arm``, of the axes that vary."""
    drafts = []
    for numbers in itertools.product(*(range(len(axis.values)) for axis in axes)):
        changed = values
        chosen = list(zip(axes, numbers, strict=True))
        for axis, number in chosen:
            changed = applied(changed, axis.key, axis.values[number])
        labels = tuple(axis.labels[number] for axis, number in chosen if len(axis.values) > 1)
        drafts.append(_Draft((), labels, changed))
    return drafts


def _baseline(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    values = {**values, "faults": {}}
    if name == POOLED:
        return {**values, "num_clients": 1, "partition": {}, "strategy": {}, "privacy": {}}
    fraction = values["strategy"]["fraction_train"]
    alone = {"name": "fedavg", "fraction_train": fraction, "exchange": "nothing"}
    prompts = {**values["prompts"], "shared": "no"}
    return {**values, "strategy": alone, "privacy": {}, "prompts": prompts}


def _of_seed(drafts: Sequence[_Draft], seed: int) -> list[Cell]:
    """The cells of a seed; ConfigError for all that are wrong, and for two arms that are one."""
    cells: dict[tuple[str, Key], tuple[Cell, _Draft]] = {}
    first_in: dict[Key, str] = {}
    wrong: dict[str, list[str]] = {}
    for draft in drafts:
        setting = ", ".join(draft.setting)
        arm = JOINT.join(draft.arm)
        label = f"{setting + ', ' if setting else ''}{arm}"
        try:
            recipe = config.build(Recipe, {**draft.values, "seed": seed}, where="[compare]")
        except ConfigError as error:
            for line in str(error).splitlines():
                # What is wrong with the arms too is not mended by leaving baselines out.
                alone = bool(draft.baseline) and line not in wrong
                hint = "; compare.baselines can leave it out" * alone
                wrong.setdefault(line + hint, []).append(label)
            continue
        mode: Mode = "centralized" if draft.baseline == POOLED else "federated"
        cell = Cell(setting, arm, seed, recipe, mode)
        same = cells.get((setting, cell.key))
        if draft.baseline != POOLED and first_in.setdefault(cell.key, setting) != setting:
            # As a block of its own it would count twice in every test.
            text = f"is the same recipe as in {first_in[cell.key]}; name each setting once"
            wrong.setdefault(text, []).append(label)
        elif same is None:
            cells[setting, cell.key] = cell, draft
        elif draft.baseline and draft.baseline == same[1].baseline:
            # What differs between them means nothing to this baseline.
            common = tuple(part for part in same[1].arm if part in draft.arm)
            merged = replace(same[0], arm=JOINT.join(common))
            cells[setting, cell.key] = merged, draft._replace(arm=common)
        else:
            wrong.setdefault("is the same recipe as another; name each once", []).append(label)
    found = [cell for cell, _ in cells.values()]
    labels = [(cell.setting, cell.arm) for cell in found]
    for setting, arm in dict.fromkeys(label for label in labels if labels.count(label) > 1):
        text = "is the label of two recipes; write their options so that they can be told apart"
        wrong.setdefault(text, []).append(f"{setting + ', ' if setting else ''}{arm}")
    if wrong:
        raise ConfigError("\n".join(f"cell {_some(names)}: {t}" for t, names in wrong.items()))
    return found


def _some(names: Sequence[str]) -> str:
    return names[0] + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")


def _one_name_each(cells: Iterable[Cell]) -> tuple[Cell, ...]:
    """Cells whose recipes have names that are safe as folders, one for each key."""
    recipes: dict[Key, Recipe] = {}
    taken: set[str] = set()
    named = []
    for cell in cells:
        key = cell.key
        if key not in recipes:
            name = _slug(f"{cell.setting} {cell.arm}")[:_LONGEST_NAME] + f"-seed{cell.seed}"
            # Two labels may differ by signs alone, or by what was cut off.
            name += f"-{key[0][:8]}" * (name.lower() in taken)
            taken.add(name.lower())
            recipes[key] = cell.recipe.model_copy(update={"name": name})
        named.append(replace(cell, recipe=recipes[key]))
    return tuple(named)


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-.")


def _reference_arm(strategy: str, cells: Sequence[Cell]) -> str:
    """The first arm of the reference strategy; with other axes, that of their first values."""
    return next(c.arm for c in cells if c.arm == strategy or c.arm.startswith(f"{strategy}{JOINT}"))
