"""De-identifies a DICOM header: copies an allow-list of fields, each value checked.

A field is copied only if its value has the form that the standard prescribes. People type names
into any field, so free text is also dropped if it repeats anything that identifies the patient
in the same header.
"""

import hashlib
import hmac
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date

from pydicom.dataset import Dataset

from engine.errors import SettingsError
from engine.records import ImageRecord
from indexer.imaging.anatomy import (
    BODY_PARTS,
    LOOSE_VIEWS,
    MODALITIES,
    REGION_CODES,
    VIEW_CODES,
    VIEW_MODIFIER_CODES,
    VIEWS,
)
from indexer.imaging.header import items, text, value
from indexer.imaging.placeholders import is_placeholder

__all__ = ["HEADER_KEYWORDS", "frame_fields", "pseudonym", "record_of"]

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
    "ViewCodeSequence",
    "ViewModifierCodeSequence",
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
# The standard prescribes three digits and a letter; people leave out zeros and letters, or write
# the unit out.
_AGE = re.compile(r"(\d{1,4}) *(?:([DWMY])(?:AYS?|EEKS?|KS?|ONTHS?|OS?|EARS?|RS?)?)?")
_PER_YEAR = {"D": 366, "W": 53, "M": 12, "Y": 1, None: 1}
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
    about = _described(header, 0, said)
    study_date = _date(text(header, "StudyDate"))
    return ImageRecord(
        study=_uid(header, "StudyInstanceUID", said),
        series=_uid(header, "SeriesInstanceUID", said),
        sop=_uid(header, "SOPInstanceUID", said),
        patient=_patient(header, key),
        modality=_code(text(header, "Modality"), MODALITIES, said),
        body_part=about.body_part,
        view=_view(header, said),
        laterality=about.laterality,
        manufacturer=_manufacturer(header, said),
        sex=_one_of(text(header, "PatientSex"), ("M", "F", "O")),
        age_band=_age_band(header, study_date),
        study_year=study_date.year if study_date else None,
        burned_in=_burned_in(header),
    )


def frame_fields(header: Dataset, numbers: Iterable[int]) -> dict[int, Mapping[str, str | None]]:
    """The fields in which a frame's record differs from that of :func:`record_of`, by the number
    of the frame (from 0); frames that do not differ are left out.

    The functional groups of each frame may name region and side of their own (PS3.3 C.7.6.16.2.8).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not items(header, "PerFrameFunctionalGroupsSequence"):
            return {}
        said = _Identity(header)
        first = _described(header, 0, said)
        found: dict[int, Mapping[str, str | None]] = {}
        for number in numbers:
            own = _described(header, number, said)
            if own != first:
                found[number] = {"body_part": own.body_part, "laterality": own.laterality}
        return found


def _patient(header: Dataset, key: bytes) -> str | None:
    patient_id = text(header, "PatientID")
    found = pseudonym(text(header, "IssuerOfPatientID"), patient_id, key)
    return None if is_placeholder(patient_id) else found


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


@dataclass(frozen=True, slots=True)
class _Described:
    """What may differ from frame to frame."""

    body_part: str | None
    laterality: str | None


def _described(header: Dataset, number: int, said: _Identity) -> _Described:
    """Of frame ``number``; the frame's own functional groups say it first, then the shared ones."""
    frames = items(header, "PerFrameFunctionalGroupsSequence")
    own = _anatomies(frames[number : number + 1])
    shared = _anatomies(items(header, "SharedFunctionalGroupsSequence")[:1])
    return _Described(
        _body_part(header, own, shared, said),
        _laterality(header, [*own, *shared]),
    )


def _anatomies(groups: Sequence[Dataset]) -> list[Dataset]:
    return [found for group in groups for found in items(group, "FrameAnatomySequence")[:1]]


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


def _coded(item: Dataset) -> str:
    """The code of a code sequence's item (PS3.3 8.8), "" if its scheme is a private one.

    Only the code is compared. Its meaning is free text and never copied.
    """
    scheme = text(item, "CodingSchemeDesignator").upper()
    if scheme.startswith("99") and scheme != "99SDM":
        return ""
    return (text(item, "CodeValue") or text(item, "LongCodeValue")).upper()


def _body_part(
    header: Dataset, own: list[Dataset], shared: list[Dataset], said: _Identity
) -> str | None:
    """Body Part Examined holds for the whole series, so a frame's own region comes before it."""
    for scope in own:
        if (part := _region(scope)) is not None:
            return part
    named = _code(text(header, "BodyPartExamined"), BODY_PARTS, said)
    if named is not None:
        return named
    return next((part for scope in (header, *shared) if (part := _region(scope))), None)


def _region(scope: Dataset) -> str | None:
    regions = items(scope, "AnatomicRegionSequence")
    return next(
        (REGION_CODES[code] for one in regions if (code := _coded(one)) in REGION_CODES), None
    )


def _view(header: Dataset, said: _Identity) -> str | None:
    """The view by View Code Sequence (type 1 in mammography, PS3.3 C.8.11.7) and View Position."""
    written = _code(text(header, "ViewPosition"), VIEWS, said)
    coded: str | None = None
    modifiers = items(header, "ViewModifierCodeSequence")
    for item in items(header, "ViewCodeSequence")[:1]:
        coded = VIEW_CODES.get(_coded(item))
        modifiers = [*items(item, "ViewModifierCodeSequence"), *modifiers]
    if coded is None or (coded in LOOSE_VIEWS and written in VIEWS):
        return written
    replaced = (VIEW_MODIFIER_CODES.get(_coded(modifier)) for modifier in modifiers)
    return next((view for view in replaced if view is not None), coded)


def _laterality(header: Dataset, anatomies: list[Dataset]) -> str | None:
    """The side: of the frame, else of the image, else of the series (PS3.3 10.5, C.7.3.1).

    "U" says that the part is no paired one, and ends the search: what is said more broadly does
    not hold for it.
    """
    said = [
        *(text(anatomy, "FrameLaterality") for anatomy in anatomies),
        text(header, "ImageLaterality"),
        text(header, "Laterality"),
    ]
    side = next((one.upper() for one in said if one.upper() in ("L", "R", "B", "U")), None)
    return None if side == "U" else side


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
    written = _years(text(header, "PatientAge"))
    # Of an age of nothing, which is also what is written where none is known, and of one that
    # nobody reaches, the dates may say more.
    years = written if written and written <= _MAX_AGE else _years_by_dates(header, study_date)
    years = written if years is None else years
    if years is None or years > _MAX_AGE:
        return None
    if years >= _OLDEST_BAND:
        return f"{_OLDEST_BAND}+"
    decade = years // 10 * 10
    return f"{decade}-{decade + 9}"


def _years(written: str) -> int | None:
    match = _AGE.fullmatch(written.upper())
    if match is None:
        return None
    count, unit = int(match[1]), match[2]
    # A zero without unit is no newborn's age, but what is written where none is known.
    return count // _PER_YEAR[unit] if count or unit else None


def _years_by_dates(header: Dataset, study_date: date | None) -> int | None:
    born = _date(text(header, "PatientBirthDate"))
    if born is None or study_date is None or born > study_date:
        return None
    had_birthday = (study_date.month, study_date.day) >= (born.month, born.day)
    return study_date.year - born.year - (not had_birthday)


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
