"""The axes of a comparison: their values, what these are called, and how a recipe takes them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fedkd import config
from fedkd.comparing import Choice
from fedkd.errors import ConfigError
from fedkd.recipe import ObjectiveConfig, Recipe

DATA = ("data", "long_tail", "partition", "shortcut", "num_clients")
"""Keys and sections that say which hospital has which images; axes in them make settings."""
KEPT: dict[str, tuple[str, ...]] = {
    "strategy": ("fraction_train", "exchange"),
    "objective": tuple(ObjectiveConfig.model_fields),
    "teacher": ("precision", "views", "reference", "reference_images"),
    "partition": ("keep_groups", "min_examples"),
}
"""What of the recipe's section is kept where a choice has another name; other keys would be options
of the old name."""
NO_AXES = {
    "seed": "give seeds in compare.seeds",
    "strategy.name": "give strategies in compare.strategies",
    "strategy": "give strategies in compare.strategies",
    "compare": "a comparison does not vary itself",
}


class Axis(NamedTuple):
    """Something that varies: key of the recipe, its values, and what each is called."""

    key: str
    values: Sequence[Any]
    labels: Sequence[str]


def read_axes(recipe: Recipe, base: Mapping[str, Any]) -> tuple[list[Axis], list[Axis]]:
    """The axes that make settings, and those that make arms, strategies left out."""
    compare = recipe.compare
    axes = [
        Axis(section, choices, [label_of(choice, base[section]) for choice in choices])
        for section, choices in (
            ("partition", compare.partitions),
            ("objective", compare.objectives),
            ("teacher", compare.teachers),
        )
        if choices
    ]
    if factors := compare.imbalance_factors:
        labels = [f"imbalance {_text(factor)}" for factor in factors]
        axes.append(Axis("long_tail.imbalance_factor", factors, labels))
    ends = [key.rpartition(".")[2] for key in compare.axes]
    for key, values in compare.axes.items():
        if not values:
            raise ConfigError(f'compare.axes."{key}" is empty; give its values, or leave it out')
        for refused in (key, key.partition(".")[0]):
            if refused in NO_AXES and (refused == key or refused == "compare"):
                raise ConfigError(f'compare.axes has "{key}"; {NO_AXES[refused]}')
        end = key.rpartition(".")[2]
        said = (end if ends.count(end) == 1 else key).replace("_", " ")
        prefix = "" if end == "name" and ends.count(end) == 1 else f"{said} "
        axes.append(Axis(key, values, [prefix + _text(value) for value in values]))
    data = [axis for axis in axes if axis.key.partition(".")[0] in DATA]
    return data, [axis for axis in axes if axis not in data]


def applied(values: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A recipe's values with one key, or section, changed; ``values`` stay as they are."""
    if key in KEPT:
        return {**values, key: chosen(values[key], value, key)}
    for part in reversed(key.split(".")):
        value = {part: value}
    changed = _copied(values)
    config.merge(changed, value, Recipe)
    return changed


def _copied(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _copied(v) if isinstance(v, Mapping) else v for k, v in values.items()}


def chosen(old: Mapping[str, Any], choice: Choice, section: str) -> dict[str, Any]:
    """A section with a choice laid over it; another name keeps :data:`KEPT` alone."""
    table = {"name": choice} if isinstance(choice, str) else choice
    if table.get("name", old["name"]) != old["name"]:
        old = {key: old[key] for key in KEPT[section] if key in old}
    return {**old, **table}


def label_of(choice: Choice, section: Mapping[str, Any]) -> str:
    """What a choice is called: its name, and its options in brackets."""
    if isinstance(choice, str):
        return choice
    options = [f"{k.replace('_', ' ')} {_text(v)}" for k, v in choice.items() if k != "name"]
    return str(choice.get("name", section["name"])) + (f" ({', '.join(options)})" * bool(options))


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "/".join(map(_text, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{key.replace('_', ' ')} {_text(v)}" for key, v in value.items())
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
