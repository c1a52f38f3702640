"""The command ``fedkd prompts``: a page of pictures of what the hospitals' prompts are and do."""

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pandas as pd
from rich.markup import escape
from rich.table import Table

from fedkd import files
from fedkd.errors import ConfigError
from fedkd.fourier.config import PromptConfig
from fedkd.fourier.portrait import most_different
from fedkd.fourier.quality import COLLAPSED_BELOW, NUM_LATENTS
from server import terminal
from server.hospital_prompts import (
    HospitalPrompts,
    numbers_table,
    open_prompts,
    profiles_table,
    require_prompts,
)
from server.opened_run import PROMPTS, OpenedRun, open_run
from server.output_folder import output_folder
from server.pictures import prompts as pictures
from server.pictures.page import Alarm, DataTable, Section, write_page
from server.pictures.prompt_curves import drawn_columns, plot_prompt_curves
from server.pictures.style import short_name

MAX_SHOWN = 6
"""Hospitals with pictures of their own; tables and curves have all."""
_INTERPRETATION = (
    "FPG, the generator of these prompts, is our interpretation: the authors of FoPro-KD published "
    "neither it nor its objective. None of this shows that prompts help the student; that takes "
    "the test scores of runs with prompts, without, and with the controls jitter and amplitude_mix."
)
_GENERATORS = {
    "jitter": "This run is the control jitter: its prompts are random, and nothing was learned.",
    "amplitude_mix": "This run is the control amplitude_mix: images take the amplitudes of other "
    "images. There is no log-gain, no magnitude and no rank, and nothing was learned.",
}


def prompts(options: argparse.Namespace) -> None:
    """``fedkd prompts``: pictures, a page, CSVs and a table of a run's prompts."""
    terminal.log_to_stderr()
    run = open_run(Path(options.run))
    require_prompts(run)
    seed = run.recipe.seed if options.seed is None else options.seed
    question = {"run": run.path.resolve().name, "split": options.split, "images": options.images,
                "seed": seed}  # fmt: skip
    with output_folder(options.output, run.path / PROMPTS, "prompts", question) as folder:
        experiment = run.experiment()
        hospitals, left_out = open_prompts(run, experiment, options.split, options.images, seed)
        planes = [one.plane for one in hospitals]
        shown = [hospitals[row] for row in most_different(planes, MAX_SHOWN)]
        try:
            page = _write(run, folder, hospitals, shown, left_out, options.split)
        except OSError as error:
            raise ConfigError(
                f"cannot write to {folder}: {error}; choose another --output"
            ) from None
    _print(hospitals, run.recipe.prompts)
    for name, reason in left_out.items():
        print(f"{name} is left out: {reason}")
    for text in _alarms(hospitals, run.recipe.prompts):
        print(text)
    print(page)


def _write(
    run: OpenedRun,
    folder: Path,
    hospitals: list[HospitalPrompts],
    shown: list[HospitalPrompts],
    left_out: Mapping[str, str],
    split: str,
) -> Path:
    for name, table in (
        ("prompts.csv", numbers_table(hospitals)),
        ("prompts_profiles.csv", profiles_table(hospitals)),
    ):
        with files.replacing(folder / name) as part:
            table.to_csv(part, index=False)
    sections = [_numbers(hospitals, run.recipe.prompts, split)]
    if shown[0].portrait.log_gains is not None:
        sections += _log_gains(folder, shown, run.recipe.prompts)
    sections += [_examples(folder, shown, split), _changes(folder, shown)]
    sections.append(_rounds(run, folder, [one.partition_id for one in shown]))
    page = folder / "prompts.html"
    write_page(
        page,
        f"Fourier prompts of {run.recipe.name}",
        _introduction(run, hospitals, shown, left_out),
        sections,
        f"Made by: fedkd prompts {run.path.resolve().name} (config hash {run.recipe.hash()[:8]}, "
        f"partition hash {str(run.summary['partition_hash'])[:8]})",
    )
    return page


