"""Download of a file that anybody may have: resumed where it broke off, named once it is checked.

While it is on its way a file ``NAME`` is ``NAME.part``, and ``NAME.part.json`` says which version
of which address it is. Only https is spoken (http to this machine itself, for tests).
"""

import hashlib
import http.client
import json
import logging
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import urlsplit

from fedkd.disk import on_disk, require_room
from fedkd.errors import FetchError
from fedkd.files import replacing

logger = logging.getLogger(__name__)

Progress = Callable[[int, int | None], None]
"""Takes the number of bytes that are there, and of the whole file (None if unknown)."""

MIN_DIGITS = 8
"""Of a published hash, fewer of which are none."""

_CHUNK = 1 << 20
_LOCAL = ("localhost", "127.0.0.1", "::1")
_TRY_AGAIN = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)


def fetch(
    url: str,
    path: Path,
    *,
    sha256: str | None = None,
    md5: str | None = None,
    progress: Progress | None = None,
    timeout_s: float = 30.0,
    attempts: int = 5,
    wait_s: float = 1.0,
) -> str:
    """Bring a file to ``path`` unless it is there already; checked in either case.

    A file for which nobody published a whole hash gets one beside it, ``NAME.sha256`` in the format
    of the program sha256sum: what came the first time is what must be there ever after.

    Args:
        url: Where from: https.
        path: Where to; its folder is made.
        sha256: Published hash, hexadecimal, or its first digits where only these are published; 8
            at least, which guard against damage and another version only.
        md5: Published hash where there is no better one, or its first digits; guards against
            damage only, not against somebody who wants to deceive.
        progress: Called after each chunk of up to 1 MiB.
        timeout_s: Seconds without a byte after which an attempt has failed; > 0.
        attempts: Attempts in a row that bring nothing new, after which to give up; >= 1.
        wait_s: Seconds before the second attempt in a row; doubled for each further one.

    Returns:
        The whole SHA-256 of the file, hexadecimal.

    Raises:
        FetchError: No such address, no connection, wrong hash, disk full, folder not writable.
    """
    _require_safe(url)
    published = known_hash(sha256, md5)
    if path.exists():
        digest = verify(path, sha256=sha256, md5=md5)
    else:
        part = path.with_name(f"{path.name}.part")
        with on_disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        _Transfer(url, part, published is not None, progress, timeout_s).run(attempts, wait_s)
        if published and not published.fits(seen := published.of(part)):
            _forget(part)
            raise FetchError(
                f"{url} gave a file whose {published.algorithm} is {seen}, not {published.shown} "
                "as published; it is thrown away. Try again; if it stays so, the publisher has "
                "changed it or somebody on the way has"
            )
        with on_disk(path):
            os.replace(part, path)
            _forget(part)
            digest = hash_file(path)
    if published is None or not published.is_whole:
        noted = _noted(path)
        if read_note(path) is None:
            with on_disk(noted), replacing(noted) as new:
                new.write_text(f"{digest}  {path.name}\n", encoding="utf-8")
    return digest


def verify(path: Path, *, sha256: str | None = None, md5: str | None = None) -> str:
    """Compare a file that is there with what was published and with its note ``NAME.sha256``.

    Args:
        path: The file.
        sha256: As for :func:`fetch`.
        md5: As for :func:`fetch`.

    Returns:
        The whole SHA-256 of the file, hexadecimal.

    Raises:
        FetchError: It is another file, or cannot be read.
    """
    published = known_hash(sha256, md5)
    noted = None if published and published.is_whole else read_note(path)
    with on_disk(path):
        digest = hash_file(path)
        for expected in (published, noted):
            if expected is None:
                continue
            seen = digest if expected.algorithm == "sha256" else expected.of(path)
            if not expected.fits(seen):
                raise FetchError(
                    f"{path} is there but is another file: its {expected.algorithm} is {seen}, "
                    f"not {expected.shown}; remove it to fetch it again"
                )
    return digest


def hash_file(path: Path, algorithm: str = "sha256") -> str:
    """Hash of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


class KnownHash(NamedTuple):
    """A hash that a file must have, or the first digits of it where only those are published.

    Attributes:
        algorithm: ``"sha256"`` or ``"md5"``.
        digits: Hexadecimal, in small letters, 8 at least.
    """

    algorithm: str
    digits: str

    def __str__(self) -> str:
        return f"{self.algorithm} {self.shown}"

    @property
    def shown(self) -> str:
        """The digits; of a beginning it is said that it is one."""
        return self.digits if self.is_whole else f"{self.digits}... (a beginning)"

    @property
    def is_whole(self) -> bool:
        """Whether these are all digits."""
        return len(self.digits) == 2 * hashlib.new(self.algorithm).digest_size

    def of(self, path: Path) -> str:
        """The same hash of a file."""
        return hash_file(path, self.algorithm)

    def fits(self, seen: str) -> bool:
        """Whether a hash begins with these digits."""
        return seen.startswith(self.digits)


def known_hash(sha256: str | None, md5: str | None) -> KnownHash | None:
    """What is published of a file's hash, SHA-256 before MD5; None if nothing is."""
    for algorithm, digits in (("sha256", sha256), ("md5", md5)):
        if digits:
            assert len(digits) >= MIN_DIGITS, "fewer digits fit too many files"
            return KnownHash(algorithm, digits.lower())
    return None


