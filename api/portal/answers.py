"""Answers for the search page: to one image, or to several examples that are liked and disliked."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from fastapi import Request, UploadFile
from numpy.typing import NDArray

from api.http.deps import Readers
from api.http.observing import note_search, stage
from api.http.routes.search import Found, answered, query_of
from api.http.viewers import links_from_image
from api.portal.catalogues import gettext, grouped
from api.portal.kept import KeptQueries, KeptQuery, owner_of
from api.portal.question import MOST_UPLOADS, Mark, Question
from api.schemas import HitDocument, ImageDocument, RecommendationDocument, SearchDocument
from api.security.seen import Seen, tell
from engine.errors import ImageRefused, QueryError, QueryExpired
from engine.model.colour import coloured_share
from engine.records import ImageRecord, Observations
from engine.search.query import Cursor, parse_id
from engine.search.recommend import Examples, Wanted
from engine.search.stopwatch import Stopwatch
from indexer.archive import QueryImage, TenantArchive
from indexer.imaging.region import WholePicture

__all__ = ["REFINED_DEPTH", "Answered", "answer", "whole_of"]

REFINED_DEPTH = 100
"""Hits of a refined search, cut into pages: one list, whichever page is asked for."""
_WHOLE_SIDE = 1536
"""Longest side, in pixels, of the pictures of uploads that are kept for searches by a region."""
_LONGEST_NAME = 64


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer, and what was asked.

    asked: the question, without files: its uploads are kept.
    refine: the same by ids and tokens alone, whose addresses like and dislike further images.
    document: the answer; hits: those of this page. offset: how many are on pages before.
    next_page: None = there is none.
    query: the indexed image that was the one query; None = there was none, or several.
    images: those that are liked or disliked, by id.
    canvases: uploads that came with this request, by token, as the model saw them, each uint8
        (S, S) or (S, S, 3). unusable: sentences on files that came and could not be used.
    whole: the picture of the upload whose region was searched for, uint8 (H, W) or (H, W, 3), as
        its file has it; None = no region of an upload was.
    own: "patient" or "study", of which there may be others' images; None = the queries name none.
    """

    asked: Question
    refine: Question
    document: SearchDocument | RecommendationDocument
    hits: Sequence[HitDocument]
    offset: int = 0
    next_page: str | None = None
    query: ImageDocument | None = None
    images: Mapping[str, ImageDocument] = field(default_factory=dict)
    canvases: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)
    unusable: tuple[str, ...] = ()
    whole: NDArray[np.uint8] | None = None
    own: str | None = None


def answer(request: Request, asked: Question, archive: TenantArchive, readers: Readers) -> Answered:
    """The answer to a question that names an image. What it shows is told.

    Raises:
        QueryError: nothing is to be like, too many images came, or an option is out of range.
        QueryExpired: an upload that it names is not kept any more.
        ImageRefused: none of the files that came can be used. Else as ``answered``.
    """
    asked = _checked(asked)
    if not (asked.uploads or asked.kept or asked.is_refined):
        return _of_indexed(request, asked, archive, readers)
    # Refused before it is read and encoded. What a page of a refined search is, is not known there.
    query_of(replace(asked, page=None).asked(), archive)
    watch = Stopwatch()
    canvases: dict[str, NDArray[np.uint8]] = {}
    unusable: tuple[str, ...] = ()
    if asked.uploads:
        canvases, unusable = _taken_in(request, asked.uploads, archive, readers, watch)
        asked = replace(asked, uploads=(), kept=tuple(canvases))
    queries: KeptQueries = request.app.state.kept_queries
    owner, model = owner_of(request.state.caller), archive.manifest.fingerprint
    kept = [queries.of(token, owner, model) for token in asked.kept]
    if asked.is_refined:
        found = _refined(request, asked, archive, kept)
    else:
        found = _of_upload(request, asked, archive, kept[0], watch)
    return replace(found, canvases=canvases, unusable=unusable)


