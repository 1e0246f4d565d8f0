"""A report as DICOM Structured Report: Comprehensive SR, coded, and readable in viewers as text."""

from typing import Any

from pydicom.dataset import Dataset

import engine
from indexer.documents.content import Case, Report, Subject
from indexer.documents.evidence import MAKER, copy_patient_and_study, evidence_of
from indexer.documents.plans import Plan

__all__ = ["SCHEME", "structured_report"]

SCHEME = "99PRECEDENT"
_DEVICE_UID = "2.25.256836353934374837105906838716430389233"
"""Of the observer: the program, whichever machine it runs on."""
_MODEL_VERSION = 64  # an LO's length
_CONCEPTS = {
    # Never titled Imaging Measurement Report: viewers show nothing of one without coordinates.
    "report": "Similar Cases Report",
    "summary": "Summary",
    "statement": "Statement",
    "cases": "Similar cases",
    "case": "Similar case",
    "similarity": "Similarity",
    "hamming": "Hamming distance",
    "verdict": "Verdict on the query",
    "p": "p-value of the verdict",
    "instance": "SOP Instance UID",
    "known": "Kind of image known to the model",
    "unfamiliar": "Kind known, scanner or view not",
    "foreign": "Foreign to the model",
}
"""Meanings of the codes of our own scheme, at most 64 characters each."""


def structured_report(plan: Plan, report: Report, query: Subject) -> Dataset:
    """The report as a data set, in the study of the query.

    The values stand in titled containers, since viewers such as OHIF leave out the names of
    values. Hits of the same patient are evidence, and named by UID; nothing refers to another's.
    """
    from highdicom.coding_schemes import CodingSchemeIdentificationItem
    from highdicom.sr import ComprehensiveSR

    own = [case.own for case in report.cases if case.own is not None]
    evidence = _distinct([query, *own])
    made = ComprehensiveSR(
        evidence=evidence,
        content=_tree(report),
        series_instance_uid=plan.series,
        series_number=9901,
        series_description="Similar cases",
        sop_instance_uid=plan.sop,
        instance_number=1,
        manufacturer=MAKER,
        manufacturer_model_name=MAKER,
        software_versions=engine.__version__,
        is_complete=True,
        is_final=False,
        content_date=plan.made.date(),
        content_time=plan.made.time(),
        specific_character_set="ISO_IR 192",
        coding_schemes=[
            CodingSchemeIdentificationItem(
                SCHEME, name="Precedent", version="1", responsible_organization="Precedent"
            )
        ],
    )
    copy_patient_and_study(made, evidence[0])
    return made


def _distinct(subjects: list[Subject]) -> list[Dataset]:
    by_sop = {one.header["SOPInstanceUID"]: one for one in subjects}
    return [evidence_of(one) for one in by_sop.values()]


def _tree(report: Report) -> Any:
    from highdicom.sr import (
        CodeContentItem,
        CodedConcept,
        ContainerContentItem,
        ContentSequence,
        NumContentItem,
        RelationshipTypeValues,
        TextContentItem,
        UIDRefContentItem,
    )

    contains = RelationshipTypeValues.CONTAINS
    context = RelationshipTypeValues.HAS_OBS_CONTEXT

    def own(code: str) -> CodedConcept:
        return CodedConcept(code, SCHEME, _CONCEPTS[code])

    def dcm(code: str, meaning: str) -> CodedConcept:
        return CodedConcept(code, "DCM", meaning)

    def container(name: CodedConcept, items: list[Any], relation: Any = contains) -> Any:
        found = ContainerContentItem(name, is_content_continuous=False, relationship_type=relation)
        found.ContentSequence = ContentSequence(items)
        return found

    def text(name: CodedConcept, value: str) -> Any:
        return TextContentItem(name, value, relationship_type=contains)

    def number(name: str, value: float | int) -> Any:
        unit = CodedConcept("1", "UCUM", "no units")
        item = NumContentItem(own(name), value, unit, relationship_type=contains)
        return container(own(name), [item])

    def case(one: Case) -> Any:
        items = [
            text(own("statement"), one.sentence),
            number("similarity", one.similarity),
            number("hamming", one.hamming),
        ]
        if one.own is not None:
            for name, keyword in (
                (dcm("110180", "Study Instance UID"), "StudyInstanceUID"),
                (own("instance"), "SOPInstanceUID"),
            ):
                uid = one.own.header[keyword]
                items.append(UIDRefContentItem(name, uid, relationship_type=contains))
        return container(own("case"), items)

    summary = [text(own("statement"), sentence) for sentence in report.about]
    if report.verdict is not None:
        judged = CodeContentItem(own("verdict"), own(report.verdict), relationship_type=contains)
        summary += [container(own("verdict"), [judged]), number("p", report.p or 0.0)]
    algorithm = [
        text(dcm("111001", "Algorithm Name"), f"Precedent {engine.__version__}"),
        text(dcm("111003", "Algorithm Version"), report.model[:_MODEL_VERSION]),
    ]
    items = [
        CodeContentItem(
            dcm("121049", "Language of Content Item and Descendants"),
            CodedConcept("en", "RFC5646", "English"),
            relationship_type=RelationshipTypeValues.HAS_CONCEPT_MOD,
        ),
        CodeContentItem(
            dcm("121005", "Observer Type"),
            dcm("121007", "Device"),
            relationship_type=context,
        ),
        UIDRefContentItem(
            dcm("121012", "Device Observer UID"), _DEVICE_UID, relationship_type=context
        ),
        TextContentItem(dcm("121013", "Device Observer Name"), MAKER, relationship_type=context),
        container(own("summary"), [*summary, *algorithm]),
    ]
    if report.cases:
        items.append(container(own("cases"), [case(one) for one in report.cases]))
    root = ContainerContentItem(own("report"), is_content_continuous=False)
    root.ContentSequence = ContentSequence(items)
    return root
