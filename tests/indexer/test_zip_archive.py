"""Zip archives are read within limits, whatever they say of themselves."""

import io
import os
import struct
import time
import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from dicom_files import KEY, LIMITS, dataset, encode
from hypothesis import strategies as st

from engine.errors import ImageRefused, RefusalReason
from engine.model.preprocess import Preprocess
from engine.settings import ImageLimits, IndexingSettings, Settings, ZipLimits
from indexer.files.locators import Image, ZipMember, file_locator, shown
from indexer.files.zip_archive import (
    is_zip,
    read_directory,
    unpacked,
    zip_locator,
    zip_member,
)
from indexer.imaging.prepare import Prepared, ReadTask, prepare
from indexer.pipeline.file_reader import FileReader
from indexer.sources.folder import FolderSource

ZIP_LIMITS = ZipLimits()
NOISE = np.random.default_rng(0).integers(0, 4096, (32, 32), dtype=np.uint16)


def dicom(sop: str) -> bytes:
    return encode(dataset(NOISE, SOPInstanceUID=sop))


@dataclass(frozen=True)
class Made:
    """A member made by hand; what is None is told truly."""

    name: bytes
    content: bytes = b""
    deflated: bool = True
    method: int | None = None
    flags: int = 0
    size: int | None = None
    packed: int | None = None
    crc: int | None = None
    offset: int | None = None
    local_name: bytes | None = None
    extra: bytes = b""


def archive(*members: Made, declared: int | None = None, start: int | None = None) -> bytes:
    out, listed = io.BytesIO(), []
    for made in members:
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        data = packer.compress(made.content) + packer.flush() if made.deflated else made.content
        fields = (
            made.flags,
            (8 if made.deflated else 0) if made.method is None else made.method,
            0,
            0,
            zlib.crc32(made.content) if made.crc is None else made.crc,
            len(data) if made.packed is None else made.packed,
            len(made.content) if made.size is None else made.size,
        )
        offset = out.tell() if made.offset is None else made.offset
        name = made.name if made.local_name is None else made.local_name
        out.write(struct.pack("<4s5H3L2H", b"PK\3\4", 20, *fields, len(name), 0) + name + data)
        lengths = (len(made.name), len(made.extra), 0, 0, 0, 0)
        entry = struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, *fields, *lengths, offset)
        listed.append(entry + made.name + made.extra)
    at, directory = out.tell(), b"".join(listed)
    count = len(members) if declared is None else declared
    end = (0, 0, count, count, len(directory), at if start is None else start, 0)
    return out.getvalue() + directory + struct.pack("<4s4H2LH", b"PK\5\6", *end)


def members_of(content: bytes, limits: ZipLimits = ZIP_LIMITS) -> dict[str, bytes | RefusalReason]:
    """The content of each member, or why there is none."""
    fp = io.BytesIO(content)
    found: dict[str, bytes | RefusalReason] = {}
    for name, entry in read_directory(fp, len(content), limits).items():
        try:
            found[name] = b"".join(unpacked(fp, entry, LIMITS, limits))
        except ImageRefused as refused:
            found[name] = refused.reason
    return found


def refusal(content: bytes, limits: ZipLimits = ZIP_LIMITS) -> ImageRefused:
    """Why the archive as a whole cannot be used."""
    with pytest.raises(ImageRefused) as caught:
        read_directory(io.BytesIO(content), len(content), limits)
    return caught.value


def read(
    image: Image, zip_limits: ZipLimits = ZIP_LIMITS, limits: ImageLimits = LIMITS
) -> Prepared:
    return prepare(ReadTask(image, limits, zip_limits, 8, 64, Preprocess(size=64), KEY))


def outcomes(path: Path, zip_limits: ZipLimits = ZIP_LIMITS) -> dict[str, str]:
    """What becomes of each instance in the file: its SOP Instance UID, or the reason."""
    source = FolderSource([path], zip_limits=zip_limits)
    locators = [found.locator for found in source.instances()]
    assert len(set(locators)) == len(locators)
    became = {}
    for locator, image in zip(locators, source.images(locators), strict=True):
        try:
            assert not isinstance(image, ImageRefused)
            became[shown(locator)] = str(read(image, zip_limits).record.sop)
        except ImageRefused as refused:
            became[shown(locator)] = refused.reason.value
    return became


