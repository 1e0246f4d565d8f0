"""The folder of an embedded store: its shard's configuration, its description and its lock."""

import json
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar

import numpy as np
import qdrant_edge as qdrant
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from engine.errors import FingerprintMismatch, StoreError, StoreLocked, StoreNotFound
from engine.files import write_atomically
from engine.records import Point
from engine.store.arrangement import EF_CONSTRUCT, FULL_SCAN_KB, LINKS, QUANTILE, VECTOR, WORDS
from engine.store.base import Collection, Filter, Profile
from engine.store.holder import Holder

__all__ = [
    "COLLECTION",
    "COLUMNS",
    "EPOCH",
    "FORMAT",
    "WITH_WORDS",
    "build",
    "check_collection",
    "described",
    "edge_config",
    "format_of",
    "locked",
    "note",
    "scrolled",
    "scrolled_by_id",
    "wrapped",
]

FORMAT = 2
"""1: a payload field and an index for each field of the record, float16, no columns."""
WITH_WORDS = 3
"""Of a store whose points have a second vector; it is all that such a store has more."""
COLLECTION = "collection.json"
COLUMNS = "columns"
EPOCH = "epoch"
"""Names the latest flush, as the columns do, so that it is seen without opening the shard that both
are of one time."""
_SEGMENTS = 8
"""Segments of a shard. With fewer of them, more is built anew whenever points were added."""
_READ_AT_ONCE = 1000
_P = ParamSpec("_P")
_T = TypeVar("_T")


def described(directory: Path) -> tuple[Collection, Profile]:
    """The kind of points and the profile of the store in ``directory``; needs no lock.

    Raises:
        StoreNotFound: there is no store.
        StoreError: its description cannot be read.
    """
    try:
        noted = json.loads((directory / COLLECTION).read_bytes())
        profile = Profile(**noted.pop("profile", {}))
        place = f"the index in {directory}"
        return Collection.from_noted(noted, place, _latest(noted)), profile
    except FileNotFoundError:
        raise StoreNotFound(
            f"no index in {directory}; make one with `precedent index PATH…`, or name "
            "another place with --data-dir"
        ) from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise StoreError(
            f"{directory / COLLECTION} cannot be read ({error}); restore it, or delete "
            f"{directory} and index again"
        ) from None


def _latest(noted: dict[str, Any]) -> int:
    """The latest format of an index of this kind."""
    return FORMAT if noted.get("words") is None else WITH_WORDS


def check_collection(directory: Path, found: Collection, wanted: Collection | None) -> None:
    """Checks that the store in ``directory`` holds what is wanted; None = anything.

    Raises:
        FingerprintMismatch: it does not.
    """
    if wanted is not None and found != wanted:
        raise FingerprintMismatch(
            f"the index in {directory} was made by model {found.model} ({found.bits} bits, "
            f"{found.dim} values), not by {wanted.model} ({wanted.bits} bits, {wanted.dim} "
            "values); use that model with --model, bring the index to this one with "
            "`precedent reencode --model`, or index into another --data-dir"
        )


def locked(directory: Path) -> FileLock:
    path = directory.with_name(f"{directory.name}.lock")
    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=0)
        # The pid goes in a file of its own: whoever tries the lock truncates the lock file.
        Holder.here().note(path.with_suffix(".pid"))
    except Timeout:
        holder = Holder.noted(path.with_suffix(".pid"))
        raise StoreLocked(
            f"the index in {directory} is open in another process ({holder}); wait for it, "
            "stop it, or ask it over HTTP if it is `precedent serve`"
        ) from None
    except OSError as error:
        lock.release()
        raise StoreError(
            f"{path} cannot be locked ({error.strerror}); give a --data-dir you may write to"
        ) from None
    return lock


def build(directory: Path, collection: Collection, profile: Profile) -> None:
    """Creates the shard in a temporary folder and renames it, so that it is complete or absent."""
    scratch = directory.with_name(f".{directory.name}-building")
    if directory.exists():
        raise StoreError(
            f"{directory} exists and is no index of precedent; name another --data-dir"
        )
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    shard = wrapped(qdrant.EdgeShard.create, str(scratch), edge_config(collection, profile))
    wrapped(shard.close)
    note(scratch, collection, profile)
    scratch.rename(directory)


def note(directory: Path, collection: Collection, profile: Profile) -> None:
    number = FORMAT if collection.words is None else WITH_WORDS
    noted = {"format": number, **collection.noted(), "profile": asdict(profile)}
    write_atomically(directory / COLLECTION, json.dumps(noted).encode())


def edge_config(collection: Collection, profile: Profile) -> qdrant.EdgeConfig:
    graph = qdrant.HnswIndexConfig(
        m=LINKS if profile.graph == "precise" else 0,
        ef_construct=EF_CONSTRUCT,
        full_scan_threshold=FULL_SCAN_KB,
    )
    quantisation = qdrant.ScalarQuantizationConfig(
        qdrant.ScalarType.Int8, quantile=QUANTILE, memory=qdrant.Memory.Pinned
    )
    vectors = {
        VECTOR: qdrant.EdgeVectorParams(
            size=collection.dim,
            # Vectors have unit length, and are stored as they are.
            distance=qdrant.Distance.Dot,
            memory=qdrant.Memory.Cold,
            hnsw_config=graph,
            quantization_config=quantisation if profile.quantised else None,
        )
    }
    if collection.words is not None:
        vectors[WORDS] = qdrant.EdgeVectorParams(
            size=collection.words,
            distance=qdrant.Distance.Dot,
            memory=qdrant.Memory.Cold,
            hnsw_config=qdrant.HnswIndexConfig(
                m=0, ef_construct=EF_CONSTRUCT, full_scan_threshold=FULL_SCAN_KB
            ),
        )
    return qdrant.EdgeConfig(
        vectors=vectors,
        hnsw_config=graph,
        payload_memory=qdrant.Memory.Cold,
        optimizers=qdrant.EdgeOptimizersConfig(default_segment_number=_SEGMENTS),
    )


def format_of(directory: Path) -> int:
    found = json.loads((directory / COLLECTION).read_bytes()).get("format", 1)
    return int(found)


def scrolled(shard: qdrant.EdgeShard) -> Iterator[list[Any]]:
    """All records of a shard with vectors and payload, some at a time."""
    offset: Any = None
    while True:
        request = qdrant.ScrollRequest(
            offset=offset, limit=_READ_AT_ONCE, with_payload=True, with_vector=True
        )
        records, offset = wrapped(shard.scroll, request)
        yield records
        if offset is None:
            return


class _Selecting(Protocol):
    def selected_ids(self, where: Filter) -> NDArray[np.uint8]: ...

    def get(self, ids: Sequence[str], *, with_z: bool = False) -> list[Point]: ...


def scrolled_by_id(store: _Selecting, where: Filter, page: int, *, with_z: bool) -> Iterator[Point]:
    """What ``VectorStore.scroll`` returns, from the ids of the points and then page by page, as
    rows may be others by the time that they are read."""
    if page < 1:
        raise StoreError(f"a page of {page} points never ends; ask for at least one")
    ids = store.selected_ids(where)
    for start in range(0, len(ids), page):
        some = [str(uuid.UUID(bytes=one.tobytes())) for one in ids[start : start + page]]
        yield from store.get(some, with_z=with_z)


def wrapped(call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Calls Qdrant Edge, whose errors are bare Exceptions, and raises StoreError for them."""
    try:
        return call(*args, **kwargs)
    except Exception as error:
        raise StoreError(
            f"the embedded index failed: {error}; if it does not go away, delete the index "
            "folder and index again"
        ) from error
