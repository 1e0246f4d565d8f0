"""QIDO-RS: what is related to a study as a list of studies, for viewers; and indexed studies."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response

from api.http.deps import EXAMPLE_STUDY, ArchiveDep
from api.http.observing import note_search
from api.http.problems import problem_responses
from api.http.qido.accept import takes_dicom_json
from api.http.qido.asked import Asked, asked_of, uid_of
from api.http.qido.described import SERIES, SERIES_PARAMETERS, STUDIES, STUDY_PARAMETERS
from api.http.qido.dicom_json import QidoAnswer, qido_answer
from api.http.qido.studies import SERIES_KEYS, STUDY_KEYS, Rank, Studies, Study
from api.security.seen import Seen, tell
from engine.errors import ImageNotFound, QueryError
from engine.search.pool import Suggestion
from engine.search.query import MAX_K
from engine.search.recommend import Examples, Recommendation, Wanted
from engine.store.base import Condition, Match, Range
from indexer.archive import TenantArchive

__all__ = ["router"]

router = APIRouter(tags=["dicomweb"])

_NOTHING: dict[int | str, dict[str, Any]] = {204: {"description": "Nothing matches."}}
_ABOUT_QUERY = "Study Instance UID of an indexed study, to which the others are related."
_ABOUT_STUDY = "Study Instance UID of an indexed study."
_FOREIGN = (
    "The study that was asked about is foreign to the model: studies may look alike and mean "
    "nothing."
)
_WIDER = 4
"""Factor by which more images are asked for when too few of those found are of a study."""

QueryStudy = Annotated[str, Path(description=_ABOUT_QUERY, examples=[EXAMPLE_STUDY])]
SomeStudy = Annotated[str, Path(description=_ABOUT_STUDY, examples=[EXAMPLE_STUDY])]


@router.get(
    "/dicomweb/related/{uid}/studies",
    operation_id="searchRelatedStudies",
    summary="The cases most like a study, as QIDO-RS answers a search for studies",
    response_description="The studies, the most similar first.",
    response_class=QidoAnswer,
    response_model=None,
    responses={
        200: {"content": STUDIES},
        **_NOTHING,
        **problem_responses(400, 404, 406, 422, 503),
    },
    openapi_extra={"parameters": STUDY_PARAMETERS},
)
def search_related_studies(uid: QueryStudy, request: Request, archive: ArchiveDep) -> Response:
    """For viewers: `/dicomweb/related/{uid}` is the root of their searches. Place and similarity
    stand in Study Description.

    A search by Study Instance UID finds the indexed studies with these UIDs, whether or not they
    are related; one by Patient ID all of exactly this patient, never similar ones. Both are what
    viewers ask to open a study.
    """
    takes_dicom_json(request)
    asked = asked_of(request, STUDY_KEYS)
    if _is_literal(asked):
        return _looked_up(request, archive, asked, _Ranking.of(archive, uid))
    ranking = _Ranking.of(archive, uid, asked)
    note_search(
        tuple(ranking.answer.evidence.rungs),
        ranking.answer.ood,
        ranking.answer.evidence.timings_ms,
    )
    found = Studies(archive).find([*ranking.ranks], ranks=ranking.ranks)
    page = asked.page([one for one in found if one.is_asked_for(asked)])
    shown = [ranking.hits[one.uid] for one in page]
    because = [one.because for one in shown if one.because is not None]
    hits = [one.hit for one in shown]
    tell(request, Seen.of(hits, asked=because, studies=[uid], ood=ranking.answer.ood))
    return _answer(request, page, asked, ranking)


@router.get(
    "/dicomweb/studies",
    operation_id="searchStudies",
    summary="Indexed studies by UID or patient, as QIDO-RS answers a search for studies",
    response_description="The studies.",
    response_class=QidoAnswer,
    response_model=None,
    responses={200: {"content": STUDIES}, **_NOTHING, **problem_responses(400, 406, 503)},
    openapi_extra={"parameters": STUDY_PARAMETERS},
)
def search_studies(request: Request, archive: ArchiveDep) -> Response:
    """Takes Study Instance UID, Patient ID (as answers have it), or both, and narrows by further
    keys. 400 for a search without these: `/dicomweb/related/{uid}/studies` lists what is related to
    a study."""
    takes_dicom_json(request)
    asked = asked_of(request, STUDY_KEYS)
    if not _is_literal(asked):
        raise QueryError(
            "the search would be for all studies of the archive; give StudyInstanceUID or "
            "PatientID, or ask /dicomweb/related/STUDY/studies for what is related to a study"
        )
    return _looked_up(request, archive, asked, None)


@router.get(
    "/dicomweb/studies/{uid}/series",
    operation_id="searchSeriesOfStudy",
    summary="Series of an indexed study, as QIDO-RS answers a search for series",
    response_description="The series.",
    response_class=QidoAnswer,
    response_model=None,
    responses={
        200: {"content": SERIES},
        **_NOTHING,
        **problem_responses(400, 404, 406, 422, 503),
    },
    openapi_extra={"parameters": SERIES_PARAMETERS},
)
def search_series(uid: SomeStudy, request: Request, archive: ArchiveDep) -> Response:
    """The series that have indexed images; the study may have more."""
    return _series(request, archive, uid)


@router.get(
    "/dicomweb/related/{uid}/studies/{study}/series",
    operation_id="searchSeriesOfRelatedStudy",
    summary="Series of an indexed study, below the root of a list of related ones",
    response_description="The series.",
    response_class=QidoAnswer,
    response_model=None,
    responses={
        200: {"content": SERIES},
        **_NOTHING,
        **problem_responses(400, 404, 406, 422, 503),
    },
    openapi_extra={"parameters": SERIES_PARAMETERS},
)
def search_related_series(
    uid: QueryStudy,  # noqa: ARG001 - of the root alone
    study: SomeStudy,
    request: Request,
    archive: ArchiveDep,
) -> Response:
    """The same as `/dicomweb/studies/{study}/series`."""
    tell(request, Seen((uid_of("study", study),)))
    return _series(request, archive, study)


@dataclass(frozen=True, slots=True)
class _Ranking:
    """What is related to a study. hits: by Study Instance UID. ranks: in the order of the list."""

    uid: str
    answer: Recommendation
    hits: dict[str, Suggestion]
    ranks: dict[str, Rank]

    @classmethod
    def of(cls, archive: TenantArchive, uid: str, asked: Asked | None = None) -> "_Ranking":
        """The list for this study.

        Args:
            asked: narrows the list by modality and year; None = the whole list.

        Raises:
            ImageNotFound: the study is not indexed.
        """
        conditions: list[Condition] = []
        if asked is not None and (modalities := asked.literal("ModalitiesInStudy")):
            conditions.append(Match("modality", modalities))
        if asked is not None and asked.years is not None:
            conditions.append(Range("study_year", *asked.years))
        where = Studies(archive).available(*conditions)
        most = k = archive.settings.qido.studies
        while True:
            answer = archive.engine.recommend(Examples(study=uid), Wanted(k=k, where=where))
            named = [one for one in answer.hits if one.hit.record.study is not None]
            # Pictures that are no DICOM belong to no study, and take places from those that do.
            if len(named) >= most or len(answer.hits) < k or k == MAX_K:
                break
            k = min(MAX_K, k * _WIDER)
        hits = {str(one.hit.record.study): one for one in named[:most]}
        foreign = answer.ood is not None and answer.ood.foreign
        ranks = {
            study: Rank(place, float(one.hit.similarity), foreign)
            for place, (study, one) in enumerate(hits.items(), 1)
        }
        return cls(uid, answer, hits, ranks)


def _is_literal(asked: Asked) -> bool:
    """Whether studies are named one by one, or a patient is: then nothing else may be answered."""
    return bool(asked.literal("StudyInstanceUID") or asked.literal("PatientID"))


def _looked_up(
    request: Request, archive: TenantArchive, asked: Asked, ranking: _Ranking | None
) -> Response:
    """The studies that are named, or those of the patient who is."""
    uids = asked.literal("StudyInstanceUID")
    patient = next(iter(asked.literal("PatientID")), None)
    found = Studies(archive).find(
        uids or None,
        patient,
        ranks=None if ranking is None else ranking.ranks,
        query=None if ranking is None else ranking.uid,
    )
    page = asked.page([one for one in found if one.is_asked_for(asked)])
    related = () if ranking is None else (ranking.uid,)
    shown = dict.fromkeys([*related, *uids, *(one.uid for one in page)])
    tell(request, Seen(tuple(shown), results=len(page)))
    return _answer(request, page, asked, ranking)


def _answer(
    request: Request, page: Sequence[Study], asked: Asked, ranking: _Ranking | None
) -> Response:
    ood = None if ranking is None else ranking.answer.ood
    warnings = [*asked.warnings, _FOREIGN] if ood is not None and ood.foreign else asked.warnings
    return qido_answer(request, [one.attributes for one in page], warnings)


def _series(request: Request, archive: TenantArchive, study: str) -> Response:
    takes_dicom_json(request)
    asked = asked_of(request, SERIES_KEYS)
    found = Studies(archive).series(study)
    if not found:
        raise ImageNotFound(
            f"no indexed image is of study {study[:64]!r}; studies are in the answers of a search"
        )
    page = asked.page([one for one in found if asked.matches(one)])
    tell(request, Seen((study,), results=len(page)))
    return qido_answer(request, page, asked.warnings)
