"""An experiment, opened: the images, clients, teacher and device that a recipe names."""

import copy
import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from fedkd.border import (
    check_clients,
    check_groups,
    check_held_out,
    check_images,
    note_neighbours,
)
from fedkd.data.catalog import load_splits
from fedkd.data.folds import keep_classes, refold
from fedkd.data.images import Integers, LabelledImages, Splits
from fedkd.data.loading import Loader
from fedkd.data.longtail import class_groups
from fedkd.data.pixels import AtHospitals
from fedkd.data.thinning import thin
from fedkd.device import choose_device
from fedkd.errors import ConfigError, DataError, PartitionError, StudentError
from fedkd.held_out import divide_held_out
from fedkd.models import states
from fedkd.models.factory import build_student
from fedkd.models.student import Student, load_initial
from fedkd.partition import Partition
from fedkd.partitions.factory import partition
from fedkd.recipe import Recipe
from fedkd.schedules import learning_rates
from fedkd.shortcuts.marks import check as check_shortcut
from fedkd.shortcuts.marks import mark
from fedkd.simulated_faults import SimulatedFaults
from fedkd.teachers.config import OneTeacherConfig
from fedkd.teachers.features import KeptFeatures, keep_features, tell_another_method
from fedkd.teachers.frozen import Teacher
from fedkd.teachers.opening import GivenTeacher, open_teachers

logger = logging.getLogger(__name__)

InitialStudent = nn.Module | Mapping[str, Tensor]
HeldOut = Literal["val", "test"]
WITH_TEACHER = ("ekd", "fopro")
_AT_ONCE = 1024