def test_each_file_in_an_archive_is_an_instance(tmp_path: Path) -> None:
    path = tmp_path / "study.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.mkdir("series")
        packed.writestr("series/b.dcm", dicom("1.2.2"))
        packed.writestr("series/a.dcm", dicom("1.2.1"))
        packed.writestr("note.txt", "Dear colleague, …")
        packed.writestr("empty", b"")
    assert outcomes(path) == {
        f"{path}!empty": "empty-file",
        f"{path}!note.txt": "not-an-image",
        f"{path}!series/a.dcm": "1.2.1",
        f"{path}!series/b.dcm": "1.2.2",
    }
    assert list(outcomes(path)) == sorted(outcomes(path))


def test_a_member_gives_the_same_as_the_file(tmp_path: Path) -> None:
    file, path = tmp_path / "a.dcm", tmp_path / "a.zip"
    file.write_bytes(dicom("1.2.1"))
    with zipfile.ZipFile(path, "w") as packed:
        packed.write(file, "a.dcm")
    member, alone = read(ZipMember(path, "a.dcm")), read(file)
    assert member.record == alone.record
    assert member.content_sha256 == alone.content_sha256
    assert [p.thumbnail for p in member.pictures] == [p.thumbnail for p in alone.pictures]


@pytest.mark.slow
def test_reading_processes_take_members_and_what_is_refused_keeps_its_place(
    tmp_path: Path,
) -> None:
    path = tmp_path / "study.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for number in range(5):
            packed.writestr(f"{number}", dicom(f"1.2.{number}"))
    gone = ImageRefused(RefusalReason.UNREADABLE, "gone")
    taken = 0

    def images():
        nonlocal taken
        kinds = [gone, path, ZipMember(path, "1"), *[gone] * 3000, dicom("1.2.9"), gone]
        for image in [*kinds, *[ZipMember(path, str(number)) for number in range(5)], gone]:
            taken += 1
            yield image

    settings = Settings(indexing=IndexingSettings(readers=2))
    with FileReader(settings, Preprocess(size=64), KEY, frames=1, processes=2) as files:
        results = files.read(images())
        assert next(results) is gone
        # Not all are taken at once for the sake of one that is still being read.
        assert taken < 2000
        found = [
            one.reason.value if isinstance(one, ImageRefused) else one.record.sop for one in results
        ]
        assert list(files.read([gone, gone])) == [gone, gone]
        assert list(files.read([])) == []
    late = ["1.2.9", "unreadable", *[f"1.2.{number}" for number in range(5)], "unreadable"]
    assert found == ["not-an-image", "1.2.1", *["unreadable"] * 3000, *late]


@pytest.mark.parametrize(
    "name",
    [
        "series/IM 1.dcm",
        "Schädel/頭部#1?.dcm",
        "../../etc/passwd",
        "/absolute",
        "C:\\scan\\1.dcm",
        "a\0b",
        "",
        "new\nline",
        os.fsdecode(b"Sch\x84del\xff"),
        "%41",
    ],
)
def test_whatever_a_member_is_called(tmp_path: Path, name: str) -> None:
    path = tmp_path / "with spaces & #.zip"
    path.write_bytes(archive(Made(os.fsencode(name), dicom("1.2.1"))))
    (found,) = FolderSource([path]).instances()
    assert found.locator.isascii()
    assert zip_member(found.locator) == ZipMember(path, name)
    assert zip_locator(path, name) == found.locator
    assert shown(found.locator) == f"{path}!{name}"
    assert list(FolderSource([path]).images([found.locator])) == [ZipMember(path, name)]
    assert read(zip_member(found.locator)).record.sop == "1.2.1"
    assert [entry.name for entry in os.scandir(tmp_path)] == [path.name]


def test_what_a_person_is_shown() -> None:
    assert shown(file_locator(Path("/scans/a b#1.dcm"))) == "/scans/a b#1.dcm"
    assert shown(zip_locator(Path("/scans/a.zip"), "s/1.dcm")) == "/scans/a.zip!s/1.dcm"
    url = "https://pacs.example/studies/1.2%203#frame"
    assert shown(url) == url


