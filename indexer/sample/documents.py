"""The objects of the sample that are no images: a report and a PDF."""

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, BasicTextSRStorage, EncapsulatedPDFStorage

from indexer.sample.headers import Series, Study, code_item, new_dataset

__all__ = ["pdf", "structured_report"]


def structured_report(study: Study, number: int) -> tuple[Series, Dataset]:
    """A basic text report on the study, with its series."""
    series = Series(study, number, "SR", "", "Report")
    ds = _document(series, BasicTextSRStorage)
    ds.CompletionFlag, ds.VerificationFlag = "COMPLETE", "UNVERIFIED"
    ds.ReferencedPerformedProcedureStepSequence = Sequence([])
    ds.PerformedProcedureCodeSequence = Sequence([])
    ds.ValueType, ds.ContinuityOfContent = "CONTAINER", "SEPARATE"
    ds.ConceptNameCodeSequence = Sequence([code_item("18748-4", "LN", "Diagnostic imaging report")])
    finding = Dataset()
    finding.RelationshipType, finding.ValueType = "CONTAINS", "TEXT"
    finding.ConceptNameCodeSequence = Sequence([code_item("121071", "DCM", "Finding")])
    finding.TextValue = "This patient does not exist; the images are drawn by a program."
    ds.ContentSequence = Sequence([finding])
    return series, ds


def pdf(study: Study, number: int) -> tuple[Series, Dataset]:
    """An encapsulated PDF of one page, with its series."""
    series = Series(study, number, "DOC", "", "Letter")
    ds = _document(series, EncapsulatedPDFStorage)
    ds.ConversionType, ds.BurnedInAnnotation = "SYN", "NO"
    ds.AcquisitionDateTime = ds.ContentDate + ds.ContentTime
    ds.DocumentTitle, ds.MIMETypeOfEncapsulatedDocument = "Letter", "application/pdf"
    ds.ConceptNameCodeSequence = Sequence([])
    content = _one_page("Precedent sample: a letter about nobody")
    ds.EncapsulatedDocumentLength = len(content)
    ds.EncapsulatedDocument = content + b"\0" * (len(content) % 2)
    return series, ds


def _document(series: Series, sop_class: UID) -> Dataset:
    ds = new_dataset(series, sop_class, 1)
    for keyword in ("BodyPartExamined", "PatientOrientation"):
        delattr(ds, keyword)
    return ds


def _one_page(text: str) -> bytes:
    """The bytes of a PDF that shows one line."""
    drawing = f"BT /F1 18 Tf 72 720 Td ({text}) Tj ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 4 0 R "
        b"/Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(drawing), drawing),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    out = bytearray(b"%PDF-1.4\n")
    offsets = []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    for offset in offsets:
        out += b"%010d 00000 n \n" % offset
    out += b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (
        len(objects) + 1,
        start,
    )
    return bytes(out)
