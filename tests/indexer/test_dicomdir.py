"""A DICOMDIR stands for the files it refers to, and for no others."""

import io
import os
import shutil
import struct
import time
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from dicom_files import KEY, LIMITS, SAMPLES, dataset, element, encode, part10, us
from hypothesis import strategies as st

from engine.errors import ImageRefused, RefusalReason
from engine.model.preprocess import Preprocess
from engine.settings import ImageLimits, ZipLimits
from indexer.files import dicomdir
from indexer.files.dicomdir import FileSet, file_ids, is_dicomdir
from indexer.files.locators import file_locator, file_path, shown
from indexer.imaging.prepare import ReadTask, prepare
from indexer.sources.folder import FolderSource

MEDIA = SAMPLES / "dicomdirtests"
STORAGE = b"1.2.840.10008.1.3.10"
NOISE = np.random.default_rng(0).integers(0, 4096, (32, 32), dtype=np.uint16)
UNDEFINED = 0xFFFFFFFF


def record(file_id: bytes = b"", in_use: int = 0xFFFF, *more: bytes) -> bytes:
    """The elements of a directory record."""
    parts = [element(0x00041400, b"UL", bytes(4)), element(0x00041410, b"US", us(in_use))]
    if file_id:
        parts.append(element(0x00041500, b"CS", file_id + b" " * (len(file_id) % 2)))
    return b"".join([*parts, element(0x00080018, b"UI", b"1.2.3\0"), *more])


def item(elements: bytes, *, defined: bool = True) -> bytes:
    length = len(elements) if defined else UNDEFINED
    end = b"" if defined else struct.pack("<HHL", 0xFFFE, 0xE00D, 0)
    return struct.pack("<HHL", 0xFFFE, 0xE000, length) + elements + end


def directory(*records: bytes, defined: bool = True) -> bytes:
    content = b"".join(item(one, defined=defined) for one in records)
    if not defined:
        content += struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    made = part10(
        element(0x00041130, b"CS", b"MEDIUM"),
        element(0x00041220, b"SQ", content, None if defined else UNDEFINED),
    )
    # The class of the file belongs into its meta information, which this leads.
    meta = element(0x00020002, b"UI", STORAGE)
    return made[:144] + meta + made[144:]


def listed(content: bytes, limits: ImageLimits = LIMITS) -> list[str]:
    return file_ids(io.BytesIO(content), len(content), limits)


def refusal(content: bytes, limits: ImageLimits = LIMITS) -> ImageRefused:
    with pytest.raises(ImageRefused) as caught:
        listed(content, limits)
    return caught.value


def dicom(sop: str) -> bytes:
    return encode(dataset(NOISE, SOPInstanceUID=sop))


def outcomes(source: FolderSource) -> dict[str, str]:
    """What becomes of each instance: its SOP Instance UID, or the reason."""
    locators = [found.locator for found in source.instances()]
    assert len(set(locators)) == len(locators)
    became = {}
    for locator, image in zip(locators, source.images(locators), strict=True):
        try:
            if isinstance(image, ImageRefused):
                raise image
            task = ReadTask(image, LIMITS, ZipLimits(), 8, 64, Preprocess(size=64), KEY)
            became[locator] = str(prepare(task).record.sop)
        except ImageRefused as refused:
            became[locator] = refused.reason.value
    return became


@pytest.fixture
def medium(tmp_path: Path) -> Path:
    """A DICOMDIR that refers to three of the four files beside it."""
    root = tmp_path / "medium"
    (root / "PAT1" / "SER1").mkdir(parents=True)
    for number in range(4):
        (root / "PAT1" / "SER1" / f"IM{number}").write_bytes(dicom(f"1.2.{number}"))
    (root / "DICOMDIR").write_bytes(
        directory(record(), *[record(rb"PAT1\SER1\IM%d" % number) for number in (2, 0, 1)])
    )
    return root


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("DICOMDIR", 31),
        ("DICOMDIR-nopatient", 31),
        ("DICOMDIR-reordered", 31),
        ("DICOMDIR-implicit", 31),
        ("DICOMDIR-bigEnd", 31),
        ("TINY_ALPHA/DICOMDIR", 50),
    ],
)
def test_media_in_the_wild(name: str, count: int) -> None:
    path = MEDIA / name
    files = [file_path(found.locator) for found in FolderSource([path]).instances()]
    assert len(set(files)) == count
    assert all(file.is_file() for file in files)
    below = {file_path(found.locator) for found in FolderSource([path.parent]).instances()}
    assert set(files) < below


