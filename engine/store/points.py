"""Checks of points before they are stored, and conversion of what Qdrant returns into points."""

import uuid
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import StoreError
from engine.records import Point
from engine.store.arrangement import VECTOR
from engine.store.base import Collection
from engine.store.payload import from_payload
from engine.store.text_record import to_text

__all__ = ["checked_vector", "not_storable", "storable", "to_hit", "to_point"]


def checked_vector(point: Point, collection: Collection) -> NDArray[np.float32]:
    """The vector of a point, float32 (D,), if the point fits the collection.

    Raises:
        StoreError: z is missing or not finite; z, words or the code has another length than the
            collection's, or a number of the record does not fit in 64 bits.
    """
    if point.z is None or point.z.shape != (collection.dim,):
        shape = None if point.z is None else point.z.shape
        raise StoreError(
            f"point {point.id} has a vector of shape {shape}, the index wants "
            f"({collection.dim},); encode it with the index's own model"
        )
    if not np.isfinite(point.z).all():
        raise StoreError(
            f"point {point.id} has a vector that is not finite; encode the image again"
        )
    length = None if point.words is None else len(point.words)
    said = np.zeros(0) if point.words is None else point.words
    if length != collection.words or not np.isfinite(said).all():
        raise StoreError(
            f"point {point.id} has {length or 'no'} values for searches by words, the index wants "
            f"{collection.words or 'none'}, all finite; encode it with the index's own model"
        )
    if 8 * len(point.code) != collection.bits:
        raise StoreError(
            f"point {point.id} has a code of {8 * len(point.code)} bits, the index wants "
            f"{collection.bits}; encode it with the index's own model"
        )
    for number in (point.record.frame, point.record.study_year or 0):
        if not -(2**63) <= number < 2**63:
            # Qdrant would round it silently.
            raise StoreError(
                f"point {point.id} carries the number {number}, and 64 bits are the most an "
                "index holds; correct the frame number or the study's year"
            )
    return point.z


def storable(point: Point, collection: Collection) -> tuple[uuid.UUID, str]:
    """The id and the record, as text, of a point that can be stored in an embedded index.

    Raises:
        StoreError: it cannot.
    """
    checked_vector(point, collection)
    try:
        text = to_text(point)
        text.encode()
        return uuid.UUID(point.id), text
    except (ValueError, TypeError) as error:
        raise not_storable(point, error) from None


def not_storable(point: Point, error: Exception) -> StoreError:
    """The error to raise for a point whose id or payload cannot be stored."""
    return StoreError(
        f"point {point.id!r} cannot be stored ({error}); ids are UUIDs, and texts valid Unicode"
    )


def to_hit(found: Any) -> Point:
    """A result of a query as a point with its score. found: has ``id``, ``score``, ``payload`` and
    ``vector`` (or None)."""
    # Rounding to float16 can make a cosine slightly larger than 1.
    score = min(1.0, max(-1.0, found.score))
    return from_payload(str(found.id), found.payload or {}, score=score, z=_vector(found))


def to_point(record: Any) -> Point:
    """A stored record as a point. record: has ``id``, ``payload`` and ``vector`` (or None)."""
    return from_payload(str(record.id), record.payload or {}, z=_vector(record))


def _vector(found: Any) -> NDArray[np.float32] | None:
    return np.asarray(found.vector[VECTOR], dtype=np.float32) if found.vector else None
