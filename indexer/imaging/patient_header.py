"""Reads what a DICOM document about an instance repeats of its header: patient, study, identity.

Runs in the reading processes. What it gives names the patient, and is not kept anywhere.
"""

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

from pydicom.datadict import tag_for_keyword

from engine.errors import ImageRefused, RefusalReason
from engine.settings import ImageLimits, ZipLimits
from indexer.files.locators import Image
from indexer.imaging.dataset import parse_dataset
from indexer.imaging.dicom import inflated, is_dicom
from indexer.imaging.header import text
from indexer.imaging.pixels import PIXEL_KEYWORDS
from indexer.imaging.quiet import hushed
from indexer.imaging.read import content_of, digest_of

__all__ = ["COPIED", "HeaderTask", "PatientHeader", "read_patient_header"]

COPIED = (
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "StudyDescription",
    "AccessionNumber",
    "ReferringPhysicianName",
)
"""Elements that a document in the study of an instance has from it."""
_READ = (*COPIED, "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "NumberOfFrames")
_TAGS = frozenset(
    tag
    for keyword in (*_READ, "SpecificCharacterSet")
    if (tag := tag_for_keyword(keyword)) is not None
)
_FORMS = {
    "PatientBirthDate": re.compile(r"\d{8}", re.ASCII),
    "StudyDate": re.compile(r"\d{8}", re.ASCII),
    "StudyTime": re.compile(r"\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?", re.ASCII),
    "PatientSex": re.compile(r"[MFO]"),
}
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class HeaderTask:
    """Whose header to read, and within which limits."""

    image: Image
    limits: ImageLimits
    zip_limits: ZipLimits


@dataclass(frozen=True, slots=True)
class PatientHeader:
    """Header of an instance. content_sha256: of its file, hex. values: by keyword, "" = none."""

    content_sha256: str
    values: Mapping[str, str]

    def __getitem__(self, keyword: str) -> str:
        return self.values[keyword]

    def __repr__(self) -> str:
        return "PatientHeader(…)"

    @property
    def frames(self) -> int:
        """How many frames the instance has."""
        written = self.values["NumberOfFrames"]
        return int(written) if written.isascii() and written.isdigit() else 1


def read_patient_header(task: HeaderTask) -> PatientHeader:
    """The header of a DICOM file; no pixel is decoded.

    Dates, times and the sex are left empty where they have no valid form, and characters that text
    may not have are left out.

    Raises:
        ImageRefused: the file cannot be read, or is no DICOM.
    """
    # pydicom's warnings and log lines quote values, which may identify patients.
    hushed("pydicom")
    with warnings.catch_warnings(), content_of(task.image, task.limits, task.zip_limits) as found:
        warnings.simplefilter("ignore")
        fp, size = found
        if not is_dicom(fp, size):
            raise ImageRefused(
                RefusalReason.NOT_AN_IMAGE, "it is no DICOM file, so it has no patient and study"
            )
        digest = digest_of(fp, size)
        plain, length, encoding = inflated(fp, size, task.limits)
        nesting = task.limits.max_nesting
        header = parse_dataset(plain, length, encoding, _TAGS, PIXEL_KEYWORDS, nesting).header
        values = {one: _clean(one, text(header, one)) for one in _READ}
        return PatientHeader(digest, values)


def _clean(keyword: str, written: str) -> str:
    if keyword in ("PatientBirthDate", "StudyDate"):
        # As ACR-NEMA wrote dates.
        written = written.replace(".", "")
    form = _FORMS.get(keyword)
    if form is not None and form.fullmatch(written) is None:
        return ""
    return _CONTROL.sub("", written)
