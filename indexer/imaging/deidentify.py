"""De-identifies a DICOM header: copies an allow-list of fields, each value checked.

A field is copied only if its value has the form that the standard prescribes. People type names
into any field, so free text is also dropped if it repeats anything that identifies the patient
in the same header.
"""

import hashlib
import hmac
import re
import warnings
from datetime import date

from pydicom.dataset import Dataset

from engine.errors import SettingsError
from engine.records import ImageRecord
from indexer.imaging.anatomy import BODY_PARTS, MODALITIES, REGION_CODES, VIEWS
from indexer.imaging.header import items, text, value

__all__ = ["HEADER_KEYWORDS", "pseudonym", "record_of"]

_IDENTIFYING = (
    "PatientName",
    "PatientID",
    "OtherPatientIDs",
    "OtherPatientNames",
    "PatientBirthName",
    "PatientMotherBirthName",
    "PatientAddress",
    "PatientTelephoneNumbers",
    "PatientBirthDate",
    "MedicalRecordLocator",
    "AccessionNumber",
    "ReferringPhysicianName",
    "PerformingPhysicianName",
    "OperatorsName",
    "ResponsiblePerson",
)

HEADER_KEYWORDS: tuple[str, ...] = (
    *_IDENTIFYING,
    "SpecificCharacterSet",
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "StudyDate",
    "Modality",
    "Manufacturer",
    "BodyPartExamined",
    "AnatomicRegionSequence",
    "ViewPosition",
    "ImageLaterality",
    "Laterality",
    "IssuerOfPatientID",
    "PatientSex",
    "PatientAge",
    "BurnedInAnnotation",
    "ConversionType",
    "ImageType",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)
"""Keywords of the elements that :func:`record_of` reads."""

_CODE_STRING = re.compile(r"[A-Z0-9_ ]{1,16}")
_UID = re.compile(r"[0-9.]{1,64}")
_DATE = re.compile(r"(\d{4})[.-]?(\d{2})[.-]?(\d{2})")
_AGE = re.compile(r"(\d{3})([DWMY])")
_MAKER = re.compile(r"[^\W_][\w .,&()/+'-]{0,63}")
# Makers have no long numbers in their names; patients' identifiers do.
_LONG_NUMBER = re.compile(r"\d{5}")
_WORD = re.compile(r"\w+")
_MIN_WORD = 3
_MAX_AGE = 130
_OLDEST_BAND = 90
_PSEUDONYM_LENGTH = 32
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_SCREENSHOTS = {"SCREEN SAVE", "SCREEN CAPTURE", "SCREENSHOT"}


def record_of(header: Dataset, key: bytes) -> ImageRecord:
    """The allow-listed record of the instance that ``header`` describes, with ``frame`` 0.

    Args:
        header: must hold those of :data:`HEADER_KEYWORDS` that the file has.
        key: of the HMAC that makes the patient's pseudonym.

    Raises:
        SettingsError: ``key`` is empty.
    """
    # pydicom converts values on access, and its warnings quote them.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _record_of(header, key)


def _record_of(header: Dataset, key: bytes) -> ImageRecord:
    said = _Identity(header)
    groups = _functional_groups(header)
    study_date = _date(text(header, "StudyDate"))
    return ImageRecord(
        study=_uid(header, "StudyInstanceUID", said),
        series=_uid(header, "SeriesInstanceUID", said),
        sop=_uid(header, "SOPInstanceUID", said),
        patient=pseudonym(text(header, "IssuerOfPatientID"), text(header, "PatientID"), key),
        modality=_code(text(header, "Modality"), MODALITIES, said),
        body_part=_body_part(header, groups, said),
        view=_code(text(header, "ViewPosition"), VIEWS, said),
        laterality=_laterality(header, groups),
        manufacturer=_manufacturer(header, said),
        sex=_one_of(text(header, "PatientSex"), ("M", "F", "O")),
        age_band=_age_band(header, study_date),
        study_year=study_date.year if study_date else None,
        burned_in=_burned_in(header),
    )


def pseudonym(issuer: str, patient_id: str, key: bytes) -> str | None:
    """The first 128 bits of the HMAC-SHA256 of issuer and patient id, as 32 hex digits; None
    without patient id.

    Raises:
        SettingsError: ``key`` is empty, so that anyone could compute the pseudonym.
    """
    if not key:
        raise SettingsError(
            "pseudonym_key is empty; set PRECEDENT_PSEUDONYM_KEY to a long random text"
        )
    if not patient_id:
        return None
    message = f"{issuer}\0{patient_id}".encode("utf-8", "surrogatepass")
    return hmac.new(key, message, hashlib.sha256).hexdigest()[:_PSEUDONYM_LENGTH]


