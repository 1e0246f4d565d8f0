"""The record of a point as one compact JSON text, as an embedded index keeps it.

The object has "record", the fields of an ImageRecord that are not None, and "indexed_at",
"rendering" and "missing_frames" where there is something to say. Reading a point whole is cheaper
from one text than from a payload field for each value, and an index of Qdrant that is built reads
the payload of every point.
"""

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.records import BESIDE_RECORD, ImageRecord, Point

__all__ = ["from_text", "to_text"]


def to_text(point: Point) -> str:
    """The text of a point's record. Raises ValueError: it has text that is no valid Unicode."""
    about: dict[str, Any] = {"record": point.record.known()}
    for name in BESIDE_RECORD:
        if (value := getattr(point, name)) is not None:
            about[name] = value
    return json.dumps(about, ensure_ascii=False, separators=(",", ":"))


def from_text(
    point_id: str,
    text: str,
    code: NDArray[np.uint8],
    *,
    z: NDArray[np.float32] | None = None,
    score: float | None = None,
) -> Point:
    """The point with this record, the inverse of :func:`to_text`."""
    about = json.loads(text)
    record = about["record"]
    record["labels"] = tuple(record["labels"])
    return Point(
        id=point_id,
        record=ImageRecord(**record),
        code=code,
        z=z,
        score=score,
        **{name: about.get(name) for name in BESIDE_RECORD},
    )
