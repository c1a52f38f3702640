"""A client's prompts in a file of its own, so that they can be looked at later.

The file lies on the disk of the machine on which the client trained and never travels.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fedkd import files, seeding
from fedkd.errors import DataError
from fedkd.fourier.config import PromptConfig
from fedkd.fourier.generators.factory import make_generator
from fedkd.fourier.prompter import Prompter

MEAN_AMPLITUDE = "mean_amplitude"
GENERATOR = "generator."
_FORMAT = "fedkd-prompts-1"


def path_of(folder: Path, partition_id: int) -> Path:
    """The file of one client in the folder of a run's prompts."""
    return folder / f"client-{partition_id}.safetensors"


def save_prompts(path: Path, prompter: Prompter, round_number: int) -> None:
    """Write what the prompts of a client are made of, whole or not at all; the folder is made.

    Args:
        path: The file, see :func:`path_of`.
        prompter: Its generator and its mean amplitude, as far as there are any.
        round_number: In which the client trained with these prompts, whether it explored or not.

    Raises:
        DataError: The folder cannot be written.
    """
    tensors = {}
    if prompter.generator is not None:
        state = prompter.generator.state_dict()
        tensors = {GENERATOR + name: tensor for name, tensor in state.items()}
    if prompter.mean_amplitude is not None:
        tensors[MEAN_AMPLITUDE] = prompter.mean_amplitude
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"format": _FORMAT, "round": str(round_number)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(path) as part:
            save_file(contiguous, part, metadata)
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"cannot write the prompts {path} ({error}); make room there, or choose another "
            "output=<folder>"
        ) from None


def load_prompts(
    path: Path, config: PromptConfig, channels: int, height: int, width: int
) -> tuple[Prompter, int]:
    """The prompter of a client, on the CPU, and the last round in which the client trained with it.

    Args:
        path: What :func:`save_prompts` wrote.
        config: Of the run.
        channels: Of the images.
        height: Of the images in px.
        width: Of the images in px.

    Raises:
        DataError: No such file, or one that does not fit the config.
    """
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise DataError(f"cannot read the prompts {path}: {error}") from None
    if metadata.get("format") != _FORMAT:
        raise DataError(
            f"{path} has format {metadata.get('format')!r}; expected {_FORMAT!r}, as `fedkd run` "
            "writes it"
        )
    mean = tensors.pop(MEAN_AMPLITUDE, None)
    with seeding.isolated(0, "prompt-generator"):
        generator = make_generator(config, channels, height, width)
    state = {name.removeprefix(GENERATOR): tensor for name, tensor in tensors.items()}
    problem = ""
    if generator is not None:
        generator.to(next((tensor.dtype for tensor in state.values()), torch.float32))
        try:
            generator.load_state_dict(state)
        except RuntimeError as error:
            problem = str(error).splitlines()[1].strip()
    elif state:
        problem = f"it holds a generator, whose first tensor is {min(state)!r}"
    if config.form == "mix" and config.generator != "amplitude_mix":
        if mean is None:
            problem = problem or "it has no mean amplitude"
        elif mean.shape != (channels, height, width // 2 + 1):
            problem = problem or f"its mean amplitude is {tuple(mean.shape)}"
    if problem:
        raise DataError(
            f"{path} does not fit prompts.generator = {config.generator!r}, prompts.form = "
            f"{config.form!r} and images of {height}x{width} px: {problem}; give it the config of "
            "the run that wrote it"
        )
    return Prompter(config, generator, mean), int(metadata["round"])
