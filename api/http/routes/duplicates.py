"""Duplicates: groups of images that are the same picture, or nearly."""

from collections.abc import Sequence
from itertools import islice
from typing import Annotated

from fastapi import APIRouter, HTTPException, Query, Request
from pydantic import BaseModel, ConfigDict

from api.http.deps import ArchiveDep, Where
from api.http.problems import problem_responses
from api.http.shares import Shares
from api.security.seen import Seen, tell
from engine.errors import QueryError
from engine.search import duplicates as search
from engine.search.duplicates import MAX_BITS, SIMILARITY, DuplicateGroup
from engine.search.query import parse_where
from engine.search.spelling import as_spelled
from engine.store.base import Filter
from indexer.archive import TenantArchive

__all__ = ["SEARCHES", "router", "to_compare"]

router = APIRouter(tags=["images"])

_MOST_GROUPS = 1000
_MOST_IMAGES = 250_000


def _busy(own: bool) -> HTTPException:
    if own:
        text = "duplicates are being looked for already for your tenant; try again"
        return HTTPException(429, text, {"Retry-After": "10"})
    return HTTPException(
        503, "duplicates are being looked for already for others; try again", {"Retry-After": "10"}
    )


SEARCHES = Shares(2, 1, _busy)
"""A comparison takes all cores and half a kilobyte of memory an image."""


class DuplicateDocument(BaseModel):
    """An image of a group.

    - `similarity`: to the first image of the group. `identical`: most likely the pixels are the
      same.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    similarity: float
    identical: bool
    study: str | None
    series: str | None
    sop: str | None
    frame: int


class DuplicateGroupDocument(BaseModel):
    """Two or more images that are duplicates. `studies`: how many studies they are of."""

    model_config = ConfigDict(frozen=True)

    studies: int
    images: list[DuplicateDocument]

    @classmethod
    def of(cls, group: DuplicateGroup) -> "DuplicateGroupDocument":
        return cls(
            studies=group.studies,
            images=[
                DuplicateDocument(
                    id=one.id,
                    similarity=round(one.similarity, 6),
                    identical=one.identical,
                    study=one.record.study,
                    series=one.record.series,
                    sop=one.record.sop,
                    frame=one.record.frame,
                )
                for one in group.members
            ],
        )


class DuplicatesDocument(BaseModel):
    """Groups of duplicates, the largest first.

    - `compared`: how many images were compared with each other.
    - `more`: there are more groups; narrow the question by `where`, or raise `limit`.
    """

    model_config = ConfigDict(
        frozen=True,
        json_schema_extra={
            "examples": [
                {
                    "groups": [
                        {
                            "studies": 2,
                            "images": [
                                {
                                    "id": "3b0d6c52-5c6f-5d83-9a39-4f8f0b6d2a77",
                                    "similarity": 1.0,
                                    "identical": True,
                                    "study": "1.2.826.0.1.3680043.8.498.1",
                                    "series": "1.2.826.0.1.3680043.8.498.1.1",
                                    "sop": "1.2.826.0.1.3680043.8.498.1.1.7",
                                    "frame": 0,
                                },
                                {
                                    "id": "9d4f5c3e-6a3b-5b0e-8f52-0c7e1f0a6d11",
                                    "similarity": 0.99996,
                                    "identical": False,
                                    "study": "1.2.826.0.1.3680043.8.498.2",
                                    "series": "1.2.826.0.1.3680043.8.498.2.1",
                                    "sop": "1.2.826.0.1.3680043.8.498.2.1.4",
                                    "frame": 0,
                                },
                            ],
                        }
                    ],
                    "compared": 7211,
                    "more": False,
                }
            ]
        },
    )

    groups: list[DuplicateGroupDocument]
    compared: int
    more: bool


@router.get(
    "/v1/duplicates",
    operation_id="getDuplicates",
    summary="Groups of images that are the same picture, or nearly",
    responses=problem_responses(400, 422, 503),
)
def get_duplicates(
    request: Request,
    archive: ArchiveDep,
    where: Where = [],  # noqa: B006 - FastAPI copies defaults
    similarity: Annotated[
        float,
        Query(
            description="Least similarity of two duplicates.",
            json_schema_extra={"exclusiveMinimum": 0, "maximum": 1},
        ),
    ] = SIMILARITY,
    max_bits: Annotated[
        int,
        Query(
            description="Most bits in which their codes differ.", json_schema_extra={"minimum": 0}
        ),
    ] = MAX_BITS,
    across_studies: Annotated[
        bool, Query(description="Only groups of more than one study.")
    ] = False,
    limit: Annotated[
        int,
        Query(
            description="Groups to list, the largest first.",
            json_schema_extra={"minimum": 1, "maximum": _MOST_GROUPS},
        ),
    ] = 100,
) -> DuplicatesDocument:
    """Copies, re-saved and resized images among those that match. No pair is missed.

    Up to 250,000 images are compared. One such request of a tenant is answered at a time (429), and
    two of all together (503); `precedent duplicates` compares any number.
    """
    if not 1 <= limit <= _MOST_GROUPS:
        raise QueryError(f"limit is {limit}; ask for 1 to {_MOST_GROUPS} groups")
    passing, count = to_compare(archive, where)
    with SEARCHES.held(request.state.caller.tenant):
        found = search.duplicates(
            archive.store, similarity=similarity, max_bits=max_bits, where=passing
        )
        wanted = (group for group in found if group.studies > 1 or not across_studies)
        groups = [DuplicateGroupDocument.of(group) for group in islice(wanted, limit)]
        more = next(wanted, None) is not None
    shown = [image for group in groups for image in group.images]
    studies = dict.fromkeys(image.study for image in shown if image.study is not None)
    images = tuple(image.id for image in shown)
    tell(request, Seen(tuple(studies), images, results=len(groups)))
    return DuplicatesDocument(groups=groups, compared=count, more=more)


def to_compare(archive: TenantArchive, where: Sequence[str]) -> tuple[Filter, int]:
    """The images to look for duplicates among, and how many they are.

    Raises:
        QueryError: a filter term is none, or too many images match.
    """
    passing, _ = as_spelled(archive.store, parse_where(where))
    count = archive.store.count(passing)
    if count > _MOST_IMAGES:
        raise QueryError(
            f"{count} images match, and up to {_MOST_IMAGES} are compared here; narrow them with "
            "where, or use `precedent duplicates`"
        )
    return passing, count
