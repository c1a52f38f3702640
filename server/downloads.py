"""Downloads as commands show them: a bar while they run, what arrived, what to do without them."""

from collections.abc import Sequence
from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from fedkd.data.card import Download
from fedkd.data.obtain import fetch_all
from fedkd.fetching import known_hash
from server import terminal


def fetch_with_progress(downloads: Sequence[Download], folder: Path) -> None:
    """Fetch and check all files; a bar on stderr, and a line for each file on stdout.

    Raises:
        FetchError: See :func:`fedkd.data.obtain.fetch_all`.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(),
               TransferSpeedColumn())  # fmt: skip
    with Progress(*columns, console=terminal.stderr()) as bar:
        task = bar.add_task("")

        def show(what: str, num: int, total: int | None) -> None:
            bar.update(task, description=what, completed=num, total=total)

        fetch_all(downloads, folder, show, lambda item, digest: _say(folder, item, digest))


def by_hand(downloads: Sequence[Download], folder: Path, steps: str) -> str:
    """What a machine without a connection needs: each file that is not there, and the steps."""
    lines = []
    for item in downloads:
        if not (folder / item.path).exists():
            known = known_hash(item.sha256, item.md5)
            lines += [item.url, f"  -> {folder / item.path}{f'  {known}' if known else ''}"]
    return "\n".join([*lines, *([steps] if steps else [])])


def compared(item: Download, path: Path) -> str:
    """With what the hash of a file that was fetched or verified has been compared, in words."""
    noted = f"kept in {path.name}.sha256 to compare with"
    known = known_hash(item.sha256, item.md5)
    if known is None:
        return f"no hash is published; {noted}"
    name, digits = known
    if known.is_whole:
        return f"{'' if name == 'sha256' else 'its md5 is '}as published"
    return f"the first digits of its {name} are as published, {digits}; the whole one {noted}"


def _say(folder: Path, item: Download, digest: str) -> None:
    path = folder / item.path
    print(
        f"{path}  sha256 {digest} ({compared(item, path)})"
        if digest
        else f"{path}  unpacked before"
    )
