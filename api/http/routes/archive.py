"""What an archive looks like as a whole: its map, its growth, and what was refused."""

from itertools import groupby
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict

from api.http.deps import EXAMPLE_ID, EXAMPLE_IMAGE, ArchiveDep
from api.http.problems import problem_responses
from api.http.remembered import Remembered
from api.schemas import ImageDocument
from api.security.policy import Scope
from api.security.seen import Seen, tell
from engine.errors import QueryError
from engine.search.projection import Projection, project, regions
from engine.store.base import Filter
from indexer.archive import TenantArchive
from indexer.files.locators import shown
from indexer.ledger.schema import Refused
from indexer.sources.opening import name_in_source

__all__ = [
    "MAP_POINTS",
    "MAP_SIDE",
    "GrowthDocument",
    "MapDocument",
    "MapPointDocument",
    "RefusalsDocument",
    "archive_map",
    "get_growth",
    "get_refusals",
    "router",
]

router = APIRouter(tags=["archive"])

MAP_POINTS = 1000
"""Most images of a map: as many as one row of the audit log names."""
MAP_SIDE = 5
"""Squares in a row of a map."""
_MOST_EXAMPLES = 20
_MAP_SECONDS = 600.0
_GROWTH_SECONDS = 60.0
_MONTH = 7
"""Characters of a day that are its month."""

_MAP: dict[str, Any] = {
    "points": [
        {
            **EXAMPLE_IMAGE,
            "x": 0.4123,
            "y": 0.1377,
        }
    ],
    "images": 7211,
    "kept": [0.21, 0.13],
    "regions": [{"column": 2, "row": 0, "images": 1, "example": EXAMPLE_ID}],
    "model": "5f2900fd348e5292",
}
_REFUSALS: dict[str, Any] = {
    "refusals": [
        {
            "reason": "truncated",
            "instances": 12,
            "examples": [
                {
                    "instance": None,
                    "detail": "the file ends 512 bytes before its pixels do",
                    "sop": "1.2.826.0.1.3680043.8.498.1.1.9",
                }
            ],
        }
    ],
    "instances": 12,
}


class MapPointDocument(ImageDocument):
    """An image of the map, and its place in it. `x`, `y`: from 0 to 1; both axes have one scale."""

    x: float
    y: float


class MapRegionDocument(BaseModel):
    """A square of the map. `column`, `row`: from 0, of 5 in a row. `images`: how many of the map's
    are in it. `example`: the most central one."""

    model_config = ConfigDict(frozen=True)

    column: int
    row: int
    images: int
    example: str


class MapDocument(BaseModel):
    """A sample of the caller's images in the plane in which their features differ most.

    - `points`: the images of the sample, ordered by id. `images`: of how many it is one.
    - `kept`: the share of the features' variance that each axis has. Images that lie apart differ;
      those that lie together may differ in what the two axes do not have.
    - `regions`: the squares of the map that have images.
    - `model`: fingerprint of the model whose features these are.
    """

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    points: list[MapPointDocument]
    images: int
    kept: list[float]
    regions: list[MapRegionDocument]
    model: str


class PeriodDocument(BaseModel):
    """A day, as in "2026-11-30", or a month, as in "2026-11", UTC. `images`: indexed in it.
    `in_all`: by its end, of those that are in the index now."""

    model_config = ConfigDict(frozen=True)

    period: str
    images: int
    in_all: int


class GrowthDocument(BaseModel):
    """When the caller's images were indexed.

    - `periods`: those in which some were, in order. A file that was read again counts when it was
      read last; an image that was deleted does not count.
    - `without_time`: images of which the ledger has no time.
    """

    model_config = ConfigDict(
        frozen=True,
        json_schema_extra={
            "examples": [
                {
                    "by": "month",
                    "periods": [
                        {"period": "2026-10", "images": 5120, "in_all": 5120},
                        {"period": "2026-11", "images": 2091, "in_all": 7211},
                    ],
                    "without_time": 0,
                }
            ]
        },
    )

    by: Literal["day", "month"]
    periods: list[PeriodDocument]
    without_time: int


class RefusedExampleDocument(BaseModel):
    """A refused instance.

    - `instance`: its path or address for callers with the scope `admin`; for others where it lies
      in its source, if the setting `server.show_names` allows that, and else null: names of files
      may name patients.
    - `detail`: what is wrong with it. `sop`: its SOP Instance UID; null: not read.
    """

    model_config = ConfigDict(frozen=True)

    instance: str | None
    detail: str
    sop: str | None


class RefusalDocument(BaseModel):
    """A reason for which instances are refused: how many, and some of them."""

    model_config = ConfigDict(frozen=True)

    reason: str
    instances: int
    examples: list[RefusedExampleDocument]


class RefusalsDocument(BaseModel):
    """What of the caller's instances is refused now, by reason, the most frequent one first.
    `instances`: how many in all."""

    model_config = ConfigDict(frozen=True)

    refusals: list[RefusalDocument]
    instances: int


