"""The record of a point as one compact JSON text, as an embedded index keeps it.

The object has "record", the fields of an ImageRecord that are not None, and "indexed_at",
"rendering" and "missing_frames" where there is something to say. Reading a point whole is cheaper
from one text than from a payload field for each value, and an index of Qdrant that is built reads
the payload of every point.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import StoreError
from engine.records import BESIDE_RECORD, ImageRecord, Point

__all__ = ["from_text", "to_text"]


@dataclass(frozen=True, slots=True)
class _Text:
    record: ImageRecord
    indexed_at: str | None = None
    rendering: str | None = None
    missing_frames: str | None = None


def to_text(point: Point) -> str:
    """The text of a point's record. Raises ValueError: it has text that is no valid Unicode."""
    about: dict[str, Any] = {"record": point.record.known()}
    for name in BESIDE_RECORD:
        if (value := getattr(point, name)) is not None:
            about[name] = value
    return json.dumps(about, ensure_ascii=False, separators=(",", ":"))


def from_text(
    point_id: str,
    text: str | bytes,
    code: NDArray[np.uint8],
    *,
    z: NDArray[np.float32] | None = None,
    score: float | None = None,
) -> Point:
    """The point with this record, the inverse of :func:`to_text`.

    Raises:
        StoreError: this is no text of a record.
    """
    read, refused = _reader()
    try:
        about = read(text)
    except refused as error:
        raise StoreError(
            f"the record of image {point_id} cannot be read ({error}); restore a snapshot, or "
            "index the image again"
        ) from None
    return Point(
        point_id,
        about.record,
        code,
        z,
        score,
        about.indexed_at,
        about.rendering,
        about.missing_frames,
    )


@cache
def _reader() -> tuple[Callable[[str | bytes], _Text], type[Exception]]:
    """What reads a text, and what it raises; a search reads one for every hit."""
    import msgspec  # most commands read none

    return msgspec.json.Decoder(_Text).decode, msgspec.DecodeError
