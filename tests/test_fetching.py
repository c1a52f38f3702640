"""Downloads against a server on this machine that does what servers do wrong."""

import contextlib
import hashlib
import http.server
import os
import threading
import time
from pathlib import Path

import pytest

from fedkd import disk, fetching
from fedkd.errors import FetchError
from fedkd.fetching import fetch

CONTENT = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT; a test changes how."""

    content = CONTENT
    ranges = True
    honours_if_range = True
    etag = '"one"'
    breaks_at: list[int]
    """Bytes after which one answer each breaks off."""
    status: list[int]
    """Answers before the first good one."""
    delay_s = 0.0
    redirect: str | None = None

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.breaks_at, self.status, self.asked = [], [], []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/file.bin"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):  # noqa: N802
        server = self.server
        given = self.headers.get("Range")
        server.asked.append(given)
        time.sleep(server.delay_s)
        if server.redirect:
            self.send_response(302)
            self.send_header("Location", server.redirect)
            self.end_headers()
            return
        if server.status:
            self.send_error(server.status.pop(0))
            return
        start, body = 0, server.content
        server.last_if_range = self.headers.get("If-Range")
        fresh = not server.honours_if_range or server.last_if_range in (None, server.etag)
        if given and server.ranges and fresh:
            start = int(given.removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(body) - start))
        if server.etag:
            self.send_header("ETag", server.etag)
        self.end_headers()
        end = server.breaks_at.pop(0) if server.breaks_at else len(body)
        self.wfile.write(body[start:end])

    def handle_one_request(self):
        # A client that gives up in the middle of an answer is part of the play.
        with contextlib.suppress(ConnectionError):
            super().handle_one_request()

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server() as served:
        thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield served
        served.shutdown()
        thread.join()


def get(server, path, **options):
    return fetch(server.url, path, **{"wait_s": 0.001, **options})


def error(server, path, **options):
    with pytest.raises(FetchError) as caught:
        get(server, path, **options)
    return str(caught.value)


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def test_a_file_arrives_with_its_hash_and_leaves_nothing_else(server, tmp_path):
    path = tmp_path / "new" / "file.bin"
    seen = []
    assert get(server, path, sha256=SHA256, progress=lambda *at: seen.append(at)) == SHA256
    assert path.read_bytes() == CONTENT
    assert names(path.parent) == ["file.bin"]
    assert seen[0] == (0, len(CONTENT))
    assert seen[-1] == (len(CONTENT), len(CONTENT))


def test_an_md5_is_checked_where_there_is_nothing_better(server, tmp_path):
    assert get(server, tmp_path / "a", md5=MD5) == SHA256
    assert "whose md5 is" in error(server, tmp_path / "b", md5="0" * 32)


def test_without_a_published_hash_the_first_one_is_kept_and_checked(server, tmp_path):
    path = tmp_path / "file.bin"
    assert get(server, path) == SHA256
    assert (tmp_path / "file.bin.sha256").read_text() == f"{SHA256}  file.bin\n"
    assert get(server, path) == SHA256
    path.write_bytes(b"changed")
    assert f"not {SHA256}; remove it to fetch it again" in error(server, path)
    assert server.asked == [None]


@pytest.mark.parametrize("content", [b"", b"abc", b"not found", b"\xff\xfe", b"0" * 65])
def test_a_damaged_note_is_written_anew(server, tmp_path, content):
    path, note = tmp_path / "file.bin", tmp_path / "file.bin.sha256"
    path.write_bytes(CONTENT)
    note.write_bytes(content)
    assert fetching.verify(path) == SHA256
    assert get(server, path) == SHA256
    assert note.read_text() == f"{SHA256}  file.bin\n"


def test_a_file_that_is_there_is_checked_and_not_asked_for(server, tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(CONTENT)
    assert get(server, path, sha256=SHA256.upper()) == SHA256
    path.write_bytes(b"other")
    other = hashlib.sha256(b"other").hexdigest()
    assert error(server, path, sha256=SHA256) == (
        f"{path} is there but is another file: its sha256 is {other}, not {SHA256}; "
        "remove it to fetch it again"
    )
    assert server.asked == []


@pytest.mark.parametrize(
    ("name", "whole"), [("sha256", SHA256), ("md5", MD5)], ids=["sha256", "md5"]
)
def test_the_first_digits_of_a_hash_are_compared_and_the_whole_one_is_kept(
    server, tmp_path, name, whole
):
    path, beginning = tmp_path / "file.bin", {name: whole[:8].upper()}
    assert get(server, path, **beginning) == SHA256
    note = tmp_path / "file.bin.sha256"
    assert note.read_text() == f"{SHA256}  file.bin\n"
    assert get(server, path, **beginning) == SHA256
    path.write_bytes(b"other")
    other = hashlib.new(name, b"other").hexdigest()
    assert f"its {name} is {other}, not {whole[:8]}... (a beginning); remove it" in error(
        server, path, **beginning
    )
    assert note.read_text() == f"{SHA256}  file.bin\n"
    assert len(server.asked) == 1


def test_a_file_whose_hash_begins_otherwise_is_thrown_away(server, tmp_path):
    wrong = "0" * 8 if SHA256[0] != "0" else "1" * 8
    text = error(server, tmp_path / "f", sha256=wrong)
    assert (
        f"gave a file whose sha256 is {SHA256}, not {wrong}... (a beginning) as published" in text
    )
    assert names(tmp_path) == []


def test_a_file_with_the_published_beginning_must_be_the_one_first_seen(server, tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(CONTENT)
    (tmp_path / "file.bin.sha256").write_text(f"{SHA256[:8]}{'0' * 56}  file.bin\n")
    assert f"its sha256 is {SHA256}, not {SHA256[:8]}{'0' * 56}; remove" in error(
        server, path, sha256=SHA256[:8]
    )


def test_fewer_than_eight_digits_are_no_hash(tmp_path):
    with pytest.raises(AssertionError, match="fewer digits"):
        fetch("https://example.org/f", tmp_path / "f", sha256="1234567")


def test_a_broken_transfer_goes_on_where_it_stopped(server, tmp_path):
    server.breaks_at = [1000, 5000]
    assert get(server, tmp_path / "f", sha256=SHA256) == SHA256
    assert server.asked == [None, "bytes=1000-", "bytes=5000-"]


def test_the_next_fetch_goes_on_where_the_last_one_gave_up(server, tmp_path):
    server.breaks_at = [1000, 1000]
    text = error(server, tmp_path / "f", attempts=1)
    assert "the connection broke off at 1000 of 256000 bytes" in text
    assert "1000 bytes are there" in text
    assert names(tmp_path) == ["f.part", "f.part.json"]
    server.asked.clear()
    assert get(server, tmp_path / "f") == SHA256
    assert server.asked == ["bytes=1000-"]


def test_a_server_without_ranges_starts_over(server, tmp_path):
    server.ranges = False
    server.breaks_at = [1000]
    assert get(server, tmp_path / "f", sha256=SHA256) == SHA256
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_server_that_always_breaks_off_is_given_up(server, tmp_path):
    server.ranges = False
    server.breaks_at = [1000] * 10
    text = error(server, tmp_path / "f", attempts=3)
    assert text == (
        f"cannot fetch {server.url}: the connection broke off at 1000 of 256000 bytes "
        "(3 attempts in a row without a new byte, 1000 bytes are there); check the connection and "
        "start again, which goes on from there"
    )
    assert len(server.asked) == 4


@pytest.mark.parametrize("what", ["version", "version, unnoticed", "length"])
def test_a_file_that_changes_on_the_way_is_not_glued(server, tmp_path, what):
    server.breaks_at = [1000, 1000]
    error(server, tmp_path / "f", attempts=1)
    server.content = bytes(reversed(CONTENT))
    if what == "length":
        server.content += b"longer"
    else:
        server.etag = '"two"'
        server.honours_if_range = what == "version"
    server.asked.clear()
    get(server, tmp_path / "f")
    # A server that understands sends the whole file at once.
    assert server.asked == ["bytes=1000-", *([] if what == "version" else [None])]
    assert server.last_if_range == ('"one"' if what == "version" else None)
    assert (tmp_path / "f").read_bytes() == server.content


def test_without_a_mark_of_the_version_only_a_published_hash_allows_to_go_on(server, tmp_path):
    server.etag = None
    for name, hashes, second in (("a", {}, None), ("b", {"sha256": SHA256}, "bytes=1000-")):
        server.asked.clear()
        server.breaks_at = [1000]
        assert get(server, tmp_path / name, **hashes) == SHA256
        assert server.asked == [None, second]


def test_a_part_of_another_address_is_not_used(server, tmp_path):
    server.breaks_at = [1000, 1000]
    error(server, tmp_path / "f", attempts=1)
    note = tmp_path / "f.part.json"
    note.write_text(note.read_text().replace("file.bin", "other.bin"))
    server.asked.clear()
    get(server, tmp_path / "f", sha256=SHA256)
    assert server.asked == [None]


def test_a_whole_part_needs_no_transfer(server, tmp_path):
    server.breaks_at = [1000, 1000]
    error(server, tmp_path / "f", attempts=1)
    (tmp_path / "f.part").write_bytes(CONTENT)
    server.asked.clear()
    assert get(server, tmp_path / "f", sha256=SHA256) == SHA256
    assert server.asked == []


def test_a_wrong_hash_leaves_no_file(server, tmp_path):
    wrong = "ab" * 32
    assert error(server, tmp_path / "f", sha256=wrong) == (
        f"{server.url} gave a file whose sha256 is {SHA256}, not {wrong} as published; it is "
        "thrown away. Try again; if it stays so, the publisher has changed it or somebody on the "
        "way has"
    )
    assert names(tmp_path) == []


def test_a_missing_page_is_said_at_once(server, tmp_path):
    server.status = [404]
    assert error(server, tmp_path / "f") == (
        f"{server.url} answers 404 Not Found; check the address, or get the file otherwise and "
        f"put it at {tmp_path / 'f'}"
    )
    assert len(server.asked) == 1


def test_a_busy_server_is_asked_again(server, tmp_path):
    server.status = [503, 429]
    assert get(server, tmp_path / "f") == SHA256
    server.status = [503] * 2
    assert "the server answers 503 Service Unavailable (2 attempts" in error(
        server, tmp_path / "g", attempts=2
    )


def test_silence_is_a_failed_attempt(server, tmp_path):
    server.delay_s = 0.3
    assert "no answer in time (1 attempts" in error(
        server, tmp_path / "f", attempts=1, timeout_s=0.05
    )


def test_nobody_at_the_address(tmp_path):
    with pytest.raises(FetchError, match=r"cannot fetch http://127.0.0.1:1/f: .*refused"):
        fetch("http://127.0.0.1:1/f", tmp_path / "f", attempts=2, wait_s=0.001)


@pytest.mark.parametrize("url", ["http://example.org/f", "ftp://example.org/f", "file:///etc/f"])
def test_only_https_is_fetched(tmp_path, url):
    with pytest.raises(FetchError) as caught:
        fetch(url, tmp_path / "f")
    assert str(caught.value) == f"{url} is not https; only https addresses are fetched"


def test_a_redirect_must_be_https_too(server, tmp_path):
    server.redirect = "http://example.org/f"
    assert error(server, tmp_path / "f").startswith("http://example.org/f is not https")


def test_a_full_disk_is_said_before_the_transfer(server, tmp_path, monkeypatch):
    usage = disk.shutil.disk_usage(tmp_path)._replace(free=1_000)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: usage)
    text = error(server, tmp_path / "f")
    assert text.startswith(f"{tmp_path} has 0 MB free, and 0 MB more are needed; free some")
    assert names(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_disk_that_fills_up_on_the_way_is_named(server, tmp_path):
    (tmp_path / "f.part").symlink_to("/dev/full")
    assert error(server, tmp_path / "f") == (
        f"the disk is full at {tmp_path}; free some space and start again"
    )
    assert not (tmp_path / "f").exists()


def test_a_folder_that_cannot_be_made_is_named(server, tmp_path):
    (tmp_path / "file").write_text("")
    text = error(server, tmp_path / "file" / "f")
    assert text.startswith(f"cannot use {tmp_path / 'file' / 'f'}: ")
    assert text.endswith(
        "make its folder writable, or set FEDKD_DATA (for a teacher FEDKD_TEACHERS) to another one"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_named(server, tmp_path):
    tmp_path.chmod(0o500)
    assert "Permission denied; make its folder writable" in error(server, tmp_path / "f")


def test_an_interrupted_transfer_can_go_on(server, tmp_path):
    def stop(num, total):
        if num:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get(server, tmp_path / "f", progress=stop)
    assert names(tmp_path) == ["f.part", "f.part.json"]
    assert get(server, tmp_path / "f") == SHA256


def test_the_hash_of_a_file_is_that_of_its_content(tmp_path):
    (tmp_path / "f").write_bytes(CONTENT)
    assert fetching.hash_file(tmp_path / "f") == SHA256
    assert fetching.hash_file(tmp_path / "f", "md5") == MD5