@dataclass(frozen=True)
class Experiment:
    """Everything that clients and server read and nobody changes.

    Attributes:
        recipe: The resolved config.
        splits: Train (all hospitals, one store), val and test.
        partition: The rows of ``splits.train`` that each client has.
        teachers: Frozen teacher of each client, the same object where clients share it; empty where
            the objective has none.
        learning_rates: One per round.
        device: Where networks and batches live.
        dtype: Floating-point type of networks and pixels.
        initial_student: The caller's initial weights, instead of ``recipe.student``.
        images_given: The images are the caller's own, not those that the recipe names.
        teacher_configs: Settings of each client's teacher; empty where there is none.
        first_teacher: Whose backbone the student starts from, if ``student.init`` says so.
        teacher_given: The teacher is the caller's own, not the one that the recipe names.
        site: Partition id of the one hospital whose images these are, where the others' are out of
            reach; None where all hospitals' are known, if only by their labels.
        clean_labels: Labels of the training images before ``faults.label_noise``; None without it.
    """

    recipe: Recipe
    splits: Splits
    partition: Partition
    teachers: tuple[Teacher, ...]
    learning_rates: tuple[float, ...]
    device: torch.device
    dtype: torch.dtype
    initial_student: InitialStudent | None = field(default=None, repr=False)
    images_given: bool = False
    teacher_configs: tuple[OneTeacherConfig, ...] = ()
    first_teacher: Teacher | None = field(default=None, repr=False)
    teacher_given: bool = False
    site: int | None = None
    clean_labels: Integers | None = field(default=None, repr=False)

    @property
    def given(self) -> tuple[str, ...]:
        """What the caller gave instead of what the recipe names, which cannot tell of it."""
        own = {
            "images": self.images_given,
            "teacher": self.teacher_given,
            "initial_student": self.initial_student is not None,
        }
        return tuple(name for name, is_given in own.items() if is_given)

    def given_sha256(self) -> dict[str, str]:
        """SHA-256 of the images and of the teachers that are the caller's own; empty if none are.

        No recipe names them: by these a run that goes on knows whether it was given the same.
        """
        found = {}
        if self.images_given and not self.is_at_hospitals:
            digest = hashlib.sha256()
            for split in (self.splits.train, self.splits.val, self.splits.test):
                digest.update(str((split.images.shape, split.images.dtype)).encode())
                digest.update(split.labels.tobytes() + split.sites.tobytes())
                for start in range(0, len(split), _AT_ONCE):
                    rows = split.images[start : start + _AT_ONCE]
                    digest.update(np.ascontiguousarray(rows).tobytes())
            found["images"] = digest.hexdigest()
        if self.teacher_given:
            hashes = [states.sha256(teacher.state_dict()) for teacher in self.teachers]
            found["teacher"] = hashlib.sha256("".join(hashes).encode()).hexdigest()
        return found

    @property
    def is_at_hospitals(self) -> bool:
        """Whether the training images are out of reach, at the hospitals, and only counted here."""
        return isinstance(self.splits.train.images, AtHospitals)

    @property
    def num_clients(self) -> int:
        """Number of hospitals."""
        return len(self.partition.indices)

    @property
    def num_classes(self) -> int:
        """Number of classes, absent ones included."""
        return self.splits.train.num_classes

    def groups(self) -> dict[str, Integers]:
        """Class indices of ``head``, ``medium`` and ``tail``."""
        return class_groups(self.clean_splits)

    @cached_property
    def clean_splits(self) -> Splits:
        """The splits without ``faults.label_noise``, as the recipe's data name them.

        Clients have the labels of ``splits``. Which classes are tail, which val images are whose
        and the manifest of the partition go by these, as without noise.
        """
        if self.clean_labels is None:
            return self.splits
        train = replace(self.splits.train, labels=self.clean_labels)
        return replace(self.splits, train=train)

    @cached_property
    def faults(self) -> SimulatedFaults:
        """Trouble that is simulated, by partition id."""
        recipe = self.recipe
        return SimulatedFaults(recipe.faults, self.partition.client_names, recipe.seed)

    def loader(self, partition_id: int) -> Loader:
        """The training images of one client."""
        return Loader(
            self.splits.train,
            self.partition.indices[partition_id],
            self.device,
            self.dtype,
            self.recipe.engine.prefetch,
        )

    @property
    def predicts_locally(self) -> bool:
        """Whether a prediction needs tensors that stay with a client."""
        exchange = self.recipe.strategy.exchange
        if exchange == "without_projector":
            # Only moon's classifier reads a projection.
            return self.recipe.objective.name == "moon"
        return exchange != "all"

    @property
    def scored_by_neighbours(self) -> bool:
        """Whether splits are predicted by nearest neighbours, as no classifier is trained."""
        return self.recipe.objective.name == "moco"

    @cached_property
    def held_out_rows(self) -> dict[HeldOut, tuple[Integers, ...]]:
        """Each client's own rows of val and of test.

        What a hospital has of them on its own disk is its own; of the others it knows nothing.
        """
        if self.site is not None:
            return {
                "val": self._own_rows(self.splits.val),
                "test": self._own_rows(self.splits.test),
            }
        labels, seed = self.clean_splits.train.labels, self.recipe.seed
        return {
            "val": divide_held_out(self.splits.val, labels, self.partition, seed),
            "test": divide_held_out(self.splits.test, labels, self.partition, seed),
        }

    def _own_rows(self, images: LabelledImages) -> tuple[Integers, ...]:
        rows, none = np.arange(len(images)), np.zeros(0, np.int64)
        return tuple(rows if n == self.site else none for n in range(self.num_clients))

    def held_out_loader(self, split: HeldOut, partition_id: int | None = None) -> Loader:
        """A held-out split, or one client's own part of it."""
        images: LabelledImages = getattr(self.splits, split)
        rows = (
            np.arange(len(images))
            if partition_id is None
            else self.held_out_rows[split][partition_id]
        )
        return Loader(images, rows, self.device, self.dtype, self.recipe.engine.prefetch)

    def teacher_of(self, partition_id: int) -> Teacher:
        """The frozen teacher of one client; only where the objective has one."""
        return self.teachers[partition_id]

    @cached_property
    def kept_features(self) -> tuple[KeptFeatures | None, ...]:
        """Of each client's training images, where ``teacher.views`` says so; None elsewhere.

        FoPro keeps its own, of prompted images; the log says for both where the method is another.
        Computed, or read from the cache, when they are asked for first: as a process makes its
        node, which Flower's server does too, for the initial student.
        """
        objective, augmentation = self.recipe.objective, self.recipe.augmentation.name
        if objective.name == "fopro" and self.recipe.prompts.kept_views:
            for views in dict.fromkeys(config.views for config in self.teacher_configs):
                tell_another_method(views, augmentation)
        if objective.name != "ekd" or not objective.lambda_f or self.is_at_hospitals:
            return (None,) * self.num_clients
        loaders = [self.loader(client) for client in range(self.num_clients)]
        return keep_features(self.teachers, self.teacher_configs, loaders, augmentation)

    def twin(self) -> "Experiment":
        """The same for another thread: teachers' modules are its own, everything else is shared."""
        twins = {id(teacher): teacher.twin() for teacher in self.teachers}
        # Copied, not replaced: what was computed once stays computed.
        other = copy.copy(self)
        other.__dict__["teachers"] = tuple(twins[id(teacher)] for teacher in self.teachers)
        return other

    def build_student(self) -> Student:
        """A new student with the initial weights of this experiment."""
        objective = self.recipe.objective
        first = self.teachers[0] if self.teachers else None
        student = build_student(
            self.recipe.student,
            num_classes=self.num_classes,
            num_teacher_features=first.num_features if first else None,
            seed=self.recipe.seed,
            normalize=self.splits.train.images.dtype == np.uint8,
            teacher_backbone=self.first_teacher.backbone if self.first_teacher else None,
            contrastive=objective.name == "moon",
            momentum_contrast=objective.name == "moco",
            cosine=objective.loss == "ldam",
        )
        # Given weights may be float64: widen first, so that they are not rounded on the way in.
        student = student.to(self.device, self.dtype)
        if self.recipe.engine.channels_last:
            # Convolutions of torch run two to three times as fast with it, on CPUs as well. They
            # bring the pixels into the layout of their weights.
            student = student.to(memory_format=torch.channels_last)
        if self.recipe.engine.mixed_precision == "bfloat16":
            student.precision = "bfloat16"
        if isinstance(self.initial_student, nn.Module):
            load_initial(student, self.initial_student.state_dict())
        elif self.initial_student is not None:
            load_initial(student, self.initial_student)
        return student


