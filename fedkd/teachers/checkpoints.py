"""Files of weights: checked by their hash, read without running code, loaded strictly."""

import logging
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fedkd.data.card import Download
from fedkd.errors import TeacherError, first_of
from fedkd.fetching import KnownHash, known_hash
from fedkd.models.states import mismatches

logger = logging.getLogger(__name__)

NESTED = ("state_dict", "model")
"""Where a training checkpoint keeps its state dict, beside an epoch, an optimiser and the like."""
WRAPPERS = ("module.", "model.", "backbone.")
"""What DataParallel, a Lightning module and an encoder of one's own put before every name."""


class Parts(NamedTuple):
    """An opened network in its two parts.

    Attributes:
        backbone: Maps normalised images to features (batch, num_features).
        head: Maps features to what the card says; None if the file or the card has none.
        num_features: Width of the features.
        input_size: Side in px to which images are resized; None leaves them as they come.
    """

    backbone: nn.Module
    head: nn.Module | None
    num_features: int
    input_size: int | None


def published_hash(download: Download | None) -> KnownHash | None:
    """What is known of a download's hash, SHA-256 before MD5; None if nothing is."""
    return known_hash(download.sha256, download.md5) if download else None


def check_hash(path: Path, known: KnownHash | None) -> None:
    """Refuse a file whose hash does not begin with the known digits (TeacherError)."""
    if known is None:
        return
    try:
        seen = known.of(path)
    except OSError as error:
        raise _unreadable(path, str(error)) from error
    if not known.fits(seen):
        raise TeacherError(
            f"{path} has {known.algorithm} {seen}, expected {known.shown}; the file is damaged or "
            "another one: get it again, or set teacher.sha256 to that of a file that you trust"
        )


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a file that safetensors or ``torch.save`` wrote, told by its content.

    A dict is also found under ``state_dict`` or ``model``. ``module.``, ``model.`` and
    ``backbone.`` are taken off in this order where all names begin with them (our choice of what
    wrappers are known). Floating-point tensors become float32, so that float16 and bfloat16 files
    serve as well. Files of torch's zip format are memory-mapped.

    Raises:
        TeacherError: The file holds no state dict, more than tensors, or is damaged.
    """
    state = _load(path)
    if isinstance(state, Mapping):
        state = next((state[key] for key in NESTED if isinstance(state.get(key), Mapping)), state)
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise TeacherError(
            f"{path} holds no state dict of tensors; save model.state_dict() instead"
        )
    if odd := [name for name, tensor in state.items() if not _is_plain(tensor)]:
        raise TeacherError(
            f"{path} holds tensors that are sparse, quantised, without data or larger than their "
            f"data: {first_of(odd)}; save a state dict of plain tensors"
        )
    for prefix in WRAPPERS:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return {name: t.float() if t.is_floating_point() else t for name, t in state.items()}


def _is_plain(tensor: Tensor) -> bool:
    """Whether each element is a number of its own: the file cannot make more of it than it is."""
    dense = tensor.layout == torch.strided and not (tensor.is_quantized or tensor.is_meta)
    return dense and tensor.untyped_storage().nbytes() >= tensor.nbytes


def _load(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            start = file.read(9)
        # A safetensors file begins with the length of a JSON object, in 8 bytes.
        if start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
            return load_file(path)
        zipped = zipfile.is_zipfile(path)
        if zipped:
            _refuse_programs(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except TeacherError:
        raise
    except pickle.UnpicklingError as error:
        # torch's own text advises to load the file without this check.
        if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise TeacherError(
                f"{path} holds more than tensors: reading it would call {found[1]}. Pickle files "
                "can run any command when they are read, so files with executable pickle content "
                "are refused; get a plain state dict, or where you trust the file, open it with "
                "its authors' code and torch.save(model.state_dict(), NEW_FILE)"
            ) from None
        raise _unreadable(path, "it is no file of torch.save") from None
    except Exception as error:  # torch raises many kinds for a broken file
        raise _unreadable(path, first_line(error)) from error


def _refuse_programs(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith("/constants.pkl") for name in names):
        raise TeacherError(
            f"{path} is a TorchScript archive, a program with its weights (OpenAI's own CLIP files "
            "are such), and programs in checkpoints are never run; use a file of weights alone, or "
            "write one where you trust it: torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE)"
        )


def _unreadable(path: Path, cause: str) -> TeacherError:
    return TeacherError(
        f"cannot read the checkpoint {path}: {cause}. It is damaged, incomplete or of another "
        "kind; get it again. State dicts that torch.save or safetensors wrote are read, other "
        "pickle files never, as reading them can run any command"
    )


def without(
    state: Mapping[str, Tensor], prefixes: tuple[str, ...], path: Path
) -> dict[str, Tensor]:
    """The state dict without a classifier that the teacher does not use, which a log line lists."""
    ignored = [name for name in state if name.startswith(prefixes)]
    if ignored:
        logger.info("%s also holds a classifier, which is ignored: %s", path, first_of(ignored))
    return {name: tensor for name, tensor in state.items() if name not in ignored}


def log_missing_head(path: Path) -> None:
    """Say that the file has a backbone alone, where its card promises a head."""
    logger.warning(
        "%s holds no head, so that the teacher has none; prompts compare its features instead", path
    )


def num_classes(state: Mapping[str, Tensor], layer: str, default: int) -> int:
    """Outputs of a linear layer in a state dict; the default where it has none that could be."""
    weight = state.get(f"{layer}.weight")
    return default if weight is None or weight.ndim != 2 or not len(weight) else len(weight)


def try_out(network: nn.Module, pixels: Tensor, name: str) -> int:
    """Width of the features of these images; TeacherError if the network cannot take their size."""
    try:
        with torch.no_grad():
            return int(network.eval()(pixels).shape[1])
    except Exception as error:  # each network has its own way to fail
        raise TeacherError(
            f"the teacher {name} cannot take images of {pixels.shape[-1]} px "
            f"({first_line(error)}); set teacher.input_size to a side that it takes, such as 224"
        ) from error


def first_line(error: Exception) -> str:
    """An error's text without the lines that explain it at length; its kind where it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def load_strictly(
    network: nn.Module, state: Mapping[str, Tensor], path: Path, architecture: str
) -> None:
    """Load a state dict, or raise a TeacherError that lists what does not fit or is not finite.

    BatchNorm's number of batches may be missing, as in files older than torch 0.4.1: it counts in
    training alone.
    """
    own = network.state_dict()
    counts = {name: tensor for name, tensor in own.items() if name.endswith("num_batches_tracked")}
    whole = {**counts, **state}
    if problems := mismatches(own, whole):
        raise TeacherError(f"{path} does not fit {architecture}: {problems}")
    if bad := [name for name, tensor in whole.items() if not tensor.isfinite().all()]:
        raise TeacherError(
            f"{path} holds weights that are not finite in {first_of(bad)}; it is damaged, or its "
            "training diverged: get it again, or use another one"
        )
    network.load_state_dict(whole)
