"""Points as payloads and back: the allow-list of design and nothing else."""

from dataclasses import asdict
from enum import Enum
from typing import Any

from engine.codes import band_widths, bands, from_hex, to_hex
from engine.records import RECORD_FIELDS, ImageRecord, Point

__all__ = [
    "BAND_PREFIX",
    "FACET_FIELDS",
    "FILTER_FIELDS",
    "FieldKind",
    "from_payload",
    "schema",
    "to_payload",
]

BAND_PREFIX = "sch_"


class FieldKind(Enum):
    """How a payload field is indexed."""

    TENANT = "tenant"
    KEYWORD = "keyword"
    INTEGER = "integer"
    BOOL = "bool"
    BAND = "band"


_KINDS = {"study_year": FieldKind.INTEGER, "burned_in": FieldKind.BOOL, "tenant": FieldKind.TENANT}
_NOT_INDEXED = {"frame"}

FILTER_FIELDS: dict[str, FieldKind] = {
    name: _KINDS.get(name, FieldKind.KEYWORD) for name in RECORD_FIELDS if name not in _NOT_INDEXED
}
"""Fields that a search may filter by. The tenant among them is set by the server alone."""

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
"""Fields whose values are few enough to be listed with counts."""


def schema(bits: int) -> dict[str, FieldKind]:
    """Every indexed payload field of a collection with codes of ``bits`` bits."""
    return FILTER_FIELDS | {
        f"{BAND_PREFIX}{j}": FieldKind.BAND for j in range(len(band_widths(bits)))
    }


def to_payload(point: Point, model: str) -> dict[str, Any]:
    """What is stored beside the vector. Absent values are left out, not stored as null."""
    payload = {name: value for name, value in asdict(point.record).items() if value is not None}
    payload["labels"] = list(point.record.labels)
    payload["model"] = model
    if point.indexed_at is not None:
        payload["indexed_at"] = point.indexed_at
    payload["code"] = to_hex(point.code)
    for j, value in enumerate(bands(point.code)):
        payload[f"{BAND_PREFIX}{j}"] = int(value)
    return payload


def from_payload(
    point_id: str, payload: dict[str, Any], *, score: float | None = None, z: Any = None
) -> Point:
    """The point that :func:`to_payload` described."""
    values = {name: payload[name] for name in RECORD_FIELDS if name in payload}
    values["labels"] = tuple(payload.get("labels", ()))
    return Point(
        id=point_id,
        record=ImageRecord(**values),
        code=from_hex(payload["code"]),
        z=z,
        score=score,
        indexed_at=payload.get("indexed_at"),
    )