def open_experiment(
    recipe: Recipe,
    *,
    sites: Sequence[LabelledImages] | None = None,
    val: LabelledImages | None = None,
    test: LabelledImages | None = None,
    teacher: GivenTeacher | None = None,
    initial_student: InitialStudent | None = None,
) -> Experiment:
    """Load and check all that a recipe names, before any training.

    Args:
        recipe: The config.
        sites: The user's own training images, one for each hospital, instead of ``recipe.data``;
            ``val`` and ``test`` are then needed too.
        val: Images to select on.
        test: Images to report on.
        teacher: The user's own teacher, instead of ``recipe.teacher``: maps pixels
            (batch, 3, height, width), exactly as the student gets them, to features (batch, D). A
            sequence gives each client its own.
        initial_student: Initial weights: a module or state dict with the student's names.

    Raises:
        FedkdError: The first thing that does not fit, with what to do about it.
    """
    device = choose_device(recipe.engine.device, "engine.device")
    if sites is None and (val is not None or test is not None):
        raise ConfigError("val or test images are given without sites; give all three or none")
    if sites is not None and recipe.long_tail.is_given:
        raise ConfigError(
            "long_tail is given together with sites; it thins out the data set that a recipe "
            "names: leave the section out, or give sites that are long-tailed already"
        )
    if sites is not None and recipe.shortcut.is_given:
        raise ConfigError(
            "shortcut.class is given together with sites; it marks the data set that a recipe "
            "names: leave the section out, or give sites that are marked already"
        )
    if sites is None:
        splits, divided = open_data(recipe)
    else:
        splits, divided = _gather(sites, val, test, recipe.num_clients)
        check_groups(splits)
    check_images(splits, recipe)
    check_clients(divided, recipe)
    faults = SimulatedFaults(recipe.faults, divided.client_names, recipe.seed)
    faults.check_rounds(len(divided.indices), recipe.num_rounds)
    clean = splits.train
    splits = replace(splits, train=faults.with_label_noise(clean, divided))
    experiment = assemble(
        recipe,
        splits,
        divided,
        device,
        teacher=teacher,
        initial_student=initial_student,
        images_given=sites is not None,
        clean_labels=None if splits.train is clean else clean.labels,
    )
    if experiment.scored_by_neighbours:
        note_neighbours(recipe)
    if experiment.predicts_locally:
        for split, rows in experiment.held_out_rows.items():
            images: LabelledImages = getattr(splits, split)
            check_held_out(images, split, rows, recipe.strategy.exchange)
    return experiment


