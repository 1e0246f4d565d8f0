"""Whatever lies in an archive, reading it ends in an instance or a refusal."""

import errno
import hashlib
import os
import socket
import time
import zipfile

import numpy as np
import pytest
from dicom_files import KEY, LIMITS, dataset, encode, png_of_zeros

from engine.errors import ImageRefused, RefusalReason, SettingsError
from engine.settings import ImageLimits, ZipLimits
from indexer.files.locators import ZipMember
from indexer.imaging import read as reading
from indexer.imaging.read import read_image, read_image_bytes, read_zip_member

CONTENT = encode(dataset(np.arange(400, dtype=np.uint16).reshape(20, 20)))


def read(path, limits=LIMITS):
    return read_image(path, limits, frames_per_instance=1, pseudonym_key=KEY)


def refusal(path, limits=LIMITS) -> ImageRefused:
    started = time.monotonic()
    with pytest.raises(ImageRefused) as caught:
        read(path, limits)
    assert time.monotonic() - started < 5
    return caught.value


def test_a_file_and_its_bytes_give_the_same(tmp_path):
    path = tmp_path / "image"
    path.write_bytes(CONTENT)
    file = read(path)
    upload = read_image_bytes(CONTENT, LIMITS, frames_per_instance=1, pseudonym_key=KEY)
    assert file.record == upload.record
    assert file.content_sha256 == upload.content_sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert np.array_equal(file.frames[0].pixels, upload.frames[0].pixels)


@pytest.mark.parametrize(
    "name",
    [
        b"with spaces and 'quotes' \".dcm",
        "Schädel Übersicht 頭部.dcm".encode(),
        b"invalid \xff\xfe bytes.png",
        b"new\nline",
        b"-rf *",
    ],
)
def test_names_do_not_matter(tmp_path, name):
    path = tmp_path / os.fsdecode(name)
    path.write_bytes(CONTENT)
    assert read(path).record.sop == "1.2.3.4"


def test_the_kind_is_told_by_the_content(tmp_path):
    path = tmp_path / "image.dcm"
    path.write_bytes(png_of_zeros(20, 20))
    assert read(path).record.sop is None
    path.write_text("Dear colleague, …", encoding="utf-8")
    assert refusal(path).reason is RefusalReason.NOT_AN_IMAGE


def test_empty(tmp_path):
    path = tmp_path / "empty.dcm"
    path.touch()
    assert refusal(path).reason is RefusalReason.EMPTY_FILE


def test_too_many_bytes(tmp_path):
    path = tmp_path / "image.dcm"
    path.write_bytes(CONTENT)
    limits = ImageLimits(max_file_bytes=len(CONTENT) - 1)
    assert refusal(path, limits).reason is RefusalReason.TOO_LARGE


def test_a_hole_of_terabytes(tmp_path):
    path = tmp_path / "sparse.dcm"
    with path.open("wb") as file:
        file.truncate(4 * 1024**4)
    assert refusal(path).reason is RefusalReason.TOO_LARGE


