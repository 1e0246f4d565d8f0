"""The rows of an embedded index as a search sees them: filtered, counted, compared."""

import hashlib
import os
import uuid
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.errors import StoreError
from engine.records import ImageRecord, Point
from engine.store.base import Coarse, Condition, Filter, Ids, Match, Part
from engine.store.cells import Cells
from engine.store.combinations import COMBINED, Combinations
from engine.store.counts import Facets
from engine.store.text_record import from_text

__all__ = ["KEYS", "Erasure", "IdLookup", "TextReader", "View", "keys_of"]

KEYS = ("study", "series", "sop", "patient")
"""Fields with about as many values as there are studies or images; a row has a hash of each."""

_Rows = NDArray[np.int64]
_LEAST_TAIL = 4096
_ROWS_AT_ONCE = 65_536
_FEW_KEYS = 16
"""Up to so many, comparing with one after another is quicker than looking all up."""
_ROUNDING = 4e-6
"""Most by which the fast similarities of two equal vectors differ."""


class Erasure:
    """Tells how far what is gone was erased: ``moment`` is the latest moment whose rows may be."""

    def __init__(self) -> None:
        self.moment = 0


def keys_of(record: ImageRecord) -> list[int]:
    """The 64-bit hashes of the record's :data:`KEYS`; 0 = it has no value."""
    return [_key(getattr(record, name)) for name in KEYS]


@lru_cache(maxsize=65_536)
def _key(text: str | None) -> int:
    if text is None:
        return 0
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1


