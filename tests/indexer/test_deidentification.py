"""Whatever a file says of a patient, nothing of it is in the index, the ledger, a log or an answer.

Identifiers are planted in every text element of the standard that does not describe the pixels,
in sequences, private elements, file meta information, overlays and beside the pictures of PNG and
JPEG. The files are indexed and searched for real, and everything left behind is looked through.
"""

import datetime
import hashlib
import io
import logging
import mmap
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pytest
from dicom_files import CT, SECONDARY_CAPTURE, SAMPLES, dataset, encode
from fastapi.testclient import TestClient
from PIL import Image, PngImagePlugin
from pydicom.datadict import DicomDictionary
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from api.app import create_app
from engine.store.base import Filter
from indexer.archive import Archive
from indexer.run import IndexingReport
from indexer.sources.folder import FolderSource

# How planted values begin, so that one search finds them all; none comes about by chance.
_WORD, _INTEGER, _DECIMAL = "ZQXJK", "1973000", "81.97300"
_TIME, _MOMENT = "170717.1", "19170717170717.1"
_UID = "1.2.826.0.1.3680043.10.977."
_FIRST_DATE = datetime.date(1903, 1, 1)
_PATIENT_ID = f"{_WORD}PATIENT"

# Copied by design, in the form the standard gives them; see docs/architecture.md.
_KEPT = {
    "Modality": "CT",
    "BodyPartExamined": "CHEST",
    "ViewPosition": "AP",
    "Manufacturer": "Kept & Sons",
    "PatientSex": "F",
}
_ALLOWED_UIDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
# Image Pixel, functional groups and the pixels: they say how to show the picture.
_PICTURE_GROUPS = (0x0028, 0x5200, 0x7FE0)
# Commands, file meta information, directories, delimiters.
_NOT_IN_DATASETS = (0x0000, 0x0002, 0x0004, 0xFFFE)


def _value(vr: str, number: int) -> str | None:
    """A planted value of the form that ``vr`` asks for; another for each ``number``."""
    date = _FIRST_DATE + datetime.timedelta(days=number % 3000)
    return {
        **dict.fromkeys(("AE", "CS", "LO", "LT", "SH", "ST", "UC", "UT"), f"{_WORD}{number:05}"),
        "PN": f"{_WORD}{number:05}^{_WORD}{number:05}B",
        "UR": f"https://{_WORD.lower()}{number:05}.example/",
        "DA": f"{date:%Y%m%d}",
        "DS": f"{_DECIMAL}{number:05}",
        "IS": f"{_INTEGER}{number % 1000:03}",
        "TM": f"{_TIME}{number:05}",
        "DT": f"{_MOMENT}{number:05}",
        "UI": f"{_UID}{number}",
        "AS": "103Y",
    }.get(vr)


@dataclass
class _Planted:
    """How many elements of each VR were planted, and the dates, which have no common start."""

    by_vr: Counter[str] = field(default_factory=Counter)
    dates: set[str] = field(default_factory=set)

    def value(self, vr: str) -> str | None:
        value = _value(vr, self.by_vr.total())
        if value is not None:
            self.by_vr[vr] += 1
            if vr == "DA":
                self.dates.add(value)
        return value


def _plant_all(made: Dataset, planted: _Planted) -> None:
    """Every element of the dictionary that ``made`` does not have and that holds text."""
    for tag, (vr, _, _, _, keyword) in DicomDictionary.items():
        group = tag >> 16
        if not keyword or group in _PICTURE_GROUPS or group in _NOT_IN_DATASETS or tag in made:
            continue
        if keyword in (*_ALLOWED_UIDS, *_KEPT, "SpecificCharacterSet"):
            continue
        if vr == "SQ":
            made[tag] = DataElement(tag, "SQ", Sequence([_item(planted)]))
        elif (value := planted.value(vr)) is not None:
            made[tag] = DataElement(tag, vr, value)


