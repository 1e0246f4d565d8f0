"""The embedded store: Qdrant Edge in this process, on disk, for one process at a time."""

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import qdrant_edge as qdrant
from filelock import FileLock, Timeout

from engine.errors import FingerprintMismatch, StoreError, StoreLocked, StoreNotFound
from engine.files import write_atomically
from engine.records import Point
from engine.store.arrangement import (
    EF,
    EF_CONSTRUCT,
    FULL_SCAN_KB,
    LINKS,
    QUANTILE,
    VECTOR,
    oversampling,
)
from engine.store.base import (
    FORMAT,
    Collection,
    Condition,
    Filter,
    Ids,
    Match,
    Nearest,
    Profile,
    Range,
)
from engine.store.payload import BAND_PREFIX, FieldKind, schema, to_payload
from engine.store.points import checked_vector, not_storable, to_hit, to_point

__all__ = ["EdgeStore", "described"]

_COLLECTION = "collection.json"
_UPSERT_AT_ONCE = 256
_P = ParamSpec("_P")
_T = TypeVar("_T")


class EdgeStore:
    """A store in a folder. Open it with :meth:`open` or :meth:`create`; close it after use.

    The folder is locked until :meth:`close`, or until the process ends in any way.
    """

    def __init__(
        self, directory: Path, collection: Collection, profile: Profile, lock: FileLock
    ) -> None:
        self._shard = _wrapped(qdrant.EdgeShard.load, str(directory))
        self._directory = directory
        self._collection = collection
        self._profile = profile
        self._lock = lock

    @classmethod
    def create(
        cls, directory: Path, collection: Collection, profile: Profile | None = None
    ) -> "EdgeStore":
        """Opens the store in ``directory``; creates it if there is none.

        Args:
            collection: the kind of points that the store must hold.
            profile: profile of a new store; an existing one keeps its own.

        Raises:
            StoreLocked: another process has it open.
            FingerprintMismatch: it holds points of another model.
            StoreError: ``directory`` exists and is not a store, or cannot be read or locked.
        """
        directory.parent.mkdir(parents=True, exist_ok=True)
        lock = _locked(directory)
        try:
            if not (directory / _COLLECTION).is_file():
                _build(directory, collection, profile or Profile())
            return cls._load(directory, collection, lock)
        except BaseException:
            lock.release()
            raise

    @classmethod
    def open(cls, directory: Path, collection: Collection | None = None) -> "EdgeStore":
        """Opens the existing store in ``directory``.

        Args:
            collection: the kind of points that it must hold; None = any.

        Raises:
            StoreNotFound: there is no store.
            StoreLocked, FingerprintMismatch, StoreError: as for :meth:`create`.
        """
        described(directory)
        lock = _locked(directory)
        try:
            return cls._load(directory, collection, lock)
        except BaseException:
            lock.release()
            raise

    @classmethod
    def _load(cls, directory: Path, wanted: Collection | None, lock: FileLock) -> "EdgeStore":
        found, profile = described(directory)
        if wanted is not None and found != wanted:
            raise FingerprintMismatch(
                f"the index in {directory} was made by model {found.model} ({found.bits} bits, "
                f"{found.dim} values), not by {wanted.model} ({wanted.bits} bits, {wanted.dim} "
                "values); use that model with --model, bring the index to this one with "
                "`precedent reencode --model`, or index into another --data-dir"
            )
        return cls(directory, found, profile, lock)

    @property
    def collection(self) -> Collection:
        return self._collection

    @property
    def profile(self) -> Profile:
        return self._profile

    def arrange(self, profile: Profile) -> None:
        """Changes the profile and rebuilds; no other thread may use the store meanwhile."""
        self.flush()
        _wrapped(self._shard.close)
        config = _config(self._collection, profile)
        self._shard = _wrapped(qdrant.EdgeShard.load, str(self._directory), config)
        _note(self._directory, self._collection, profile)
        self._profile = profile
        self.optimise()

    def upsert(self, points: Sequence[Point]) -> None:
        for start in range(0, len(points), _UPSERT_AT_ONCE):
            chunk = [self._to_edge(point) for point in points[start : start + _UPSERT_AT_ONCE]]
            self._update(qdrant.UpdateOperation.upsert_points(chunk))

    def flush(self) -> None:
        _wrapped(self._shard.flush)

    def optimise(self) -> None:
        _wrapped(self._shard.optimize)

    def query(self, asked: Sequence[Nearest]) -> list[list[Point]]:
        requests = [
            qdrant.QueryRequest(
                limit=one.limit,
                query=qdrant.Query.Nearest(one.z.tolist(), using=VECTOR),
                filter=_translated(one.where),
                params=self._search(one.limit, one.exact),
                with_payload=True,
            )
            for one in asked
        ]
        answers = _wrapped(self._shard.query_batch, qdrant.QueryBatchRequest(requests))
        return [[to_hit(found) for found in answer] for answer in answers]

    def _search(self, limit: int, exact: bool) -> qdrant.SearchParams:
        if exact:
            quantised = qdrant.QuantizationSearchParams(ignore=True)
            return qdrant.SearchParams(exact=True, quantization=quantised)
        quantised = qdrant.QuantizationSearchParams(rescore=True, oversampling=oversampling(limit))
        return qdrant.SearchParams(
            hnsw_ef=EF, quantization=quantised if self._profile.quantised else None
        )

    def count(self, where: Filter, *, exact: bool = True) -> int:
        request = qdrant.CountRequest(exact=exact, filter=_translated(where))
        return _wrapped(self._shard.count, request)

    def facet(self, field: str, where: Filter, limit: int) -> dict[str, int]:
        passing = _translated(where)
        # Without a filter, the payload index has the counts.
        request = qdrant.FacetRequest(field, limit=limit, exact=passing is not None, filter=passing)
        # Values of deleted points are listed with a count of 0.
        hits = [(str(h.value), h.count) for h in _wrapped(self._shard.facet, request) if h.count]
        return dict(sorted(hits, key=lambda hit: (-hit[1], hit[0])))

    def get(self, ids: Sequence[str], *, with_z: bool = False) -> list[Point]:
        records = _wrapped(
            self._shard.retrieve, _known_ids(ids), with_payload=True, with_vector=with_z
        )
        found = {str(record.id): to_point(record) for record in records}
        return [found[i] for i in ids if i in found]

    def scroll(self, where: Filter, *, page: int = 1000, with_z: bool = False) -> Iterator[Point]:
        if page < 1:
            raise StoreError(f"a page of {page} points never ends; ask for at least one")
        offset: Any = None
        while True:
            request = qdrant.ScrollRequest(
                offset=offset,
                limit=page,
                filter=_translated(where),
                with_payload=True,
                with_vector=with_z,
            )
            records, offset = _wrapped(self._shard.scroll, request)
            yield from map(to_point, records)
            if offset is None:
                return

    def delete(self, where: Filter) -> int:
        count = self.count(where)
        edge_filter = _translated(where) or qdrant.Filter()
        self._update(qdrant.UpdateOperation.delete_points_by_filter(edge_filter))
        return count

    def close(self) -> None:
        _wrapped(self._shard.close)
        self._lock.release()

    def __enter__(self) -> "EdgeStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _update(self, operation: qdrant.UpdateOperation) -> None:
        _wrapped(self._shard.update, operation)

    def _to_edge(self, point: Point) -> qdrant.Point:
        z = checked_vector(point, self._collection)
        try:
            payload = to_payload(point, self._collection.model)
            return qdrant.Point(uuid.UUID(point.id), {VECTOR: z.tolist()}, payload)
        except (ValueError, TypeError) as error:
            raise not_storable(point, error) from None