def test_special_files_do_not_block(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    server = socket.socket(socket.AF_UNIX)
    with server:
        server.bind(str(tmp_path / "socket"))
        for path in (pipe, tmp_path / "socket", tmp_path, reading.Path("/dev/zero")):
            refused = refusal(path)
            assert refused.reason is RefusalReason.UNREADABLE
            assert refused.detail == "not a regular file"


def test_links(tmp_path):
    (tmp_path / "image").write_bytes(CONTENT)
    (tmp_path / "link").symlink_to("image")
    assert read(tmp_path / "link").record.sop == "1.2.3.4"
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    assert refusal(tmp_path / "loop").detail == os.strerror(errno.ELOOP)
    assert refusal(tmp_path / "dangling").detail == os.strerror(errno.ENOENT)
    assert refusal(tmp_path / "a\0b").reason is RefusalReason.UNREADABLE


def test_no_permission(tmp_path):
    path = tmp_path / "DOE^JANE.dcm"
    path.write_bytes(CONTENT)
    path.chmod(0)
    # The superuser may read anything, and so becomes someone else for a moment.
    refused = _as_nobody(tmp_path, path) if os.access(path, os.R_OK) else refusal(path)
    assert refused.reason is RefusalReason.UNREADABLE
    assert refused.detail == os.strerror(errno.EACCES)
    assert "DOE" not in str(refused)


def _as_nobody(folder, path) -> ImageRefused:
    for parent in (folder, *folder.parents):
        if parent.stat().st_uid == os.getuid() and parent.name:
            parent.chmod(parent.stat().st_mode | 0o011)
    os.seteuid(65534)
    try:
        return refusal(path)
    finally:
        os.seteuid(0)


def test_a_file_that_shrinks_while_it_is_read(tmp_path, monkeypatch):
    path = tmp_path / "image.dcm"
    path.write_bytes(CONTENT)
    check = reading.check_file_size

    def shrink(size, limits):
        check(size, limits)
        os.truncate(path, 100)

    monkeypatch.setattr(reading, "check_file_size", shrink)
    assert refusal(path).reason is RefusalReason.UNREADABLE


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), RefusalReason.TOO_LARGE),
        (RecursionError(), RefusalReason.NESTED_TOO_DEEP),
        (OSError(errno.EIO, "DOE^JANE"), RefusalReason.UNREADABLE),
        (OSError("DOE^JANE"), RefusalReason.DAMAGED),
        (KeyError("DOE^JANE"), RefusalReason.DAMAGED),
    ],
)
def test_whatever_happens_inside_is_a_refusal(tmp_path, monkeypatch, error, reason):
    path = tmp_path / "image.dcm"
    path.write_bytes(CONTENT)

    def fail(*_):
        raise error

    monkeypatch.setattr(reading, "is_dicom", fail)
    refused = refusal(path)
    assert refused.reason is reason
    assert "DOE" not in str(refused)


def test_an_empty_key_is_an_error_of_the_settings(tmp_path):
    with pytest.raises(SettingsError):
        read_image_bytes(CONTENT, LIMITS, frames_per_instance=1, pseudonym_key=b"")


def test_a_file_of_zeros_is_no_image_and_says_so_at_once(tmp_path):
    path = tmp_path / "zeros.dcm"
    path.touch()
    os.truncate(path, 64 * 1024**2)
    assert refusal(path).reason is RefusalReason.NOT_AN_IMAGE


def packed(path, name="a.dcm"):
    return read_zip_member(
        ZipMember(path, name), LIMITS, ZipLimits(), frames_per_instance=1, pseudonym_key=KEY
    )


@pytest.mark.parametrize("in_memory", [10**9, 0])
def test_a_file_in_a_zip_archive_gives_the_same(tmp_path, monkeypatch, in_memory):
    monkeypatch.setattr(reading, "_IN_MEMORY", in_memory)
    (tmp_path / "a.dcm").write_bytes(CONTENT)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "a.dcm", "a.dcm")
        archive.writestr("damaged.dcm", CONTENT[:-100])
    file, member = read(tmp_path / "a.dcm"), packed(tmp_path / "a.zip")
    assert member.record == file.record
    assert member.content_sha256 == file.content_sha256
    assert np.array_equal(member.frames[0].pixels, file.frames[0].pixels)
    with pytest.raises(ImageRefused) as caught:
        packed(tmp_path / "a.zip", "damaged.dcm")
    assert caught.value.reason is RefusalReason.TRUNCATED


def test_a_member_of_what_is_no_archive_any_more(tmp_path):
    path = tmp_path / "a.zip"
    for content in (b"", CONTENT, b"PK\3\4"):
        path.write_bytes(content)
        for _ in range(2):
            with pytest.raises(ImageRefused) as caught:
                packed(path)
            assert caught.value.reason is RefusalReason.DAMAGED
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ImageRefused) as caught:
        packed(path)
    assert caught.value.detail == "not a regular file"
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("other.dcm", CONTENT)
    with pytest.raises(ImageRefused) as caught:
        packed(tmp_path / "b.zip")
    assert caught.value.reason is RefusalReason.UNREADABLE