def test_names_that_differ_in_their_bytes_only() -> None:
    content = archive(Made("ä".encode(), b"one"), Made(b"\x84", b"two"), Made(b"\xe4", b"three"))
    assert sorted(members_of(content).values()) == [b"one", b"three", b"two"]


def test_labels(tmp_path: Path) -> None:
    path = tmp_path / "chest.zip"
    inside = {
        b"1.dcm": "chest",
        b"./2.dcm": "chest",
        b"../3.dcm": "chest",
        b"head/4.dcm": "head",
        b"a/b/5.dcm": "b",
        b"knee\\6.dcm": "knee",
        "Schädel/7.dcm".encode(): "Schädel",
        b"Sch\x84del/8.dcm": "Schädel",
        b"a\0b/9.dcm": "a\N{REPLACEMENT CHARACTER}b",
    }
    path.write_bytes(archive(*[Made(name, b"x") for name in inside]))
    found = FolderSource([tmp_path], label_from_folder=True).instances()
    assert {os.fsencode(zip_member(one.locator).name): one.label for one in found} == inside
    assert {one.label for one in FolderSource([path]).instances()} == {None}


def test_size_and_stamp_follow_the_content(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"

    def found() -> dict[str, tuple[str, int, int]]:
        return {
            zip_member(one.locator).name: (one.locator, one.size, one.modified)
            for one in FolderSource([path]).instances()
        }

    path.write_bytes(archive(Made(b"a", b"1" * 50), Made(b"b", b"2" * 50)))
    before = found()
    assert [size for _, size, _ in before.values()] == [50, 50]
    path.write_bytes(archive(Made(b"new", b"3"), Made(b"b", b"2" * 50), Made(b"a", b"9" * 50)))
    os.utime(path, ns=(5, 5))
    after = found()
    assert after["b"] == before["b"]
    assert after["a"][2] != before["a"][2]
    assert all(0 <= modified < 2**63 for _, _, modified in after.values())


def test_an_archive_that_is_written_anew_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(archive(Made(b"a", dicom("1.2.1")), Made(b"b", dicom("1.2.2"))))
    assert read(ZipMember(path, "b")).record.sop == "1.2.2"
    fresh = tmp_path / "fresh"
    fresh.write_bytes(archive(Made(b"b", dicom("1.2.3"))))
    fresh.replace(path)
    assert read(ZipMember(path, "b")).record.sop == "1.2.3"
    with pytest.raises(ImageRefused) as caught:
        read(ZipMember(path, "a"))
    assert caught.value.reason is RefusalReason.UNREADABLE
    path.unlink()
    with pytest.raises(ImageRefused) as caught:
        read(ZipMember(path, "b"))
    assert caught.value.reason is RefusalReason.UNREADABLE


def test_an_archive_that_was_appended_to_has_its_last_version_of_a_member() -> None:
    out = io.BytesIO(archive(Made(b"a", b"old"), Made(b"b", b"other")))
    with zipfile.ZipFile(out, "a") as packed, pytest.warns(UserWarning, match="Duplicate"):
        packed.writestr("a", b"new")
    assert members_of(out.getvalue()) == {"a": b"new", "b": b"other"}


def test_folders_are_no_instances_and_what_has_content_is_no_folder() -> None:
    content = archive(Made(b"a/"), Made(b"b\\"), Made(b"a/x", b"1"), Made(b"c/", b"hidden"))
    assert members_of(content) == {"a/x": b"1", "c/": b"hidden"}


def test_comments_and_what_stands_before_an_archive() -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as packed:
        packed.writestr("a", b"1")
        packed.comment = b"c" * 0xFFFF
    assert members_of(out.getvalue()) == {"a": b"1"}
    assert members_of(b"stub" * 100 + archive(Made(b"a", b"1"))) == {"a": b"1"}


@pytest.mark.parametrize("before", [b"", b"stub"])
def test_zip64(monkeypatch: pytest.MonkeyPatch, before: bytes) -> None:
    out = io.BytesIO()
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 1)
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in "abc":
            packed.writestr(name, name.encode() * 100)
    assert b"PK\6\6" in out.getvalue()
    assert members_of(before + out.getvalue()) == {name: name.encode() * 100 for name in "abc"}