def read_note(path: Path) -> KnownHash | None:
    """The hash that was noted when a file was fetched; None without a note, or a damaged one."""
    try:
        found = re.match("[0-9a-fA-F]{64}(?![0-9a-zA-Z])", _noted(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, UnicodeDecodeError):
        return None
    return known_hash(found[0], None) if found else None


def _noted(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


class _Transfer:
    """One file on its way into its ``.part``."""

    def __init__(
        self, url: str, part: Path, checked: bool, progress: Progress | None, timeout_s: float
    ) -> None:
        self.url, self.part, self.progress, self.timeout_s = url, part, progress, timeout_s
        self.checked = checked
        self.note = _note(part)
        self.opener = urllib.request.build_opener(_SafeRedirects)

    def run(self, attempts: int, wait_s: float) -> None:
        """Transfer until the file is whole; FetchError after too many fruitless attempts."""
        furthest, fruitless = 0, 0
        while True:
            try:
                self._attempt()
            except (OSError, http.client.HTTPException) as error:
                why = _reason(error)
            else:
                return
            there = _size(self.part)
            fruitless = 0 if there > furthest else fruitless + 1
            furthest = max(there, furthest)
            if fruitless >= attempts:
                raise FetchError(
                    f"cannot fetch {self.url}: {why} ({attempts} attempts in a row without a new "
                    f"byte, {furthest} bytes are there); check the connection and start again, "
                    "which goes on from there"
                )
            wait = wait_s * 2 ** max(fruitless - 1, 0)
            logger.warning("%s: %s; trying again in %g s", self.url, why, wait)
            time.sleep(wait)

    def _attempt(self) -> None:
        start, version = self._start()
        if start and start == version.get("num_bytes"):
            return
        request = urllib.request.Request(self.url, headers={"User-Agent": "fedkd"})
        if start:
            request.add_header("Range", f"bytes={start}-")
            if validator := version.get("validator"):
                request.add_header("If-Range", validator)
        try:
            response = self.opener.open(request, timeout=self.timeout_s)
        except urllib.error.HTTPError as error:
            with error:
                if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
                    _forget(self.part)
                    raise ConnectionError("the file has become shorter") from None
                if error.code in _TRY_AGAIN or error.code >= 500:
                    raise ConnectionError(
                        f"the server answers {error.code} {error.reason}"
                    ) from None
                raise FetchError(
                    f"{self.url} answers {error.code} {error.reason}; check the address, or get "
                    f"the file otherwise and put it at {self.part.with_suffix('')}"
                ) from None
        with response:
            now = _version(self.url, response)
            if start and not _continues(response, start, now, version):
                # Not asked again at once: what comes is the whole file, unless it is a part of
                # another one.
                start = 0
                if response.status == HTTPStatus.PARTIAL_CONTENT:
                    _forget(self.part)
                    raise ConnectionError("the file has changed since the transfer began")
            total = now["num_bytes"]
            require_room(self.part.parent, (total or start) - start)
            with on_disk(self.part):
                self.note.write_text(json.dumps(now), encoding="utf-8")
                out = self.part.open("ab" if start else "wb")
            with out:
                num = self._copy(response, out, start, total)
        if total is not None and num != total:
            if num > total:
                _forget(self.part)
            raise ConnectionError(f"the connection broke off at {num} of {total} bytes")

    def _start(self) -> tuple[int, dict[str, Any]]:
        """From which byte to ask, and what is known of the version begun."""
        try:
            version = json.loads(self.note.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return 0, {}
        same = isinstance(version, dict) and version.get("url") == self.url
        # Without a mark of the version only the published hash can tell a patchwork.
        if not same or not (version.get("validator") or self.checked):
            return 0, {}
        return _size(self.part), version

    def _copy(self, response: Any, out: BinaryIO, num: int, total: int | None) -> int:
        while True:
            if self.progress:
                self.progress(num, total)
            chunk = response.read1(_CHUNK)
            if not chunk:
                with on_disk(self.part):
                    out.flush()
                return num
            with on_disk(self.part):
                out.write(chunk)
            num += len(chunk)


def _version(url: str, response: Any) -> dict[str, Any]:
    """What tells one version of a file from the next: a strong ETag or the date, and the size."""
    etag = response.headers.get("ETag")
    validator = etag if etag and not etag.startswith("W/") else response.headers["Last-Modified"]
    if response.status == HTTPStatus.PARTIAL_CONTENT:
        length = str(response.headers["Content-Range"]).rpartition("/")[2]
    else:
        length = str(response.headers["Content-Length"])
    num_bytes = int(length) if length.isdigit() else None
    return {"url": url, "validator": validator, "num_bytes": num_bytes}


def _continues(response: Any, start: int, now: dict[str, Any], before: dict[str, Any]) -> bool:
    return (
        response.status == HTTPStatus.PARTIAL_CONTENT
        and str(response.headers["Content-Range"]).startswith(f"bytes {start}-")
        and now["validator"] == before.get("validator")
        and before.get("num_bytes") in (None, now["num_bytes"])
    )


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        _require_safe(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _require_safe(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOCAL):
        raise FetchError(f"{url} is not https; only https addresses are fetched")


def _reason(error: Exception) -> str:
    inner = getattr(error, "reason", error)
    if isinstance(inner, TimeoutError):
        return "no answer in time"
    return str(inner) or type(inner).__name__


def _note(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
