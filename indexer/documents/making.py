"""Makes DICOM documents by their plans, from the index and the originals of this moment."""

from dataclasses import dataclass

from pydicom.uid import (
    ComprehensiveSRStorage,
    EncapsulatedPDFStorage,
    KeyObjectSelectionDocumentStorage,
)

from engine.errors import DocumentError, SourceGone
from engine.records import ImageRecord
from indexer.archive import Original, TenantArchive
from indexer.documents.checking import check_document
from indexer.documents.content import Subject, report_of
from indexer.documents.encapsulated_pdf import encapsulated_pdf
from indexer.documents.evidence import encoded, making, one_patient
from indexer.documents.headers import Headers
from indexer.documents.key_objects import key_objects
from indexer.documents.plans import Kind, Plan
from indexer.documents.structured_report import structured_report
from indexer.imaging.patient_header import PatientHeader
from indexer.sources.uids import why_unknown

__all__ = ["Document", "make_document", "original_of"]

_CLASSES: dict[Kind, str] = {
    "sr": ComprehensiveSRStorage,
    "pdf": EncapsulatedPDFStorage,
    "of-interest": KeyObjectSelectionDocumentStorage,
    "teaching": KeyObjectSelectionDocumentStorage,
}


@dataclass(frozen=True, slots=True)
class Document:
    """A DICOM file. study, sop, sop_class: its UIDs."""

    file: bytes
    study: str
    sop: str
    sop_class: str


def original_of(archive: TenantArchive, image_id: str) -> Original:
    """The original of an image that a document can be about.

    Raises:
        ImageNotFound: there is no such image.
        DocumentError: its file is not known any more, it is no DICOM instance, or no other system
            knows it.
    """
    try:
        found = archive.original(image_id)
    except SourceGone as error:
        raise DocumentError(f"no document can be made: {error}") from None
    record = found.record
    if record.study is None or record.series is None or record.sop is None:
        raise DocumentError(
            f"image {found.id} has no DICOM UIDs, so no document can be about it; index it as DICOM"
        )
    if (why := why_unknown(record, archive.settings)) is not None:
        raise DocumentError(f"no document can be about image {found.id}: {why}")
    return found


def make_document(plan: Plan, archive: TenantArchive, headers: Headers) -> Document:
    """The document of a plan. The same plan gives the same UIDs, and the same text.

    Raises:
        ImageNotFound: an image that it lists was deleted.
        DocumentError: an original is gone or another one, or is of no one study and patient.
        SourceError: a server cannot be reached.
    """
    if plan.is_report:
        file, subjects = _report(plan, archive, headers)
    else:
        file, subjects = _key_objects(plan, archive, headers)
    check_document(file, subjects)
    header = subjects[0].header
    return Document(file, header["StudyInstanceUID"], plan.sop, _CLASSES[plan.kind])


def _report(plan: Plan, archive: TenantArchive, headers: Headers) -> tuple[bytes, list[Subject]]:
    original = original_of(archive, plan.image)
    records = [archive.engine.image(one.image).record for one in plan.hits]
    patient = original.record.patient
    # Only of the same patient, as the index has it, is anything read; Patient IDs decide then.
    mine = [
        original_of(archive, one.image)
        for one, record in zip(plan.hits, records, strict=True)
        if patient is not None
        and record.patient == patient
        and record.sop is not None
        and why_unknown(record, archive.settings) is None
    ]
    read = headers.of([original, *mine])
    query = Subject(original.record, read[0])
    own = {
        one.id: Subject(one.record, header)
        for one, header in zip(mine, read[1:], strict=True)
        if _is_same(header, query)
    }
    hits: list[tuple[ImageRecord, Subject | None]] = [
        (record, own.get(one.image)) for one, record in zip(plan.hits, records, strict=True)
    ]
    subjects = [query, *own.values()]
    one_patient(subjects)
    identify = archive.settings.documents.identify_other_patients
    report = report_of(plan, query, hits, identify=identify)
    with making():
        make = structured_report if plan.kind == "sr" else encapsulated_pdf
        return encoded(make(plan, report, query), plan.made), subjects


def _is_same(header: PatientHeader, query: Subject) -> bool:
    keywords = ("PatientID", "IssuerOfPatientID")
    return bool(header["PatientID"]) and all(header[k] == query.header[k] for k in keywords)


def _key_objects(
    plan: Plan, archive: TenantArchive, headers: Headers
) -> tuple[bytes, list[Subject]]:
    originals = [original_of(archive, one.image) for one in plan.hits]
    read = headers.of(originals)
    subjects = [Subject(one.record, header) for one, header in zip(originals, read, strict=True)]
    one_patient(subjects)
    if len({one.header["StudyInstanceUID"] for one in subjects}) != 1:
        raise DocumentError("key objects are selected in one study; make a document for each study")
    with making():
        return encoded(key_objects(plan, subjects), plan.made), subjects
