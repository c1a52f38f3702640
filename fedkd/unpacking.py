"""Archives unpacked so that nothing lands outside the folder, and nothing there is overwritten."""

import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, NamedTuple

from fedkd.disk import on_disk, require_room
from fedkd.errors import FetchError
from fedkd.files import replacing

Progress = Callable[[int, int | None], None]
"""Takes the number of files that are unpacked, and of all."""

_CHUNK = 1 << 20


class _Member(NamedTuple):
    name: str
    num_bytes: int
    open: Callable[[], IO[bytes]]


def unpack(archive: Path, folder: Path, progress: Progress | None = None) -> int:
    """Unpack a zip or a tar (plain, gz, bz2, xz) into a folder.

    All names are looked at before anything is written: paths that are absolute or go up, links and
    devices are refused. A file that is there already with the same content stays as it is, so that
    an interrupted unpacking is finished by the next; one with another content is refused.
    Permissions, owners and dates of the archive are not taken over.

    Args:
        archive: The file; what it is shows in its content, not in its name.
        folder: Is made if need be.
        progress: Called after each file.

    Returns:
        Number of files in the archive.

    Raises:
        FetchError: Neither a zip nor a tar, damaged, encrypted, a member that may not be unpacked,
            a file that is there with another content, or no room on the disk.
    """
    with _reading(archive):
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                return _write(archive, folder, list(_of_zip(archive, opened)), progress)
        if tarfile.is_tarfile(archive):
            with tarfile.open(archive) as opened_tar:
                return _write(archive, folder, list(_of_tar(archive, opened_tar)), progress)
    raise FetchError(f"{archive} is neither a zip nor a tar; remove it and fetch it again")


def _of_zip(archive: Path, opened: zipfile.ZipFile) -> Iterator[_Member]:
    for info in opened.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _refused(archive, info.filename, "is a link or a device")
        if not info.is_dir():
            yield _Member(info.filename, info.file_size, partial(opened.open, info))


def _of_tar(archive: Path, opened: tarfile.TarFile) -> Iterator[_Member]:
    def open_member(info: tarfile.TarInfo) -> IO[bytes]:
        file = opened.extractfile(info)
        assert file is not None, "a regular file"
        return file

    members = opened.getmembers()
    # A compressed stream's check sum stands behind the last member, where tarfile does not look.
    while opened.fileobj is not None and opened.fileobj.read(_CHUNK):
        pass
    for info in members:
        if not (info.isfile() or info.isdir()):
            raise _refused(archive, info.name, "is a link or a device")
        if info.isfile():
            yield _Member(info.name, info.size, partial(open_member, info))


def _write(archive: Path, folder: Path, members: list[_Member], progress: Progress | None) -> int:
    for member in members:
        _require_inside(archive, member.name)
    with on_disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
    missing = [member.num_bytes for member in members if not (folder / member.name).exists()]
    require_room(folder, sum(missing))
    for number, member in enumerate(members, 1):
        target = folder / member.name
        if target.exists() or target.is_symlink():
            with member.open() as content:
                if not _equal(target, member.num_bytes, content):
                    raise _refused(
                        archive,
                        member.name,
                        f"is in {folder} already with another content",
                        "; move that away and start again",
                    )
        else:
            _write_one(target, member)
        if progress:
            progress(number, len(members))
    return len(members)


def _write_one(target: Path, member: _Member) -> None:
    with on_disk(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    with member.open() as content, replacing(target, flush=False) as part:
        with on_disk(target):
            out = part.open("wb")
        with out:
            # The archive's own errors are not the disk's.
            for chunk in iter(lambda: content.read(_CHUNK), b""):
                with on_disk(target):
                    out.write(chunk)
            with on_disk(target):
                out.flush()


def _equal(target: Path, num_bytes: int, content: IO[bytes]) -> bool:
    if not target.is_file() or target.stat().st_size != num_bytes:
        return False
    with target.open("rb") as file:
        return all(
            chunk == content.read(len(chunk)) for chunk in iter(lambda: file.read(_CHUNK), b"")
        )


def _require_inside(archive: Path, name: str) -> None:
    # A name may mean something else to Windows, and an archive comes from anywhere.
    for path in (PurePosixPath(name), PureWindowsPath(name)):
        if path.is_absolute() or path.drive or path.root or ".." in path.parts:
            raise _refused(archive, name, "leads out of the folder")


def _refused(archive: Path, name: str, why: str, remedy: str = "") -> FetchError:
    return FetchError(f"{archive} is not unpacked: its member {name!r} {why}{remedy or _DISTRUST}")


_DISTRUST = "; do not trust this archive, fetch it from its publisher"


@contextmanager
def _reading(archive: Path) -> Iterator[None]:
    """Damage and encryption of an archive as FetchError."""
    try:
        yield
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        zlib.error,
        EOFError,
        RuntimeError,
        OSError,
        NotImplementedError,
        ValueError,
    ) as error:
        raise FetchError(
            f"cannot unpack {archive}: {error}; remove it and fetch it again"
        ) from None
