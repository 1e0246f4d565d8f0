"""Reads a document that was made back, and checks what no library checks."""

import io
from collections.abc import Iterator, Sequence

from pydicom import dcmread
from pydicom.dataset import Dataset

from engine.errors import DocumentError
from indexer.documents.content import Subject
from indexer.sources.dicomweb.address import is_uid

__all__ = ["check_document"]

_LISTS = ("CurrentRequestedProcedureEvidenceSequence", "PertinentOtherEvidenceSequence")


def check_document(file: bytes, subjects: Sequence[Subject]) -> None:
    """Checks a document against the images that it may refer to, the first of which names patient
    and study.

    Raises:
        DocumentError: a UID is none, a reference leads nowhere or to anything else than these
            images, the patient is another one, or a coded meaning is too long.
    """
    made = dcmread(io.BytesIO(file))
    header = subjects[0].header
    for keyword in ("PatientID", "StudyInstanceUID"):
        if str(made.get(keyword, "")) != header[keyword]:
            raise _wrong(f"it has another {keyword} than the image")
    for element in made.iterall():
        if element.VR == "UI" and not all(map(is_uid, _values(element.value))):
            raise _wrong(f"{element.keyword} holds what is no UID of up to 64 characters")
        if element.keyword == "CodeMeaning" and len(str(element.value)) > 64:
            raise _wrong("a coded meaning has more than 64 characters")
    known = {_reference(one) for one in subjects}
    listed = set(_listed(made))
    if not listed <= known:
        raise _wrong("it lists evidence that is none of its images")
    found = {one[2:] for one in known}
    named = set(_named(made))
    if not named <= found or ("ContentSequence" in made and not named <= {x[2:] for x in listed}):
        raise _wrong("a reference in it leads nowhere")


def _reference(one: Subject) -> tuple[str, str, str, str]:
    keywords = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
    study, series, sop, kind = (one.header[keyword] for keyword in keywords)
    return study, series, sop, kind


def _listed(made: Dataset) -> Iterator[tuple[str, str, str, str]]:
    for name in _LISTS:
        for study in made.get(name, ()):
            for series in study.ReferencedSeriesSequence:
                for one in series.ReferencedSOPSequence:
                    yield (
                        str(study.StudyInstanceUID),
                        str(series.SeriesInstanceUID),
                        str(one.ReferencedSOPInstanceUID),
                        str(one.ReferencedSOPClassUID),
                    )


def _named(made: Dataset) -> Iterator[tuple[str, str]]:
    """Instance and class of every reference, wherever it stands."""
    if "ReferencedSOPInstanceUID" in made:
        yield str(made.ReferencedSOPInstanceUID), str(made.ReferencedSOPClassUID)
    for element in made:
        if element.VR == "SQ":
            for item in element.value:
                yield from _named(item)


def _values(value: object) -> list[str]:
    several = not isinstance(value, str) and hasattr(value, "__iter__")
    return [str(one) for one in value] if several else [str(value)]  # type: ignore[attr-defined]


def _wrong(what: str) -> DocumentError:
    return DocumentError(f"the document that was made is not as it should be: {what}; report this")