def described(directory: Path) -> tuple[Collection, Profile]:
    """The kind of points and the profile of the store in ``directory``; needs no lock.

    Raises:
        StoreNotFound: there is no store.
        StoreError: its description cannot be read.
    """
    try:
        noted = json.loads((directory / _COLLECTION).read_bytes())
        profile = Profile(**noted.pop("profile", {}))
        return Collection.from_noted(noted, f"the index in {directory}"), profile
    except FileNotFoundError:
        raise StoreNotFound(
            f"no index in {directory}; make one with `precedent index PATH…`, or name "
            "another place with --data-dir"
        ) from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise StoreError(
            f"{directory / _COLLECTION} cannot be read ({error}); restore it, or delete "
            f"{directory} and index again"
        ) from None


def _locked(directory: Path) -> FileLock:
    path = directory.with_name(f"{directory.name}.lock")
    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=0)
        # The pid goes in a file of its own: whoever tries the lock truncates the lock file.
        write_atomically(path.with_suffix(".pid"), f"{os.getpid()}\n".encode())
    except Timeout:
        holder = path.with_suffix(".pid")
        pid = holder.read_text().strip() if holder.is_file() else "unknown"
        raise StoreLocked(
            f"the index in {directory} is open in another process (pid {pid}); wait for it, "
            "stop it, or ask it over HTTP if it is `precedent serve`"
        ) from None
    except OSError as error:
        lock.release()
        raise StoreError(
            f"{path} cannot be locked ({error.strerror}); give a --data-dir you may write to"
        ) from None
    return lock


def _build(directory: Path, collection: Collection, profile: Profile) -> None:
    """Creates the shard in a temporary folder and renames it, so that it is complete or absent."""
    scratch = directory.with_name(f".{directory.name}-building")
    if directory.exists():
        raise StoreError(
            f"{directory} exists and is no index of precedent; name another --data-dir"
        )
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    shard = _wrapped(qdrant.EdgeShard.create, str(scratch), _config(collection, profile))
    for name, kind in schema(collection.bits).items():
        operation = qdrant.UpdateOperation.create_field_index(name, _INDEX[kind]())
        _wrapped(shard.update, operation)
    _wrapped(shard.close)
    _note(scratch, collection, profile)
    scratch.rename(directory)


