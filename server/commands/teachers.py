"""The commands ``fedkd teachers list``, ``fetch``, ``check`` and ``card``."""

import argparse
import difflib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.table import Table
from torch.nn.modules.batchnorm import _BatchNorm

from fedkd import config, paths
from fedkd.data.dead_leaves import dead_leaves
from fedkd.errors import ConfigError, FetchError, TeacherError
from fedkd.fetching import hash_file, verify
from fedkd.recipe import Recipe
from fedkd.teachers import zoo
from fedkd.teachers.card import TeacherCard
from fedkd.teachers.checkpoints import published_hash, try_out
from fedkd.teachers.config import OneTeacherConfig
from fedkd.teachers.frozen import Teacher
from fedkd.teachers.loading import open_teacher, weights_path
from fedkd.teachers.stored import read_card
from server import terminal
from server.downloads import by_hand, compared, fetch_with_progress
from server.tables import print_facts

_HEADS = {
    "contrastive": "contrastive: the confidence of Fourier prompts compares its embeddings",
    "supervised": "supervised: the confidence of Fourier prompts is that of its classes",
    "none": "none: the confidence of Fourier prompts compares features",
}
_SIDE = 64
"""Of the procedural images of a check, in px; the teacher resizes them as it likes."""


def teachers(options: argparse.Namespace) -> None:
    """``fedkd teachers``: one of its four actions."""
    actions = {"list": _list, "fetch": _fetch, "check": _check, "card": _card}
    actions[options.action](options)


def _list(_: argparse.Namespace) -> None:
    table = Table(title="teachers", box=None, padding=(0, 1, 1, 0))
    table.add_column("name", no_wrap=True)
    table.add_column("network", overflow="fold", max_width=16)
    for column in ("features", "px"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("pre-training; images", overflow="fold")
    table.add_column("licence", overflow="fold", max_width=18)
    table.add_column("MB", justify="right", no_wrap=True)
    table.add_column("here", no_wrap=True)
    for name, card in zoo.CARDS.items():
        path = weights_path(OneTeacherConfig(name=name))
        there = path.is_file()
        num_bytes = path.stat().st_size if there else card.download and card.download.num_bytes
        table.add_row(
            name,
            card.architecture.replace("_", " "),
            str(card.num_features or "-"),
            str(card.input_size or "any"),
            f"{card.method}; {card.data}",
            card.licence,
            f"{num_bytes / 1e6:.0f}" if num_bytes else "-",
            "embedded" if name == "default" else "yes" if there else "no",
        )
    terminal.stdout().print(table)
    for name, text in zoo.TEACHERS.items():
        if name not in zoo.CARDS:
            print(f"{name}: {text}")
    print(f"files are kept in {paths.teachers_dir()} (FEDKD_TEACHERS)")


def _fetch(options: argparse.Namespace) -> None:
    name = options.source
    if name == "default":
        print("default is shipped with fedkd: there is nothing to fetch")
        return
    if name == zoo.PRETRAINED:
        raise TeacherError("pretrained is a file of yours: `fedkd pretrain CONFIG` makes one")
    card, folder = _published(name), paths.teachers_dir()
    path = folder / (card.download.path if card.download else weights_path(_plain(name)).name)
    if card.download is None or not card.fetchable:
        if path.is_file():
            print(f"{path} is there; `fedkd teachers check {name}` shows whether it is whole")
            return
        if name not in zoo.CARDS:
            raise TeacherError(
                f"{name} has no file that anybody publishes as its own; name yours in "
                "teacher.checkpoint"
            )
        steps = card.steps or f"see {card.source}"
        known = published_hash(card.download) or "no hash is published"
        print(f"{name} cannot be fetched without you:\n{steps}\n  -> {path}  {known}")
        raise TeacherError(f"{path} is not there yet; follow the steps above")
    terminal.log_to_stderr()
    try:
        fetch_with_progress([card.download], folder)
    except FetchError as error:
        steps = by_hand([card.download], folder, card.steps)
        hint = f"\nwithout a connection bring the file from elsewhere:\n{steps}" if steps else ""
        raise FetchError(f"{error}{hint}") from None
    print(f"`fedkd teachers check {name}` opens it; its licence: {card.licence}")


def _check(options: argparse.Namespace) -> None:
    terminal.log_to_stderr()
    settings = _settings(options.source, options.overrides)
    path = weights_path(settings)
    if not path.is_file() and not settings.checkpoint:
        raise TeacherError(
            f"{path} is not there; `fedkd teachers fetch {settings.name}` fetches it or says how "
            "to get it; or name your own file, checkpoint=<file>"
        )
    digest = hash_file(path) if path.is_file() else ""
    compared_with = _compare(settings, path, digest) if digest else ""
    teacher = open_teacher(settings)
    pixels = torch.from_numpy(dead_leaves(4, _SIDE, seed=0)) / 255
    try_out(teacher, pixels, settings.name)
    features = teacher.features(pixels)
    if not features.isfinite().all():
        raise TeacherError(f"{path} gives features that are not finite on procedural images")
    if not (features - features[0]).any():
        raise TeacherError(f"{path} gives the same features for all images: it has learnt nothing")
    prior = _prior(teacher)
    facts = {
        "file": str(path),
        "size": f"{path.stat().st_size / 1e6:.1f} MB",
        "sha256": f"{digest} ({compared_with})",
        **_describe(teacher, settings),
        "head": _HEADS[teacher.head_kind],
        "BatchNorm": prior,
    }
    print_facts(terminal.stdout(), settings.name, facts)
    when = "" if teacher.has_reference else ", whose prior the first run measures"
    print(
        f"{options.source}: opened without faults ({compared_with}); ready for ekd and fopro{when}"
    )


def _compare(settings: OneTeacherConfig, path: Path, digest: str) -> str:
    """Compare the file's hash with what is known of it; says with what."""
    if settings.sha256:
        # Opening compares it.
        return "as teacher.sha256 says"
    if settings.name in ("default", zoo.PRETRAINED):
        card = path.with_suffix(".json")
        if not card.is_file():
            return "there is no card beside it to compare with"
        if (said := read_card(card).get("sha256")) != digest:
            raise TeacherError(
                f"{path} is damaged, or {card} is the card of another file: the sha256 is "
                f"{digest}, the card says {said}; get both again"
            )
        return "as its card says"
    download = zoo.card_of(settings.name).download
    if download is None:
        return "no hash is known to compare with"
    if settings.checkpoint:
        # Opening compares what is published; a note beside it would be of another file.
        published = published_hash(download) is not None
        return "as published" if published else "no hash is known to compare with"
    noted = path.with_name(f"{path.name}.sha256")
    verify(path, sha256=download.sha256, md5=download.md5)
    known = download.sha256 or download.md5 or noted.is_file()
    return compared(download, path) if known else "no hash is known to compare with"


def _describe(teacher: Teacher, settings: OneTeacherConfig) -> dict[str, str]:
    name = type(teacher.backbone).__name__
    if settings.name != zoo.PRETRAINED:
        name = f"{zoo.card_of(settings.name).architecture} ({name})"
    head = f", and {_millions(teacher.head)} in its head" if teacher.head else ""
    side = f"resized to {teacher.input_size} px" if teacher.input_size else "as it comes"
    mean, std = ([round(v, 4) for v in values.flatten().tolist()]
                 for values in (teacher.mean, teacher.std))  # fmt: skip
    normalised = f"minus {mean}, divided by {std}" if mean else "not normalised"
    return {
        "network": name,
        "parameters": _millions(teacher.backbone) + head,
        "features": str(teacher.num_features),
        "input": f"{side}, {normalised}",
    }


def _millions(network: torch.nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in network.parameters()) / 1e6:.2f} M"


