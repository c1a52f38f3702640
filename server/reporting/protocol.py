"""How a run was made, in sentences and keys: what was trained, what was selected on what."""

from typing import Any

import pandas as pd

from clients.factory import OBJECTIVES
from fedkd.config import Section
from fedkd.losses.factory import LOSSES
from fedkd.partitions.factory import PARTITIONS
from fedkd.recipe import Recipe
from server.reporting.grouping import shown_value
from server.reporting.record import Record
from strategies.factory import STRATEGIES

_NOT_A_CHANGE = ("name", "output")


def sentences(record: Record) -> list[str]:
    """The protocol of a run, as its resolved recipe and its summary say it."""
    recipe, summary = record.recipe, record.summary
    images = sum(summary["train_counts"].values())
    given = [name.replace("_", " ") for name in summary.get("given", ())]
    source: str = "images given in Python" if "images" in given else recipe.data.name
    if summary.get("at_hospitals"):
        given.remove("images")
        source = "images that stayed at the hospitals"
    texts = [
        f"Data: {source}, {images:,} training images of {len(summary['train_counts'])} "
        f"classes, the largest with {summary['train_imbalance']:.3g} times the images of the "
        f"smallest. {_division(record)}"
    ]
    if given:
        texts.append(
            f"Given in Python, not named by the config: {', '.join(given)}. The config alone does "
            "not repeat this run."
        )
    texts += [_training(recipe), _aggregation(record)]
    if recipe.privacy.name != "none":
        texts.append(
            f"Privacy: {recipe.privacy.name} clipping with central noise, noise multiplier "
            f"{recipe.privacy.noise_multiplier:g}, clipping norm {recipe.privacy.clipping_norm:g}, "
            f"delta {recipe.privacy.delta:g}."
        )
    patience = recipe.evaluation.patience
    stop = f" Training stops after {patience} rounds without a better one." if patience else ""
    texts.append(
        f"Selection: after each round the student is evaluated on val; the one of the round with "
        f"the best val {recipe.evaluation.select_on.replace('_', ' ')} (the first of equals) is "
        f"evaluated on test, once. No choice was made on test.{stop}"
    )
    if summary.get("scored_by") == "neighbours":
        texts.append(
            "No classifier was trained: images are predicted by their nearest labelled val images."
        )
    texts.append(
        "Metrics are of pooled counts over all test images; classes without an image enter no "
        "mean. Head, medium and tail are classes by their number of training images."
    )
    return texts


def _division(record: Record) -> str:
    recipe, num_clients = record.recipe, len(record.summary["clients"])
    if record.summary["mode"] == "centralized":
        return "All training images are in one place (centralized)."
    if record.summary.get("at_hospitals"):
        return f"Each of the {num_clients} hospitals trained on its own."
    if num_clients == 1:
        return "One client has all training images."
    how = PARTITIONS[recipe.partition.name]
    return f"Divided over {num_clients} clients ({recipe.partition.name}: {how})."


def _training(recipe: Recipe) -> str:
    training, objective = recipe.training, recipe.objective
    loss = LOSSES[objective.loss].description if objective.name != "moco" else ""
    distilled = (
        f" from the teacher {recipe.teacher.name}" if objective.name in ("ekd", "fopro") else ""
    )
    return (
        f"Local training: student {recipe.student.name} ({recipe.student.init} initial weights), "
        f"objective {objective.name} ({OBJECTIVES[objective.name]}){distilled}"
        + (f", loss {objective.loss} ({loss})" if loss else "")
        + f"; {training.local_epochs} epoch(s) a round, {training.optimizer}, learning rate "
        f"{training.learning_rate:g} ({recipe.schedule.name}), batches of {training.batch_size}, "
        f"sampling {training.sampling}, augmentation {recipe.augmentation.name}"
        + (", backbones in bfloat16" if recipe.engine.mixed_precision == "bfloat16" else "")
        + f"; seed {recipe.seed}."
    )


def _aggregation(record: Record) -> str:
    recipe = record.recipe
    rounds = f"{recipe.num_rounds} rounds"
    if record.summary["mode"] == "centralized":
        return f"{rounds} in a plain loop; nothing is aggregated."
    strategy = recipe.strategy
    if strategy.exchange == "nothing":
        return (
            f"{rounds}; nothing travels: every hospital trains alone, and each val and test image "
            "is predicted by its own hospital's student."
        )
    options = ", ".join(f"{key} {value:g}" for key, value in strategy.options().items())
    entry = STRATEGIES.get(strategy.name)
    what = entry.description if entry else "not in this version of fedkd"
    return (
        f"{rounds} of aggregation by {strategy.name} ({what}{'; ' if options else ''}{options}), "
        f"fraction {strategy.fraction_train:g} of the clients in each, exchange "
        f"{strategy.exchange}."
    )


def changed_keys(recipe: Recipe) -> pd.DataFrame:
    """The keys that differ from their defaults: key, value, default."""
    rows = [
        {"key": key, "value": shown_value(value), "default": shown_value(default)}
        for key, value, default in _changes(recipe, Recipe(), "")
        if key not in _NOT_A_CHANGE
    ]
    return pd.DataFrame(rows, columns=["key", "value", "default"])


def _changes(config: Section, default: Section, prefix: str) -> list[tuple[str, Any, Any]]:
    """Keys, values and defaults; sections of another kind are set against their own defaults."""
    changes: list[tuple[str, Any, Any]] = []
    values = config.model_dump(mode="json")
    other = default.model_dump(mode="json") if isinstance(default, type(config)) else None
    for name, field in type(config).model_fields.items():
        shown = field.alias or name
        key, value = f"{prefix}{shown}", getattr(config, name)
        if other is not None:
            standard: Any = getattr(default, name)
            plain = other[shown]
        elif field.is_required():
            standard, plain = None, "none, it must be given"
        else:
            standard = field.get_default(call_default_factory=True)
            plain = standard
        if isinstance(value, Section):
            if isinstance(standard, Section) and not isinstance(standard, type(value)):
                named = getattr(standard, "name", None), getattr(value, "name", None)
                changes.append((f"{key}.name", named[1], named[0]))
            inner = _changes(value, standard, f"{key}.")
            changes += [one for one in inner if one[0] not in {old[0] for old in changes}]
        elif values[shown] != (list(plain) if isinstance(plain, tuple) else plain):
            changes.append((key, values[shown], plain))
    return changes


def command(record: Record) -> str:
    """The command that repeats the run."""
    if record.summary.get("at_hospitals"):
        config = f'config="{record.path.name}/config.toml"'
        return f"flwr run . --run-config '{config} server-data=\"FOLDER\"'"
    verb = "centralized" if record.summary["mode"] == "centralized" else "run"
    return f"fedkd {verb} {record.path.name}/config.toml"
