"""The embedded store: Qdrant Edge in this process, on disk, for one process at a time.

The shard of Qdrant Edge is the truth: it holds every point with its vector and, as payload, its
code, its tenant and its record as one text (text_record.py). Searches read the columns that are
derived from it (columns.py), and the graph of the shard where the profile has one.
"""

import logging
import os
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, partial
from math import inf
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import qdrant_edge as qdrant
from filelock import FileLock
from numpy.typing import NDArray

from engine.codes import from_hex, to_hex
from engine.errors import StoreError
from engine.files import write_atomically
from engine.records import Point
from engine.store.arrangement import (
    EF,
    VECTOR,
    WORDS,
    oversampling,
)
from engine.store.base import Collection, Filter, Ids, Nearest, Profile
from engine.store.cells import Cells
from engine.store.columns import Columns, Outdated, written
from engine.store.counts import Facets
from engine.store.edge_conversion import convert
from engine.store.edge_copy import CopiedFile, copied, holding
from engine.store.edge_exchange import REWRITTEN, beside, exchange, in_exchange, recover
from engine.store.edge_layout import (
    COLLECTION,
    COLUMNS,
    EPOCH,
    FORMAT,
    build,
    check_collection,
    described,
    edge_config,
    format_of,
    locked,
    note,
    scrolled,
    scrolled_by_id,
    wrapped,
)
from engine.store.edge_rewriting import copy_points
from engine.store.points import storable
from engine.store.rows import View
from engine.store.text_record import from_text

__all__ = ["EdgeStore"]

logger = logging.getLogger(__name__)

_UPSERT_AT_ONCE, _UPSERT_BESIDE_SEARCHES = 256, 16
"""Points in one call of Qdrant Edge, which keeps all other threads waiting meanwhile."""
_SEARCHED_LATELY = 5.0
"""Seconds after a search for which the next one is reckoned with."""
_DELETE_AT_ONCE = 256
_READ_AT_ONCE = 1000
_FEW_LEFT_OUT = 64
"""Points that the graph is asked for in addition, when as many are left out of what it finds."""
_FILTERED_BY_ID = 10_000
"""Points that the shard is told by their ids when it compares the second vector. Where more pass a
filter, it compares all."""
_OPTIMISED_HERE = 2_000
"""A shard of up to so many points is optimised in this process: sooner done than another one is
started."""
_LEAST_ADDED, _ADDED_SHARE = 1_000, 0.02
"""A larger one is optimised when more points than this, and than this share, were added."""
_OPTIMISER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[2]):
    sys.exit("the process that started it has ended")
