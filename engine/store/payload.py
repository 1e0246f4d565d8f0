"""Converts points to the payloads that a Qdrant server keeps, and back.

A payload has the fields of an ImageRecord, which are the allow-list of what may be stored about an
image, and those that searches need.
"""

from enum import Enum
from typing import Any
from uuid import UUID

from engine.codes import band_widths, bands, from_hex, to_hex
from engine.records import BESIDE_RECORD, RECORD_FIELDS, ImageRecord, Point
from engine.store.base import PARTS

__all__ = [
    "BAND_PREFIX",
    "BUCKET_FIELD",
    "CELL_PREFIX",
    "FACET_FIELDS",
    "FILTER_FIELDS",
    "FieldKind",
    "cell_field",
    "from_payload",
    "schema",
    "to_payload",
]

BAND_PREFIX = "sch_"
"""Fields sch_0, sch_1, … hold the bands of the code."""
BUCKET_FIELD = "bucket"
"""The part to which a point belongs, see ``engine.store.base.PARTS``."""

CELL_PREFIX = "cell_"


class FieldKind(Enum):
    """How a payload field is indexed."""

    TENANT = "tenant"
    CELL = "cell"
    """An integer by whose value the points are ordered, so that those of a cell lie together."""
    KEYWORD = "keyword"
    INTEGER = "integer"
    BOOL = "bool"
    LOOKUP = "lookup"
    """An integer that is looked up by value only, never by range."""


_KINDS = {"study_year": FieldKind.INTEGER, "burned_in": FieldKind.BOOL, "tenant": FieldKind.TENANT}
_NOT_INDEXED = {"frame"}
# What a point has beside its record, left out where it is None.

FILTER_FIELDS: dict[str, FieldKind] = {
    name: _KINDS.get(name, FieldKind.KEYWORD) for name in RECORD_FIELDS if name not in _NOT_INDEXED
}
"""Fields that a search may filter by. ``tenant`` is among them, but users cannot set it."""

FACET_FIELDS: tuple[str, ...] = (
    "modality",
    "body_part",
    "view",
    "laterality",
    "labels",
    "sex",
    "age_band",
    "study_year",
    "manufacturer",
    "source",
)
"""Fields with few enough distinct values to be listed with counts."""


def schema(bits: int) -> dict[str, FieldKind]:
    """The indexed payload fields of a collection with codes of ``bits`` bits, with their kinds."""
    looked_up = [BUCKET_FIELD, *(f"{BAND_PREFIX}{j}" for j in range(len(band_widths(bits))))]
    return FILTER_FIELDS | dict.fromkeys(looked_up, FieldKind.LOOKUP)


def cell_field(key: str) -> str:
    """The field with the number of a point's cell, of the cells with this key. Other cells have
    another field, so that no number is ever taken for one of theirs."""
    return f"{CELL_PREFIX}{key}"


def to_payload(point: Point, model: str) -> dict[str, Any]:
    """The payload of a point: all but its vector. Values that are None are left out.

    Args:
        model: fingerprint of the model that encoded the point.
    """
    payload = point.record.known()
    payload["labels"] = list(point.record.labels)
    payload["model"] = model
    for name in BESIDE_RECORD:
        if (value := getattr(point, name)) is not None:
            payload[name] = value
    payload["code"] = to_hex(point.code)
    payload[BUCKET_FIELD] = UUID(point.id).int % PARTS
    for j, value in enumerate(bands(point.code)):
        payload[f"{BAND_PREFIX}{j}"] = int(value)
    return payload


def from_payload(
    point_id: str, payload: dict[str, Any], *, score: float | None = None, z: Any = None
) -> Point:
    """The point with this payload, the inverse of :func:`to_payload`."""
    values = {name: payload[name] for name in RECORD_FIELDS if name in payload}
    values["labels"] = tuple(payload.get("labels", ()))
    return Point(
        id=point_id,
        record=ImageRecord(**values),
        code=from_hex(payload["code"]),
        z=z,
        score=score,
        **{name: payload.get(name) for name in BESIDE_RECORD},
    )
