"""Tar archives and packed files are read within limits, whatever they say of themselves."""

import gzip
import io
import os
import struct
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from backports import zstd
from dicom_files import KEY, LIMITS, dataset, encode
from hypothesis import given, settings, strategies as st

from engine.errors import ImageRefused, RefusalReason
from engine.model.preprocess import Preprocess
from engine.settings import ImageLimits, Settings, ZipLimits
from indexer.files.locators import file_locator, shown
from indexer.files.tar_archive import list_tar, tar_locator
from indexer.imaging.prepare import ReadTask, prepare
from indexer.imaging.read import read_image, read_image_bytes
from indexer.sources.folder import FolderSource
from indexer.sources.opening import SourceSpec

ZIP_LIMITS = ZipLimits()
NOISE = np.random.default_rng(0).integers(0, 4096, (32, 32), dtype=np.uint16)
CHECKED = {zstd.CompressionParameter.checksum_flag: 1}
PACKERS = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": lambda content: zstd.compress(content, options=CHECKED),
}


def dicom(sop: str) -> bytes:
    return encode(dataset(NOISE, SOPInstanceUID=sop))


def tar(*members: tuple[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), 1_600_000_000
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def outcomes(
    path: Path, zip_limits: ZipLimits = ZIP_LIMITS, limits: ImageLimits = LIMITS
) -> dict[str, str]:
    """What becomes of each instance in the file: its SOP Instance UID, or the reason."""
    source = FolderSource([path], zip_limits=zip_limits)
    locators = [found.locator for found in source.instances()]
    assert len(set(locators)) == len(locators)
    became = {}
    for locator, image in zip(locators, source.images(locators), strict=True):
        name = shown(locator).removeprefix(str(path))
        try:
            if isinstance(image, ImageRefused):
                raise image
            task = ReadTask(image, limits, zip_limits, 8, 64, Preprocess(size=64), KEY)
            became[name] = str(prepare(task).record.sop)
        except ImageRefused as refused:
            became[name] = refused.reason.value
    return became


def refused(path: Path, zip_limits: ZipLimits = ZIP_LIMITS) -> ImageRefused:
    """Why the archive as a whole cannot be used: it is reported as one file."""
    source = FolderSource([path], zip_limits=zip_limits)
    (locator,) = [found.locator for found in source.instances()]
    assert locator == file_locator(path)
    (image,) = source.images([locator])
    with pytest.raises(ImageRefused) as caught:
        prepare(ReadTask(image, LIMITS, zip_limits, 8, 64, Preprocess(size=64), KEY))
    return caught.value


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("packing", PACKERS)
def test_each_file_in_an_archive_is_an_instance(tmp_path, packing, form):
    path = tmp_path / f"study.tar{packing}"
    long_name = "series/" + "x" * 90 + "/" + "y" * 90 + ".dcm"
    content = tar(
        ("b.dcm", dicom("1.2.2")),
        ("a.dcm", dicom("1.2.1")),
        ("note.txt", b"Dear colleague"),
        ("empty", b""),
        (long_name, dicom("1.2.3")),
        form=form,
    )
    path.write_bytes(PACKERS[packing](content))
    expected = {
        "!b.dcm": "1.2.2",
        "!a.dcm": "1.2.1",
        "!note.txt": "not-an-image",
        "!empty": "empty-file",
        f"!{long_name}": "1.2.3",
    }
    assert outcomes(path) == expected
    # In the order of the archive, which can be read only from its start.
    assert list(outcomes(path)) == list(expected)


@pytest.mark.parametrize(
    "name", ["a.tar", "a.TAR.GZ", "a.tgz", "a.tar.zst", "a.tzst", "a.zip", "a.dcm", "a"]
)
def test_archives_in_folders_are_opened_by_their_names(tmp_path, name):
    (tmp_path / "folder").mkdir()
    path = tmp_path / "folder" / name
    path.write_bytes(gzip.compress(tar(("1.dcm", dicom("1.2.1")))))
    opened = name.lower().endswith((".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst", ".zip"))
    member, whole = {f"/{name}!1.dcm": "1.2.1"}, {f"/{name}": "not-an-image"}
    assert outcomes(tmp_path / "folder") == (member if opened else whole)
    # A file that is given is looked into, whatever its name.
    assert outcomes(path) == {"!1.dcm": "1.2.1"}


def test_an_archive_that_was_not_opened_says_how(tmp_path):
    (tmp_path / "export").write_bytes(tar(("1.dcm", dicom("1.2.1"))))
    found = read_refusal(tmp_path / "export")
    assert found.reason is RefusalReason.NOT_AN_IMAGE
    assert "its name ends in .tar" in found.detail


def read_refusal(path: Path) -> ImageRefused:
    with pytest.raises(ImageRefused) as caught:
        prepare(ReadTask(path, LIMITS, ZipLimits(), 8, 64, Preprocess(size=64), KEY))
    return caught.value


def test_members_can_be_asked_for_in_any_order(tmp_path):
    path = tmp_path / "a.tar.gz"
    names = [f"{number}.dcm" for number in range(9)]
    path.write_bytes(gzip.compress(tar(*((name, dicom(f"1.2.9{name[0]}")) for name in names))))
    source = FolderSource([path])
    for name in ("8.dcm", "3.dcm", "3.dcm", "4.dcm", "0.dcm"):
        (image,) = source.images([tar_locator(path, name)])
        task = ReadTask(image, LIMITS, ZipLimits(), 8, 64, Preprocess(size=64), KEY)
        assert prepare(task).record.sop == f"1.2.9{name[0]}"


def test_discovery_tells_sizes_stamps_and_labels(tmp_path):
    path = tmp_path / "chest.tar.gz"
    content = dicom("1.2.1")
    path.write_bytes(gzip.compress(tar(("hand/1.dcm", content), ("2.dcm", content))))
    one, other = FolderSource([path], label_from_folder=True).instances()
    assert (one.size, one.modified, one.label) == (len(content), 1_600_000_000, "hand")
    assert other.label == "chest"


def test_the_scope_of_a_source_has_its_archives(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(tar(("1.dcm", dicom("1.2.1"))))
    (found,) = FolderSource([tmp_path]).instances()
    starts = SourceSpec(paths=(str(tmp_path),)).scope(Settings())
    assert any(found.locator.startswith(start) for start in starts)


def special(kind: bytes, name: str = "x", link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def test_links_and_devices_are_passed_over_with_a_reason(tmp_path):
    path = tmp_path / "a.tar"
    (tmp_path / "secret.dcm").write_bytes(dicom("1.2.99"))
    with tarfile.open(path, "w") as archive:
        archive.addfile(special(tarfile.SYMTYPE, "s", str(tmp_path / "secret.dcm")))
        archive.addfile(special(tarfile.LNKTYPE, "l", "a.dcm"))
        for number, kind in enumerate((tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)):
            archive.addfile(special(kind, f"d{number}"))
        archive.addfile(special(tarfile.DIRTYPE, "folder"))
        info = tarfile.TarInfo("a.dcm")
        info.size = len(dicom("1.2.1"))
        archive.addfile(info, io.BytesIO(dicom("1.2.1")))
    found = outcomes(path)
    assert found.pop("!a.dcm") == "1.2.1"
    assert set(found) == {"!s", "!l", "!d0", "!d1", "!d2"}
    assert set(found.values()) == {"unreadable"}
    (image,) = FolderSource([path]).images([tar_locator(path, "s")])
    assert isinstance(image, ImageRefused)
    assert "a link" in image.detail


@pytest.mark.parametrize("name", ["/etc/passwd", "../../up.dcm", "a/../../b", "\udcff\udcfe.dcm"])
def test_names_are_never_paths(tmp_path, name):
    content = tar((name, dicom("1.2.1")), form=tarfile.GNU_FORMAT)
    path = tmp_path / "in" / "a.tar"
    path.parent.mkdir()
    path.write_bytes(content)
    before = sorted(tmp_path.rglob("*"))
    assert list(outcomes(path).values()) == ["1.2.1"]
    assert sorted(tmp_path.rglob("*")) == before


def test_of_members_with_one_name_the_last_counts(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(tar(("a", dicom("1.2.1")), ("b", dicom("1.2.2")), ("a", dicom("1.2.3"))))
    assert outcomes(path) == {"!b": "1.2.2", "!a": "1.2.3"}


@pytest.mark.parametrize("packing", PACKERS)
def test_limits(tmp_path, packing):
    path = tmp_path / f"a.tar{packing}"
    path.write_bytes(PACKERS[packing](tar(*((str(n), dicom(f"1.2.{n}")) for n in range(5)))))
    for limits, named in (
        (ZipLimits(max_members=4), "zip.max_members allows 4"),
        (ZipLimits(max_total_bytes=8000), "zip.max_total_bytes allows"),
    ):
        found = refused(path, limits)
        assert found.reason is RefusalReason.TOO_LARGE
        assert named in found.detail
    large = ImageLimits(max_file_bytes=1000)
    assert set(outcomes(path, limits=large).values()) == {"too-large"}


@pytest.mark.parametrize("packing", [".gz", ".zst"])
def test_a_bomb_is_not_unpacked(tmp_path, packing):
    path = tmp_path / f"bomb.tar{packing}"
    path.write_bytes(PACKERS[packing](tar(("zeros.dcm", bytes(60_000_000)))))
    started = time.monotonic()
    found = refused(path)
    assert found.reason is RefusalReason.TOO_LARGE
    assert "zip.max_ratio allows 200 times" in found.detail
    assert time.monotonic() - started < 2


def test_sizes_that_lie(tmp_path):
    content = bytearray(tar(("a.dcm", dicom("1.2.1"))))
    for size in (b"77777777777\0", b"\x80" + b"\xff" * 11, b"\x80" + bytes(6) + b"\xff" * 5):
        content[124:136] = size
        content[148:156] = b" " * 8
        content[148:156] = b"%06o\0 " % sum(content[:512])
        for packing, pack in PACKERS.items():
            path = tmp_path / f"a.tar{packing}"
            path.write_bytes(pack(bytes(content)))
            assert refused(path).reason in (RefusalReason.TRUNCATED, RefusalReason.TOO_LARGE)


@pytest.mark.parametrize("packing", PACKERS)
def test_what_is_cut_or_damaged_is_refused_as_a_whole(tmp_path, packing):
    content = tar(("a.dcm", dicom("1.2.1")), ("b.dcm", dicom("1.2.2")))
    path = tmp_path / f"a.tar{packing}"
    whole = PACKERS[packing](content)
    cut = content[:3000] if not packing else whole[: len(whole) * 2 // 3]
    path.write_bytes(cut)
    assert refused(path).reason is RefusalReason.TRUNCATED
    second = content.index(b"b.dcm")
    damaged = content[:second] + b"\xff" * 40 + content[second + 40 :]
    path.write_bytes(PACKERS[packing](damaged))
    assert refused(path).reason is RefusalReason.DAMAGED
    if packing:
        path.write_bytes(whole[:200] + bytes(40) + whole[240:])
        assert refused(path).reason in (RefusalReason.DAMAGED, RefusalReason.TRUNCATED)


def test_an_archive_without_its_last_blocks(tmp_path):
    """POSIX.1-2001: two blocks of zeros; old writers leave them out."""
    content = tar(("a.dcm", dicom("1.2.1")))
    path = tmp_path / "a.tar"
    path.write_bytes(content[: 512 + len(dicom("1.2.1"))])
    assert outcomes(path) == {"!a.dcm": "1.2.1"}


def test_an_archive_of_nothing(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        archive.addfile(special(tarfile.DIRTYPE, "folder"))
    assert refused(path).detail == "the archive holds no files"


def test_an_archive_that_changes(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(tar(("a.dcm", dicom("1.2.1"))))
    source = FolderSource([path])
    (locator,) = [found.locator for found in source.instances()]
    (image,) = source.images([locator])
    path.write_bytes(tar(("longer.dcm", dicom("1.2.2") * 2)))
    task = ReadTask(image, LIMITS, ZipLimits(), 8, 64, Preprocess(size=64), KEY)
    with pytest.raises(ImageRefused) as caught:
        prepare(task)
    assert caught.value.reason is RefusalReason.UNREADABLE
    for _ in range(2):
        (image,) = source.images([locator])
        assert isinstance(image, ImageRefused)
        assert "no longer has it" in image.detail
    path.unlink()
    (image,) = source.images([locator])
    assert image.detail == os.strerror(2)


def test_archives_in_archives_are_not_opened(tmp_path):
    inner = tar(("a.dcm", dicom("1.2.1")))
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("a.dcm", dicom("1.2.1"))
    content = [
        ("1.tar", inner),
        ("2.tgz", gzip.compress(inner)),
        ("3.zip", zipped.getvalue()),
        ("4.dcm.gz", gzip.compress(dicom("1.2.4"))),
        ("5.dcm.gz.gz", gzip.compress(gzip.compress(dicom("1.2.4")))),
    ]
    path = tmp_path / "a.tar"
    path.write_bytes(tar(*content))
    no = "not-an-image"
    assert list(outcomes(path).values()) == [no, no, no, "1.2.4", no]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, data in content:
            archive.writestr(name, data)
    assert list(outcomes(tmp_path / "a.zip").values()) == [no, no, no, "1.2.4", no]


def read(path: Path, **limits: float):
    return read_image(
        path, LIMITS, frames_per_instance=1, pseudonym_key=KEY, zip_limits=ZipLimits(**limits)
    )


@pytest.mark.parametrize("packing", [".gz", ".zst"])
@pytest.mark.parametrize("in_memory", [10**9, 0])
def test_a_packed_file_is_what_it_unpacks_to(tmp_path, monkeypatch, packing, in_memory):
    monkeypatch.setattr("indexer.imaging.read._IN_MEMORY", in_memory)
    content = dicom("1.2.1")
    (tmp_path / "a.dcm").write_bytes(content)
    path = tmp_path / f"a.dcm{packing}"
    path.write_bytes(PACKERS[packing](content))
    plain, found = read(tmp_path / "a.dcm"), read(path)
    assert found.record == plain.record
    assert found.content_sha256 == plain.content_sha256
    assert np.array_equal(found.frames[0].pixels, plain.frames[0].pixels)
    upload = read_image_bytes(path.read_bytes(), LIMITS, frames_per_instance=1, pseudonym_key=KEY)
    assert upload.record == plain.record
    # In a folder it is one instance, whose locator is the file.
    (one,) = FolderSource([path]).instances()
    assert one.locator == file_locator(path)


def test_packed_in_several_parts(tmp_path):
    """RFC 1952 2.2 and RFC 8878 3.1: members, or frames, one behind the other."""
    content = dicom("1.2.1")
    path = tmp_path / "a.dcm.gz"
    half = len(content) // 2
    skippable = struct.pack("<LL", 0x184D2A50, 5) + b"hello"
    for pack in (gzip.compress, zstd.compress):
        path.write_bytes(pack(content[:half]) + pack(b"") + pack(content[half:]))
        assert read(path).record.sop == "1.2.1"
    path.write_bytes(skippable + zstd.compress(content) + skippable)
    assert read(path).record.sop == "1.2.1"
    # Tapes are padded.
    path.write_bytes(gzip.compress(content) + bytes(512))
    assert read(path).record.sop == "1.2.1"


@pytest.mark.parametrize("packing", [".gz", ".zst"])
def test_packed_files_that_are_wrong(tmp_path, packing):
    content, pack = dicom("1.2.1"), PACKERS[packing]
    path = tmp_path / "a"
    packed = pack(content)
    for wrong, reasons in (
        (packed[:-20], {RefusalReason.TRUNCATED}),
        (packed[:-1], {RefusalReason.TRUNCATED}),
        (packed[:4], {RefusalReason.TRUNCATED}),
        (packed[:60] + bytes(30) + packed[90:], {RefusalReason.DAMAGED, RefusalReason.TRUNCATED}),
        (pack(b"Dear colleague"), {RefusalReason.NOT_AN_IMAGE}),
        (pack(b""), {RefusalReason.EMPTY_FILE}),
        (pack(packed), {RefusalReason.NOT_AN_IMAGE}),
        (pack(bytes(40_000_000)), {RefusalReason.TOO_LARGE}),
    ):
        path.write_bytes(wrong)
        assert read_refusal(path).reason in reasons
    path.write_bytes(packed)
    with pytest.raises(ImageRefused) as caught:
        read_image(
            path,
            ImageLimits(max_file_bytes=len(content) - 1),
            frames_per_instance=1,
            pseudonym_key=KEY,
        )
    assert caught.value.reason is RefusalReason.TOO_LARGE


def test_a_window_of_gigabytes_is_refused(tmp_path):
    """RFC 8878 3.1.1.1.2: the window descriptor; 128 MiB is what the zstd command takes."""
    path = tmp_path / "a.dcm.zst"
    path.write_bytes(b"\x28\xb5\x2f\xfd\x00" + bytes([(31 - 10) << 3]) + b"\x01\0\0")
    assert read_refusal(path).reason is RefusalReason.DAMAGED


WHOLE = tar(("a.dcm", dicom("1.2.1")), ("b/" * 120 + "c", b"text"), ("d", b""))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=6),
    st.integers(0, len(WHOLE)),
    st.sampled_from(list(PACKERS)),
)
def test_any_damage_is_listed_or_refused(flips, end, packing):
    content = bytearray(WHOLE)
    for position, byte in flips:
        content[position % 1600 if byte % 2 else position] = byte
    data = PACKERS[packing](bytes(content[:end]))
    try:
        listed = list_tar(io.BytesIO(data), len(data), ZipLimits())
    except ImageRefused:
        return
    assert all(entry.start >= 0 and 0 <= entry.size <= len(content) for entry in listed.values())
