"""Finds groups of duplicate images: the same picture copied, re-saved or resized.

Two images are duplicates when their codes differ in at most ``max_bits`` bits and the similarity r
of their vectors is at least t. Groups are the connected components of these pairs. All pairs are
found without comparing every image with every other:

- Codes that differ in fewer bits than they have bands are equal in at least one band (pigeonhole
  principle, engine/search/ladder.py), so only images with an equal band are compared.
- Unit vectors with r(a, b) ≥ t are at most sqrt(2 − 2 t) apart, and so are their projections onto
  any axis. So images with an equal band are sorted along the axis on which they spread most, and
  each is compared only with those at most that far away on it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from engine.codes import band_widths, bands, hamming
from engine.errors import QueryError
from engine.records import ImageRecord, Point
from engine.search.components import Components
from engine.search.similarity import cosines, unit
from engine.store.base import Filter, VectorStore

__all__ = ["MAX_BITS", "SIMILARITY", "DuplicateGroup", "Member", "Progress", "duplicates"]

SIMILARITY, MAX_BITS = 0.999, 3
"""Default thresholds, chosen for the shipped model on patients that calibrate it. What they find,
and take for copies, is what ``python -m bench.duplicates`` prints (docs/search.md). How alike
copies are depends on the model: with one of your own, look at some groups."""

_SAME = 1 - 1e-6
"""Least similarity of images called identical."""
_BLOCK = 1024
"""Images compared with as many others by one matrix product."""
_VALUES = 2**22
"""Most values of the arrays that are computed at once."""
_SAMPLE = 2048
"""About so many images are used to find the axis on which they spread most."""
_POWER_ITERATIONS = 10
_TINY = 1e-6
"""An axis shorter than this has no direction."""
_PAGE = 1000
"""Points read at once, and images between two reports of progress."""

Progress = Callable[[str, int, int], None]
"""Called with the stage ("read" or "compare"), the work done so far and the work in all."""


@dataclass(frozen=True, slots=True)
class Member:
    """An image of a group.

    similarity: r to the first member of the group, from the stored vectors.
    identical: r to the first member is at least 1 − 1e-6 and the codes are equal; most likely
        the pixels are the same.
    """

    id: str
    record: ImageRecord
    similarity: float
    identical: bool


@dataclass(frozen=True, slots=True)
class DuplicateGroup:
    """Two or more duplicates: first the one with the smallest id, then by similarity to it."""

    members: tuple[Member, ...]

    @property
    def studies(self) -> int:
        """How many studies it spans; an image that names no study counts as one."""
        return len({one.record.study or f"image {one.id}" for one in self.members})


def duplicates(
    store: VectorStore,
    *,
    similarity: float = SIMILARITY,
    max_bits: int = MAX_BITS,
    where: Filter | None = None,
    progress: Progress = lambda *_: None,
) -> Iterator[DuplicateGroup]:
    """The groups of duplicates among the images that pass ``where``, largest first.

    Reads the index once and takes 2 · D + B/8 + 16 bytes of memory for each image (0.55 GB for a
    million vectors of 256 values). Images added while it runs may be missing.

    Args:
        similarity: t, in (0, 1]: the least r of two duplicates, computed from the vectors rounded
            to float16, and rounded to float32.
        max_bits: the most bits in which the codes of two duplicates differ; less than the number
            of bands.
        where: which images to compare; None = all.
        progress: called from time to time.

    Raises:
        QueryError: ``similarity`` or ``max_bits`` is out of range.
    """
    bits = store.collection.bits
    most = len(band_widths(bits)) - 1
    if not 0 <= max_bits <= most:
        raise QueryError(f"max_bits is {max_bits}; of codes of {bits} bits, use 0 to {most}")
    if not 0 < similarity <= 1:
        raise QueryError(f"similarity is {similarity}; use more than 0, and at most 1")
    images = _read(store, where or Filter(), progress)
    found = Components(len(images))
    _Comparison(images, found, similarity, max_bits).run(progress)
    return (group for rows in found.groups() if (group := _group(store, images, rows)) is not None)


@dataclass(frozen=True, slots=True, eq=False)
class _Images:
    """ids: uint8 (N, 16), UUIDs ascending. codes: uint8 (N, B/8), packed. z: float16 (N, D)."""

    ids: NDArray[np.uint8]
    codes: NDArray[np.uint8]
    z: NDArray[np.float16]

    def __len__(self) -> int:
        return len(self.ids)

    def id(self, row: int) -> str:
        return str(UUID(bytes=self.ids[row].tobytes()))


def _read(store: VectorStore, where: Filter, progress: Progress) -> _Images:
    collection = store.collection
    count = store.count(where)
    images = _Images(
        np.zeros((count, 16), np.uint8),
        np.zeros((count, collection.bits // 8), np.uint8),
        np.zeros((count, collection.dim), np.float16),
    )
    row = 0
    for point in store.scroll(where, page=_PAGE, with_z=True):
        if row == count:  # Points were added since they were counted: the arrays are full.
            break
        if point.z is None:
            continue
        images.ids[row] = np.frombuffer(UUID(point.id).bytes, np.uint8)
        images.codes[row] = point.code
        images.z[row] = point.z
        row += 1
        if row % _PAGE == 0:
            progress("read", row, count)
    progress("read", row, row)
    return _Images(images.ids[:row], images.codes[:row], images.z[:row])


class _Comparison:
    """Finds all pairs of duplicates and merges their components in ``found``."""

    def __init__(
        self, images: _Images, found: Components, similarity: float, max_bits: int
    ) -> None:
        self._images = images
        self._found = found
        self._max_bits = max_bits
        self._least = np.float32(similarity)
        # Bound on the rounding error of a dot product of unit vectors in float32. Pairs nearer to
        # the threshold than this are computed again in float64.
        slack = 4 * images.z.shape[1] * float(np.finfo(np.float32).eps)
        self._surely, self._maybe = similarity + slack, similarity - slack
        self._window = float(np.sqrt(max(0.0, 2 - 2 * self._maybe))) + slack

    def run(self, progress: Progress) -> None:
        values = bands(self._images.codes)
        steps = values.shape[1] * len(values)
        for band in range(values.shape[1]):
            order = np.argsort(values[:, band], kind="stable")
            starts = np.flatnonzero(np.diff(values[order, band], prepend=0) != 0)
            done = 0
            for rows in np.split(order, starts[starts > 0]):
                if len(rows) > 1:
                    self._bucket(rows)
                if done // _PAGE != (done + len(rows)) // _PAGE:
                    progress("compare", band * len(values) + done + len(rows), steps)
                done += len(rows)
        progress("compare", steps, steps)

    def _bucket(self, rows: NDArray[np.int64]) -> None:
        """Compares the images that share a band value, if near enough along their main axis."""
        if len(rows) <= _BLOCK:
            self._blocks(rows, rows, same=True)
            return
        shadows = self._shadows(rows)
        order = np.argsort(shadows, kind="stable")
        rows, shadows = rows[order], shadows[order]
        starts = range(0, len(rows), _BLOCK)
        # Near blocks first: images that they join need not be compared again.
        for apart in range(len(starts)):
            met = False
            for start in starts[: len(starts) - apart]:
                end, other = start + _BLOCK, start + apart * _BLOCK
                if shadows[other] - shadows[min(end, len(rows)) - 1] > self._window:
                    continue
                met = True
                self._blocks(rows[start:end], rows[other : other + _BLOCK], same=apart == 0)
            if not met:
                return

    def _shadows(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Projections of the vectors on the principal axis of a sample of them, float64 (n,).

        The result of the comparison does not depend on the axis, only its speed.
        """
        step = -(-len(rows) // _SAMPLE)
        sample = self._vectors(rows[::step])
        sample -= sample.mean(axis=0)
        axis = sample[(sample * sample).sum(axis=1).argmax()]
        for _ in range(_POWER_ITERATIONS):  # power iteration
            length = np.linalg.norm(axis)
            if length < _TINY:  # All vectors are equal.
                axis = np.eye(1, sample.shape[1], dtype=np.float32)[0]
                break
            axis = sample.T @ (sample @ (axis / length))
        axis /= np.linalg.norm(axis)
        parts = [
            self._vectors(rows[start : start + _BLOCK]) @ axis
            for start in range(0, len(rows), _BLOCK)
        ]
        return np.concatenate(parts).astype(np.float64)

    def _vectors(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return unit(self._images.z[rows]).astype(np.float32)

    def _blocks(self, a: NDArray[np.int64], b: NDArray[np.int64], *, same: bool) -> None:
        """Compares each image of ``a`` with each of ``b``; same: ``a`` and ``b`` are equal."""
        if not self._apart(a, b).any():
            return
        left = self._vectors(a)
        likeness = left @ (left if same else self._vectors(b)).T
        if same:
            np.fill_diagonal(likeness, -1)
        # A block of many duplicates has far more pairs than images. So first join each image to
        # its nearest one; pairs that are in one component by then need no further check.
        nearest = likeness.argmax(axis=1)
        sure = likeness[np.arange(len(a)), nearest] > self._surely
        self._pairs(a[sure], b[nearest[sure]], exact=False)
        at, to = np.nonzero((likeness >= self._maybe) & self._apart(a, b))
        sure = likeness[at, to] > self._surely
        for chosen, exact in ((sure, False), (~sure, True)):
            self._pairs(a[at[chosen]], b[to[chosen]], exact=exact)

    def _apart(self, a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which pairs are not joined yet: (len(a), len(b))."""
        apart: NDArray[np.bool_] = self._found.of(a)[:, None] != self._found.of(b)
        return apart

    def _pairs(self, a: NDArray[np.int64], b: NDArray[np.int64], *, exact: bool) -> None:
        """Joins the pairs whose codes are near enough.

        exact: also compute their similarity in float64 and compare it with the threshold.
        """
        images = self._images
        step = _rows_at_once(images)
        for start in range(0, len(a), step):
            one, other = a[start : start + step], b[start : start + step]
            # Skip pairs that earlier pairs have joined already.
            apart = self._found.of(one) != self._found.of(other)
            one, other = one[apart], other[apart]
            near = hamming(images.codes[one], images.codes[other]) <= self._max_bits
            one, other = one[near], other[near]
            if exact:
                like = cosines(unit(images.z[one]), unit(images.z[other])).astype(np.float32)
                one, other = one[like >= self._least], other[like >= self._least]
            self._found.join(one, other)


def _rows_at_once(images: _Images) -> int:
    """How many vectors to compute with at once, so that the arrays stay below a fixed size."""
    return max(1, _VALUES // int(images.z.shape[1]))


def _group(store: VectorStore, images: _Images, rows: NDArray[np.int64]) -> DuplicateGroup | None:
    """The group of the images in these rows; None if deletions have left fewer than two."""
    first = rows[:1]
    step = _rows_at_once(images)
    parts = (images.z[rows[start : start + step]] for start in range(0, len(rows), step))
    alike = np.concatenate([cosines(unit(part), unit(images.z[first])) for part in parts])
    same = (hamming(images.codes[rows], images.codes[first]) == 0) & (alike >= _SAME)
    ids = [images.id(row) for row in rows]
    points: dict[str, Point] = {}
    for start in range(0, len(ids), _PAGE):
        points |= {point.id: point for point in store.get(ids[start : start + _PAGE])}
    members = [
        Member(one, points[one].record, float(np.float32(r)), bool(equal))
        for one, r, equal in zip(ids, alike, same, strict=True)
        if one in points
    ]
    if len(members) < 2:
        return None
    rest = sorted(members[1:], key=lambda one: (-one.similarity, one.id))
    return DuplicateGroup((members[0], *rest))
