"""What a client remembers, as a file that is read back bit for bit."""

import json
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from clients.node import State
from fedkd import files

_LAYOUT = "layout"


def write_state(state: State, path: Path, flush: bool = True) -> None:
    """Write a state as safetensors, whole or not at all.

    Args:
        state: Any dtypes and shapes, 0-dimensional and empty tensors and empty parts as well.
        path: Its folder must be there; a file that is there is replaced.
        flush: See :func:`fedkd.files.replacing`.

    Raises:
        OSError, safetensors.SafetensorError: It cannot be written: no room, no folder.
    """
    # Copies, as safetensors takes neither tensors that share memory nor such with gaps.
    tensors = {
        f"{part}/{name}": tensor.detach().cpu().clone().contiguous()
        for part, named in state.items()
        for name, tensor in named.items()
    }
    # Parts without a tensor, the order, and where tensors were, which safetensors does not keep.
    layout = {
        part: {name: str(tensor.device) for name, tensor in named.items()}
        for part, named in state.items()
    }
    with files.replacing(path, flush) as unfinished:
        save_file(tensors, unfinished, {_LAYOUT: json.dumps(layout)})


def read_state(path: Path) -> State:
    """The state that :func:`write_state` wrote: names in their order, dtypes, shapes and bits.

    Tensors are on the device where they were, and contiguous whatever they were.

    Raises:
        OSError, safetensors.SafetensorError: It cannot be read.
    """
    with safe_open(path, framework="pt") as file:
        layout: dict[str, dict[str, str]] = json.loads(file.metadata()[_LAYOUT])
        # Copies: what is read lies in a mapped file, which would stay as long as any tensor of it.
        return {
            part: {
                name: file.get_tensor(f"{part}/{name}").clone().to(device)
                for name, device in devices.items()
            }
            for part, devices in layout.items()
        }