def assemble(
    recipe: Recipe,
    splits: Splits,
    divided: Partition,
    device: torch.device,
    *,
    teacher: GivenTeacher | None = None,
    initial_student: InitialStudent | None = None,
    images_given: bool = False,
    site: int | None = None,
    clean_labels: Integers | None = None,
) -> Experiment:
    """The experiment of images that are loaded, divided and checked: opens its teachers.

    The arguments are those of :func:`open_experiment` and of :class:`Experiment`.
    """
    dtype = torch.float64 if recipe.training.dtype == "float64" else torch.float32
    # A batch on which teachers are tried: where training images are elsewhere, val is not.
    sample = splits.val if isinstance(splits.train.images, AtHospitals) else splits.train
    rates = learning_rates(recipe.schedule, recipe.training.learning_rate, recipe.num_rounds)
    opened: tuple[Teacher, ...] = ()
    configs: tuple[OneTeacherConfig, ...] = ()
    if recipe.objective.name in WITH_TEACHER or recipe.student.init == "teacher":
        opened = open_teachers(
            recipe.teacher,
            teacher,
            divided.client_names,
            Loader(sample, np.arange(2), device, dtype).pixels(np.arange(min(2, len(sample)))),
            with_reference=recipe.objective.name == "fopro",
            mixed=recipe.engine.mixed_precision == "bfloat16",
        )
        configs = (
            tuple(recipe.teacher.of_clients(divided.client_names))
            if teacher is None
            else (recipe.teacher,) * len(opened)
        )
    if recipe.student.init == "teacher" and len(set(map(id, opened))) > 1:
        raise StudentError(
            "student.init is 'teacher' but the clients have different teachers; choose another "
            "initialisation, or one teacher for all"
        )
    first_teacher = opened[0] if opened else None
    if recipe.objective.name not in WITH_TEACHER:
        opened, configs = (), ()
    return Experiment(
        recipe,
        splits,
        divided,
        opened,
        tuple(rates),
        device,
        dtype,
        initial_student,
        images_given=images_given,
        teacher_configs=configs,
        first_teacher=first_teacher,
        teacher_given=teacher is not None,
        site=site,
        clean_labels=clean_labels,
    )


def open_data(recipe: Recipe) -> tuple[Splits, Partition]:
    """The images that a recipe names, and which of them each client trains on."""
    splits = open_splits(recipe)
    return splits, partition(recipe.partition, splits.train, recipe.num_clients, recipe.seed)


def open_splits(recipe: Recipe) -> Splits:
    """The images that a recipe names: loaded, divided into folds, thinned out and marked."""
    splits, shortcut = load_splits(recipe.data), recipe.shortcut
    if shortcut.is_given:
        check_shortcut(shortcut, splits.train)
        if shortcut.num_folds:
            splits = refold(splits, shortcut.num_folds, shortcut.fold, shortcut.seed)
        if shortcut.other and shortcut.pair_only:
            splits = keep_classes(splits, (shortcut.marked_class, shortcut.other))
    return mark(shortcut, thin(recipe.long_tail, splits))


def _gather(
    sites: Sequence[LabelledImages],
    val: LabelledImages | None,
    test: LabelledImages | None,
    num_clients: int | None,
) -> tuple[Splits, Partition]:
    """One store of all given hospitals; the rows of each are its partition."""
    if not sites or val is None or test is None:
        raise ConfigError("sites, val and test must be given together, with at least one site")
    if num_clients not in (None, 1, len(sites)):
        raise PartitionError(
            f"num_clients is {num_clients} but {len(sites)} sites are given; leave it out, or "
            "use 1 to pool them"
        )
    first = sites[0]
    for name, images in [
        *((f"site {i}", s) for i, s in enumerate(sites)),
        ("val", val),
        ("test", test),
    ]:
        if (
            images.class_names != first.class_names
            or images.images.shape[1:] != first.images.shape[1:]
        ):
            raise DataError(
                f"{name} has classes {images.class_names} and images {images.images.shape[1:]}; "
                f"site 0 has {first.class_names} and {first.images.shape[1:]}: they must agree"
            )
        if images.images.dtype != first.images.dtype:
            raise DataError(
                f"{name} has {images.images.dtype} images and site 0 {first.images.dtype}; "
                "give all as uint8 (0..255), or all as one float type"
            )
    train = LabelledImages(
        images=np.concatenate([np.asarray(site.images) for site in sites]),
        labels=np.concatenate([site.labels for site in sites]),
        class_names=first.class_names,
        sites=np.repeat(np.arange(len(sites)), [len(site) for site in sites]),
        site_names=tuple(_site_name(site, number) for number, site in enumerate(sites)),
        ids=tuple(f"{number}/{name}" for number, site in enumerate(sites) for name in site.ids),
        groups=tuple(group for site in sites for group in site.groups),
    )
    if num_clients == 1:
        return Splits(train, val, test), Partition((np.arange(len(train)),), ("all",))
    names = train.site_names
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(
            f"several sites are called {', '.join(map(repr, twice))}; give each hospital a name of "
            "its own (site_names), by which its val and test images are found"
        )
    ends = np.cumsum([len(site) for site in sites])
    rows = tuple(np.split(np.arange(len(train)), ends[:-1]))
    return Splits(train, val, test), Partition(rows, train.site_names)


def _site_name(site: LabelledImages, number: int) -> str:
    """The hospital's own name, if all its images agree on one."""
    found = np.unique(site.sites)
    name = site.site_names[found[0]] if len(found) == 1 else "all"
    return name if name != "all" else f"site-{number}"