class _Identity:
    """The identifying values of a header, to detect them in other fields."""

    def __init__(self, header: Dataset) -> None:
        whole = {
            str(part).strip().casefold()
            for keyword in _IDENTIFYING
            for part in _values(header, keyword)
        }
        self._whole = {said for said in whole if said}
        words = {word for said in self._whole for word in _WORD.findall(said)}
        self._words = {word.strip("_") for word in words if len(word.strip("_")) >= _MIN_WORD}

    def repeats(self, candidate: str) -> bool:
        """Whether ``candidate`` is an identifying value, or contains a word of one."""
        candidate = candidate.casefold()
        return candidate in self._whole or any(word in candidate for word in self._words)

    def equals(self, candidate: str) -> bool:
        return candidate.casefold() in self._whole


def _values(header: Dataset, keyword: str) -> list[object]:
    found = value(header, keyword)
    if found is None:
        return []
    several = hasattr(found, "__iter__") and not isinstance(found, (str, bytes))
    # A PersonName can be iterated character by character, but is one value.
    if several and type(found).__name__ != "PersonName":
        return list(found)
    return [found]


def _functional_groups(header: Dataset) -> list[Dataset]:
    return [
        *items(header, "SharedFunctionalGroupsSequence")[:1],
        *items(header, "PerFrameFunctionalGroupsSequence")[:1],
    ]


def _one_of(candidate: str, allowed: tuple[str, ...]) -> str | None:
    return candidate.upper() if candidate.upper() in allowed else None


def _uid(header: Dataset, keyword: str, said: _Identity) -> str | None:
    found = text(header, keyword)
    return found if _UID.fullmatch(found) and not said.equals(found) else None


def _code(candidate: str, known: frozenset[str], said: _Identity) -> str | None:
    """A code string: a defined term, or one in the form of a code string that identifies nobody."""
    candidate = candidate.upper()
    if candidate in known:
        return candidate
    if not _CODE_STRING.fullmatch(candidate) or said.repeats(candidate):
        return None
    return candidate


def _body_part(header: Dataset, groups: list[Dataset], said: _Identity) -> str | None:
    named = _code(text(header, "BodyPartExamined"), BODY_PARTS, said)
    if named is not None:
        return named
    scopes = [header]
    for group in groups:
        scopes += items(group, "FrameAnatomySequence")[:1]
    for scope in scopes:
        # Only the code is compared. Its meaning is free text and never copied.
        for region in items(scope, "AnatomicRegionSequence"):
            part = REGION_CODES.get(text(region, "CodeValue"))
            if part is not None:
                return part
    return None


def _laterality(header: Dataset, groups: list[Dataset]) -> str | None:
    for keyword in ("ImageLaterality", "Laterality"):
        side = _one_of(text(header, keyword), ("L", "R", "B"))
        if side is not None:
            return side
    for group in groups:
        for anatomy in items(group, "FrameAnatomySequence"):
            side = _one_of(text(anatomy, "FrameLaterality"), ("L", "R", "B"))
            if side is not None:
                return side
    return None


def _manufacturer(header: Dataset, said: _Identity) -> str | None:
    found = text(header, "Manufacturer")
    if not _MAKER.fullmatch(found) or _LONG_NUMBER.search(found) or said.repeats(found):
        return None
    return found


def _date(written: str) -> date | None:
    match = _DATE.fullmatch(written)
    if match is None:
        return None
    try:
        found = date(*(int(part) for part in match.groups()))
    except ValueError:
        return None
    # No radiograph is older than the discovery; later years are dummies such as 9999.
    return found if 1895 <= found.year <= 2100 else None


def _age_band(header: Dataset, study_date: date | None) -> str | None:
    match = _AGE.fullmatch(text(header, "PatientAge").upper())
    if match is not None:
        count, unit = int(match[1]), match[2]
        years = count // {"D": 366, "W": 53, "M": 12, "Y": 1}[unit]
    else:
        born = _date(text(header, "PatientBirthDate"))
        if born is None or study_date is None or born > study_date:
            return None
        had_birthday = (study_date.month, study_date.day) >= (born.month, born.day)
        years = study_date.year - born.year - (not had_birthday)
    if years > _MAX_AGE:
        return None
    if years >= _OLDEST_BAND:
        return f"{_OLDEST_BAND}+"
    decade = years // 10 * 10
    return f"{decade}-{decade + 9}"


def _burned_in(header: Dataset) -> bool | None:
    said = text(header, "BurnedInAnnotation").upper()
    if said in ("YES", "NO"):
        return said == "YES"
    # Screenshots and scanned films usually have text burned in. Only they have a Conversion Type
    # (PS3.3 C.8.6.1); some have the SOP class of the images that they show.
    sop_class = text(header, "SOPClassUID")
    secondary = f"{sop_class}.".startswith(_SECONDARY_CAPTURE + ".")
    kinds = {str(kind).strip().upper() for kind in _values(header, "ImageType")}
    if secondary or text(header, "ConversionType") or kinds & _SCREENSHOTS:
        return True
    return None