def test_sizes_of_members_that_were_streamed() -> None:
    class Stream(io.RawIOBase):
        """Cannot be sought: sizes follow the content, and the local header has none."""

        content = b""

        def writable(self) -> bool:
            return True

        def write(self, data) -> int:
            self.content += bytes(data)
            return len(data)

    out = Stream()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as packed:  # type: ignore[call-overload]
        packed.writestr("a", b"1" * 1000)
    assert members_of(out.content) == {"a": b"1" * 1000}


# Around whole pieces of output, zlib may hold back some of it without any input left.
@pytest.mark.parametrize("size", [1024**2 + extra for extra in (-1, 0, 1, 4, 5, 100, 258, 300)])
def test_members_of_awkward_lengths(size: int) -> None:
    limits = ZipLimits(max_ratio=2000)
    assert members_of(archive(Made(b"a", b"\0" * size)), limits) == {"a": b"\0" * size}


def test_a_bomb_of_zeros_is_not_unpacked() -> None:
    content = archive(Made(b"bomb", b"\0" * 10_000_000), Made(b"good", b"1"))
    assert members_of(content) == {"bomb": RefusalReason.TOO_LARGE, "good": b"1"}
    unpacks = members_of(content, ZipLimits(max_ratio=2000))["bomb"]
    assert unpacks == b"\0" * 10_000_000


def test_a_member_that_hides_its_size_is_stopped() -> None:
    fp = io.BytesIO(archive(Made(b"bomb", b"\0" * 50_000_000, size=5_000_000)))
    limits = ZipLimits(max_ratio=1000)
    entry = read_directory(fp, len(fp.getvalue()), limits)["bomb"]
    taken: list[bytes] = []
    with pytest.raises(ImageRefused) as caught:
        taken.extend(unpacked(fp, entry, LIMITS, limits))
    assert caught.value.reason is RefusalReason.DAMAGED
    assert sum(map(len, taken)) <= 5_000_000


def test_one_member_has_the_size_of_one_file(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    content = dicom("1.2.1")
    path.write_bytes(archive(Made(b"a", content)))
    enough, less = (ImageLimits(max_file_bytes=len(content) - step) for step in (0, 1))
    assert read(ZipMember(path, "a"), limits=enough).record.sop == "1.2.1"
    with pytest.raises(ImageRefused) as caught:
        read(ZipMember(path, "a"), limits=less)
    assert caught.value.reason is RefusalReason.TOO_LARGE
    assert "limits.max_file_bytes" in caught.value.detail


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"flags": 1}, RefusalReason.UNREADABLE),
        ({"flags": 1 << 13}, RefusalReason.UNREADABLE),
        ({"method": 14}, RefusalReason.UNREADABLE),
        ({"method": 99}, RefusalReason.UNREADABLE),
        ({"crc": 0}, RefusalReason.DAMAGED),
        ({"size": 10}, RefusalReason.DAMAGED),
        ({"size": 10_000}, RefusalReason.TRUNCATED),
        ({"packed": 100}, RefusalReason.TRUNCATED),
        ({"deflated": False, "packed": 100}, RefusalReason.TRUNCATED),
        ({"deflated": False, "method": 8}, RefusalReason.DAMAGED),
        ({"packed": 0}, RefusalReason.TOO_LARGE),
        ({"packed": 0xFFFFFFFF}, RefusalReason.DAMAGED),
        ({"size": 0xFFFFFFFF}, RefusalReason.TOO_LARGE),
        ({"offset": 700}, RefusalReason.DAMAGED),
        ({"offset": 0xFFFFFFFF}, RefusalReason.DAMAGED),
        ({"offset": 0xFFFFFFFF, "extra": b"\1\0\x08\0" + b"\xff" * 8}, RefusalReason.DAMAGED),
        ({"offset": 0xFFFFFFFF, "extra": b"\1\0\xff\xff\0"}, RefusalReason.DAMAGED),
        ({"local_name": b"OTHER"}, RefusalReason.DAMAGED),
    ],
)
def test_one_bad_member_takes_no_other_along(change: dict, reason: RefusalReason) -> None:
    noise = np.random.default_rng(1).bytes(500)
    bad = replace(Made(b"bad", noise), **change)
    content = archive(Made(b"first", b"1"), bad, Made(b"last", b"2"))
    found = members_of(content)
    assert found["bad"] is reason
    assert (found["first"], found["last"]) == (b"1", b"2")