def _item(planted: _Planted, depth: int = 2) -> Dataset:
    """An item that names the patient, in further sequences too."""
    item = Dataset()
    for keyword, vr in (
        ("PatientName", "PN"),
        ("PatientID", "LO"),
        ("PatientBirthDate", "DA"),
        ("AccessionNumber", "SH"),
        ("CodeMeaning", "LO"),
        ("TextValue", "UT"),
        ("ReferencedSOPInstanceUID", "UI"),
    ):
        item.add_new(keyword, vr, planted.value(vr))
    if depth:
        item.ReferencedPatientSequence = [_item(planted, depth - 1)]
    return item


def _plant_privately(made: Dataset, planted: _Planted) -> None:
    for group, creator in ((0x0009, "ZQXJK MAKER"), (0x0011, "ZQXJK OTHER"), (0x6001, "ZQXJK")):
        block = made.private_block(group, creator, create=True)
        for offset, vr in enumerate(("LO", "PN", "DA", "UT", "LT", "SH", "UI", "DS", "ST")):
            block.add_new(offset, vr, planted.value(vr))
        block.add_new(0x20, "SQ", [_item(planted)])
        block.add_new(0x21, "UN", f"{_WORD}UN".encode())
        block.add_new(0x22, "OB", f"{_WORD}OB".encode("utf-16-le"))


def _plant_in_overlays(made: Dataset, planted: _Planted) -> None:
    for group in (0x6000, 0x6002):
        for element, vr in ((0x0022, "LO"), (0x1500, "LO"), (0x4000, "LT"), (0x0040, "CS")):
            made.add_new((group, element), vr, planted.value(vr))
        made.add_new((group, 0x3000), "OW", _WORD.encode() * 100)


