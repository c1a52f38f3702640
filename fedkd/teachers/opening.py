"""The frozen teacher of each client: from the config, or given as modules."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedkd.errors import ConfigError, TeacherError
from fedkd.precision import Precision
from fedkd.teachers.checkpoints import try_out
from fedkd.teachers.config import OneTeacherConfig, TeacherConfig
from fedkd.teachers.frozen import Teacher
from fedkd.teachers.loading import open_teacher
from fedkd.teachers.reference import measure_reference
from fedkd.teachers.sharing import share

GivenTeacher = nn.Module | Sequence[nn.Module]
"""One module for all clients, or one for each."""


def open_teachers(
    config: TeacherConfig,
    given: GivenTeacher | None,
    client_names: Sequence[str],
    pixels: Tensor,
    with_reference: bool,
    mixed: bool = False,
) -> tuple[Teacher, ...]:
    """One teacher per client; clients with the same one share the object.

    On the CPU, all processes of a machine share the weights of the config's teachers. Given modules
    stay in this process: they may be new every time, and each would leave a file behind.

    Args:
        config: Which teachers.
        given: The user's own modules, instead of the config's.
        client_names: In the order of their partition ids.
        pixels: A batch of training images, (batch, 3, height, width), with the device and the
            dtype that teachers shall have.
        with_reference: Measure feature moments where a teacher has no usable ones.
        mixed: Teachers whose precision is full get bfloat16 (``engine.mixed_precision``).

    Raises:
        ConfigError: The config names clients that do not exist, or wants float64 rounded.
        TeacherError: A teacher cannot be opened, or their widths differ.
    """
    if given is None:
        sources: list[OneTeacherConfig | nn.Module] = [*config.of_clients(client_names)]
    elif isinstance(given, nn.Module):
        sources = [given] * len(client_names)
    elif isinstance(given, Sequence) and all(isinstance(one, nn.Module) for one in given):
        sources = list(given)
    else:
        raise TeacherError(
            f"the given teacher is {given!r}; it must be a torch module, or a sequence of one "
            "for each client"
        )
    if len(sources) != len(client_names):
        raise TeacherError(
            f"{len(sources)} teachers are given for {len(client_names)} clients; give one, or one "
            "for each client"
        )
    opened: dict[int, Teacher] = {}
    for source in sources:
        if id(source) in opened:
            continue
        own = source if isinstance(source, OneTeacherConfig) else config
        if own.precision != "full" and pixels.dtype == torch.float64:
            raise ConfigError(
                f"teacher.precision is {own.precision!r} with training.dtype = 'float64', which "
                "mixed precision does not round; set teacher.precision = 'full', or training.dtype "
                "= 'float32'"
            )
        if isinstance(source, nn.Module):
            teacher = _freeze(source, pixels, own.precision)
        else:
            teacher = open_teacher(own)
        teacher = teacher.to(pixels.device, pixels.dtype).to(memory_format=torch.channels_last)
        if mixed and teacher.precision == "full":
            teacher.precision = "bfloat16"
        if not isinstance(source, nn.Module):
            share(teacher)
            if teacher.input_size is None:  # else opening has tried it
                try_out(teacher, pixels[:1], own.name)
        if with_reference:
            measure_reference(teacher, own, pixels.shape[-1], keep=source is own)
        opened[id(source)] = teacher
    teachers = tuple(opened[id(source)] for source in sources)
    widths = {n: t.num_features for n, t in zip(client_names, teachers, strict=True)}
    if len(set(widths.values())) > 1:
        raise TeacherError(
            f"the teachers of the clients have different numbers of features, {widths}; students "
            "that project into different spaces cannot be averaged: choose teachers of one width"
        )
    return teachers


def _freeze(given: nn.Module, pixels: Tensor, precision: Precision) -> Teacher:
    """A frozen copy of the user's module, which keeps its own mode, dtype and gradients.

    A module that is a ``Teacher`` already keeps its precision too.
    """
    module = copy.deepcopy(given).to(pixels.device, pixels.dtype)
    if isinstance(module, Teacher):
        return module
    module.eval()
    with torch.no_grad():
        features = module(pixels)
    if not isinstance(features, Tensor) or features.ndim != 2:
        seen = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise TeacherError(
            f"the given teacher returns {seen}; it must map a batch of images to features "
            "(batch, D)"
        )
    return Teacher(
        "given",
        module,
        num_features=features.shape[1],
        mean=None,
        std=None,
        input_size=None,
        head=None,
        head_kind="none",
        precision=precision,
    )