def _prior(teacher: Teacher) -> str:
    norms = [m for m in teacher.backbone.modules() if isinstance(m, _BatchNorm)]
    if teacher.has_reference:
        return f"{len(norms)} layers with usable statistics: they are the prior of Fourier prompts"
    why = f"{len(norms)} layers, their statistics folded away" if norms else "none"
    return f"{why}: the prior of Fourier prompts is measured once on reference images"


def _card(options: argparse.Namespace) -> None:
    name = options.source
    if not _is_file(name) and name != "default":
        card = _published(name)
        facts = {key: value for key, value in asdict(card).items() if value}
        if card.download:
            facts["download"] = {k: v for k, v in facts["download"].items() if v}
        path = weights_path(_plain(name))
        facts["file"] = f"{path} ({'it is there' if path.is_file() else 'it is not there'})"
        print_facts(terminal.stdout(), name, facts)
        return
    path = (zoo.WEIGHTS / name if name == "default" else Path(name)).with_suffix(".json")
    if not path.is_file():
        raise TeacherError(f"there is no card {path} beside the weights; `fedkd pretrain` makes it")
    print_facts(terminal.stdout(), name, read_card(path))
    print(f"\nlists within tables are left out here; the whole card is {path}")


def _settings(source: str, overrides: Sequence[str]) -> OneTeacherConfig:
    """A teacher's settings, as on the command line: by its name or file, and some of its keys."""
    keys = [text if text.startswith("teacher.") else f"teacher.{text}" for text in overrides]
    if _is_file(source):
        named = [f"teacher.name={zoo.PRETRAINED}", f"teacher.checkpoint={json.dumps(source)}"]
    else:
        _require_name(source)
        named = [f"teacher.name={source}"]
    return config.load(Recipe, None, [*named, *keys]).teacher


def _plain(name: str) -> OneTeacherConfig:
    """Settings that only name a teacher; a file that a model of a library needs comes later."""
    return OneTeacherConfig.model_construct(name=name, checkpoint="")


def _published(name: str) -> TeacherCard:
    _require_name(name)
    if name == zoo.PRETRAINED:
        raise TeacherError("pretrained is a file of yours; name the file itself")
    return zoo.card_of(name)


def _require_name(name: str) -> None:
    if not zoo.known(name):
        near = difflib.get_close_matches(name, zoo.TEACHERS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(
            f"{name} is no teacher and no file; {hint}`fedkd teachers list` shows all"
        )


def _is_file(source: str) -> bool:
    return Path(source).is_file() or source.endswith(".safetensors")
