"""The command ``fedkd predict``: class probabilities of image files, by the student of a run."""

import argparse
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import repeat
from pathlib import Path
from typing import IO

import numpy as np
import pandas as pd
import torch
from PIL import Image

from fedkd import files
from fedkd.data.image_files import decode_file, default_workers
from fedkd.data.images import LabelledImages
from fedkd.data.labelled_files import ImageFilesConfig
from fedkd.data.loading import Loader
from fedkd.device import choose_device
from fedkd.errors import ConfigError, DataError, first_of
from fedkd.prediction import predict as predict_images
from fedkd.recipe import Recipe
from server import terminal
from server.opened_run import open_run
from server.output_folder import new_file
from server.progress import Bar
from server.whole_student import WholeStudent, open_whole_student

logger = logging.getLogger(__name__)

Decoded = list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]] | str]


def predict(options: argparse.Namespace) -> None:
    """``fedkd predict``: a CSV row per image: its path, the predicted class, all probabilities.

    Files that cannot be read have no row; they are all named at the end, when the others are
    written.

    Raises:
        DataError: Some files cannot be read, or there is none.
    """
    terminal.log_to_stderr()
    run = open_run(Path(options.run))
    student = open_whole_student(run, options.student)
    images = find_images(options.images)
    note_preprocessing(run.recipe, student.size)
    if options.output is None:
        broken = _write(student, images, run.recipe, sys.stdout)
        where = "the output"
    else:
        target = Path(options.output)
        if target.is_dir() or target.resolve() in {image.resolve() for image in images}:
            what = "a folder" if target.is_dir() else "one of the images"
            raise ConfigError(f"--output {target} is {what}; name a file to write the CSV to")
        new_file(target)
        try:
            with (
                files.replacing(target) as part,
                part.open("w", encoding="utf-8", newline="") as out,
            ):
                broken = _write(student, images, run.recipe, out)
        except OSError as error:
            raise ConfigError(f"cannot write {target}: {error}; choose another --output") from None
        where = str(target)
        print(target)
    if broken:
        raise DataError(
            "\n".join(
                [
                    f"{len(broken)} of {len(images)} images cannot be read and have no row in "
                    f"{where}; the rows of the {len(images) - len(broken)} others are there. "
                    "Replace or leave out:",
                    *(f"{path}: {why}" for path, why in broken),
                ]
            )
        )


def find_images(given: Sequence[str]) -> list[Path]:
    """Files as they are named, and in folders all that end as images do, by path.

    Folders are searched with their subfolders; hidden files and links to folders are passed over.
    The log says how many other files there are.

    Raises:
        DataError: No such file, no image, one named twice, or a name that is not UTF-8.
    """
    endings = {end for end, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    found: list[Path] = []
    if absent := [name for name in given if not os.path.lexists(name)]:
        raise DataError(
            f"there is no file or folder {first_of(absent)}; check the path"
            if len(absent) == 1
            else f"{len(absent)} of {len(given)} files or folders are not there: "
            f"{first_of(absent)}; check the paths"
        )
    for name in given:
        path = Path(name)
        if path.is_dir():
            there = sorted(
                file
                for file in path.rglob("*")
                if not file.is_dir()
                and not any(part.startswith(".") for part in file.relative_to(path).parts)
            )
            images = [file for file in there if file.suffix.lower() in endings]
            if not images:
                raise DataError(f"there is no image in {path}; images end in .jpg, .png, .tif ...")
            if len(images) < len(there):
                logger.info(
                    "%s: %d of %d files do not end as images do and are left out",
                    path,
                    len(there) - len(images),
                    len(there),
                )
            found += images
        elif path.is_file():
            found.append(path)
        else:
            raise DataError(f"there is no file or folder {path}; check the path")
    times = Counter(os.path.abspath(path) for path in found)
    if twice := [path for path, number in times.items() if number > 1]:
        raise DataError(
            f"{len(twice)} image(s) are named twice: {first_of(twice)}; name each once, by itself "
            "or by its folder"
        )
    if bad := [ascii(str(p)) for p in found if str(p).encode(errors="replace").decode() != str(p)]:
        raise DataError(f"{len(bad)} file name(s) are not UTF-8: {first_of(bad)}; rename them")
    return found


def note_preprocessing(recipe: Recipe, size: int) -> None:
    """Say in the log what becomes of the files, where training had no files or changed images."""
    if not isinstance(recipe.data, ImageFilesConfig):
        logger.info(
            "the training images (data.name = %r) were no files: yours are treated as fedkd treats "
            "image files, resized to %d px without keeping the aspect ratio; unless they look like "
            "the training images, the predictions mean nothing",
            recipe.data.name,
            size,
        )
    if recipe.shortcut.is_given:
        logger.info(
            "images of this run were marked on purpose (section shortcut); yours are left as "
            "they are"
        )


def _write(
    student: WholeStudent, images: Sequence[Path], recipe: Recipe, out: IO[str]
) -> list[tuple[Path, str]]:
    """Write the CSV batch by batch; returns the files that cannot be read, with the reasons."""
    device, dtype = choose_device("auto", "engine.device"), next(student.network.parameters()).dtype
    network = student.network.to(device).to(memory_format=torch.channels_last)
    names = np.asarray(student.class_names)
    pd.DataFrame(columns=["image", "prediction", *(f"p_{name}" for name in names)]).to_csv(
        out, index=False, lineterminator="\n"
    )
    broken: list[tuple[Path, str]] = []
    done = 0
    with Bar(terminal.stderr()) if len(images) > 1 else nullcontext(lambda *_: None) as progress:
        for paths, decoded in _decoded(images, student.size, recipe.evaluation.batch_size):
            whole = [row for row, result in enumerate(decoded) if not isinstance(result, str)]
            broken += [
                (path, result)
                for path, result in zip(paths, decoded, strict=True)
                if isinstance(result, str)
            ]
            if whole:
                # As the run's own predictions were made, so that they are the same.
                batch = LabelledImages(
                    np.stack([np.asarray(decoded[row]) for row in whole]),
                    np.zeros(len(whole), np.int64),
                    student.class_names,
                )
                loader = Loader(batch, np.arange(len(whole)), device, dtype)
                values = predict_images(network, loader, len(whole))
                table = pd.DataFrame(values, columns=[f"p_{name}" for name in names])
                table.insert(0, "image", [paths[row].as_posix() for row in whole])
                table.insert(1, "prediction", names[values.argmax(axis=1)])
                table.to_csv(out, index=False, header=False, lineterminator="\n")
            done += len(paths)
            progress("predicting", done, len(images))
    return broken


def _decoded(
    images: Sequence[Path], size: int, batch_size: int
) -> Iterator[tuple[Sequence[Path], Decoded]]:
    """Files in batches with their pixels or faults; the next batch is decoded meanwhile."""
    with ThreadPoolExecutor(default_workers(), thread_name_prefix="fedkd-decode") as pool:
        batches = [images[n : n + batch_size] for n in range(0, len(images), batch_size)]
        started = (pool.map(decode_file, batch, repeat(size)) for batch in batches)
        upcoming = next(started)
        for batch in batches:
            current, upcoming = upcoming, next(started, iter(()))
            yield batch, list(current)