def test_no_byte_is_unpacked_twice() -> None:
    """As many members as one likes over one packed kernel are how a bomb needs no nesting."""
    kernel = Made(b"kernel", b"\0" * 100_000)
    packed = len(archive(kernel)) - len(archive(replace(kernel, content=b"")))
    others = [
        Made(b"%06d" % number, b"", packed=packed, size=100_000, crc=zlib.crc32(kernel.content))
        for number in range(50)
    ]
    limits = ZipLimits(max_ratio=2000)
    # All directory entries mean the first member, under its name or under one of their own.
    same = [replace(one, offset=0) for one in others]
    found = members_of(archive(kernel, *same), limits)
    assert len(found) == 51
    assert not any(isinstance(content, bytes) for content in found.values())
    # Each member's content covers the headers and contents of all that follow.
    found = members_of(archive(*[replace(one, packed=60 * 60) for one in others], kernel), limits)
    assert [name for name, content in found.items() if isinstance(content, bytes)] == ["kernel"]


def test_a_member_that_is_listed_twice_is_there_once() -> None:
    single = archive(Made(b"a", b"1"))
    entry = single[single.index(b"PK\1\2") : single.index(b"PK\5\6")]
    start = single.index(b"PK\1\2")
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 2, 2, 2 * len(entry), start, 0)
    assert members_of(single[:start] + entry * 2 + end) == {"a": b"1"}


def test_archives_in_archives_are_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "outer.zip"
    path.write_bytes(archive(Made(b"inner.zip", archive(Made(b"a", dicom("1.2.1"))))))
    assert outcomes(path) == {f"{path}!inner.zip": "not-an-image"}


GOOD = archive(*[Made(b"member %d" % number, b"content") for number in range(3)])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (GOOD[:-30], RefusalReason.DAMAGED),
        (GOOD[: len(GOOD) // 3], RefusalReason.DAMAGED),
        (b"PK\3\4", RefusalReason.DAMAGED),
        (GOOD[:20] + GOOD[60:], RefusalReason.DAMAGED),
        (archive(Made(b"a"), declared=7), RefusalReason.DAMAGED),
        (archive(Made(b"a"), declared=0), RefusalReason.DAMAGED),
        (archive(Made(b"a"), start=0xFFFFFFF0), RefusalReason.DAMAGED),
        (GOOD.replace(b"PK\1\2", b"PK\1\3"), RefusalReason.DAMAGED),
        (GOOD.replace(b"PK\1\2", b"PK\6\x08"), RefusalReason.UNREADABLE),
        (archive(Made(b"n" * 2000, b"1")), RefusalReason.DAMAGED),
        (archive(), RefusalReason.NOT_AN_IMAGE),
        (archive(Made(b"folder/")), RefusalReason.NOT_AN_IMAGE),
        (archive(declared=1000), RefusalReason.TOO_LARGE),
        (archive(*[Made(b"%d" % number, b"1") for number in range(101)]), RefusalReason.TOO_LARGE),
        # The number of members is told modulo 65536.
        (
            archive(*[Made(b"%d" % number, b"1") for number in range(101)], declared=1),
            RefusalReason.TOO_LARGE,
        ),
        (
            archive(*[Made(b"%d" % n, b"1", extra=bytes(60_000)) for n in range(2)]),
            RefusalReason.TOO_LARGE,
        ),
        (archive(*[Made(b"%d" % n, b"1", size=400) for n in range(3)]), RefusalReason.TOO_LARGE),
    ],
)
def test_an_archive_that_cannot_be_used_is_one_refused_file(
    tmp_path: Path, content: bytes, reason: RefusalReason
) -> None:
    limits = ZipLimits(max_members=100, max_total_bytes=1000)
    path = tmp_path / "bad.ZIP"
    path.write_bytes(content)
    expected = refusal(content, limits)
    assert expected.reason is reason
    found = list(FolderSource([tmp_path], zip_limits=limits).instances())
    assert [one.locator for one in found] == [file_locator(path)]
    assert (found[0].size, found[0].modified) == (len(content), path.stat().st_mtime_ns)
    with pytest.raises(ImageRefused) as caught:
        read(path, limits)
    assert (caught.value.reason, caught.value.detail) == (reason, expected.detail)
    # Also when it is larger than one image may be.
    with pytest.raises(ImageRefused) as caught:
        read(path, limits, ImageLimits(max_file_bytes=3))
    assert caught.value.reason is reason