def _checked(asked: Question) -> Question:
    """The question with ids as the index writes them.

    Raises:
        QueryError: nothing is to be like, or too much, or what cannot be together.
        ImageNotFound: an id is none.
    """
    by_uid = [name for name in ("sop", "study") if getattr(asked, name) is not None]
    if asked.region is not None and (asked.is_refined or asked.uploads or asked.dislikes):
        raise QueryError("a region is of one image; leave out region, or all images but one")
    if by_uid and (asked.kept or asked.marks):
        raise QueryError(
            "give one image, as query, like, sop or study; several came. Searches by several have "
            "them as like, dislike and query"
        )
    count = len(asked.uploads) or len(asked.kept)
    if count > MOST_UPLOADS:
        raise QueryError(f"{count} images came; choose up to {MOST_UPLOADS} at once")
    if not (asked.uploads or asked.kept or asked.likes or by_uid or asked.frame is not None):
        raise QueryError("images are disliked, and none is liked; like one, or choose a file")
    marks = (Mark(parse_id(one.image), one.liked) for one in asked.marks)
    return replace(asked, marks=tuple(dict.fromkeys(marks)))


def _of_indexed(
    request: Request, asked: Question, archive: TenantArchive, readers: Readers
) -> Answered:
    found = answered(asked.asked(), archive, readers)
    image = found.query_id or ""
    point = archive.engine.image(image)
    refine = replace(asked.without_image(), marks=(Mark(image, liked=True),), region=asked.region)
    query = ImageDocument.from_point(point)
    return _of_one(request, asked, refine, archive, found, point.record, query)


def _of_upload(
    request: Request, asked: Question, archive: TenantArchive, kept: KeptQuery, watch: Stopwatch
) -> Answered:
    query = query_of(asked.asked(), archive)
    seen, whole = kept.seen, None
    if asked.region is not None:
        picture = whole_of(kept)
        with watch("read"):
            whole = picture.pixels
            part = asked.region.cut(whole)
            canvas = archive.manifest.preprocess.canvas(picture.turn.applied(part))
        with watch("encode"):
            seen = archive.engine.observed([canvas], [coloured_share(part)])
    answer = archive.engine.answer(seen, query, kept.record, watch.milliseconds)
    note_search([answer.evidence.rung], answer.ood, answer.evidence.timings_ms)
    found = Found(answer, None, Seen.of(answer.hits, ood=answer.ood))
    return replace(_of_one(request, asked, asked, archive, found, kept.record), whole=whole)


def whole_of(kept: KeptQuery) -> WholePicture:
    """The picture of an upload.

    Raises:
        QueryExpired: it is not kept any more.
    """
    if kept.whole is None:
        raise QueryExpired(
            "there was no room to keep the picture of this upload, so no region of it can be "
            "searched for any more; choose the file again"
        )
    return kept.whole


def _of_one(
    request: Request,
    asked: Question,
    refine: Question,
    archive: TenantArchive,
    found: Found,
    record: ImageRecord,
    query: ImageDocument | None = None,
) -> Answered:
    """The answer to a search. record: of its query."""
    tell(request, found.seen)
    viewers = links_from_image(archive, found.query_id)
    names = archive.names(found.answer.hits)
    document = SearchDocument.from_answer(found.answer, found.query_id, names, viewers)
    return Answered(
        asked,
        refine,
        document,
        document.hits,
        0 if asked.page is None else Cursor.parse(asked.page).offset,
        document.next_page,
        query,
        own=_own([record]),
    )