def _introduction(
    run: OpenedRun,
    hospitals: list[HospitalPrompts],
    shown: list[HospitalPrompts],
    left_out: Mapping[str, str],
) -> list[str]:
    config = run.recipe.prompts
    rounds = sorted({one.round_number for one in hospitals})
    when = f"round {rounds[0]}" if len(rounds) == 1 else f"rounds {rounds[0]} to {rounds[-1]}"
    texts = [
        f"Generator {config.generator}, form {config.form}, a prompt per {config.per}, gains "
        f"between 1/{config.max_gain:g} and {config.max_gain:g}, keep_dc "
        f"{str(config.keep_dc).lower()}, strengths up to {config.max_strength:g} in training and 1 "
        f"(full) in all numbers here; as the hospitals trained with them in {when}. A prompt "
        "changes the amplitudes of an image's Fourier spectrum and keeps its phases; only the "
        "teacher sees the prompted image, the student sees the image as it is.",
        _GENERATORS.get(config.generator, _INTERPRETATION),
    ]
    if (status := run.summary.get("status")) != "finished":
        texts.append(f"The run's status is {status!r}: this is what it had reached.")
    if len(shown) < len(hospitals):
        names = ", ".join(one.name for one in shown)
        texts.append(
            f"Pictures show {len(shown)} of {len(hospitals)} hospitals, those whose prompts differ "
            f"most ({names}), which makes hospitals look less alike than they are. The table has "
            "all."
        )
    texts += [f"{name} is left out: {reason}." for name, reason in left_out.items()]
    return texts


def _numbers(hospitals: list[HospitalPrompts], config: PromptConfig, split: str) -> Section:
    return Section(
        "Hospitals in numbers",
        (
            DataTable(_table(hospitals)),
            *(Alarm(text) for text in _alarms(hospitals, config)),
            f"Magnitude and effective rank are of {NUM_LATENTS} prompts; the rest is measured on "
            f"{split} images ('measured on'), each with a prompt of its own at full strength. "
            "Prior: distance of the teacher's feature statistics from those of its own data. "
            "Cosine: how alike the teacher finds an image with and without its prompt. DC share: "
            "how much of the change of pixels is brightness and colour cast. Saturated: pixel "
            "values that the prompt drove to 0 or 1.",
            "A fall of the prior is what a generator is trained for, but no proof that it learned: "
            "random prompts make the prior fall too, mostly by brightness; compare with a run of "
            "generator jitter. Nor does it say that the teacher's features became more useful. "
            "With few images the prior is larger; compare hospitals with equally many.",
        ),
    )


def _log_gains(folder: Path, shown: list[HospitalPrompts], config: PromptConfig) -> list[Section]:
    maps, profiles = folder / "prompts_maps.png", folder / "prompts_profiles.png"
    pictures.plot_maps(shown, maps, "Prompts: log-gain of the amplitude spectrum")
    pictures.plot_profiles(shown, profiles, "Log-gain over frequency, mean and sd of prompts")
    mixed = (
        " In the form mix, gains act on the hospital's mean amplitude, not on the image's own: "
        "what happens to an image is further below."
        if config.form == "mix"
        else ""
    )
    return [
        Section(
            "The prompts",
            (
                maps,
                "Each map is a plane of frequencies, 0 (brightness) in the middle, fine detail at "
                "the edge, on one scale for all. Red is amplified, blue is damped. The first "
                f"column is what a hospital's prompts have in common, the others are single ones."
                f"{mixed}",
                "Maps are means over red, green and blue, so opposite gains of colours cancel; the "
                "profiles below show them. A blue edge does not mean that fine detail is "
                "unimportant for the diagnosis: it was damped because the teacher's own data had "
                "less of it.",
            )
            if config.generator != "jitter"
            else (
                maps,
                "Each map is a plane of frequencies, 0 (brightness) in the middle, on one scale "
                "for all. Red is amplified, blue is damped. The mean of random prompts is next to "
                "0 by construction.",
            ),
        ),
        Section(
            "The prompts over frequency",
            (
                profiles,
                "Rings around frequency 0, for each colour: the line is the mean, the band one "
                "standard deviation over prompts, the marks at 0 are the image's mean "
                "(brightness). Above 0 is amplified. A band that is wide beside its line means "
                "that prompts differ.",
                "Rings average over directions, and most of an image's energy lies at the lowest "
                "few: a large gain at the right may change hardly a pixel.",
            ),
        ),
    ]


