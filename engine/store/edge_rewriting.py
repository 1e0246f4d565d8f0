"""Copies the points of a shard into a new one, whose files have nothing else.

Qdrant Edge marks what is deleted, and keeps it in segments and in its log until it happens to build
these anew. So what must not be readable any more is left behind: the points that stay go to a new
shard, with all that they have, and the old files are removed as a whole.
"""

import hashlib
import json
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
import qdrant_edge as qdrant

from engine.errors import StoreError
from engine.store.arrangement import VECTOR, WORDS
from engine.store.edge_layout import scrolled, wrapped

__all__ = ["copy_points"]


def copy_points(
    source: qdrant.EdgeShard, target: qdrant.EdgeShard, at_once: Callable[[], int]
) -> int:
    """Writes all points of a shard into an empty one, durably; returns how many there are.

    What was written is read again and compared with the source, every value of it.

    Args:
        at_once: how many points the next call of Qdrant Edge may take.

    Raises:
        StoreError: the copy has something else than the source, or Qdrant Edge failed.
    """
    copied, written = 0, hashlib.blake2b()
    for records in scrolled(source):
        start = 0
        while start < len(records):
            some = records[start : start + at_once()]
            start += len(some)
            _note(written, some)
            made = [
                qdrant.Point(
                    one.id,
                    {name: values.tolist() for name, values in _vectors(one).items()},
                    one.payload,
                )
                for one in some
            ]
            wrapped(target.update, qdrant.UpdateOperation.upsert_points(made))
        copied += len(records)
    wrapped(target.flush)
    read, found = 0, hashlib.blake2b()
    for records in scrolled(target):
        _note(found, records)
        read += len(records)
    if (read, found.digest()) != (copied, written.digest()):
        raise StoreError(
            f"the copy of the index has {read:,} points that are not the {copied:,} of the index; "
            "nothing was replaced. Check the disk, and run the same command again"
        )
    return copied


def _note(digest: Any, records: list[Any]) -> None:
    """Adds all that points have to a digest."""
    for one in records:
        payload = json.dumps(one.payload, sort_keys=True).encode()
        digest.update(uuid.UUID(str(one.id)).bytes)
        for values in _vectors(one).values():
            digest.update(values.tobytes())
        digest.update(len(payload).to_bytes(8, "little") + payload)


def _vectors(record: Any) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    there = [name for name in (VECTOR, WORDS) if name in record.vector]
    return {name: np.asarray(record.vector[name], np.float32) for name in there}