def _refined(
    request: Request, asked: Question, archive: TenantArchive, kept: Sequence[KeptQuery]
) -> Answered:
    """The answer by several examples: the engine's recommendation, one page of it."""
    query = query_of(replace(asked, page=None).asked(), archive)
    offset = _offset(asked.page)
    named = {one.image for one in asked.marks}
    examples = Examples(
        asked.likes,
        asked.dislikes,
        seen=Observations.joined([one.seen for one in kept]) if kept else None,
        records=tuple(one.record for one in kept),
        # One that is liked or disliked is no hit anyhow.
        seen_ids=tuple(one.image for one in kept if one.image and one.image not in named),
    )
    # Of every page the same list is asked for: a longer one could have other images in between.
    wanted = Wanted(
        max(query.k, REFINED_DEPTH), query.where, query.exact, query.group_by, query.exclude
    )
    answer = archive.engine.recommend(examples, wanted)
    end = offset + query.k
    shown = answer.hits[offset:end]
    hits = [one.hit for one in shown]
    because = [one.because for one in shown if one.because is not None]
    tell(request, Seen.of(hits, asked=[*asked.likes, *asked.dislikes, *because], ood=answer.ood))
    note_search(tuple(answer.evidence.rungs), answer.ood, answer.evidence.timings_ms)
    points = {one.id: one for one in archive.store.get([one.image for one in asked.marks])}
    viewers = links_from_image(archive, next(iter(asked.likes), None))
    document = RecommendationDocument.from_answer(
        replace(answer, hits=shown), archive.names(hits), viewers
    )
    records = [points[one].record for one in asked.likes if one in points]
    return Answered(
        asked,
        asked,
        document,
        document.hits,
        offset,
        str(end) if len(answer.hits) > end else None,
        images={name: ImageDocument.from_point(point) for name, point in points.items()},
        own=_own([*records, *(one.record for one in kept)]),
    )


def _offset(page: str | None) -> int:
    """How many hits of a refined search come before a page."""
    if page is None:
        return 0
    if not re.fullmatch(r"[1-9][0-9]{0,3}", page):
        raise QueryError(
            f"page {page[:40]!r} is none of a search by several images; its pages are numbers, as "
            "its links have them"
        )
    return int(page)


def _own(records: Sequence[ImageRecord]) -> str | None:
    if any(one.patient for one in records):
        return "patient"
    return "study" if any(one.study for one in records) else None


def _taken_in(
    request: Request,
    uploads: Sequence[UploadFile],
    archive: TenantArchive,
    readers: Readers,
    watch: Stopwatch,
) -> tuple[dict[str, NDArray[np.uint8]], tuple[str, ...]]:
    """The canvases of files that came, by the tokens under which they are kept from now on; and
    sentences on those that cannot be used.

    Raises:
        ImageRefused: none can be.
    """
    with stage("read"):
        read = readers.read_all(uploads, whole_side=_WHOLE_SIDE)
    # The same file twice is one example.
    images: dict[str, QueryImage] = {}
    refused: list[tuple[int, ImageRefused]] = []
    for number, one in enumerate(read):
        if isinstance(one, ImageRefused):
            refused.append((number, one))
        else:
            images.setdefault(archive.id_of(one), one)
    if not images:
        raise _none_of(read)
    with watch("encode"):
        seen = archive.engine.observed(
            [one.canvas for one in images.values()], [one.colour for one in images.values()]
        )
    queries: KeptQueries = request.app.state.kept_queries
    owner, model = owner_of(request.state.caller), archive.manifest.fingerprint
    canvases = {}
    for row, (name, image) in enumerate(images.items()):
        kept = KeptQuery(seen[row : row + 1], image.record, model, name, image.whole)
        canvases[queries.keep(owner, kept)] = image.canvas
    return canvases, tuple(
        gettext("File %(number)s of %(count)s, %(name)s, was left out: %(why)s.")
        % {
            "number": grouped(at + 1),
            "count": grouped(len(uploads)),
            "name": _short(uploads[at]),
            "why": one.detail.removesuffix("."),
        }
        for at, one in refused
    )


def _none_of(read: Sequence[QueryImage | ImageRefused]) -> ImageRefused:
    """Why none of the files can be used; without their names, which logs must not have."""
    refused = [one for one in read if isinstance(one, ImageRefused)]
    if len(refused) == 1:
        return refused[0]
    details = "; ".join(f"file {number}: {one.detail}" for number, one in enumerate(refused, 1))
    return ImageRefused(refused[0].reason, f"none of {len(refused)} files can be used: {details}")


def _short(upload: UploadFile) -> str:
    name = upload.filename or gettext("without a name")
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"
