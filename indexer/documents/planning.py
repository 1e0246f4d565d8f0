"""Plans documents: what is similar is searched for now, and what is found is written down."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from engine.errors import ImageNotFound, QueryError
from engine.records import Answer
from engine.search.query import Query
from engine.search.recommend import Examples, Recommendation, Wanted
from engine.search.representative import representative
from engine.store.base import Filter, Match
from indexer.archive import TenantArchive
from indexer.documents.headers import Headers
from indexer.documents.making import original_of
from indexer.documents.plans import Listed, Plan, listed_of, verdict_of
from indexer.imaging.patient_header import PatientHeader
from indexer.sources.uids import why_unknown

__all__ = ["MOST_HITS", "ReportAsked", "plan_earlier", "plan_report", "plan_teaching"]

MOST_HITS = 100
"""Most hits of a report, and most images of a selection: nobody reads more."""


@dataclass(frozen=True, slots=True)
class ReportAsked:
    """What a report is to be about.

    study: Study Instance UID. image: id of the image of it that is the query; None = all of them.
    k: number of hits. where, exact, exclude, group_by: as of a search.
    """

    study: str
    format: Literal["sr", "pdf"] = "sr"
    image: str | None = None
    k: int = 10
    where: Filter = field(default_factory=Filter)
    exact: bool = False
    exclude: str | None = "patient"
    group_by: str | None = "study"


def plan_report(asked: ReportAsked, archive: TenantArchive, now: datetime) -> Plan:
    """The plan of a report in the study that was asked about.

    Raises:
        ImageNotFound: nothing of the study is indexed, or the image is not of it.
        QueryError: an option is out of range. DocumentError: see ``original_of``.
    """
    _check_count(asked.k)
    answer: Answer | Recommendation
    if asked.image is None:
        image = representative(archive.store, "study", asked.study)
        original_of(archive, image)
        wanted = Wanted(asked.k, asked.where, asked.exact, asked.group_by, asked.exclude)
        answer = archive.engine.recommend(Examples(study=asked.study), wanted)
    else:
        image = original_of(archive, asked.image).id
        if archive.engine.image(image).record.study != asked.study:
            raise ImageNotFound(f"image {image} is not of study {asked.study[:64]!r}")
        query = Query(
            k=asked.k,
            where=asked.where,
            exact=asked.exact,
            exclude=asked.exclude,
            group_by=asked.group_by,
            facets=False,
        )
        answer = archive.engine.search_like(image, query)
    return Plan.new(
        asked.format,
        image,
        listed_of(answer),
        now,
        model=answer.evidence.model,
        bits=answer.evidence.bits,
        whole_study=asked.image is None,
        verdict=verdict_of(answer),
        note=answer.evidence.note,
    )


def plan_earlier(
    study: str, k: int, archive: TenantArchive, headers: Headers, now: datetime
) -> list[Plan]:
    """Plans of key objects: the earlier images of the same patient that are similar to a study, one
    plan for each study that they are of.

    Whose they are, and when they were taken, the originals say. An image without a date is no
    earlier one.

    Raises:
        ImageNotFound: nothing of the study is indexed, or there are no such images.
        DocumentError: an original is gone. SourceError: a server cannot be reached.
    """
    _check_count(k)
    original = original_of(archive, representative(archive.store, "study", study))
    patient = original.record.patient
    if patient is None:
        raise ImageNotFound(f"study {study[:64]!r} names no patient, who could have others")
    wanted = Wanted(k, Filter((Match("patient", (patient,)),)), group_by=None, exclude="study")
    answer = archive.engine.recommend(Examples(study=study), wanted)
    hits = [
        listed
        for listed, one in zip(listed_of(answer), answer.hits, strict=True)
        if why_unknown(one.hit.record, archive.settings) is None
    ]
    found = [original_of(archive, one.image) for one in hits]
    mine, *theirs = headers.of([original, *found])
    by_study: dict[str, list[Listed]] = {}
    for hit, header in zip(hits, theirs, strict=True):
        if _is_earlier(header, mine):
            by_study.setdefault(header["StudyInstanceUID"], []).append(hit)
    if not by_study:
        raise ImageNotFound(
            f"no earlier study of the patient has images similar to study {study[:64]!r}"
        )
    evidence = answer.evidence
    return [
        Plan.new("of-interest", one[0].image, one, now, model=evidence.model, bits=evidence.bits)
        for one in by_study.values()
    ]


def plan_teaching(images: Sequence[str], archive: TenantArchive, now: datetime) -> list[Plan]:
    """Plans of key objects for a teaching collection: one for each image, in its own study.

    Raises:
        ImageNotFound: there is no such image. QueryError: there are none, or too many.
        DocumentError: see ``original_of``.
    """
    chosen = list(dict.fromkeys(images))
    if not 1 <= len(chosen) <= MOST_HITS:
        raise QueryError(f"{len(chosen)} images are chosen; choose 1 to {MOST_HITS}")
    found = [original_of(archive, one).id for one in chosen]
    return [Plan.new("teaching", one, [Listed(one, 1.0, 0)], now) for one in found]


def _check_count(k: int) -> None:
    if not 1 <= k <= MOST_HITS:
        raise QueryError(f"k is {k}; a document lists 1 to {MOST_HITS} images")


def _is_earlier(one: PatientHeader, than: PatientHeader) -> bool:
    same = ("PatientID", "IssuerOfPatientID")
    if any(one[keyword] != than[keyword] for keyword in same):
        return False
    days = one["StudyDate"], than["StudyDate"]
    if not all(days):
        return False
    # Of one day, the time decides where both are known.
    times = one["StudyTime"], than["StudyTime"]
    return days[0] < days[1] or (days[0] == days[1] and all(times) and times[0] < times[1])
