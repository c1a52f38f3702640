"""Getting data sets and weights: files that anybody may download, and what is not there yet."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

from fedkd import files, paths
from fedkd.config import Section
from fedkd.data.card import DataCard, Download
from fedkd.disk import on_disk
from fedkd.fetching import fetch
from fedkd.unpacking import unpack

Show = Callable[[str, int, int | None], None]
"""Takes what is being done, how far it is, and how far it has to go (None if unknown)."""


def fetch_all(
    downloads: Sequence[Download], folder: Path, show: Show, done: Callable[[Download, str], None]
) -> None:
    """Fetch, check and unpack everything that anybody may download; what is there is only checked.

    An archive that was unpacked once may be deleted: a file ``NAME.unpacked`` beside it remembers.
    Of two processes that fetch into one folder, one waits for the other.

    Args:
        downloads: What there is.
        folder: The folder of all data, or of all teachers.
        show: Called as bytes arrive, or files out of an archive.
        done: Called after each file with its SHA-256; that of an archive which was unpacked and
            deleted is "".

    Raises:
        FetchError: See :func:`fedkd.fetching.fetch` and :func:`fedkd.unpacking.unpack`.
    """
    # What is there may lie in a folder that nobody may write to.
    there = all(_is_fetched(folder / item.path) for item in downloads)
    with nullcontext() if there else _alone(folder):
        for item in downloads:
            path = folder / item.path
            if _is_fetched(path) and not path.exists():
                done(item, "")
                continue
            digest = fetch(
                item.url,
                path,
                sha256=item.sha256,
                md5=item.md5,
                progress=partial(show, path.name),
            )
            if item.unpack is not None:
                unpack(path, folder / item.unpack, partial(show, f"unpacking {path.name}"))
                with on_disk(path):
                    _unpacked(path).touch()
            done(item, digest)


def _unpacked(path: Path) -> Path:
    return path.with_name(f"{path.name}.unpacked")


def _is_fetched(path: Path) -> bool:
    return path.exists() or _unpacked(path).exists()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process fetches into the folder."""
    with on_disk(folder / ".fetch.lock"):
        folder.mkdir(parents=True, exist_ok=True)
        lock = files.lock(folder / ".fetch.lock", f"fetches into {folder}")
    try:
        yield
    finally:
        lock.release()


def missing(config: Section, card: DataCard) -> list[Path]:
    """Files and folders of the data set that are not there, or empty; only names are looked at.

    Args:
        config: The data set's settings; those of its keys count that lie in ``FEDKD_DATA`` unless
            the user says otherwise.
        card: Its downloads count, archives aside.

    Raises:
        ConfigError: A variable in a path is not set.
    """
    wanted = [paths.expand(getattr(config, key), f"data.{key}") for key in path_keys(config)] + [
        paths.data_dir() / item.path for item in card.downloads if item.unpack is None
    ]
    return [path for path in dict.fromkeys(wanted) if not _is_there(path)]


def path_keys(config: Section) -> list[str]:
    """Keys of a data set that name files or folders in ``FEDKD_DATA`` by default."""
    return [
        key
        for key, field in type(config).model_fields.items()
        if "${FEDKD_DATA}" in str(field.default) and getattr(config, key) is not None
    ]


def _is_there(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.is_file()