def test_the_files_of_a_medium_are_the_same_as_those_of_its_folder(medium: Path) -> None:
    folder = {found.locator: found for found in FolderSource([medium]).instances()}
    named = list(FolderSource([medium / "DICOMDIR"], label_from_folder=True).instances())
    assert [shown(one.locator)[-3:] for one in named] == ["IM2", "IM0", "IM1"]
    for one in named:
        same = folder[one.locator]
        assert (one.size, one.modified, one.label) == (same.size, same.modified, "SER1")
    assert sorted(outcomes(FolderSource([medium / "DICOMDIR"])).values()) == [
        "1.2.0",
        "1.2.1",
        "1.2.2",
    ]


def test_each_file_counts_once_whatever_is_named(medium: Path) -> None:
    path, image = medium / "DICOMDIR", medium / "PAT1" / "SER1" / "IM1"
    folder = {found.locator for found in FolderSource([medium]).instances()}
    assert len(folder) == 5
    for paths in ([medium, path], [path, medium], [path, image, medium, path]):
        found = [one.locator for one in FolderSource(paths).instances()]
        assert len(set(found)) == len(found)
        # What is named for the sake of its files need not be a file of its own.
        assert set(found) | {file_locator(path)} == folder
    assert len(list(FolderSource([image, path]).instances())) == 3
    assert len(list(FolderSource([path], leave_out=image.parent).instances())) == 0


def test_a_dicomdir_that_is_met_in_a_folder_is_a_file_without_pixels(medium: Path) -> None:
    found = outcomes(FolderSource([medium]))
    assert found[file_locator(medium / "DICOMDIR")] == "no-pixels"
    assert len(found) == 5


def test_a_dicomdir_is_known_by_its_content_or_its_name(medium: Path) -> None:
    renamed = medium / "index.dcm"
    shutil.copy(medium / "DICOMDIR", renamed)
    assert len(outcomes(FolderSource([renamed]))) == 3
    # Some writers leave out the meta information.
    content = renamed.read_bytes()
    bare = content[content.index(struct.pack("<HH", 4, 0x1130)) :]
    for name, count in (("DICOMDIR", 3), ("dicomdir", 3), ("other", 1)):
        (medium / name).write_bytes(bare)
        assert len(list(FolderSource([medium / name]).instances())) == count


def test_an_image_or_a_text_may_be_called_dicomdir(tmp_path: Path) -> None:
    path = tmp_path / "DICOMDIR"
    path.write_bytes(dicom("1.2.3"))
    assert outcomes(FolderSource([path])) == {file_locator(path): "1.2.3"}
    path.write_text("Dear colleague, …", encoding="utf-8")
    assert outcomes(FolderSource([path])) == {file_locator(path): "not-an-image"}
    path.write_bytes(b"")
    assert outcomes(FolderSource([path])) == {file_locator(path): "empty-file"}


def test_files_that_are_missing_are_accounted_for(medium: Path) -> None:
    path = medium / "DICOMDIR"
    (medium / "PAT1" / "SER1" / "IM0").unlink()
    missing = file_locator(medium / "PAT1" / "SER1" / "IM0")
    assert outcomes(FolderSource([path]))[missing] == "unreadable"
    # Also when a walk was there before and could not see them.
    assert outcomes(FolderSource([medium, path]))[missing] == "unreadable"
    shutil.rmtree(medium / "PAT1")
    assert list(outcomes(FolderSource([path])).values()) == ["unreadable"] * 3


