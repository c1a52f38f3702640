"""Files that make a folder if anything unpickles them, in each container that holds pickles."""

import io
import os
import pickle
import tarfile
import zipfile

import numpy as np
import torch
from torch import nn


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.makedirs, (self.folder, 0o777, True)


def _pickle(bomb):
    return pickle.dumps(bomb, protocol=2)


def _torch(bomb, zipped=True):
    file = io.BytesIO()
    torch.save({"a": bomb}, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def _npy(bomb):
    file = io.BytesIO()
    np.save(file, np.array([bomb], dtype=object), allow_pickle=True)
    return file.getvalue()


def _npz(bomb):
    file = io.BytesIO()
    value = np.array([bomb], dtype=object)
    np.savez(file, allow_pickle=True, train_images=value, train_labels=value)
    return file.getvalue()


def _zip(bomb):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", _pickle(bomb))
        archive.writestr("archive/version", "3\n")
    return file.getvalue()


def _tar(bomb):
    file = io.BytesIO()
    content = _pickle(bomb)
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in ("pickle", "storages", "tensors"):  # of torch before 0.1.10
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


KINDS = {
    "pickle": _pickle,
    "torch zip": _torch,
    "torch legacy": lambda bomb: _torch(bomb, zipped=False),
    "npy": _npy,
    "npz": _npz,
    "zip": _zip,
    "tar": _tar,
}


def content(kind, folder):
    """A file's bytes; unpickled without care, they make ``folder``."""
    return KINDS[kind](Bomb(folder))


def torchscript(path):
    """A program with its weights, as torch.jit.save writes it."""
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(path))