def _examples(folder: Path, shown: list[HospitalPrompts], split: str) -> Section:
    scales = pictures.example_scales(shown)
    paths = []
    for one in shown:
        paths.append(folder / f"prompts_images_client-{one.partition_id}.png")
        title = f"{one.name}: {split} images under a prompt"
        pictures.plot_examples(one, paths[-1], title, scales)
    return Section(
        "Images before and after",
        (
            *paths,
            "One prompt for each image, at growing strength: 0 is the image itself, in training "
            "every image has a drawn one. Beside them what full strength changed: "
            "pixels (red: brighter, blue: darker, mean of the three colours) and log-amplitudes "
            "(red: amplified); scales are common to all hospitals. The first row is the "
            "hospital's most frequent class, the others its rarest; numbers are its images of "
            f"the class in {split}.",
            "A prompted image that looks odd is no fault as such: only the teacher sees it, and "
            "what matters is whether it still tells the lesion (cosine in the table). Single "
            "images are no evidence about a class.",
        ),
    )


def _changes(folder: Path, shown: list[HospitalPrompts]) -> Section:
    path = folder / "prompts_changes.png"
    pictures.plot_changes(shown, path, "What full prompts change in the spectrum")
    return Section(
        "What changed where in the spectrum",
        (
            path,
            "Log-ratio of the amplitude with and without prompt, mean over the measured images, "
            "after pixels were clamped to 0 to 1; frequency 0 in the middle of the maps and as "
            "marks at the left of the profiles.",
            "In the form gain it follows the mean log-gain, except where clamping adds "
            "frequencies; a rise at high frequencies without a gain there is such an artefact. "
            "It is a mean: prompts that amplify and damp in turn cancel.",
        ),
    )


def _rounds(run: OpenedRun, folder: Path, coloured: list[int]) -> Section:
    heading, csv = "Over the rounds", run.path / "clients.csv"
    clients = pd.read_csv(csv) if csv.is_file() else pd.DataFrame()
    if not drawn_columns(clients):
        return Section(heading, ("The run had finished no round, so there are no curves yet.",))
    path = folder / "prompts_rounds.png"
    plot_prompt_curves(clients, path, "Prompts over the rounds", coloured)
    return Section(
        heading,
        (
            path,
            "What the run noted for each hospital (clients.csv). A prior below its dashed line "
            "means that prompted images are closer to the teacher's own data than plain ones. "
            "Penalty, losses, distance out of range and disagreement are means over a round's "
            "exploration steps after the warm-up, on other images each time and at strengths drawn "
            "as in training; the rest is measured at full strength on the same images in every "
            "round.",
            "The prior here is of other images than in the table, and of another number of them, "
            "so levels differ; compare rounds, not the two.",
        ),
    )


def _table(hospitals: list[HospitalPrompts]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "hospital": one.name,
            "train images": str(one.num_train),
            "measured on": str(one.portrait.num_images),
            "magnitude (nats)": _number(one.portrait.quality.magnitude),
            "effective rank": _number(one.portrait.quality.effective_rank, 1)
            + (" !" if one.portrait.collapsed else ""),
            "DC share": _percent(one.portrait.dc_share),
            "prior clean": _number(one.portrait.quality.prior_clean),
            "prior prompted": _number(one.portrait.quality.prior),
            "fall": _percent(one.portrait.relative_fall),
            "cosine": _number(one.portrait.quality.cosine),
            "saturated": _percent(one.portrait.quality.saturated),
        }
        for one in hospitals
    )


def _alarms(hospitals: list[HospitalPrompts], config: PromptConfig) -> list[str]:
    collapsed = [
        f"{one.name} ({one.portrait.quality.effective_rank:.1f})"
        for one in hospitals
        if one.portrait.collapsed
    ]
    if not collapsed:
        return []
    return [
        f"Collapse: the effective rank is below {COLLAPSED_BELOW:g} at {', '.join(collapsed)}, so "
        "all prompts there are nearly the same one, or strengths of it. Raise "
        f"explore.diversity_weight, or take another prompts.generator than {config.generator}."
    ]


def _print(hospitals: list[HospitalPrompts], config: PromptConfig) -> None:
    table = _table(hospitals)
    shown = Table(title=f"Fourier prompts ({config.generator}) at full strength")
    for number, name in enumerate(table.columns):
        first = number == 0
        # Rich would break words rather than lines.
        cells = [value[:14] if first else value for value in table[name]]
        longest = max(len(word) for word in [*name.split(), *cells])
        justify: Literal["left", "right"] = "left" if first else "right"
        shown.add_column(name, justify=justify, no_wrap=first, width=longest)
    for row in table.itertuples(index=False):
        shown.add_row(escape(short_name(row[0], 14)), *(escape(value) for value in row[1:]))
    terminal.stdout().print(shown)


def _number(value: float, digits: int = 3) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}%"
