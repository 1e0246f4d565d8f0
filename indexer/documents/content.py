"""What a report says, in words: the same for the structured report and the PDF."""

from dataclasses import dataclass

import engine
from engine.records import ImageRecord
from indexer.documents.plans import Plan
from indexer.imaging.patient_header import PatientHeader

__all__ = ["Case", "Report", "Subject", "report_of"]

_CAUTION = (
    "Made by software for research use. It is no medical device and no diagnosis: similar looks "
    "are no proof of the same finding."
)


@dataclass(frozen=True, slots=True)
class Subject:
    """An image that a document may refer to: it is of the patient whose document it is."""

    record: ImageRecord
    header: PatientHeader


@dataclass(frozen=True, slots=True)
class Case:
    """A hit of a report. sentence: all that is said of it. own: it is of the same patient."""

    rank: int
    sentence: str
    similarity: float
    hamming: int
    own: Subject | None


@dataclass(frozen=True, slots=True)
class Report:
    """A report. verdict: the word; p: None = there is no verdict."""

    about: tuple[str, ...]
    cases: tuple[Case, ...]
    verdict: str | None
    p: float | None
    model: str


def report_of(
    plan: Plan, query: Subject, hits: list[tuple[ImageRecord, Subject | None]], *, identify: bool
) -> Report:
    """What the report of a plan says.

    Args:
        query: the image whose study it is.
        hits: record of each hit; and the image itself where it is of the same patient.
        identify: whether hits of other patients are named by their UIDs.
    """
    cases = []
    for rank, (listed, (record, own)) in enumerate(zip(plan.hits, hits, strict=True), 1):
        who = "the same patient" if own is not None else "another patient"
        sentence = (
            f"Similar case {rank}: similarity {listed.similarity:.3f}, Hamming distance "
            f"{listed.hamming} of {plan.bits} bits; {_shown(record)} of {who}."
        )
        if own is not None or identify:
            sentence += _named(record)
        cases.append(Case(rank, sentence, listed.similarity, listed.hamming, own))
    word = None if plan.verdict is None else plan.verdict.word
    return Report(
        (_asked(plan, query), _verdict(plan), _found(plan), _CAUTION),
        tuple(cases),
        word,
        None if plan.verdict is None else plan.verdict.p,
        plan.model,
    )


def _asked(plan: Plan, query: Subject) -> str:
    if plan.whole_study:
        return "Cases similar to the images of this study."
    record = query.record
    return f"Cases similar to frame {record.frame + 1} of instance {record.sop} of this study."


def _verdict(plan: Plan) -> str:
    if plan.verdict is None:
        return "Whether the model knows images of this kind was not judged."
    verdict = plan.verdict
    meaning = {
        "known": "The image is of a kind that the model knows",
        "unfamiliar": "The model knows this kind of image, but not this scanner, window or view",
        "foreign": "The image is foreign to the model: similar cases may mean nothing",
    }[verdict.word]
    return f"{meaning} (verdict {verdict.word}, p = {verdict.p:.3g}, limit {verdict.alpha:g})."


def _found(plan: Plan) -> str:
    count = len(plan.hits)
    cases = "1 similar case is" if count == 1 else f"{count or 'No'} similar cases are"
    note = "" if plan.note is None else f" Note: {plan.note}"
    made = f"by Precedent {engine.__version__} with the model {plan.model}"
    return f"{cases} listed, found {made}.{note}"


def _shown(record: ImageRecord) -> str:
    """What an image shows, by coded fields alone: nothing by which a patient could be found."""
    side = {"L": "left", "R": "right", "B": "both sides"}.get(record.laterality or "")
    parts = (record.modality, record.body_part, record.view, side)
    return " ".join(part for part in parts if part) or "image"


def _named(record: ImageRecord) -> str:
    said = []
    if record.study_year is not None:
        said.append(f"year {record.study_year}")
    if record.labels:
        said.append("labels " + ", ".join(record.labels))
    if record.study is not None:
        said.append(f"study {record.study}")
    if record.sop is not None:
        said.append(f"instance {record.sop}, frame {record.frame + 1}")
    return f" It is {'; '.join(said)}." if said else ""
