"""Archives that are what they say, and archives that are not."""

import io
import tarfile
import zipfile

import pytest

from fedkd import disk
from fedkd.errors import FetchError
from fedkd.unpacking import unpack

FILES = {"images/a.jpg": b"first", "images/deep/b.jpg": b"second", "empty": b""}


def make_zip(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def make_tar(path, files, mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


MAKERS = [make_zip, make_tar]


def refused(archive, folder):
    with pytest.raises(FetchError) as caught:
        unpack(archive, folder)
    return str(caught.value)


@pytest.mark.parametrize("make", MAKERS)
def test_all_files_arrive(tmp_path, make):
    seen = []
    archive = make(tmp_path / "archive", {**FILES, "images/": b""} if make is make_zip else FILES)
    assert unpack(archive, tmp_path / "out", lambda *at: seen.append(at)) == 3
    for name, content in FILES.items():
        assert (tmp_path / "out" / name).read_bytes() == content
    assert sum(path.is_file() for path in (tmp_path / "out").rglob("*")) == 3
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(
    "name",
    ["../out.txt", "a/../../out.txt", "/out.txt", "..\\out.txt", "C:\\out.txt", "\\out.txt", ".."],
)
def test_a_path_out_of_the_folder_is_refused_before_anything_is_written(tmp_path, make, name):
    archive = make(tmp_path / "archive", {"good": b"1", name: b"2"})
    assert refused(archive, tmp_path / "in" / "out") == (
        f"{archive} is not unpacked: its member {name!r} leads out of the folder; do not trust "
        "this archive, fetch it from its publisher"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["archive"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_a_link_in_a_tar_is_refused(tmp_path, kind):
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        info = tarfile.TarInfo("link")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    assert "its member 'link' is a link or a device" in refused(tmp_path / "t.tar", tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_a_link_in_a_zip_is_refused(tmp_path):
    info = zipfile.ZipInfo("link")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    assert "its member 'link' is a link or a device" in refused(tmp_path / "z.zip", tmp_path / "o")


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("other", [b"third", b"longer than the first"])
def test_a_file_with_another_content_is_not_overwritten(tmp_path, make, other):
    archive = make(tmp_path / "archive", FILES)
    (tmp_path / "out" / "images").mkdir(parents=True)
    (tmp_path / "out" / "images" / "a.jpg").write_bytes(other)
    assert refused(archive, tmp_path / "out") == (
        f"{archive} is not unpacked: its member 'images/a.jpg' is in {tmp_path / 'out'} already "
        "with another content; move that away and start again"
    )
    assert (tmp_path / "out" / "images" / "a.jpg").read_bytes() == other


@pytest.mark.parametrize("make", MAKERS)
def test_an_interrupted_unpacking_is_finished_by_the_next(tmp_path, make):
    archive = make(tmp_path / "archive", FILES)

    def stop(number, _):
        if number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unpack(archive, tmp_path / "out", stop)
    before = (tmp_path / "out" / "images" / "a.jpg").stat().st_mtime_ns
    assert unpack(archive, tmp_path / "out") == 3
    assert (tmp_path / "out" / "empty").read_bytes() == b""
    assert (tmp_path / "out" / "images" / "a.jpg").stat().st_mtime_ns == before


def test_a_link_in_the_folder_is_not_written_through(tmp_path):
    archive = make_zip(tmp_path / "z.zip", {"a": b"1"})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").symlink_to(tmp_path / "elsewhere")
    assert "already with another content" in refused(archive, tmp_path / "out")
    assert not (tmp_path / "elsewhere").exists()


def test_what_is_no_archive_is_said(tmp_path):
    (tmp_path / "f.zip").write_bytes(b"<html>not found</html>")
    assert refused(tmp_path / "f.zip", tmp_path / "out") == (
        f"{tmp_path / 'f.zip'} is neither a zip nor a tar; remove it and fetch it again"
    )


def test_a_missing_archive_is_said(tmp_path):
    text = refused(tmp_path / "f.zip", tmp_path)
    assert "f.zip" in text
    assert text.endswith("remove it and fetch it again")


@pytest.mark.parametrize("make", MAKERS)
def test_a_damaged_archive_leaves_no_damaged_file(tmp_path, make):
    noise = bytes(i * i % 251 for i in range(100_000))
    archive = make(tmp_path / "archive", {"a.bin": noise})
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 0xFF
    archive.write_bytes(content)
    text = refused(archive, tmp_path / "out")
    assert text.endswith("remove it and fetch it again")
    assert not (tmp_path / "out" / "a.bin").exists()


def test_a_full_disk_is_said_before_anything_is_written(tmp_path, monkeypatch):
    archive = make_zip(tmp_path / "z.zip", {"a": bytes(5_000_000)})
    usage = disk.shutil.disk_usage(tmp_path)._replace(free=4_000_000)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: usage)
    assert refused(archive, tmp_path / "out") == (
        f"{tmp_path / 'out'} has 4 MB free, and 5 MB more are needed; free some, or set "
        "FEDKD_DATA (for a teacher FEDKD_TEACHERS) to a folder on another disk"
    )
    assert not (tmp_path / "out" / "a").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    archive = make_zip(tmp_path / "z.zip", {"a": b"1"})
    (tmp_path / "file").write_text("")
    assert refused(archive, tmp_path / "file").startswith(f"cannot use {tmp_path / 'file'}: ")
