"""The command ``fedkd spectrum``: which spatial frequencies networks respond to."""

import argparse
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedkd import files, seeding
from fedkd.data.images import Integers, LabelledImages
from fedkd.data.loading import Loader
from fedkd.device import choose_device
from fedkd.errors import ConfigError, DataError
from fedkd.experiment import open_splits
from fedkd.fourier.priority_curve import BANDS, Interval, ScoreName, priority_curve, read_profiles
from fedkd.recipe import Recipe
from fedkd.teachers.checkpoints import try_out
from server import terminal
from server.commands.probe import probed_recipe
from server.kept_students import kept_rounds
from server.named_models import Named, Network, Opener, name_model
from server.output_folder import output_folder
from server.pictures.spectrum import Measured, plot_heat_maps, plot_spectra
from server.progress import Bar
from server.spectrum_tables import curves_table, summary_table

BATCH_SIZE = 32
SCORES = {
    "ce": "cross-entropy of the true label",
    "top": "largest logit",
    "features": "random projections of the features",
}


def spectrum(options: argparse.Namespace) -> None:
    """``fedkd spectrum``: curves, heat maps, band shares and centroids of learning priorities."""
    terminal.log_to_stderr()
    request = _read(options)
    recipe = request.recipe
    device = choose_device(recipe.engine.device, "engine.device")
    name = re.sub(r"[^\w.-]+", "_", f"spectrum-{Path(request.models[0].text).absolute().name}")
    place = Path(recipe.output) / name
    asked = {key: value for key, value in vars(options).items() if key != "output"}
    question = {**asked, "recipe": recipe.hash()}
    with output_folder(options.output, place, "spectrum", question) as folder:
        opener = Opener(device, request.dataset, request.overrides)
        for named in request.models:
            if named.run is None:
                opener.teacher_config(named)  # a wrong key is found before images are read
        images: LabelledImages = getattr(open_splits(recipe), options.split)
        groups = _groups(images, options, recipe.seed)
        with ExitStack() as stack:
            if recipe.engine.num_threads:
                stack.callback(torch.set_num_threads, torch.get_num_threads())
                torch.set_num_threads(recipe.engine.num_threads)
            tell = stack.enter_context(Bar(terminal.stderr()))
            lines: list[Measured] = []
            for named in request.models:
                network = opener.open(named)
                _check(network, request.score, images, device, named)
                lines += _measure(named, network, request, images, groups, device, tell)
        _print(terminal.stdout(), lines, request, options)
        _write(lines, request, options, folder)


@dataclass(frozen=True)
class _Request:
    models: list[Named]
    recipe: Recipe
    dataset: str
    overrides: list[str]
    score: ScoreName


def _read(options: argparse.Namespace) -> _Request:
    """What is asked for; everything that can be seen to be wrong without opening images is."""
    texts = [*options.models, *options.overrides]
    overrides = [text for text in texts if "=" in text and not Path(text).exists()]
    if options.images < 2:
        raise ConfigError(
            f"--images is {options.images}; it must be 2 or more, as the spread over images is "
            "shown (256 is the default)"
        )
    if options.rounds and options.by:
        raise ConfigError("--rounds and --by are two pictures; ask for one at a time")
    given = [name_model(text) for text in dict.fromkeys(texts) if text not in overrides]
    if not given:
        raise ConfigError("no MODEL is given; name a run directory or a teacher")
    runs = {named.run.path: named.run for named in given if named.run}
    if not runs and not options.data:
        raise ConfigError(
            f"{given[0].text} is no run, which would say on which images; add --data NAME or "
            "--data CONFIG"
        )
    about = [text for text in overrides if text.startswith("teacher.")]
    if about and all(named.run for named in given):
        raise ConfigError(
            f"{about[0]} is given, but no MODEL is a teacher by name or file, which it would change"
        )
    others = [text for text in overrides if text not in about]
    dataset = options.data or str(next(iter(runs)) / "config.toml")
    models = given
    if options.rounds:
        models = [*_kept(given), *(named for named in given if named.kind in ("teacher", "named"))]
    score: ScoreName = options.score or (
        "ce" if all(named.has_classifier for named in models) else "features"
    )
    for named in models:
        if score == "ce" and not named.has_classifier:
            raise ConfigError(
                f"--score is 'ce', but {named.text} has no classifier that was trained for these "
                "classes; use --score features"
            )
    return _Request(models, probed_recipe("default", dataset, others), dataset, overrides, score)


def _kept(given: Sequence[Named]) -> list[Named]:
    """Students by round of all runs that are named."""
    runs = {named.run.path: named.run for named in given if named.run}
    if not runs:
        raise ConfigError("--rounds needs a run, but no MODEL is one")
    found = []
    for path, run in runs.items():
        if not (rounds := kept_rounds(path)):
            raise ConfigError(
                f"{path} kept no students by round, which --rounds needs; run it again with "
                "keep_students_every=1"
            )
        found += [Named(str(path), "kept", run, number) for number in rounds]
    return found


def _groups(images: LabelledImages, options: argparse.Namespace, seed: int) -> dict[str, Integers]:
    """Rows of each group, drawn at random where there are more than asked for; none is empty."""
    if len(images) < 2:
        raise DataError(
            f"the {options.split} split has {len(images)} images; 2 are needed: choose another "
            "--split or data set"
        )
    names: tuple[str, ...] = ("all",)
    values = np.zeros(len(images), np.int64)
    if options.by == "class":
        names, values = images.class_names, images.labels
    elif options.by == "hospital":
        names, values = images.site_names, images.sites
        if len(np.unique(values)) < 2:
            raise ConfigError(
                f"--by hospital: all {len(images)} {options.split} images are of one hospital, "
                f"{names[values[0]]!r}; leave --by out, or choose data with hospitals"
            )
    groups = {}
    for number, name in enumerate(names):
        rng = seeding.rng(seed, "spectrum-images", number)
        rows = rng.permutation(np.flatnonzero(values == number))[: options.images]
        if len(rows):
            groups[name] = np.sort(rows)
    return groups