@router.get(
    "/v1/archive/map",
    operation_id="getArchiveMap",
    summary="A sample of the images in the plane in which they differ most",
    responses={
        200: {"content": {"application/json": {"example": _MAP}}},
        **problem_responses(400, 422, 503),
    },
)
def get_map(
    request: Request,
    archive: ArchiveDep,
    limit: Annotated[
        int,
        Query(
            description="Images of the sample.",
            json_schema_extra={"minimum": 1, "maximum": MAP_POINTS},
        ),
    ] = MAP_POINTS,
) -> MapDocument:
    """The first two principal components of the vectors of a fixed sample; no other vectors are
    read. Places stay as they are until the number of images changes, or for ten minutes."""
    return archive_map(request, archive, limit)


def archive_map(request: Request, archive: TenantArchive, limit: int = MAP_POINTS) -> MapDocument:
    """The map of a tenant's images. What it shows is told.

    Raises:
        QueryError: ``limit`` is out of range.
    """
    if not 1 <= limit <= MAP_POINTS:
        raise QueryError(f"limit is {limit}; ask for 1 to {MAP_POINTS} images")
    model = archive.manifest.fingerprint
    known: Remembered = request.state.remembered
    found: Projection = known.of(
        archive.tenant,
        ("map", limit),
        lambda: project(archive.store, limit),
        stamp=(model, archive.store.count(Filter())),
        seconds=_MAP_SECONDS,
    )
    # Read anew each time: what was deleted since is not shown, and labels are as they are now.
    points = archive.store.get(found.ids)
    at = {one: number for number, one in enumerate(found.ids)}
    places = found.places[[at[point.id] for point in points]] if points else np.zeros((0, 2))
    tell(request, Seen.of(points))
    return MapDocument(
        points=[
            MapPointDocument(
                **ImageDocument.from_point(point).model_dump(),
                x=round(float(x), 4),
                y=round(float(y), 4),
            )
            for point, (x, y) in zip(points, places, strict=True)
        ],
        images=found.images,
        kept=[round(one, 4) for one in found.kept],
        regions=[
            MapRegionDocument(
                column=one.column,
                row=one.row,
                images=len(one.rows),
                example=points[one.rows[0]].id,
            )
            for one in regions(places, MAP_SIDE)
        ],
        model=model,
    )


@router.get(
    "/v1/archive/growth",
    operation_id="getArchiveGrowth",
    summary="When images were indexed",
    responses=problem_responses(422, 503),
)
def get_growth(
    request: Request,
    archive: ArchiveDep,
    by: Annotated[Literal["day", "month"], Query(description="Length of the periods.")] = "month",
) -> GrowthDocument:
    """Images per day or month, as the ledger has them; counted anew after a minute, or when the
    number of images has changed."""
    count = archive.store.count(Filter())
    known: Remembered = request.state.remembered
    days = known.of(
        archive.tenant, "growth", archive.images_by_day, stamp=count, seconds=_GROWTH_SECONDS
    )
    end = _MONTH if by == "month" else None
    periods: list[PeriodDocument] = []
    in_all = 0
    dated = ((day[:end], images) for day, images in days.items() if day is not None)
    for period, group in groupby(dated, key=lambda one: one[0]):
        images = sum(one for _, one in group)
        in_all += images
        periods.append(PeriodDocument(period=period, images=images, in_all=in_all))
    # As after a snapshot was restored without its ledger. Files that are read now may be ahead.
    return GrowthDocument(by=by, periods=periods, without_time=max(0, count - in_all))


@router.get(
    "/v1/archive/refusals",
    operation_id="getArchiveRefusals",
    summary="What is refused, and why",
    responses={
        200: {"content": {"application/json": {"example": _REFUSALS}}},
        **problem_responses(400, 422, 503),
    },
)
def get_refusals(
    request: Request,
    archive: ArchiveDep,
    examples: Annotated[
        int,
        Query(
            description="Instances to name of each reason.",
            json_schema_extra={"minimum": 0, "maximum": _MOST_EXAMPLES},
        ),
    ] = 3,
) -> RefusalsDocument:
    """By reason, the most frequent one first. `docs/deployment.md` says what each reason means."""
    if not 0 <= examples <= _MOST_EXAMPLES:
        raise QueryError(f"examples is {examples}; ask for 0 to {_MOST_EXAMPLES}")
    for_admin = Scope.ADMIN in request.state.caller.scopes
    found = archive.refusals(examples)
    return RefusalsDocument(
        refusals=[
            RefusalDocument(
                reason=one.reason.value,
                instances=one.count,
                examples=[
                    RefusedExampleDocument(
                        instance=_named(example, archive, for_admin=for_admin),
                        detail=example.detail,
                        sop=example.sop,
                    )
                    for example in one.examples
                ],
            )
            for one in found
        ],
        instances=sum(one.count for one in found),
    )


def _named(refused: Refused, archive: TenantArchive, *, for_admin: bool) -> str | None:
    if for_admin:
        name = shown(refused.locator)
    elif archive.settings.server.show_names:
        name = name_in_source(refused.locator, archive.settings)
    else:
        return None
    return name.encode("utf-8", "replace").decode()