def _note(directory: Path, collection: Collection, profile: Profile) -> None:
    noted = {"format": FORMAT, **collection.noted(), "profile": asdict(profile)}
    write_atomically(directory / _COLLECTION, json.dumps(noted).encode())


def _config(collection: Collection, profile: Profile) -> qdrant.EdgeConfig:
    graph = qdrant.HnswIndexConfig(
        m=LINKS if profile.graph == "precise" else 0,
        ef_construct=EF_CONSTRUCT,
        full_scan_threshold=FULL_SCAN_KB,
    )
    quantisation = qdrant.ScalarQuantizationConfig(
        qdrant.ScalarType.Int8, quantile=QUANTILE, memory=qdrant.Memory.Pinned
    )
    return qdrant.EdgeConfig(
        vectors={
            VECTOR: qdrant.EdgeVectorParams(
                size=collection.dim,
                distance=qdrant.Distance.Cosine,
                datatype=qdrant.VectorStorageDatatype.Float16,
                memory=qdrant.Memory.Cold,
                hnsw_config=graph,
                quantization_config=quantisation if profile.quantised else None,
            )
        },
        hnsw_config=graph,
        payload_memory=qdrant.Memory.Cold,
    )


_INDEX: dict[FieldKind, Callable[[], Any]] = {
    FieldKind.TENANT: lambda: qdrant.KeywordIndexParams(is_tenant=True, enable_hnsw=False),
    FieldKind.KEYWORD: lambda: qdrant.KeywordIndexParams(enable_hnsw=False),
    FieldKind.INTEGER: lambda: qdrant.IntegerIndexParams(
        lookup=True, range=True, enable_hnsw=False
    ),
    FieldKind.BOOL: lambda: qdrant.BoolIndexParams(enable_hnsw=False),
    FieldKind.LOOKUP: lambda: qdrant.IntegerIndexParams(
        lookup=True, range=False, enable_hnsw=False
    ),
}


def _translated(where: Filter) -> qdrant.Filter | None:
    """The filter as Qdrant's, None = all points. Raises StoreError: it cannot be expressed."""
    try:
        return _to_filter(where)
    except (TypeError, ValueError, OverflowError) as error:
        raise StoreError(
            f"the index cannot be asked for this ({error}): numbers have at most 64 bits, ids "
            "are UUIDs, and texts valid Unicode"
        ) from None


def _to_filter(where: Filter) -> qdrant.Filter | None:
    must: list[Any] = [_to_condition(condition) for condition in where.must]
    must_not: list[Any] = [_to_condition(condition) for condition in where.must_not]
    # At the top level, Qdrant iterates over the matches; in a nested filter it would check them
    # a second time.
    near: list[Any] = [
        qdrant.FieldCondition(f"{BAND_PREFIX}{j}", match=qdrant.MatchAny(list(values)))
        for j, values in enumerate(where.bands)
    ]
    if not must and not must_not and not near:
        return None
    return qdrant.Filter(must=must or None, must_not=must_not or None, should=near or None)


def _to_condition(condition: Condition) -> Any:
    match condition:
        case Ids(values):
            return qdrant.HasIdCondition({uuid.UUID(value) for value in values})
        case Range(field, low, high):
            return qdrant.FieldCondition(field, range=qdrant.RangeFloat(gte=low, lte=high))
        case Match(_, ()):
            return qdrant.HasIdCondition(set())
        case Match(field, values) if all(isinstance(value, bool) for value in values):
            # The binding takes a Python bool for an int, which would match nothing.
            options = [qdrant.MatchValue(np.bool_(value)) for value in values]  # type: ignore[arg-type]
            return qdrant.Filter(
                should=[qdrant.FieldCondition(field, match=option) for option in options]
            )
        case Match(field, values):
            return qdrant.FieldCondition(field, match=qdrant.MatchAny(list(values)))  # type: ignore[arg-type]


def _known_ids(ids: Sequence[str]) -> list[int | uuid.UUID | str]:
    """The ids that are UUIDs, as all ids of points are; others are skipped."""
    parsed: list[int | uuid.UUID | str] = []
    for text in ids:
        with contextlib.suppress(ValueError):
            parsed.append(uuid.UUID(text))
    return parsed


def _wrapped(call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Calls Qdrant Edge, whose errors are bare Exceptions, and raises StoreError for them."""
    try:
        return call(*args, **kwargs)
    except Exception as error:
        raise StoreError(
            f"the embedded index failed: {error}; if it does not go away, delete the index "
            "folder and index again"
        ) from error
