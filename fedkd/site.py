"""One hospital with only its own images, and a server that has none of theirs.

In a simulation one process opens everything. In a real federation each hospital opens its own
folder (:mod:`fedkd.data.site_folder`) and the server its val and test images; of the training
images it knows what the hospitals answer when the roll is called: how many of each class. Both
then are an :class:`Experiment` like any other, and the same recipe gives the same student, to the
bit, if the images are the same.

What a client computes depends on the recipe, its images, its partition id and what it receives;
numbers, names and images of other hospitals do not enter.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedkd import wire
from fedkd.border import check_clients, check_selection, check_split, note_neighbours
from fedkd.data.images import LabelledImages, Splits
from fedkd.data.labelled_files import ImageFilesConfig
from fedkd.data.pixels import AtHospitals
from fedkd.data.site_folder import SITE, SiteFile, read_site_folder
from fedkd.device import choose_device
from fedkd.errors import ConfigError
from fedkd.experiment import Experiment, assemble
from fedkd.models import states
from fedkd.partition import Partition
from fedkd.recipe import Recipe

_LONGEST_NAME = 200
_MOST_IMAGES = 10**8
"""What a server takes from a hospital that it need not trust: our choice, far above any real one.
It keeps a label in memory for each image that a hospital says it has."""


@dataclass(frozen=True)
class SiteAnswer:
    """What a hospital tells of itself when the roll is called: counts, names and check sums.

    Attributes:
        name: Of the hospital.
        class_names: In the order of the class indices.
        train_counts: Its training images per class.
        val_counts: Its own val images per class.
        image_size: Side of its images in pixels.
        recipe_sha256: ``Recipe.hash`` of its recipe.
        teacher_sha256: See :func:`teacher_sha256`.
    """

    name: str
    class_names: tuple[str, ...]
    train_counts: tuple[int, ...]
    val_counts: tuple[int, ...]
    image_size: int
    recipe_sha256: str
    teacher_sha256: str

    @classmethod
    def of(cls, experiment: Experiment) -> "SiteAnswer":
        """The answer of a hospital that :func:`open_site` has opened."""
        assert experiment.site is not None, "not the experiment of one hospital"
        splits = experiment.splits
        return cls(
            experiment.partition.client_names[experiment.site],
            splits.train.class_names,
            tuple(splits.train.class_counts().tolist()),
            tuple(splits.val.class_counts().tolist()),
            splits.train.images.shape[-1],
            experiment.recipe.hash(),
            teacher_sha256(experiment),
        )

    @classmethod
    def read(cls, numbers: Mapping[str, Any], words: Mapping[str, Any]) -> "SiteAnswer":
        """From the metric record and the config record that travelled."""
        return cls(
            str(words[wire.SITE_NAME]),
            tuple(words[wire.CLASS_NAMES]),
            tuple(numbers[wire.TRAIN_COUNTS]),
            tuple(numbers[wire.VAL_COUNTS]),
            int(numbers[wire.IMAGE_SIZE]),
            str(words[wire.RECIPE_SHA256]),
            str(words[wire.TEACHER_SHA256]),
        )

    @property
    def numbers(self) -> dict[str, int | list[int]]:
        """What travels in the metric record."""
        return {
            wire.TRAIN_COUNTS: list(self.train_counts),
            wire.VAL_COUNTS: list(self.val_counts),
            wire.IMAGE_SIZE: self.image_size,
        }

    @property
    def words(self) -> dict[str, str | list[str]]:
        """What travels in the config record."""
        return {
            wire.SITE_NAME: self.name,
            wire.CLASS_NAMES: list(self.class_names),
            wire.RECIPE_SHA256: self.recipe_sha256,
            wire.TEACHER_SHA256: self.teacher_sha256,
        }


def open_site(
    recipe: Recipe, partition_id: int, num_clients: int | None, folder: Path
) -> Experiment:
    """The experiment of one hospital, from its own folder; of the others it has no image.

    Args:
        recipe: The same everywhere; its section ``data`` gives the size of the images and how they
            are kept, but not which they are.
        partition_id: Of the hospital.
        num_clients: Of the federation; None means as many as there must be at least.
        folder: See :mod:`fedkd.data.site_folder`.

    Raises:
        ConfigError: The recipe needs what no hospital alone has, or is not that of the folder.
        DataError: The folder or its images cannot be used.
        FedkdError: As :func:`fedkd.experiment.open_experiment`.
    """
    _refuse(recipe)
    device = choose_device(recipe.engine.device, "engine.device")
    number = num_clients or recipe.num_clients or partition_id + 1
    if not 0 <= partition_id < number:
        raise ConfigError(
            f"this hospital's partition-id is {partition_id}, but the federation has {number} "
            f"clients; give each its own number from 0 to {number - 1}"
        )
    described, splits = _read(recipe, folder, ("train", "val"), ("train",))
    check_split("train", splits.train, recipe)
    rows, none = np.arange(len(splits.train)), np.zeros(0, np.int64)
    check_clients(Partition((rows,), (described.name,)), recipe)
    numbers = range(number)
    divided = Partition(
        tuple(rows if n == partition_id else none for n in numbers),
        tuple(described.name if n == partition_id else f"client-{n}" for n in numbers),
    )
    return assemble(recipe, splits, divided, device, images_given=True, site=partition_id)


def open_server(recipe: Recipe, answers: Mapping[int, SiteAnswer], folder: Path) -> Experiment:
    """The experiment of a server: val and test from its folder, training images only counted.

    Args:
        recipe: The same everywhere.
        answers: Of each hospital, by partition id from 0 on.
        folder: See :mod:`fedkd.data.site_folder`.

    Raises:
        ConfigError: The recipe needs the hospitals' images at the server, or hospitals differ from
            the server in classes, size of images, recipe or teacher, or have one name.
        DataError: The folder or its images cannot be used.
        FedkdError: As :func:`fedkd.experiment.open_experiment`.
    """
    _refuse(recipe)
    device = choose_device(recipe.engine.device, "engine.device")
    if sorted(answers) != list(range(len(answers))) or not answers:
        raise ConfigError(
            f"hospitals with the partition-ids {sorted(answers)} answered; they must count from 0 "
            "without a gap"
        )
    described, splits = _read(recipe, folder, ("val", "test"), ("val", "test"))
    sites = [answers[number] for number in range(len(answers))]
    _compare(sites, described, recipe)
    splits = Splits(_counted(sites), splits.val, splits.test, splits.bounds)
    ends = np.cumsum([sum(site.train_counts) for site in sites])
    divided = Partition(
        tuple(np.split(np.arange(ends[-1]), ends[:-1])), tuple(site.name for site in sites)
    )
    check_selection(splits, recipe)
    for name in ("val", "test"):
        check_split(name, getattr(splits, name), recipe)
    check_clients(divided, recipe)
    experiment = assemble(recipe, splits, divided, device, images_given=True)
    own = teacher_sha256(experiment)
    _raise_of(
        [
            f"{_of(number, site)} has another teacher (sha256 {site.teacher_sha256[:12]}) than the "
            f"server ({own[:12]}); give all the same file, and set teacher.sha256 in the recipe"
            for number, site in enumerate(sites)
            if site.teacher_sha256 != own
        ]
    )
    if experiment.scored_by_neighbours:
        note_neighbours(recipe)
    return experiment


def teacher_sha256(experiment: Experiment) -> str:
    """SHA-256 of the first teacher's weights and input normalisation; empty without a teacher.

    Feature moments that a machine measures itself do not enter: their last bits may differ.
    """
    teacher = experiment.teachers[0] if experiment.teachers else experiment.first_teacher
    if teacher is None:
        return ""
    return states.sha256({**teacher.state_dict(), "mean": teacher.mean, "std": teacher.std})


def _refuse(recipe: Recipe) -> None:
    """Refuse what needs images of several hospitals in one place (ConfigError)."""
    if recipe.strategy.exchange != "all":
        raise ConfigError(
            f"strategy.exchange is {recipe.strategy.exchange!r}, with which the hospitals predict "
            "val and test, each its own part; where hospitals and server have their own images, "
            "the server predicts its own: set strategy.exchange = 'all', or simulate"
        )
    if recipe.faults.is_given:
        raise ConfigError(
            f"faults simulates trouble ({recipe.faults.in_words()}), but where hospitals have "
            "their own images nothing is simulated; leave the section out, or simulate all"
        )
    if recipe.teacher.by_client:
        raise ConfigError(
            "teacher.by_client is given, but where hospitals open their own images the teacher is "
            "the same at every one; set teacher.by_client = [], or simulate"
        )


def _read(
    recipe: Recipe, folder: Path, splits: Sequence[str], needed: Sequence[str]
) -> tuple[SiteFile, Splits]:
    settings = recipe.data if isinstance(recipe.data, ImageFilesConfig) else None
    described, opened = read_site_folder(folder, recipe.data.size, splits, needed, settings)
    changes = [key for key in ("long_tail", "shortcut") if getattr(recipe, key).is_given]
    if changes and described.data_set != recipe.data_set():
        raise ConfigError(
            f"{' and '.join(changes)} of the recipe would change images, but {folder / SITE} does "
            "not say in data_set that these were made so; leave the section out, or write the "
            "folders with this recipe by `fedkd partition CONFIG --sites FOLDER`"
        )
    return described, opened


def _compare(sites: Sequence[SiteAnswer], server: SiteFile, recipe: Recipe) -> None:
    faults = []
    for number, site in enumerate(sites):
        if not site.name.isprintable() or len(site.name) > _LONGEST_NAME:
            faults.append(
                f"client {number} has a name of {len(site.name)} characters, {site.name[:20]!r}; "
                f"it must be {_LONGEST_NAME} at most, all printable"
            )
        for counts in (site.train_counts, site.val_counts):
            bounds = min(counts, default=0) >= 0 and sum(counts) <= _MOST_IMAGES
            if len(counts) != len(site.class_names) or not bounds:
                faults.append(
                    f"{_of(number, site)} says that its classes have {counts} images; there must "
                    f"be one number for each class, 0 or more, at most {_MOST_IMAGES:,} in all"
                )
        if site.class_names != server.class_names:
            faults.append(
                f"{_of(number, site)} has the classes {', '.join(site.class_names)}, but the "
                f"server {', '.join(server.class_names)}; class_names in {SITE} must be the same, "
                "in the same order"
            )
        if site.recipe_sha256 != recipe.hash():
            faults.append(
                f"{_of(number, site)} has opened another recipe (hash {site.recipe_sha256[:8]}) "
                f"than the server ({recipe.hash()[:8]}); give all the same file"
            )
        if site.image_size != recipe.data.size:
            faults.append(
                f"{_of(number, site)} has images of {site.image_size} px, but the server's recipe "
                f"says data.size = {recipe.data.size}; give all the same recipe"
            )
    names = [site.name for site in sites]
    for name in sorted({name for name in names if names.count(name) > 1}):
        numbers = [str(number) for number, own in enumerate(names) if own == name]
        faults.append(
            f"clients {', '.join(numbers)} are all called {name!r}; give each hospital a name of "
            f"its own in its {SITE}, and each SuperNode the data-path of its own"
        )
    _raise_of(faults)


def _raise_of(faults: Sequence[str]) -> None:
    if faults:
        raise ConfigError("\n".join(faults))


def _of(number: int, site: SiteAnswer) -> str:
    return f"client {number} ({site.name})"


def _counted(sites: Sequence[SiteAnswer]) -> LabelledImages:
    """Training images of which nothing is known but how many of each class a hospital has."""
    counts = np.array([site.train_counts for site in sites], np.int64)
    num_images, size = int(counts.sum()), sites[0].image_size
    return LabelledImages(
        images=AtHospitals((num_images, 3, size, size)),
        labels=np.concatenate([np.repeat(np.arange(len(own)), own) for own in counts]),
        class_names=sites[0].class_names,
        sites=np.repeat(np.arange(len(sites)), counts.sum(axis=1)),
        site_names=tuple(site.name for site in sites),
    )