import qdrant_edge
shard = qdrant_edge.EdgeShard.load(sys.argv[1])
shard.optimize()
shard.close()
"""
"""A program that ends with the process that started it (PR_SET_PDEATHSIG)."""
_T = TypeVar("_T")


class EdgeStore:
    """A store in a folder. Open it with :meth:`open` or :meth:`create`; close it after use.

    The folder is locked until :meth:`close`, or until the process ends in any way.
    """

    def __init__(
        self, directory: Path, collection: Collection, profile: Profile, lock: FileLock
    ) -> None:
        self._directory = directory
        self._collection = collection
        self._profile = profile
        self._lock = lock
        # Opened when it is needed: a search without a graph does not.
        self._shard: qdrant.EdgeShard | None = None
        self._is_closed = False
        self._is_in_doubt = False
        self._searched_at = -inf
        # Held by whoever writes, optimises or asks the shard; searches of columns need it not.
        self._writing = threading.RLock()
        try:
            self._columns = self._opened_columns()
        except BaseException:
            if self._shard is not None:
                wrapped(self._shard.close)
            raise

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
        lock = locked(directory)
        try:
            recover(directory)
            if not (directory / COLLECTION).is_file():
                build(directory, collection, profile or Profile())
            return cls._load(directory, collection, lock)
        except BaseException:
            lock.release()
            raise

    @classmethod
    def open(cls, directory: Path, collection: Collection | None = None) -> "EdgeStore":
        """Opens the existing store in ``directory``.

        A store of an earlier format is converted, which may take some time.

        Args:
            collection: the kind of points that it must hold; None = any.

        Raises:
            StoreNotFound: there is no store.
            StoreLocked, FingerprintMismatch, StoreError: as for :meth:`create`.
        """
        if not in_exchange(directory):
            described(directory)
        lock = locked(directory)
        try:
            recover(directory)
            return cls._load(directory, collection, lock)
        except BaseException:
            lock.release()
            raise

    @classmethod
    def _load(cls, directory: Path, wanted: Collection | None, lock: FileLock) -> "EdgeStore":
        found, profile = described(directory)
        check_collection(directory, found, wanted)
        if format_of(directory) < FORMAT:
            convert(directory, partial(_fill, found, profile))
        return cls(directory, found, profile, lock)

    @property
    def collection(self) -> Collection:
        return self._collection

    @property
    def profile(self) -> Profile:
        return self._profile

    @property
    def cells(self) -> Cells | None:
        return self._view.cells

    @property
    def counts_at_once(self) -> bool:
        return True

    @property
    def senders(self) -> None:
        return None

    def approximates(self, where: Filter) -> bool:
        return self._left_out(self._view, where) is not None

    def _left_out(self, view: View, where: Filter) -> tuple[str, ...] | None:
        """The few points that the filter leaves out of those that the graph finds; None = there is
        no graph, or more is asked for than that."""
        return _left_out(view.binding(where)) if self._profile.graph == "precise" else None

    @property
    def _view(self) -> View:
        return self._columns.view

    def arrange(self, profile: Profile) -> None:
        """Changes the profile and rebuilds; searches go on meanwhile, without the graph."""
        with self._writing:
            self.flush()
            with self._shard_closed():
                # The shard keeps the configuration with which it is opened.
                config = edge_config(self._collection, profile)
                shard = wrapped(qdrant.EdgeShard.load, str(self._directory), config)
                wrapped(shard.close)
                note(self._directory, self._collection, profile)
                self._profile = profile
            self._columns.settled = 0
            self._optimise()
            self._columns = self._columns.arranged(anew=True)

    @contextmanager
    def _shard_closed(self) -> Iterator[None]:
        """A block during which the shard is closed, for one that holds the lock; searches go on."""
        shard, self._shard = self._open_shard, None
        wrapped(shard.close)
        yield

    def __len__(self) -> int:
        return self._view.count(Filter())

    def upsert(self, points: Sequence[Point]) -> None:
        start = 0
        while start < len(points):
            end = start + self._upserted_at_once()
            self._upsert(points[start:end])
            start = end

    def _upserted_at_once(self) -> int:
        searched = time.monotonic() - self._searched_at < _SEARCHED_LATELY
        return _UPSERT_BESIDE_SEARCHES if searched else _UPSERT_AT_ONCE

    def _upsert(self, points: Sequence[Point]) -> None:
        checked = [storable(point, self._collection) for point in points]
        ids, texts = zip(*checked, strict=True)
        made = [_to_edge(*one) for one in zip(points, ids, texts, strict=True)]
        encoded = [text.encode() for text in texts]
        with self._writing:
            self._make_sure()
            self._columns.reserve(encoded)
            with self._noted(ids):
                self._update(qdrant.UpdateOperation.upsert_points(made))
                self._columns.append(points, ids, encoded)

    @contextmanager
    def _noted(self, ids: Sequence[uuid.UUID]) -> Iterator[None]:
        """A block that writes these points. If it fails, the columns may differ from the shard."""
        self._columns.note(ids)
        self._is_in_doubt = True
        yield
        self._is_in_doubt = False

    def _make_sure(self) -> None:
        """Reads from the shard what a write that failed may have left, and that it is open."""
        _ = self._open_shard
        if self._is_in_doubt:
            try:
                self._bring_up_to_date(self._columns)
            except Outdated:
                before = self._columns
                self._columns = self._derived(self._directory / COLUMNS)
                before.close()
            self._is_in_doubt = False

    def flush(self) -> None:
        with self._writing:
            if self._columns.is_written_to:
                self._make_sure()
                wrapped(self._open_shard.flush)
                self._sync(self._columns)

    def _sync(self, columns: Columns) -> None:
        """Makes columns durable that fit the shard, which is so already."""
        columns.epoch = uuid.uuid4().hex
        with written(self._directory):
            write_atomically(self._directory / EPOCH, columns.epoch.encode())
        columns.sync()

    def optimise(self) -> None:
        """Lets the shard optimise its segments, in another process, and sorts the columns anew when
        enough has changed. Searches go on meanwhile, writes wait."""
        with self._writing:
            self._optimise()
            if self._columns.should_be_arranged():
                self.flush()
                self._columns = self._columns.arranged()

    def rewrite(self, *, new_cells: bool = False) -> int:
        """Writes shard and columns anew, of the points that are there, so that no file has anything
        of those that were deleted; returns how many points there are.

        Searches go on meanwhile, writes wait. After a kill the store is the one of before or the
        new one. It takes as much of the disk again as the index has, until the old files are gone.

        Args:
            new_cells: make the cells anew. False = only if one of them has no point any more, whose
                centroid would tell of those that went.

        Raises:
            StoreError: the copy is not what it should be; nothing was replaced.
        """
        with self._writing:
            self._make_sure()
            self.flush()
            made = beside(self._directory, REWRITTEN)
            shutil.rmtree(made, ignore_errors=True)
            build(made, self._collection, self._profile)
            target = wrapped(qdrant.EdgeShard.load, str(made))
            try:
                points = copy_points(self._open_shard, target, self._upserted_at_once)
                if points <= _OPTIMISED_HERE:
                    wrapped(target.optimize)
            finally:
                wrapped(target.close)
            if points != len(self):
                raise StoreError(
                    f"the index in {self._directory} has {points:,} points and its columns "
                    f"{len(self):,}; nothing was replaced, and `precedent doctor` says more"
                )
            if points > _OPTIMISED_HERE:
                # Qdrant Edge holds Python's lock until it is done, which may take minutes.
                _optimise_elsewhere(made)
            self._columns.compacted(made / COLUMNS, new_cells=new_cells)
            with written(made):
                write_atomically(made / EPOCH, self._columns.epoch.encode())
            with self._shard_closed(), written(self._directory):
                exchange(self._directory, made)
            before = self._columns
            self._columns = Columns(self._directory / COLUMNS, self._collection)
            before.close()
            return points

    def _optimise(self) -> None:
        points = len(self)
        added = self._view.rows - self._columns.settled
        if points <= _OPTIMISED_HERE:
            wrapped(self._open_shard.optimize)
        elif added > max(_LEAST_ADDED, _ADDED_SHARE * points):
            # Qdrant Edge holds Python's lock until it is done, which may take minutes.
            self.flush()
            with self._shard_closed():
                _optimise_elsewhere(self._directory)
            self._columns.settled = self._view.rows
            self._columns.sync()

    @property
    def _open_shard(self) -> qdrant.EdgeShard:
        """The shard, for one that holds the lock."""
        if self._is_closed:
            raise self._closed()
        if self._shard is None:
            self._shard = wrapped(qdrant.EdgeShard.load, str(self._directory))
        return self._shard

    def query(self, asked: Sequence[Nearest]) -> list[list[Point]]:
        self._searched_at = time.monotonic()
        _compare_in_the_calling_thread()
        return [self._asked(partial(self._nearest, asked=one)) for one in asked]

    def _asked(self, question: Callable[[View], _T]) -> _T:
        """The answer of a view; of a later one where what the first one held was erased."""
        if self._is_closed:
            raise self._closed()
        while True:
            view = self._view
            try:
                answer = question(view)
            except Exception:
                if not view.is_erased:
                    raise
            else:
                if not view.is_erased:
                    return answer

    def _closed(self) -> StoreError:
        return StoreError(f"the index in {self._directory} is closed")

    def _nearest(self, view: View, asked: Nearest) -> list[Point]:
        if asked.vector == "words":
            return self._by_words(asked)
        left_out = None if asked.exact else self._left_out(view, asked.where)
        if left_out is not None:
            found = self._by_graph(view, asked, left_out)
            if found is not None:
                return found
        return view.nearest(asked.z, asked.where, asked.limit)

    def _by_graph(self, view: View, asked: Nearest, left_out: Sequence[str]) -> list[Point] | None:
        """The points that the graph finds; None = somebody writes, or optimises the shard."""
        quantised = qdrant.QuantizationSearchParams(
            rescore=True, oversampling=oversampling(asked.limit)
        )
        limit = asked.limit + len(left_out)
        request = qdrant.QueryRequest(
            limit=limit,
            query=qdrant.Query.Nearest(asked.z.tolist(), using=VECTOR),
            params=qdrant.SearchParams(
                hnsw_ef=max(EF, limit),
                quantization=quantised if self._profile.quantised else None,
            ),
        )
        if not self._writing.acquire(blocking=False):
            return None
        try:
            found = wrapped(self._open_shard.query, request)
        finally:
            self._writing.release()
        ids = [str(one.id) for one in found]
        rows = view.find([one for one in ids if one not in left_out])
        return view.best_of(asked.z, rows[rows >= 0], asked.limit)

    def _by_words(self, asked: Nearest) -> list[Point]:
        """The points whose second vector is nearest. It is in the shard alone, which is asked for
        it: so a search waits while the shard is written to, or optimised."""
        if self._collection.words is None or len(asked.z) != self._collection.words:
            raise StoreError(
                f"the query has {len(asked.z)} values for a search by words, the index in "
                f"{self._directory} has {self._collection.words or 'no'}; bring it to a model that "
                "knows words with `precedent reencode --model`"
            )
        with self._writing:
            self._make_sure()
            view = self._view
            rows = view.selected(asked.where)
            wanted = min(asked.limit, len(rows))
            found: list[Any] = []
            if 0 < len(rows) <= _FILTERED_BY_ID:
                only = {uuid.UUID(view.id(int(row))) for row in rows}
                found = self._nearest_by_words(asked.z, wanted, only)
            elif wanted:
                # Of all points so many more, until enough of them pass.
                selected = np.zeros(view.rows, bool)
                selected[rows] = True
                everything = view.count(Filter())
                limit = wanted * -(-everything // len(rows))
                while True:
                    every = self._nearest_by_words(asked.z, min(limit, everything))
                    at = view.find([str(one.id) for one in every])
                    found = [one for one, row in zip(every, at, strict=True) if selected[row]]
                    if len(found) >= wanted or limit >= everything:
                        break
                    limit *= 4
            scores = {_plain(str(one.id)): min(1.0, max(-1.0, float(one.score))) for one in found}
            best = sorted(scores, key=lambda one: (-scores[one], one))[:wanted]
            return [
                view.point(int(row), with_z=asked.with_z, score=scores[one])
                for one, row in zip(best, view.find(best), strict=True)
            ]

    def _nearest_by_words(
        self, words: NDArray[np.float32], limit: int, only: set[uuid.UUID] | None = None
    ) -> list[Any]:
        ids: set[Any] | None = None if only is None else {*only}
        where = None if ids is None else qdrant.Filter(must=[qdrant.HasIdCondition(ids)])
        request = qdrant.QueryRequest(
            limit=limit,
            query=qdrant.Query.Nearest(words.tolist(), using=WORDS),
            filter=where,
            params=qdrant.SearchParams(exact=True),
        )
        return wrapped(self._open_shard.query, request)

    def count(self, where: Filter, *, exact: bool = True) -> int:  # noqa: ARG002
        return self._asked(lambda view: view.count(where))

    def facets(self, fields: Sequence[str], where: Filter, limit: int) -> Facets:
        return self._asked(lambda view: view.facets(fields, where, limit))

    def get(self, ids: Sequence[str], *, with_z: bool = False) -> list[Point]:
        known = _known_ids(ids)
        return self._asked(
            lambda view: [
                view.point(int(row), with_z=with_z) for row in view.find(known) if row >= 0
            ]
        )

    def scroll(self, where: Filter, *, page: int = 1000, with_z: bool = False) -> Iterator[Point]:
        return scrolled_by_id(self, where, page, with_z=with_z)

    def selected_ids(self, where: Filter) -> NDArray[np.uint8]:
        """The ids of the points that take part, in order: uint8 (N, 16)."""
        return self._asked(lambda view: view.ids[view.sorted_by_id(view.selected(where))])

    def delete(self, where: Filter) -> int:
        with self._writing:
            self._make_sure()
            view = self._view
            rows = view.selected(where)
            ids = [view.id(int(row)) for row in rows]
            for start in range(0, len(ids), _DELETE_AT_ONCE):
                some = ids[start : start + _DELETE_AT_ONCE]
                gone = [uuid.UUID(one) for one in some]
                with self._noted(gone):
                    self._update(qdrant.UpdateOperation.delete_points([*gone]))
                    self._columns.remove(rows[start : start + _DELETE_AT_ONCE])
        return len(ids)

    def copy_to(
        self, folder: Path, known: Mapping[str, tuple[int, str]], lock: Path
    ) -> tuple[int, list[CopiedFile]]:
        """Copies the files of the store as of one moment; returns how many points it has, and its
        files. Searches go on meanwhile, writes wait.

        Args:
            folder, known: as for ``edge_copy.copied``.
            lock: a file that whoever asks holds locked; once nobody does, the copying ends.

        Raises:
            StoreError: files cannot be read or written, or nobody wants them any more.
        """
        with self._writing:
            self._make_sure()
            self.flush()
            with self._shard_closed():
                return len(self), copied(self._directory, folder, known, holding(lock))

    def close(self) -> None:
        with self._writing:
            try:
                if not self._is_closed:
                    self.flush()
            finally:
                if not self._is_closed:
                    self._is_closed = True
                    self._columns.close()
                    if self._shard is not None:
                        wrapped(self._shard.close)
                self._lock.release()

    def __enter__(self) -> "EdgeStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _update(self, operation: qdrant.UpdateOperation) -> None:
        wrapped(self._open_shard.update, operation)

    # Columns

    def _opened_columns(self) -> Columns:
        folder = self._directory / COLUMNS
        try:
            with ExitStack() as opened:
                columns = Columns(folder, self._collection)
                opened.callback(columns.close)
                self._bring_up_to_date(columns)
                opened.pop_all()
        except Outdated as why:
            if folder.exists():
                logger.info("the columns of %s are made again: %s", self._directory, why)
            return self._derived(folder)
        return columns

    def _bring_up_to_date(self, columns: Columns) -> None:
        """Reads what an earlier process may have written to the shard alone.

        Raises:
            Outdated: that is not enough.
        """
        ids = columns.pending()
        if ids is None:
            epoch = self._directory / EPOCH
            if not epoch.is_file() or epoch.read_text() != columns.epoch:
                raise Outdated("they are of another time")
            return
        for start in range(0, len(ids), _READ_AT_ONCE):
            some = ids[start : start + _READ_AT_ONCE]
            rows = columns.view.find(some)
            columns.remove(rows[rows >= 0])
            columns.append(*_to_points(self._stored(some)))
        count = wrapped(self._open_shard.count, qdrant.CountRequest(exact=True))
        if columns.view.count(Filter()) != count:
            raise Outdated("they have another number of points")
        columns.erase_gone()
        self._sync(columns)

    def _derived(self, folder: Path) -> Columns:
        """The columns made from the shard."""
        columns = Columns.empty(folder, self._collection)
        for records in scrolled(self._open_shard):
            columns.append(*_to_points(records))
        self._sync(columns)
        return columns.arranged() if columns.should_be_arranged() else columns

    def _stored(self, ids: Sequence[str]) -> list[Any]:
        asked: list[Any] = [uuid.UUID(one) for one in ids]
        return wrapped(self._open_shard.retrieve, asked, with_payload=True, with_vector=True)


def _fill(
    collection: Collection, profile: Profile, directory: Path, points: Iterator[list[Point]]
) -> None:
    """Makes a store in ``directory``, of these points."""
    build(directory, collection, profile)
    lock = FileLock(directory.with_suffix(".lock"), thread_local=False)
    with lock, EdgeStore(directory, collection, profile, lock) as store:
        for some in points:
            store.upsert(some)
        store.optimise()
    Path(lock.lock_file).unlink(missing_ok=True)


@cache
def _compare_in_the_calling_thread() -> None:
    """For the whole process: to share a few thousand dot products among threads takes longer than
    to compute them, many times longer where other work keeps the cores busy."""
    from threadpoolctl import threadpool_limits  # only searches need it

    threadpool_limits(limits=1, user_api="blas")


def _left_out(where: Filter) -> tuple[str, ...] | None:
    """The few points that the filter leaves out; None = it asks for more than that, which the graph
    knows nothing of."""
    others = [one for one in where.must_not if not isinstance(one, Ids)]
    if where.must or where.coarse is not None or others:
        return None
    ids = [_plain(i) for one in where.must_not if isinstance(one, Ids) for i in one.values]
    return tuple(ids) if len(ids) <= _FEW_LEFT_OUT else None


def _to_edge(point: Point, point_id: uuid.UUID, text: str) -> qdrant.Point:
    """A point with z as the shard takes it. text: its record."""
    payload = {"code": to_hex(point.code), "tenant": point.record.tenant, "record": text}
    vectors = {VECTOR: [] if point.z is None else point.z.tolist()}
    if point.words is not None:
        vectors[WORDS] = point.words.tolist()
    return qdrant.Point(point_id, {**vectors}, payload)


def _to_points(records: Sequence[Any]) -> tuple[list[Point], list[uuid.UUID], list[bytes]]:
    """Records of the shard as points with z, with their ids and their records as text."""
    points, ids, texts = [], [], []
    for record in records:
        payload = record.payload
        z = np.asarray(record.vector[VECTOR], np.float32)
        code = from_hex(payload["code"])
        points.append(from_text(str(record.id), payload["record"], code, z=z))
        ids.append(uuid.UUID(str(record.id)))
        texts.append(payload["record"].encode())
    return points, ids, texts


def _plain(point_id: str) -> str:
    return str(uuid.UUID(point_id))


def _optimise_elsewhere(directory: Path) -> None:
    ended = subprocess.run(  # noqa: S603
        [sys.executable, "-c", _OPTIMISER, str(directory), str(os.getpid())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
    )
    if ended.returncode:
        said = ended.stderr.decode(errors="replace").strip().splitlines()
        raise StoreError(
            f"the index in {directory} could not be optimised ({said[-1] if said else 'killed'}); "
            "nothing is lost, and the next command that writes tries again"
        )


def _known_ids(ids: Sequence[str]) -> list[str]:
    """The ids that are UUIDs, as all ids of points are; others are skipped."""
    known: list[str] = []
    for text in ids:
        with suppress(ValueError):
            known.append(_plain(text))
    return known