def _check(
    network: Network, score: ScoreName, images: LabelledImages, device: torch.device, named: Named
) -> None:
    if score != "features" and network.logits is None:
        raise ConfigError(
            f"--score is {score!r}, but {named.text} has no classifier; use --score features"
        )
    if score == "ce" and network.class_names != images.class_names:
        raise DataError(
            f"{named.text} was trained for the classes {', '.join(network.class_names)}, but the "
            f"images have {', '.join(images.class_names)}; use its own data, or --score top"
        )
    if network.round_number is None:
        one = np.arange(1)
        assert isinstance(network.features, torch.nn.Module), "a teacher is a module"
        try_out(network.features, Loader(images, one, device, torch.float32).pixels(one),
                named.text)  # fmt: skip


def _measure(
    named: Named,
    network: Network,
    request: _Request,
    images: LabelledImages,
    groups: dict[str, Integers],
    device: torch.device,
    tell: Bar,
) -> list[Measured]:
    found = []
    compute = network.features if request.score == "features" else network.logits
    assert compute is not None, "checked before"
    height, width = images.images.shape[2:]
    seed = request.recipe.seed
    for group, rows in groups.items():
        what = network.label if len(groups) == 1 else f"{network.label}: {group}"
        loader = Loader(images, rows, device, torch.float32)
        profiles = read_profiles(compute, request.score, loader, BATCH_SIZE, seed, tell, what)
        shown = [images.shown[row] for row in rows]
        curve = priority_curve(profiles, shown, height, width, seed)
        source = str(named.run.path if named.run else Path(named.text).parent)
        found.append(Measured(network.label, source, network.round_number, group, curve))
    return found


def _print(
    console: Console, lines: Sequence[Measured], request: _Request, options: argparse.Namespace
) -> None:
    title = f"learning priority on {request.recipe.data.name}, {options.split} split"
    shown = Table(
        title=title,
        caption=f"of the gradient of: {SCORES[request.score]}; shares of bands of frequency; "
        "1 = the highest",
    )
    shown.add_column("model", overflow="fold")
    if options.by:
        shown.add_column(options.by, overflow="fold")
    for column in ("images", "centroid [95 % interval]", *BANDS):
        shown.add_column(column, justify="right")
    for line in lines:
        curve = line.curve
        shown.add_row(
            escape(line.label),
            *([escape(line.group)] if options.by else []),
            f"{curve.num_images}{' ?' if line.is_unsure else ''}",
            _text(curve.centroid),
            *("-" if x.value != x.value else f"{x.value:.3f}" for x in curve.bands.values()),
        )
    console.print(shown)
    if any(line.is_unsure for line in lines):
        print("? = fewer than 20 lesions, patients or images: such intervals are too narrow")


def _text(value: Interval) -> str:
    return (
        "-"
        if value.value != value.value
        else f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}]"
    )


def _write(
    lines: list[Measured], request: _Request, options: argparse.Namespace, folder: Path
) -> None:
    lines = _told_apart(lines)
    title = f"Learning priority on {request.recipe.data.name} ({options.split} images)"
    subtitle = f"of the gradient of: {SCORES[request.score]}"
    if options.rounds:
        picture = folder / "spectrum_rounds.png"
        plot_heat_maps(_by_run(lines), picture, title, subtitle)
    elif options.by:
        picture = folder / f"spectrum_{options.by}.png"
        panels = {line.label: [x for x in lines if x.label == line.label] for line in lines}
        named = {label: [(x.group, x) for x in found] for label, found in panels.items()}
        plot_heat_maps(named, picture, title, subtitle)
    else:
        picture = folder / "spectrum.png"
        plot_spectra(lines, picture, title, subtitle)
    tables = {"spectrum.csv": curves_table(lines),
              "spectrum_summary.csv": summary_table(lines, request.score)}  # fmt: skip
    for name, table in tables.items():
        with files.replacing(folder / name) as part:
            table.to_csv(part, index=False)
    print("\n".join(map(str, (picture, *(folder / name for name in tables)))))


def _by_run(lines: Sequence[Measured]) -> dict[str, list[tuple[str, Measured]]]:
    """Students by round for each run, and below them the teachers."""
    teachers = [(line.label, line) for line in lines if line.round_number is None]
    runs = dict.fromkeys(line.source for line in lines if line.round_number is not None)
    return {
        Path(run).name if len(runs) > 1 else "": [
            *((f"round {x.round_number}", x) for x in lines
              if x.source == run and x.round_number is not None),
            *teachers,
        ]
        for run in runs
    }  # fmt: skip


def _told_apart(lines: Sequence[Measured]) -> list[Measured]:
    """The same, with the folder of the run or file behind labels that several of them share."""
    owners: dict[str, set[str]] = {}
    for line in lines:
        owners.setdefault(line.label, set()).add(line.source)
    return [
        replace(line, label=f"{line.label} ({Path(line.source).name})")
        if len(owners[line.label]) > 1 and line.source != "."
        else line
        for line in lines
    ]