@pytest.mark.parametrize("disks", [(1, 0, 3, 3), (1, 1, 3, 3), (0, 0, 2, 3)])
def test_one_part_of_a_split_archive(disks: tuple[int, ...]) -> None:
    at = GOOD.index(b"PK\5\6") + 4
    part = GOOD[:at] + struct.pack("<4H", *disks) + GOOD[at + 8 :]
    assert refusal(part).reason is RefusalReason.UNREADABLE
    assert "split" in refusal(part).detail


def test_zip64_parts_and_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.BytesIO()
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 1)
    with zipfile.ZipFile(out, "w") as packed:
        for name in "ab":
            packed.writestr(name, name)
    content = out.getvalue()
    locator = content.index(b"PK\6\7")
    parts = content[: locator + 16] + struct.pack("<L", 2) + content[locator + 20 :]
    assert refusal(parts).reason is RefusalReason.UNREADABLE
    lost = content.replace(b"PK\6\6", b"PK\6\0")
    assert refusal(lost).reason is RefusalReason.DAMAGED
    at = content.index(b"PK\6\6") + 24
    many = content[:at] + struct.pack("<2Q", 2**63, 2**63) + content[at + 16 :]
    assert refusal(many).reason is RefusalReason.TOO_LARGE
    far = content[: at + 24] + struct.pack("<Q", 2**64 - 1) + content[at + 32 :]
    assert refusal(far).reason is RefusalReason.DAMAGED


def test_a_member_that_declares_more_than_a_ledger_can_count() -> None:
    extra = struct.pack("<2HQ", 1, 8, 2**64 - 1)
    content = archive(Made(b"a", b"1", size=0xFFFFFFFF, extra=extra))
    assert refusal(content).reason is RefusalReason.TOO_LARGE


def test_a_picture_with_another_name_is_no_archive(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(dicom("1.2.1"))
    assert outcomes(path) == {str(path): "1.2.1"}
    # The preamble of a DICOM file may hold anything.
    path.write_bytes(b"PK\3\4" + dicom("1.2.1")[4:])
    assert is_zip(io.BytesIO(path.read_bytes()))
    assert outcomes(path) == {str(path): "1.2.1"}


def test_messages_say_nothing_of_names_and_content() -> None:
    name = b"DOE^JANE"
    bad = [{"crc": 0}, {"flags": 1}, {"method": 14}, {"local_name": b"x"}, {"size": 9_000_000}]
    for change in bad:
        fp = io.BytesIO(archive(replace(Made(name, b"DOE^JANE"), **change)))
        (entry,) = read_directory(fp, len(fp.getvalue()), ZIP_LIMITS).values()
        with pytest.raises(ImageRefused) as caught:
            list(unpacked(fp, entry, LIMITS, ZIP_LIMITS))
        assert "DOE" not in str(caught.value)


def test_large_members_are_unpacked_beside_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexer.imaging.read._IN_MEMORY", 100)
    path = tmp_path / "a.zip"
    path.write_bytes(archive(Made(b"a", dicom("1.2.1")), Made(b"b", GOOD), Made(b"c", b"?" * 500)))
    assert outcomes(path) == {
        f"{path}!a": "1.2.1",
        f"{path}!b": "not-an-image",
        f"{path}!c": "not-an-image",
    }


def test_many_members_are_read_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(archive(*[Made(b"%06d" % number, b"x") for number in range(20_000)]))
    members = [zip_member(one.locator) for one in FolderSource([path]).instances()]
    assert len(members) == 20_000
    started = time.monotonic()
    for member in members[::10]:
        with pytest.raises(ImageRefused, match="not-an-image"):
            read(member)
    # With the directory read for each of them, it would be minutes.
    assert time.monotonic() - started < 15


@hypothesis.given(st.data())
@hypothesis.settings(max_examples=300)
def test_no_bytes_lead_to_anything_but_a_refusal(data: st.DataObject) -> None:
    content = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    limits = ZipLimits(max_members=50, max_total_bytes=10_000)
    try:
        found = members_of(bytes(content), limits)
    except ImageRefused:
        return
    assert all(isinstance(one, RefusalReason) or len(one) <= 10_000 for one in found.values())
