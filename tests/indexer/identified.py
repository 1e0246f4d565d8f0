"""Files that name their patient wherever a file can, and a search that finds any of it.

Identifiers are planted in every text element of the standard that does not describe the pixels,
in sequences, private elements, file meta information, overlays and beside the pictures of PNG and
JPEG.
"""

import hashlib
import io
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from dicom_files import SECONDARY_CAPTURE, dataset, element, encode
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

__all__ = ["KEPT", "Planted", "identified_files", "leaks", "planted_value"]

# How planted values begin, so that one search finds them all; none comes about by chance.
_WORD, _INTEGER, _DECIMAL = "ZQXJK", "1973000", "81.97300"
_TIME, _MOMENT = "170717.1", "19170717170717.1"
_UID = "1.2.826.0.1.3680043.10.977."
_DATE = "190302"
_PATIENT_ID = f"{_WORD}PATIENT"

# Copied by design, in the form the standard gives them; see indexer/imaging/deidentify.py.
KEPT = {
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


def planted_value(vr: str, number: int) -> str | None:
    """A planted value of the form that ``vr`` asks for; another for each ``number``."""
    return {
        **dict.fromkeys(("AE", "CS", "LO", "LT", "SH", "ST", "UC", "UT"), f"{_WORD}{number:05}"),
        "PN": f"{_WORD}{number:05}^{_WORD}{number:05}B",
        "UR": f"https://{_WORD.lower()}{number:05}.example/",
        "DA": f"{_DATE}{number % 28 + 1:02}",
        "DS": f"{_DECIMAL}{number:05}",
        "IS": f"{_INTEGER}{number % 1000:03}",
        "TM": f"{_TIME}{number:05}",
        "DT": f"{_MOMENT}{number:05}",
        "UI": f"{_UID}{number}",
        "AS": "103Y",
    }.get(vr)


@dataclass
class Planted:
    """How many elements of each VR were planted."""

    by_vr: Counter[str] = field(default_factory=Counter)

    def value(self, vr: str) -> str | None:
        value = planted_value(vr, self.by_vr.total() % 100_000)
        if value is not None:
            self.by_vr[vr] += 1
        return value


def _plant_all(made: Dataset, planted: Planted) -> None:
    """Every element of the dictionary that ``made`` does not have and that holds text."""
    for tag, (vr, _, _, _, keyword) in DicomDictionary.items():
        group = tag >> 16
        if not keyword or group in _PICTURE_GROUPS or group in _NOT_IN_DATASETS or tag in made:
            continue
        if keyword in (*_ALLOWED_UIDS, *KEPT, "SpecificCharacterSet"):
            continue
        if vr == "SQ":
            made[tag] = DataElement(tag, "SQ", Sequence([_item(planted, 0)]))
        elif (value := planted.value(vr)) is not None:
            made[tag] = DataElement(tag, vr, value)


def _item(planted: Planted, depth: int = 2) -> Dataset:
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


def _plant_privately(made: Dataset, planted: Planted) -> None:
    for group, creator in ((0x0009, "ZQXJK MAKER"), (0x0011, "ZQXJK OTHER"), (0x6001, "ZQXJK")):
        block = made.private_block(group, creator, create=True)
        for offset, vr in enumerate(("LO", "PN", "DA", "UT", "LT", "SH", "UI", "DS", "ST")):
            block.add_new(offset, vr, planted.value(vr))
        block.add_new(0x20, "SQ", [_item(planted)])
        block.add_new(0x21, "UN", f"{_WORD}UN".encode())
        block.add_new(0x22, "OB", f"{_WORD}OB".encode("utf-16-le"))


def _plant_in_overlays(made: Dataset, planted: Planted) -> None:
    for group in (0x6000, 0x6002):
        for number, vr in ((0x0022, "LO"), (0x1500, "LO"), (0x4000, "LT"), (0x0040, "CS")):
            made.add_new((group, number), vr, planted.value(vr))
        made.add_new((group, 0x3000), "OW", _WORD.encode() * 100)


def _picture(seed: int) -> np.ndarray:
    """uint8 (64, 64)."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.arange(64), np.arange(64))
    wave = np.sin(np.hypot(x - rng.uniform(0, 64), y - rng.uniform(0, 64)) * rng.uniform(0.1, 0.5))
    return (127 + 90 * wave + rng.normal(0, 8, x.shape)).clip(0, 255).astype(np.uint8)


def _speaking(planted: Planted, number: int, *, every: bool = False, **elements) -> Dataset:
    """A dataset that names its patient wherever it can."""
    made = dataset(_picture(number), **KEPT, **elements)
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


def _with_meta(content: bytes, planted: Planted) -> bytes:
    """``content`` with a preamble and file meta information that name the patient."""
    added = b"".join(
        (
            element(0x00020016, b"AE", _even(planted.value("AE"))),
            element(0x00020100, b"UI", _even(planted.value("UI"))),
            element(0x00020102, b"OB", _even(f"{_WORD}META")),
        )
    )
    length = int.from_bytes(content[140:144], "little")
    grown = (length + len(added)).to_bytes(4, "little")
    preamble = (_WORD.encode() * 30)[:128]
    end = 144 + length
    return preamble + content[128:140] + grown + content[144:end] + added + content[end:]


def _even(text: str | None) -> bytes:
    written = (text or "").encode()
    return written + b"\0" * (len(written) % 2)


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


def _misplaced() -> bytes:
    """Names typed where the index looks for something else; what is kept fits none of them."""
    made = dataset(_picture(5))
    made.PatientName = made.PatientID = _WORD
    for keyword in ("AnatomicRegionSequence", "FrameAnatomySequence"):
        setattr(made, keyword, [Dataset()])
    wrong = (*KEPT, *_ALLOWED_UIDS[1:], "StudyDate", "PatientAge", "PatientBirthDate")
    for keyword in (*wrong, "ImageLaterality", "Laterality", "BurnedInAnnotation"):
        # Written without VRs, so that the reader takes them for what they are not.
        made[keyword] = DataElement(keyword, "LO", f"{_WORD} DOE")
    return encode(made, ImplicitVRLittleEndian)


def identified_files(planted: Planted) -> dict[str, bytes]:
    """By name: what becomes eight points of seven instances, and seven files that are refused.

    The names say nothing of the contents, so that one can be told from the other.
    """
    with warnings.catch_warnings(action="ignore"):
        return dict(_files(planted))


def _files(planted: Planted) -> Iterator[tuple[str, bytes]]:
    for number, syntax in enumerate(
        (ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian)
    ):
        yield (
            f"{number}",
            _with_meta(encode(_speaking(planted, number, every=True), syntax), planted),
        )
    # In the class of screenshots, whose writing is flagged and whose words are kept nowhere.
    yield "3", encode(_speaking(planted, 3, SOPClassUID=SECONDARY_CAPTURE))
    frames = _speaking(planted, 4)
    frames.NumberOfFrames = 3
    frames.PixelData = np.stack([_picture(40 + frame) for frame in range(3)]).tobytes()
    frames.PerFrameFunctionalGroupsSequence = [_item(planted) for _ in range(3)]
    frames.SharedFunctionalGroupsSequence = [_item(planted)]
    yield "4", encode(frames)
    yield "5", _misplaced()
    yield from _rasters()
    yield from _refused(planted)


def _refused(planted: Planted) -> Iterator[tuple[str, bytes]]:
    report = _speaking(planted, 10, every=True, SOPClassUID="1.2.840.10008.5.1.4.1.1.88.33")
    for keyword in ("PixelData", "Rows", "Columns"):
        delattr(report, keyword)
    yield "10", encode(report)
    unknown = _speaking(planted, 11, PixelData=None)
    unknown.SOPClassUID = f"{_UID}11"
    yield "11", encode(unknown)
    whole = encode(_speaking(planted, 12))
    yield "12", whole[: len(whole) - 3000]
    yield "13", whole.replace(b"1.2.840.10008.1.2.1\0", f"1.2.{_WORD}1234567890\0".encode())
    odd = _speaking(planted, 14)
    odd.PhotometricInterpretation = f"{_WORD}14"
    yield "14", encode(odd)
    yield "15", f"{_WORD} wrote a letter. ".encode() * 50
    yield "16", whole[200:]


def _patterns() -> list[re.Pattern[bytes]]:
    """What finds any planted value, and common digests of the patient's identifier."""
    digests = [
        hashlib.new(kind, _PATIENT_ID.encode()).hexdigest() for kind in ("md5", "sha1", "sha256")
    ]
    # Six digits alone would be found in other numbers.
    dates = [f"{_DATE}{tens}" for tens in "0123"] + [f"{_DATE[:4]}-{_DATE[4:]}"]
    found = []
    for coding in ("ascii", "utf-16-le", "utf-16-be"):
        texts = [_WORD, _INTEGER, _DECIMAL, _TIME, _MOMENT, _UID, *dates, *digests]
        anything = b"|".join(re.escape(text.encode(coding)) for text in texts)
        found.append(re.compile(anything, re.IGNORECASE))
    return found


_PATTERNS = _patterns()


def leaks(content: bytes) -> list[bytes]:
    """What of planted values is in ``content``."""
    return [match[0] for pattern in _PATTERNS if (match := pattern.search(content))]