def _picture(seed: int) -> np.ndarray:
    """uint8 (64, 64)."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.arange(64), np.arange(64))
    wave = np.sin(np.hypot(x - rng.uniform(0, 64), y - rng.uniform(0, 64)) * rng.uniform(0.1, 0.5))
    return (127 + 90 * wave + rng.normal(0, 8, x.shape)).clip(0, 255).astype(np.uint8)


def _speaking(planted: _Planted, number: int, *, every: bool = False, **elements) -> Dataset:
    """A dataset that names its patient wherever it can."""
    made = dataset(_picture(number), **_KEPT, **elements)
    made.SpecificCharacterSet = "ISO_IR 192"
    made.SOPInstanceUID = f"1.2.3.{number}"
    made.StudyInstanceUID, made.SeriesInstanceUID = f"1.2.4.{number // 2}", f"1.2.5.{number}"
    made.PatientID, made.IssuerOfPatientID = _PATIENT_ID, f"{_WORD}ISSUER"
    made.PatientName = f"{_WORD}^Zoë={_WORD}"
    region = _item(planted)
    region.CodeValue = "51185008"
    made.AnatomicRegionSequence = [region]
    _plant_privately(made, planted)
    _plant_in_overlays(made, planted)
    made.add_new("DataSetTrailingPadding", "OB", _WORD.encode() * 20)
    if every:
        _plant_all(made, planted)
    return made


def _with_meta(content: bytes, planted: _Planted) -> bytes:
    """``content`` with a preamble and file meta information that name the patient."""
    private = Dataset()
    private.add_new(0x00020016, "AE", planted.value("AE"))
    private.add_new(0x00020100, "UI", planted.value("UI"))
    private.add_new(0x00020102, "OB", f"{_WORD}META".encode() + b"\0")
    out = io.BytesIO()
    from pydicom.filewriter import write_dataset
    from pydicom.filebase import DicomFileLike

    target = DicomFileLike(out)
    target.is_implicit_VR, target.is_little_endian = False, True
    write_dataset(target, private)
    added = out.getvalue()
    length = int.from_bytes(content[140:144], "little")
    end = 144 + length
    preamble = (_WORD.encode() * 30)[:128]
    grown = (length + len(added)).to_bytes(4, "little")
    return preamble + content[128:140] + grown + content[144:end] + added + content[end:]


def _rasters() -> Iterator[tuple[str, bytes]]:
    picture = Image.fromarray(_picture(80))
    said = PngImagePlugin.PngInfo()
    said.add_text("Author", f"{_WORD}AUTHOR")
    said.add_itxt("Patient", f"{_WORD}UTF", zip=False)
    exif = Image.Exif()
    exif[0x010E], exif[0x013B] = f"{_WORD}EXIF", f"{_WORD}ARTIST"
    out = io.BytesIO()
    picture.save(out, "PNG", pnginfo=said, exif=exif)
    yield "a.png", out.getvalue()
    out = io.BytesIO()
    Image.fromarray(_picture(81)).save(
        out, "JPEG", exif=exif, comment=f"{_WORD}COMMENT", icc_profile=f"{_WORD}ICC".encode() * 9
    )
    yield "b.jpg", out.getvalue()


def _files(planted: _Planted) -> Iterator[tuple[str, bytes]]:
    """By neutral names: where files lie is known to the site, and kept by the ledger."""
    for number, syntax in enumerate(
        (ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian)
    ):
        yield f"{number}", _with_meta(
            encode(_speaking(planted, number, every=True), syntax), planted
        )
    # In the class of screenshots, whose writing is flagged and whose words are kept nowhere.
    yield "3", encode(_speaking(planted, 3, SOPClassUID=SECONDARY_CAPTURE))
    frames = _speaking(planted, 4)
    frames.NumberOfFrames = 3
    frames.PixelData = np.stack([_picture(40 + frame) for frame in range(3)]).tobytes()
    frames.PerFrameFunctionalGroupsSequence = [_item(planted) for _ in range(3)]
    frames.SharedFunctionalGroupsSequence = [_item(planted)]
    yield "4", encode(frames)
    yield from _rasters()
    yield from _refused(planted)


def _refused(planted: _Planted) -> Iterator[tuple[str, bytes]]:
    report = _speaking(planted, 10, every=True, SOPClassUID="1.2.840.10008.5.1.4.1.1.88.33")
    for keyword in ("PixelData", "Rows", "Columns"):
        delattr(report, keyword)
    yield "10", encode(report)
    unknown = _speaking(planted, 11, every=True, PixelData=None)
    unknown.SOPClassUID = f"{_UID}11"
    yield "11", encode(unknown)
    whole = encode(_speaking(planted, 12, every=True))
    yield "12", whole[: len(whole) - 3000]
    yield "13", whole.replace(b"1.2.840.10008.1.2.1\0", f"1.2.{_WORD}1234567890\0".encode())
    odd = _speaking(planted, 14)
    odd.PhotometricInterpretation = f"{_WORD}14"
    yield "14", encode(odd)
    yield "15", f"{_WORD} wrote a letter. ".encode() * 50
    yield "16", encode(_speaking(planted, 16, every=True))[200:]


@dataclass(frozen=True)
class _Left:
    """What is left behind, by name: bytes of files, or of what was said."""

    report: IndexingReport
    files: list[Path]
    said: dict[str, bytes]


def _patterns(planted: _Planted) -> list[re.Pattern[bytes]]:
    """What finds any planted value, as bytes of one or of two to a character."""
    starts = [_WORD, _INTEGER, _DECIMAL, _TIME, _MOMENT, _UID]
    dates = [*planted.dates, *(f"{d[:4]}-{d[4:6]}-{d[6:]}" for d in planted.dates)]
    hashes = [
        hashlib.new(kind, _PATIENT_ID.encode()).hexdigest() for kind in ("md5", "sha1", "sha256")
    ]
    found = []
    for texts in (starts, dates, hashes):
        for coding in ("ascii", "utf-16-le", "utf-16-be"):
            anything = b"|".join(re.escape(text.encode(coding)) for text in sorted(texts))
            found.append(re.compile(anything, re.IGNORECASE))
    return found


def _leaks(content: bytes | mmap.mmap, patterns: list[re.Pattern[bytes]]) -> list[bytes]:
    return [match[0] for pattern in patterns if (match := pattern.search(content))]


@pytest.fixture(scope="module")
def planted() -> _Planted:
    return _Planted()


@pytest.fixture(scope="module")
def left(new_site: Callable, planted: _Planted) -> _Left:
    raise NotImplementedError


def test_placeholder() -> None:
    assert asdict
    assert CT
    assert SAMPLES
    assert logging
    assert TestClient
    assert create_app
    assert Filter
    assert Archive
    assert FolderSource
