"""Which image stands for a DICOM instance, a series or a study when one is asked for."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from engine.errors import ImageNotFound, QueryError
from engine.records import ImageRecord
from engine.store.base import Filter, Match, VectorStore

__all__ = ["evenly_spaced", "place", "representative"]

_T = TypeVar("_T")

_NAMES = {"sop": "instance", "series": "series", "study": "study"}


def representative(store: VectorStore, field: str, uid: str, frame: int | None = None) -> str:
    """Id of the indexed image that stands for what a UID names.

    It is the one in the middle of the indexed images, in the order of :func:`place`: the middle
    slice of a stack shows more of it than the first.

    Args:
        field: "sop", "series" or "study". uid: SOP, Series or Study Instance UID.
        frame: of an instance, this frame, counted from 0; None = the middle one of those indexed.

    Raises:
        ImageNotFound: no indexed image is of it, or this frame is not indexed.
        QueryError: a frame of something that is no instance was asked for.
    """
    if frame is not None and field != "sop":
        raise QueryError("a frame is one of an instance; give its sop as well")
    where = Filter((Match(field, (uid,)),))
    found = sorted(store.scroll(where), key=lambda point: place(point.id, point.record))
    if not found:
        raise ImageNotFound(
            f"no indexed image is of {_NAMES[field]} {uid[:64]!r}; answers of searches have UIDs"
        )
    if frame is None:
        return found[(len(found) - 1) // 2].id
    frames = {point.record.frame: point.id for point in found}
    if frame not in frames:
        known = ", ".join(str(one) for one in list(frames)[:16])
        raise ImageNotFound(
            f"frame {frame} of instance {uid[:64]!r} is not indexed; these are, counted from 0: "
            f"{known}{' …' if len(frames) > 16 else ''}"
        )
    return frames[frame]


def place(image_id: str, record: ImageRecord) -> tuple[object, ...]:
    """Sort key of an image in its study: series, instance, frame; UIDs by their numbers."""
    return _numbers(record.series), _numbers(record.sop), record.frame, image_id


def evenly_spaced(items: Sequence[_T], most: int) -> list[_T]:
    """Up to ``most`` of the items, evenly spaced over them, the first and the last included."""
    steps = np.linspace(0, len(items) - 1, min(len(items), most)).round().astype(int)
    return [items[step] for step in steps]


def _numbers(uid: str | None) -> tuple[str, ...]:
    return tuple(part.rjust(64, "0") for part in (uid or "").split("."))
