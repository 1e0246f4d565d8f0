"""The bodies of searches and recommendations: the same names in JSON, in forms and, with dashes, as
options of the command line."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Annotated

from fastapi import Depends, Request, UploadFile
from pydantic import Field

from api.http.bodies import Fields, read_body
from api.http.deps import (
    ABOUT_WHERE,
    EXAMPLE_ID,
    EXAMPLE_STUDY,
    GROUP_VALUES,
    K_BOUNDS,
    Asked,
)
from engine.errors import QueryError
from engine.model.texts import MOST_CHARACTERS
from engine.search.query import MAX_RADIUS, parse_group
from engine.search.ranking import ORDERS
from engine.search.recommend import MAX_EXAMPLES, RULES
from indexer.imaging.region import Region, parse_region

__all__ = [
    "ABOUT_RULE",
    "IN_PLACE_OF_A_FILE",
    "MOST_IMAGES",
    "AskedByBody",
    "AskedByForm",
    "ManyAsked",
    "RecommendFields",
    "SearchFields",
    "SearchOptions",
    "SeriesFields",
    "UploadFields",
    "own_group",
]

MOST_IMAGES = 64
"""Most images of one batch."""
IN_PLACE_OF_A_FILE = ("id", "sop", "frame", "series", "study", "text")


class _Options(Fields):
    """What searches and recommendations have in common. Bounds only document the values:
    ``engine.search.query`` checks them, so that service and command line say the same."""

    k: int | None = Field(
        None,
        description="Hits wanted; the service's setting when absent.",
        json_schema_extra=K_BOUNDS,  # type: ignore[arg-type]
    )
    where: list[str] = Field([], description=ABOUT_WHERE, examples=[["modality=CT"]])
    exact: bool = Field(False, description="Compare with every image.")


class SearchOptions(_Options):
    order: str = Field(
        "content",
        description="`content`: most similar first. `hamming`: fewest differing bits first.",
        json_schema_extra={"enum": list(ORDERS)},
    )
    radius: int | None = Field(
        None,
        description="Compare with every image whose code is within so many bits.",
        json_schema_extra={"minimum": 0, "maximum": MAX_RADIUS},
    )
    group_by: str | None = Field(
        None,
        description="One hit of each study or patient, the best.",
        json_schema_extra=GROUP_VALUES,  # type: ignore[arg-type]
    )
    exclude_own: str | None = Field(
        None,
        description="Leave out the image's own study, or its own patient, as the index or the "
        "file's header names them.",
        json_schema_extra=GROUP_VALUES,  # type: ignore[arg-type]
    )
    exclude: str | None = Field(
        None,
        description="The earlier name of `exclude_own`.",
        json_schema_extra={**GROUP_VALUES, "deprecated": True},  # type: ignore[dict-item]
    )
    facets: bool = Field(True, description="Count the values of the images that match.")


class UploadFields(SearchOptions):
    region: str | None = Field(
        None,
        description="Search by this part of the picture alone, `x,y,width,height` as shares of the "
        "picture as its file has it, from its upper left corner; at least 32 pixels each way. It "
        "is cut from the original, before the picture is prepared for the model.",
        examples=["0.25,0.25,0.5,0.5"],
    )
    page: str | None = Field(
        None,
        description="`next_page` of the same question's answer, for the hits that follow.",
        examples=["cells-16:10"],
    )


class SearchFields(UploadFields):
    image_id: str | None = Field(
        None,
        alias="id",
        description="Id of an indexed image; it is left out of the hits.",
        examples=[EXAMPLE_ID],
    )
    sop: str | None = Field(None, description="SOP Instance UID of an indexed image.")
    frame: int | None = Field(
        None,
        description="Frame of that instance, counted from 0; the middle one of those indexed when "
        "absent.",
        json_schema_extra={"minimum": 0},
    )
    series: str | None = Field(
        None, description="Series Instance UID; the middle one of its indexed images is taken."
    )
    study: str | None = Field(
        None,
        description="Study Instance UID; the middle one of its indexed images is taken.",
        examples=[EXAMPLE_STUDY],
    )
    text: str | None = Field(
        None,
        description="Search by words, with a model that knows them. It is neither logged nor "
        "recorded.",
        examples=["chest radiograph with a large pleural effusion"],
        json_schema_extra={"maxLength": MOST_CHARACTERS},
    )


_ABOUT_OWN = (
    "Leave out the examples' own `study`, or their `patient`, or `none`; `patient` when absent."
)
_DIVERSITY = {"minimum": 0, "maximum": 1}
_RULES = {"enum": list(RULES)}
ABOUT_RULE = (
    "`image`: a case is as similar as its image that is most like an example. `series`, `study`: "
    "as the mean, over the examples, of the best match of each in a series, or in a study."
)


class RecommendFields(_Options):
    like: list[str] = Field(
        [],
        description="Ids of indexed images to like.",
        examples=[[EXAMPLE_ID]],
        json_schema_extra={"maxItems": MAX_EXAMPLES},
    )
    dislike: list[str] = Field(
        [],
        description="Ids of images to keep away from: what is nearer to one of them than to any "
        "liked image is left out.",
        json_schema_extra={"maxItems": MAX_EXAMPLES},
    )
    study: str | None = Field(
        None, description="Study Instance UID; its images are liked.", examples=[EXAMPLE_STUDY]
    )
    series: str | None = Field(
        None, description="Series Instance UID; its images are liked. Not beside `study`."
    )
    rule: str | None = Field(
        None,
        description=f"{ABOUT_RULE} When absent, `series` for a liked series, else `image`.",
        json_schema_extra=_RULES,  # type: ignore[arg-type]
    )
    group_by: str = Field(
        "study",
        description="The best image of each `study` or `patient`; `none`: all images.",
        json_schema_extra=GROUP_VALUES,  # type: ignore[arg-type]
    )
    exclude_own: str | None = Field(
        None,
        description=_ABOUT_OWN,
        json_schema_extra=GROUP_VALUES,  # type: ignore[arg-type]
    )
    exclude: str | None = Field(
        None,
        description="The earlier name of `exclude_own`.",
        json_schema_extra={**GROUP_VALUES, "deprecated": True},  # type: ignore[dict-item]
    )
    diversity: float = Field(
        0.0,
        description="0: the most similar ones; up to 1: ones that differ from each other.",
        json_schema_extra=_DIVERSITY,  # type: ignore[arg-type]
    )


class SeriesFields(_Options):
    rule: str = Field(
        "series",
        description=ABOUT_RULE,
        json_schema_extra=_RULES,  # type: ignore[arg-type]
    )
    group_by: str = Field(
        "study",
        description="The best series of each `study` or `patient`; `none`: all.",
        json_schema_extra=GROUP_VALUES,  # type: ignore[arg-type]
    )
    exclude_own: str | None = Field(
        None,
        description=_ABOUT_OWN,
        json_schema_extra=GROUP_VALUES,  # type: ignore[arg-type]
    )
    diversity: float = Field(
        0.0,
        description="0: the most similar ones; up to 1: ones that differ from each other.",
        json_schema_extra=_DIVERSITY,  # type: ignore[arg-type]
    )


def own_group(
    exclude_own: str | None, exclude: str | None, absent: str | None = None
) -> str | None:
    """What is left out of the query's own, by either of the two names.

    Raises:
        QueryError: the two say different things.
    """
    if None not in (exclude_own, exclude) and exclude_own != exclude:
        raise QueryError("exclude is another name of exclude_own; give one of the two")
    given = exclude if exclude_own is None else exclude_own
    return parse_group(absent if given is None else given)


def _asked(fields: SearchOptions, upload: UploadFile | None) -> Asked:
    return Asked(
        upload=upload,
        k=fields.k,
        where=tuple(fields.where),
        order=fields.order,
        exact=fields.exact,
        radius=fields.radius,
        group_by=parse_group(fields.group_by),
        exclude=own_group(fields.exclude_own, fields.exclude),
        facets=fields.facets,
    )


def _region(fields: UploadFields) -> Region | None:
    return parse_region(fields.region) if fields.region else None


async def _by_body(request: Request) -> AsyncIterator[Asked]:
    async with read_body(request, SearchFields, files="file") as body:
        fields = body.fields
        yield replace(
            _asked(fields, body.uploads[0] if body.uploads else None),
            image_id=fields.image_id,
            sop=fields.sop,
            frame=fields.frame,
            series=fields.series,
            study=fields.study,
            text=fields.text,
            region=_region(fields),
            page=fields.page or None,
        )


async def _by_form(request: Request) -> AsyncIterator[Asked]:
    async with read_body(request, UploadFields, files="file", only_forms=True) as body:
        fields = body.fields
        yield replace(
            _asked(fields, body.uploads[0]), region=_region(fields), page=fields.page or None
        )


async def _many_by_body(request: Request) -> AsyncIterator[tuple[Asked, ...]]:
    async with read_body(request, SearchOptions, files="files", most=MOST_IMAGES) as body:
        yield tuple(_asked(body.fields, upload) for upload in body.uploads)


AskedByBody = Annotated[Asked, Depends(_by_body)]
AskedByForm = Annotated[Asked, Depends(_by_form)]
ManyAsked = Annotated[tuple[Asked, ...], Depends(_many_by_body)]
"""One request for each image, with the same options."""