@pytest.mark.parametrize(
    ("on_disk", "file_id"),
    [
        ("dicom/img001", r"DICOM\IMG001"),
        ("DICOM/img001.;1", r"DICOM\IMG001"),
        ("dicom/IMG001.DCM;1", r"DICOM\IMG001.DCM"),
        ("DICOM/IMG001.", r"DICOM\IMG001"),
        ("DICOM/IMG001", r" DICOM \IMG001 "),
        ("DICOM/IMG001", "DICOM/IMG001"),
        ("DICOM/IMG001", r".\DICOM\.\IMG001"),
        ("DICOM/Schädel 頭", r"DICOM\Schädel 頭"),
    ],
)
def test_names_that_a_copy_of_a_medium_has_changed(
    tmp_path: Path, on_disk: str, file_id: str
) -> None:
    path = tmp_path / on_disk
    path.parent.mkdir()
    path.write_bytes(b"x")
    assert FileSet(tmp_path).path(file_id) == path


def test_a_name_as_written_comes_before_its_likes(tmp_path: Path) -> None:
    for name in ("IM1", "im1", "Im1", "im2", "IM2;1"):
        (tmp_path / name).write_bytes(b"x")
    files = FileSet(tmp_path)
    assert files.path("im1") == tmp_path / "im1"
    assert files.path("IM1") == tmp_path / "IM1"
    assert files.path("IM2") == tmp_path / "IM2;1"
    assert files.path(r"NO\SUCH") == tmp_path / "NO" / "SUCH"
    assert files.path(r"IM1\BELOW") == tmp_path / "IM1" / "BELOW"


@pytest.mark.parametrize(
    "file_id",
    [
        b"..\\outside",
        b"PAT1\\..\\..\\outside",
        b"PAT1/../../outside",
        b"/etc/passwd",
        b"\\outside",
        b" .. \\outside",
        b"a\0b",
        b".",
        b"\\",
    ],
)
def test_nothing_outside_the_medium_is_read(medium: Path, file_id: bytes) -> None:
    (medium.parent / "outside").write_bytes(dicom("1.2.9"))
    path = medium / "DICOMDIR"
    path.write_bytes(directory(record(file_id), record(file_id), record(rb"PAT1\SER1\IM1")))
    found = outcomes(FolderSource([path]))
    bad, good = found
    assert found == {bad: "unreadable", good: "1.2.1"}
    assert shown(bad) == f"{path}!{os.fsdecode(file_id).strip()}"


def test_records_that_are_not_in_use_or_have_no_file() -> None:
    content = directory(record(), record(b"GONE", 0), record(b"  "), record(b"IM1"), record(b"IM1"))
    assert listed(content) == ["IM1"]


def test_records_with_delimiters_and_nested_sequences() -> None:
    icon = [
        element(0x00280010, b"US", us(64)),
        struct.pack("<HH", 0x7FE0, 0x0010) + b"OB\0\0" + struct.pack("<L", UNDEFINED),
        item(b"") + item(b"\xfe\xff\x0d\xe0" * 20),
        struct.pack("<HHL", 0xFFFE, 0xE0DD, 0),
    ]
    inside = item(b"".join(icon), defined=False) + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    nested = element(0x00880200, b"SQ", inside, UNDEFINED)
    early = element(0x00041421, b"SQ", item(record(b"NESTED")))
    for defined in (True, False):
        made = directory(early + record(b"IM1", 0xFFFF, nested), record(b"IM2"), defined=defined)
        assert listed(made) == ["IM1", "IM2"]


