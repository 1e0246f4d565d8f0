"""A report as Encapsulated PDF, which viewers show as it is."""

import io
from html import escape

from pydicom.dataset import Dataset
from pydicom.uid import EncapsulatedPDFStorage

from indexer.documents.content import Report, Subject
from indexer.documents.evidence import copy_patient_and_study, evidence_of
from indexer.documents.plans import Plan
from indexer.documents.structured_report import SCHEME
from indexer.imaging.patient_header import PatientHeader

__all__ = ["encapsulated_pdf"]

_TITLE = "Similar Cases Report"


def encapsulated_pdf(plan: Plan, report: Report, query: Subject) -> Dataset:
    """The report as a data set, in the study of the query; its PDF names the patient."""
    source = evidence_of(query)
    made = Dataset()
    copy_patient_and_study(made, source)
    made.SOPClassUID = EncapsulatedPDFStorage
    made.SOPInstanceUID = plan.sop
    made.SeriesInstanceUID = plan.series
    made.SeriesNumber = 9903
    made.SeriesDescription = "Similar cases"
    made.Modality = "DOC"
    made.ConversionType = "WSD"
    made.InstanceNumber = 1
    made.ContentDate = plan.made.strftime("%Y%m%d")
    made.ContentTime = plan.made.strftime("%H%M%S")
    made.AcquisitionDateTime = ""
    made.BurnedInAnnotation = "YES"
    reference = Dataset()
    reference.ReferencedSOPClassUID = source.SOPClassUID
    reference.ReferencedSOPInstanceUID = source.SOPInstanceUID
    made.SourceInstanceSequence = [reference]
    made.DocumentTitle = _TITLE
    title = Dataset()
    title.CodeValue, title.CodingSchemeDesignator, title.CodeMeaning = "report", SCHEME, _TITLE
    made.ConceptNameCodeSequence = [title]
    made.MIMETypeOfEncapsulatedDocument = "application/pdf"
    pdf = _pdf(plan, report, query.header)
    made.EncapsulatedDocumentLength = len(pdf)
    made.EncapsulatedDocument = pdf + b"\0" * (len(pdf) % 2)
    return made


def _pdf(plan: Plan, report: Report, header: PatientHeader) -> bytes:
    from reportlab.lib.pagesizes import A4
    from reportlab.lib.styles import getSampleStyleSheet
    from reportlab.platypus import Paragraph, SimpleDocTemplate, Spacer

    styles = getSampleStyleSheet()
    plain, heading = styles["BodyText"], styles["Heading2"]

    def paragraph(words: str, style: object = plain) -> Paragraph:
        return Paragraph(escape(words), style)

    flow: list[object] = [paragraph(_TITLE, styles["Title"])]
    flow += [paragraph(line) for line in _subject(header)]
    flow += [paragraph(f"Made {plan.made:%Y-%m-%d %H:%M}."), Spacer(1, 12)]
    flow += [paragraph("Summary", heading), *map(paragraph, report.about)]
    if report.cases:
        flow += [paragraph("Similar cases", heading)]
        flow += [paragraph(case.sentence) for case in report.cases]
    out = io.BytesIO()
    # Neither times nor random numbers, so that the same plan gives the same file.
    SimpleDocTemplate(out, pagesize=A4, title=_TITLE, author="Precedent", invariant=1).build(flow)
    return out.getvalue()


def _subject(header: PatientHeader) -> list[str]:
    """Lines on whose report it is. The fonts of every PDF reader have Latin letters alone."""
    name = header["PatientName"].partition("=")[0].replace("^", " ").strip()
    said = {
        "Patient": name,
        "Patient ID": header["PatientID"],
        "Born": header["PatientBirthDate"],
        "Accession number": header["AccessionNumber"],
        "Study": header["StudyInstanceUID"],
        "Study date": header["StudyDate"],
    }
    elsewhere = "not in Latin letters; the DICOM header has it"
    return [
        f"{what}: {value if _is_latin(value) else elsewhere}"
        for what, value in said.items()
        if value
    ]


def _is_latin(text: str) -> bool:
    try:
        text.encode("cp1252")
    except UnicodeEncodeError:
        return False
    return True
