"""The student as a file that needs no fedkd: ONNX, TorchScript, or its weights as safetensors.

ONNX and TorchScript take pixels as an image file holds them, float32 (batch, 3, size, size) from 0
to 255 (our choice: nothing to divide by, so nothing to forget), and give ``probabilities`` and
``logits``, float32 (batch, num_classes). What belongs to the student, the division by 255 and its
normalisation, is inside.
"""

import copy
import json
import logging
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fedkd.errors import DependencyError, StudentError
from fedkd.models.student import Student

TOLERANCE = 1e-4
"""Largest difference of a class probability between the original and the file."""
INPUT, OUTPUTS = "pixels", ("probabilities", "logits")
_EXTRA = ("onnx", "onnxruntime", "onnxscript")
_EXTRA_FILE = "fedkd.json"
# Untyped.
_jit: Any = torch.jit

Floats = npt.NDArray[np.float32]
Probabilities = Callable[[Floats], npt.NDArray[Any]]
"""Pixels 0..255, float32 (batch, 3, size, size) -> class probabilities (batch, num_classes)."""


class Inference(nn.Module):
    """A student from raw pixels to probabilities and logits, in float32, on the CPU.

    Args:
        student: Is copied; weights of a float64 run are rounded.
    """

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = copy.deepcopy(student).to("cpu", torch.float32)
        self.student.to(memory_format=torch.contiguous_format)
        self.eval().requires_grad_(False)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities and logits of pixels from 0 to 255."""
        logits = self.student(pixels / 255).logits
        return logits.softmax(1), logits


def _write_onnx(model: Inference, path: Path, size: int, metadata: Mapping[str, str]) -> None:
    onnx, _, _ = _onnx_packages()
    for name in ("onnxscript", "onnx_ir"):
        # They tell the log of every step.
        logging.getLogger(name).setLevel(logging.WARNING)
    # Two images: a batch of one would be taken for a constant.
    program = torch.onnx.export(
        model,
        (torch.zeros(2, 3, size, size),),
        dynamo=True,
        input_names=[INPUT],
        output_names=list(OUTPUTS),
        dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}},
        verbose=False,
    )
    assert program is not None, "torch.onnx.export gives a program with dynamo=True"
    proto = program.model_proto
    onnx.helper.set_model_props(proto, dict(metadata))
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)


def _open_onnx(path: Path, _: Inference) -> Probabilities:
    _, onnxruntime, _ = _onnx_packages()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda pixels: np.asarray(session.run([OUTPUTS[0]], {INPUT: pixels})[0])


def _onnx_packages() -> list[Any]:
    try:
        return [import_module(name) for name in _EXTRA]
    except ImportError as error:
        raise DependencyError(
            f"--format onnx needs {', '.join(_EXTRA)}, and {error.name} is not installed; "
            "pip install 'fedkd[export]', or use --format torchscript"
        ) from None


def _write_torchscript(
    model: Inference, path: Path, size: int, metadata: Mapping[str, str]
) -> None:
    # Tracing is deprecated for torch.export, whose files no other program reads. What it warns of,
    # and what it could get wrong, is found by comparing the written file.
    with warnings.catch_warnings(action="ignore"):
        traced = _jit.trace(model, (torch.zeros(2, 3, size, size),), check_trace=False)
        _jit.save(traced, path, _extra_files={_EXTRA_FILE: json.dumps(dict(metadata))})


def _open_torchscript(path: Path, _: Inference) -> Probabilities:
    with warnings.catch_warnings(action="ignore"):
        model = _jit.load(path)
    return lambda pixels: model(torch.from_numpy(pixels))[0].numpy()


def _write_safetensors(
    model: Inference, path: Path, size: int, metadata: Mapping[str, str]
) -> None:
    tensors = {name: value.contiguous() for name, value in model.student.state_dict().items()}
    save_file(tensors, path, dict(metadata))


def _open_safetensors(path: Path, original: Inference) -> Probabilities:
    model = copy.deepcopy(original)
    for parameter in model.student.state_dict().values():
        parameter.zero_()
    model.student.load_state_dict(load_file(path))
    return lambda pixels: model(torch.from_numpy(pixels))[0].numpy()


class Format(NamedTuple):
    """How a file is written and read again, and how its name ends."""

    write: Callable[[Inference, Path, int, Mapping[str, str]], None]
    open: Callable[[Path, Inference], Probabilities]
    suffix: str


FORMATS = {
    "onnx": Format(_write_onnx, _open_onnx, ".onnx"),
    "torchscript": Format(_write_torchscript, _open_torchscript, ".pt"),
    "safetensors": Format(_write_safetensors, _open_safetensors, ".safetensors"),
}


@torch.no_grad()
def write_checked(
    student: Student,
    path: Path,
    form: str,
    metadata: Mapping[str, str],
    images: npt.NDArray[np.uint8],
    expected: npt.NDArray[np.float64],
) -> float:
    """Write a student, read the file again and compare it with the original.

    Args:
        student: The original.
        path: The file.
        form: A name in :data:`FORMATS`.
        metadata: Texts that go into the file.
        images: To compare on, uint8 (any, 3, size, size); in batches of 1, of 7 and of the rest.
        expected: What the original gives for them, (any, num_classes).

    Returns:
        The largest difference of a class probability.

    Raises:
        DependencyError: The extra ``export`` is not installed.
        StudentError: The file disagrees by more than :data:`TOLERANCE`; the caller removes it.
    """
    model, size = Inference(student), images.shape[-1]
    FORMATS[form].write(model, path, size, metadata)
    opened = FORMATS[form].open(path, model)
    batches = [batch for batch in np.split(images, [1, 8]) if len(batch)]
    found = np.concatenate([opened(batch.astype(np.float32)) for batch in batches])
    difference = float(np.abs(found - expected).max())
    # Written so that nan is refused.
    if not difference <= TOLERANCE:
        raise StudentError(
            f"the {form} file disagrees with the student: a class probability differs by "
            f"{difference:.2g}, allowed are {TOLERANCE:g}; no file is left: use another --format, "
            "and tell the authors of fedkd"
        )
    return difference