FINE = directory(*[record(b"IM%d" % number) for number in range(5)])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (FINE[:-1], RefusalReason.TRUNCATED),
        (FINE[: len(FINE) // 2], RefusalReason.TRUNCATED),
        (directory(record(b"IM1"), defined=False)[:-8], RefusalReason.TRUNCATED),
        (FINE.replace(b"\xfe\xff\x00\xe0", b"\xfe\xff\x00\xe1", 1), RefusalReason.DAMAGED),
        (directory(record(b"IM" * 1000)), RefusalReason.DAMAGED),
        (part10(element(0x00080018, b"UI", b"1.2")), RefusalReason.DAMAGED),
        (directory(), RefusalReason.NO_PIXELS),
        (directory(record()), RefusalReason.NO_PIXELS),
        (b"", RefusalReason.EMPTY_FILE),
    ],
)
def test_a_dicomdir_that_cannot_be_used_is_one_refused_file(
    tmp_path: Path, content: bytes, reason: RefusalReason
) -> None:
    assert refusal(content).reason is reason
    path = tmp_path / "DICOMDIR"
    path.write_bytes(content)
    found = outcomes(FolderSource([path]))
    assert list(found) == [file_locator(path)]
    assert found[file_locator(path)] in {reason.value, "no-pixels", "damaged", "not-an-image"}


def test_the_reader_says_that_the_dicomdir_is_damaged(tmp_path: Path) -> None:
    """Not merely that it has no pixels, which all of them have not."""
    path = tmp_path / "DICOMDIR"
    path.write_bytes(directory(record(b"IM" * 1000)))
    task = ReadTask(path, LIMITS, ZipLimits(), 8, 64, Preprocess(size=64), KEY)
    with pytest.raises(ImageRefused, match="index its folder") as caught:
        prepare(task)
    assert caught.value.reason is RefusalReason.DAMAGED


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(FINE, ImageLimits(max_file_bytes=100)).reason is RefusalReason.TOO_LARGE
    monkeypatch.setattr(dicomdir, "_MAX_RECORDS", 5)
    assert len(listed(FINE)) == 5
    monkeypatch.setattr(dicomdir, "_MAX_RECORDS", 4)
    assert refusal(FINE).reason is RefusalReason.TOO_LARGE
    monkeypatch.undo()
    monkeypatch.setattr(dicomdir, "_MAX_HEADS", 20)
    assert refusal(FINE).reason is RefusalReason.TOO_LARGE


def test_a_limit_on_the_file_is_the_sources_own(medium: Path) -> None:
    path = medium / "DICOMDIR"
    source = FolderSource([path], limits=ImageLimits(max_file_bytes=100))
    assert [found.locator for found in source.instances()] == [file_locator(path)]


def test_records_that_point_to_each_other_are_read_once() -> None:
    """Offsets in a circle, as in a tree that never ends."""
    start = FINE.index(b"\xfe\xff\x00\xe0")
    next_record = struct.pack("<HH", 4, 0x1400) + b"UL\4\0"
    circle = FINE.replace(next_record + bytes(4), next_record + struct.pack("<L", start))
    assert circle != FINE
    assert listed(circle) == listed(FINE)


def test_meta_information_without_end_is_not_read() -> None:
    meta = element(0x00020100, b"UI", b"") * 2_000_000
    content = b"\0" * 128 + b"DICM" + meta
    started = time.monotonic()
    assert not is_dicomdir(io.BytesIO(content))
    assert refusal(content).reason in (RefusalReason.DAMAGED, RefusalReason.TRUNCATED)
    # As fast as a small one, but for what the bounded number of elements takes.
    assert time.monotonic() - started < 20


@hypothesis.given(st.data())
@hypothesis.settings(max_examples=300)
def test_no_bytes_lead_to_anything_but_a_refusal(data: st.DataObject) -> None:
    content = bytearray(
        FINE if data.draw(st.booleans()) else directory(record(b"A"), defined=False)
    )
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    is_dicomdir(io.BytesIO(bytes(content)))
    try:
        found = listed(bytes(content))
    except ImageRefused:
        return
    paths = [FileSet(Path("/nowhere")).path(file_id) for file_id in found]
    assert all(path is None or ".." not in path.parts for path in paths)