class IdLookup:
    """Finds rows by the ids of their points, which are 16 random bytes each."""

    def __init__(self, ids: NDArray[np.uint8], rows: _Rows) -> None:
        """ids: uint8 (N, 16). rows: those to find, no two with the same id."""
        hashes = _hashes(ids[rows])
        order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[order]
        self._rows = rows[order].astype(np.uint32)
        # The rows of an id, the latest first: views of before know the earlier ones only.
        self._added: dict[bytes, tuple[int, ...]] = {}
        self._rows_added = 0

    def with_rows(
        self, ids: NDArray[np.uint8], gone: NDArray[np.uint32], start: int, end: int
    ) -> "IdLookup":
        """One that finds the rows from ``start`` to ``end`` as well; may be this one."""
        self._rows_added += end - start
        if self._rows_added > max(_LEAST_TAIL, len(self._rows) // 4):
            return IdLookup(ids, np.flatnonzero(gone[:end] == 0))
        packed = ids[start:end].tobytes()
        for at in range(end - start):
            one = packed[16 * at : 16 * at + 16]
            self._added[one] = (start + at, *self._added.get(one, ()))
        return self

    def find(self, wanted: NDArray[np.uint8], ids: NDArray[np.uint8], rows: int) -> _Rows:
        """The latest row of each id, -1 = there is none: uint8 (K, 16) → int64 (K,).

        Args:
            ids: of all rows.
            rows: only the first so many are looked at.
        """
        found = np.full(len(wanted), -1, np.int64)
        if len(self._rows):
            hashes = _hashes(wanted)
            at = np.searchsorted(self._hashes, hashes)
            open_ = at < len(self._hashes)
            # Two ids may have the same hash.
            while open_.any():
                which = np.flatnonzero(open_)
                same = self._hashes[at[which]] == hashes[which]
                there = self._rows[at[which]].astype(np.int64)
                equal = same & (there < rows) & (ids[there] == wanted[which]).all(axis=1)
                found[which[equal]] = there[equal]
                at[which] += 1
                open_[which] = same & ~equal & (at[which] < len(self._hashes))
        if self._added:
            packed = wanted.tobytes()
            for i in range(len(wanted)):
                for row in self._added.get(packed[16 * i : 16 * i + 16], ()):
                    if row < rows:
                        found[i] = row
                        break
        return found


def _hashes(ids: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """A number for each id, other ids having other ones nearly always: (N, 16) → (N,)."""
    first, second = _halves(ids)
    return first ^ second * np.uint64(0x9E3779B97F4A7C15)


def _halves(ids: NDArray[np.uint8]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The ids as two numbers each, which sort as the ids do: (N, 16) → twice (N,)."""
    halves = np.ascontiguousarray(ids).reshape(-1, 16).view(">u8").astype(np.uint64)
    return halves[:, 0], halves[:, 1]


class TextReader:
    """Reads parts of a file as long as somebody has this object, whatever became of the file.

    It is not mapped: a page of it for every hit would soon be most of it in memory.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    def read(self, start: int, end: int) -> bytes:
        return os.pread(self._file, end - start, start)


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """What the index held at one moment. Rows from ``rows`` on are not part of it.

    z: float32 (N, D). ids: uint8 (N, 16). codes: uint8 (N, B/8). cell, combination: uint32 (N,).
    study, series, sop, patient: uint64 (N,), see :func:`keys_of`. gone: uint32 (N,), the moment at
    which the row's point was replaced or deleted, 0 = it was not; rows that are gone later than
    ``moment`` are still part of the view. ends: uint64 (N,), where in ``texts`` the row's text
    ends. ordered: the first so many rows are sorted by cell. starts: int64 (C + 1,), the first
    row of each cell among those. combined: number of ``combinations`` in use. counts: int64 (T or
    more,), how many points have each.
    """

    z: NDArray[np.float32]
    ids: NDArray[np.uint8]
    codes: NDArray[np.uint8]
    cell: NDArray[np.uint32]
    combination: NDArray[np.uint32]
    study: NDArray[np.uint64]
    series: NDArray[np.uint64]
    sop: NDArray[np.uint64]
    patient: NDArray[np.uint64]
    gone: NDArray[np.uint32]
    ends: NDArray[np.uint64]
    texts: TextReader
    rows: int
    moment: int
    ordered: int
    cells: Cells | None
    starts: NDArray[np.int64] | None
    combinations: Combinations
    combined: int
    counts: NDArray[np.int64]
    lookup: IdLookup
    erasure: Erasure

    # Points

    def text(self, row: int) -> bytes:
        """The record of a row as JSON."""
        start = int(self.ends[row - 1]) if row else 0
        return self.texts.read(start, int(self.ends[row]))

    def id(self, row: int) -> str:
        digits = self.ids[row].tobytes().hex()
        return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"

    def point(self, row: int, *, with_z: bool = False, score: float | None = None) -> Point:
        z = self.z[row].copy() if with_z else None
        code = self.codes[row].copy()
        return from_text(self.id(row), self.text(row), code, z=z, score=score)

    @property
    def is_erased(self) -> bool:
        """Whether something that is part of the view may be erased by now: whatever was read may be
        wrong, and a later view has to be asked."""
        return self.erasure.moment > self.moment

    def there(self, rows: _Rows) -> NDArray[np.bool_]:
        """Which of the rows are part of the view."""
        gone = self.gone[rows]
        there: NDArray[np.bool_] = (gone == 0) | (gone > self.moment)
        return there

    def find(self, ids: Sequence[str]) -> _Rows:
        """The row of each id, -1 = there is none, int64 (K,)."""
        packed = b"".join(uuid.UUID(one).bytes for one in ids)
        wanted = np.frombuffer(packed, np.uint8).reshape(-1, 16)
        found = self.lookup.find(wanted, self.ids, self.rows)
        known = found >= 0
        known[known] = self.there(found[known])
        return np.where(known, found, -1)

    def sorted_by_id(self, rows: _Rows) -> _Rows:
        first, second = _halves(self.ids[rows])
        return rows[np.lexsort((second, first))]

    # Filters

    def count(self, where: Filter) -> int:
        passing = self._passing(where)
        if where.coarse is None and not passing.tests:
            return int(self._weights(passing).sum())
        return len(self._selected(where, passing))

    def binding(self, where: Filter) -> Filter:
        """The filter without conditions that all points pass, such as a tenant's, where there is
        only one."""
        used = self.counts[: self.combined] > 0
        must = tuple(
            one
            for one in where.must
            if isinstance(one, (Ids, Part))
            or one.field not in COMBINED
            or not self.combinations.matching(one, self.combined)[used].all()
        )
        return replace(where, must=must)

    def selected(self, where: Filter) -> _Rows:
        """The rows that pass the filter, ascending, int64."""
        return self._selected(where, self._passing(where))

    def facets(self, fields: Sequence[str], where: Filter, limit: int) -> Facets:
        """As :meth:`engine.store.base.VectorStore.facets`."""
        passing = self._passing(where)
        rows = None
        if where.coarse is None and not passing.tests:
            weights = self._weights(passing)
        else:
            rows = self._selected(where, passing)
            weights = np.bincount(self.combination[rows], minlength=self.combined)
        found = Facets()
        for field in fields:
            if field in COMBINED:
                found[field] = self.combinations.counted(field, weights, limit)
            else:
                rows = self._selected(where, passing) if rows is None else rows
                found[field] = self._keys_counted(field, rows, limit)
        return found

    def _keys_counted(self, field: str, rows: _Rows, limit: int) -> dict[str, int]:
        keys, first, counts = np.unique(
            self._key_column(field)[rows], return_index=True, return_counts=True
        )
        some = keys != 0
        first, counts = first[some], counts[some]
        if len(counts) > limit:
            least = np.partition(counts, -limit)[-limit]
            # Of values that are equally frequent, the first by name.
            first, counts = first[counts >= least], counts[counts >= least]
        named = {
            str(getattr(self.point(int(rows[at])).record, field)): int(count)
            for at, count in zip(first, counts, strict=True)
        }
        return dict(sorted(named.items(), key=lambda item: (-item[1], item[0]))[:limit])

    def _weights(self, passing: "_Passing") -> NDArray[np.int64]:
        counts = self.counts[: self.combined]
        return counts if passing.table is None else np.where(passing.table, counts, 0)

    def _passing(self, where: Filter) -> "_Passing":
        """Raises StoreError: the filter cannot be expressed."""
        try:
            return self._compiled(where)
        except (ValueError, TypeError) as error:
            raise StoreError(
                f"the index cannot be asked for this ({error}): ids are UUIDs, and texts valid "
                "Unicode"
            ) from None

    def _compiled(self, where: Filter) -> "_Passing":
        table: NDArray[np.bool_] | None = None
        tests: list[_Test] = []
        for wanted, conditions in ((True, where.must), (False, where.must_not)):
            for condition in conditions:
                if not isinstance(condition, (Ids, Part)) and condition.field in COMBINED:
                    holds = self.combinations.matching(condition, self.combined) == wanted
                    table = holds if table is None else table & holds
                else:
                    tests.append(_Test(self._test(condition), wanted))
        return _Passing(table, tuple(tests))

    def _test(self, condition: Condition) -> Callable[[_Rows], NDArray[np.bool_]]:
        match condition:
            case Ids(values):
                found = self.find(values)
                return lambda rows: np.isin(rows, found)
            case Part(count):
                return lambda rows: self.ids[rows, -1] < count
            case Match(field, values):
                column, keys = self._key_column(field), _keys(values)
                return lambda rows: np.isin(column[rows], keys)
        raise StoreError(f"the index cannot be asked for {condition}; it is no range of years")

    def _key_column(self, field: str) -> NDArray[np.uint64]:
        if field not in KEYS:
            raise StoreError(f"the index has no field {field!r}; use one of {KEYS + COMBINED}")
        column: NDArray[np.uint64] = getattr(self, field)
        return column

    def _selected(self, where: Filter, passing: "_Passing") -> _Rows:
        ids = [one.values for one in where.must if isinstance(one, Ids)]
        if where.coarse is not None:
            rows = self._candidates(where.coarse)
        elif ids:
            found = self.find(ids[0])
            rows = np.unique(found[found >= 0])
        elif (named := _naming(where)) is not None:
            rows = self._with_key(named)
        elif passing.table is not None:
            rows = np.flatnonzero(passing.table[self.combination[: self.rows]])
        else:
            rows = np.arange(self.rows)
        return self._kept(rows, passing)

    def _with_key(self, condition: Match) -> _Rows:
        """The rows with one of the values, ascending, gone ones among them. Reading a column from
        end to end takes a small part of the time that picking the same rows from it does."""
        column, keys = self._key_column(condition.field)[: self.rows], _keys(condition.values)
        if len(keys) > _FEW_KEYS:
            return np.flatnonzero(np.isin(column, keys))
        equal = np.zeros(self.rows, bool)
        for key in keys:
            equal |= column == key
        return np.flatnonzero(equal)

    def _kept(self, rows: _Rows, passing: "_Passing") -> _Rows:
        rows = rows[self.there(rows)]
        if passing.table is not None:
            rows = rows[passing.table[self.combination[rows]]]
        for test in passing.tests:
            rows = rows[test.holds(rows) == test.wanted]
        return rows

    # The coarse filter

    def _candidates(self, coarse: Coarse) -> _Rows:
        """The candidates, ascending, gone ones among them."""
        if not self._knows(coarse):
            return np.arange(self.rows)
        rows = self._in_cells(coarse.cells)
        if coarse.radius is None:
            return rows
        near = np.flatnonzero(self.distances(coarse.code) <= coarse.radius)
        return np.union1d(rows, near) if len(rows) else near

    def distances(self, code: bytes) -> NDArray[np.integer]:
        """Hamming distance of every row's code: uint8 or uint16 (rows,)."""
        codes, wanted = self.codes[: self.rows], np.frombuffer(code, np.uint8)
        if codes.shape[1] % 8 == 0:
            words = np.bitwise_count(codes.view(np.uint64) ^ wanted.view(np.uint64))
        else:
            words = np.bitwise_count(codes ^ wanted)
        total: NDArray[np.integer]
        total = words[:, 0] if words.shape[1] == 1 else words.sum(axis=1, dtype=np.uint16)
        return total

    def _knows(self, coarse: Coarse) -> bool:
        """Whether the cells that it names, if any, are those of the view."""
        return not coarse.cells or (self.cells is not None and self.cells.key == coarse.of)

    def _in_cells(self, cells: tuple[int, ...]) -> _Rows:
        if not cells:
            return np.zeros(0, np.int64)
        slices = self._slices(cells)
        return np.concatenate([*(np.arange(a, b) for a, b in slices), self._tail_in(cells)])

    def _slices(self, cells: tuple[int, ...]) -> list[tuple[int, int]]:
        """The rows of the cells among those that are sorted, ascending."""
        if self.starts is None:
            return []
        bounds = ((int(self.starts[one]), int(self.starts[one + 1])) for one in sorted(cells))
        return [(a, b) for a, b in bounds if b > a]

    def _tail_in(self, cells: tuple[int, ...]) -> _Rows:
        if self.cells is None or self.ordered == self.rows:
            return np.zeros(0, np.int64)
        chosen = np.zeros(len(self.cells), bool)
        chosen[list(cells)] = True
        return self.ordered + np.flatnonzero(chosen[self.cell[self.ordered : self.rows]])

    # Vectors

    def nearest(self, z: NDArray[np.float32], where: Filter, limit: int) -> list[Point]:
        """The points most similar to a vector, ties by id. z: float32 (D,), unit length."""
        if z.shape != self.z.shape[1:]:
            raise StoreError(
                f"the query has a vector of shape {z.shape}, the index {self.z.shape[1:]}; "
                "encode it with the index's own model"
            )
        z = np.ascontiguousarray(z, np.float32)
        rows, likeness = self._compared(z, where)
        return self._best(z, rows, likeness, limit)

    def _compared(self, z: NDArray[np.float32], where: Filter) -> tuple[_Rows, NDArray[np.float32]]:
        """The rows that take part, and their similarities within rounding."""
        coarse, plain = where.coarse, not where.must and not where.must_not
        if plain and (coarse is None or not self._knows(coarse)):
            rows = np.arange(self.rows)
            likeness = self.z[: self.rows] @ z
        elif plain and coarse is not None and coarse.radius is None:
            slices, tail = self._slices(coarse.cells), self._tail_in(coarse.cells)
            rows = np.concatenate([*(np.arange(a, b) for a, b in slices), tail])
            parts = [self.z[a:b] @ z for a, b in slices]
            likeness = np.concatenate([*parts, self.z[tail] @ z])
        else:
            rows = self.selected(where)
            return rows, self._likeness(rows, z)
        there = self.there(rows)
        return (rows, likeness) if there.all() else (rows[there], likeness[there])

    def _likeness(self, rows: _Rows, z: NDArray[np.float32]) -> NDArray[np.float32]:
        if 2 * len(rows) > self.rows:
            every: NDArray[np.float32] = (self.z[: self.rows] @ z)[rows]
            return every
        parts = [
            self.z[rows[at : at + _ROWS_AT_ONCE]] @ z for at in range(0, len(rows), _ROWS_AT_ONCE)
        ]
        return np.concatenate([*parts, np.zeros(0, np.float32)])

    def best_of(self, z: NDArray[np.float32], rows: _Rows, limit: int) -> list[Point]:
        """The points of these rows, the most similar first, ties by id."""
        return self._best(z, rows, self.similarities(z, rows), limit)

    def _best(
        self, z: NDArray[np.float32], rows: _Rows, likeness: NDArray[np.float32], limit: int
    ) -> list[Point]:
        count = min(limit, len(rows))
        if count <= 0:
            return []
        least = np.partition(likeness, len(likeness) - count)[len(likeness) - count]
        rows = rows[likeness >= least - np.float32(_ROUNDING)]
        scores = self.similarities(z, rows)
        first, second = _halves(self.ids[rows])
        order = np.lexsort((second, first, -scores))[:limit]
        return [self.point(int(rows[at]), score=float(scores[at])) for at in order]

    def similarities(self, z: NDArray[np.float32], rows: _Rows) -> NDArray[np.float32]:
        """Dot products that depend on the two vectors alone, in [-1, 1]: float32 (len(rows),).

        A matrix product may round the same row in another way at another place.
        """
        exact = (self.z[rows].astype(np.float64) * z.astype(np.float64)).sum(axis=1)
        rounded: NDArray[np.float32] = exact.clip(-1, 1).astype(np.float32)
        return rounded


def _keys(values: Iterable[object]) -> NDArray[np.uint64]:
    return np.array([_key(str(value)) for value in values], np.uint64)


def _naming(where: Filter) -> Match | None:
    """A condition that few images are likely to pass: on a UID or a patient."""
    return next((one for one in where.must if isinstance(one, Match) and one.field in KEYS), None)


@dataclass(frozen=True, slots=True, eq=False)
class _Test:
    holds: Callable[[_Rows], NDArray[np.bool_]]
    wanted: bool


@dataclass(frozen=True, slots=True, eq=False)
class _Passing:
    """A filter without its coarse part.

    table: bool (T,), which combinations pass; None = all. tests: what is decided row by row.
    """

    table: NDArray[np.bool_] | None
    tests: tuple[_Test, ...]
