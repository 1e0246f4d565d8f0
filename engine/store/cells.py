"""Cells: the points of an index divided by their vectors, so that a search looks into a few.

The centroids are found by spherical k-means on a sample. A point belongs to the cell whose centroid
is most similar to it. The images most similar to a query lie in the cells nearest to it, nearly all
of them in the first few (inverted lists: Sivic and Zisserman, "Video Google", ICCV 2003). How many
cells that takes is measured on the index itself.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from engine.codes import hamming

__all__ = [
    "LEAST_POINTS",
    "NEIGHBOURS",
    "Cells",
    "Neighbours",
    "measured_again",
    "measured_on_sample",
    "sample_size",
    "trained",
    "trained_on_sample",
]

LEAST_POINTS = 10_000
"""Fewer points are compared whole: that takes no longer than to choose among them."""
_PER_ROOT = 2.0
"""Cells for each square root of the number of points."""
_SAMPLE_PER_CELL = 20
_ROUNDS = 6
_QUERIES = 256
"""Points that are searched for to measure recall."""
NEIGHBOURS = 10
"""As many most similar points are to be found when recall is measured."""
_CODE_CANDIDATES, _CODE_SHARE = 1000, 0.0075
"""As many candidates as a search by code has by default (engine/settings.py)."""
_RECALL = 0.995
"""Of the ten most similar points, the share that a search by default is to find."""
_ROWS_AT_ONCE = 4096
_GROWN = 4
"""Cells are made anew when the index has grown by this factor."""
_DRIFTED = 0.98
"""Cells are made anew when searches find less than this share, as other kinds of images came."""


@dataclass(frozen=True, eq=False)
class Cells:
    """The cells of an index.

    centroids: float32 (C, D), unit length. model: fingerprint of the model of the vectors.
    points: how many the index had when they were made.
    probes: cells that a search looks into.
    recall: share of the ten most similar points that are in that many cells, over searches for
        points of the index itself.
    code_recall: the same share among the thousand points, or .75 %, with the nearest codes.
    """

    centroids: NDArray[np.float32]
    model: str
    points: int
    probes: int
    recall: float
    code_recall: float

    @cached_property
    def key(self) -> str:
        """Tells these cells from those that the index had before."""
        return hashlib.blake2b(self.centroids.tobytes(), digest_size=8).hexdigest()

    def __len__(self) -> int:
        return len(self.centroids)

    def nearest(self, z: NDArray[np.float32], count: int) -> tuple[int, ...]:
        """The ``count`` cells nearest to a vector, float32 (D,), the nearest first."""
        likeness = self.centroids @ z
        count = min(count, len(likeness))
        found = np.argpartition(-likeness, count - 1)[:count]
        return tuple(found[np.argsort(-likeness[found], kind="stable")].tolist())

    def assigned(self, z: NDArray[np.float32]) -> NDArray[np.uint32]:
        """The cell of each vector: float32 (N, D) → uint32 (N,)."""
        return _assigned(z, self.centroids)

    @property
    def have_drifted(self) -> bool:
        """Whether the images that came since are so different that searches miss too much."""
        return self.recall < _DRIFTED

    def outgrown(self, points: int) -> bool:
        """Whether an index of so many points should have new ones."""
        return points >= _GROWN * self.points


def trained(
    z: NDArray[np.float32], codes: NDArray[np.uint8], rows: NDArray[np.int64], model: str
) -> tuple[Cells, NDArray[np.uint32]]:
    """The cells of an index, and the cell of each of its points.

    Args:
        z: float32 (M, D), unit length. codes: uint8 (M, B/8), packed.
        rows: int64 (N,), which of them are points of the index, at least one.
        model: fingerprint of their model.
    """
    rng = np.random.default_rng(0)
    count = _count_for(len(rows))
    sample = np.sort(rng.choice(rows, min(len(rows), sample_size(len(rows))), replace=False))
    centroids = _spherical_kmeans(np.asarray(z[sample]), count, rng)
    cell = np.empty(len(rows), np.uint32)
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        cell[part] = _assigned(z[rows[part]], centroids)
    queries, near, code_recall = _searched(z, codes, rows)
    probes, recall = _measured(queries, cell[near], centroids)
    return Cells(centroids, model, len(rows), probes, recall, code_recall), cell


def measured_again(
    cells: Cells,
    z: NDArray[np.float32],
    codes: NDArray[np.uint8],
    rows: NDArray[np.int64],
    cell: NDArray[np.uint32],
) -> Cells:
    """The same cells, with the recall of searches of the index as it is now.

    Args:
        z, codes, rows: as for :func:`trained`.
        cell: the cell of each point, uint32 (N,).
    """
    queries, near, code_recall = _searched(z, codes, rows)
    ranks = _ranks(queries, cell[near], cells.centroids)
    recall = float((ranks < cells.probes).mean()) if len(near) else 1.0
    return replace(cells, recall=recall, code_recall=code_recall)


def _searched(
    z: NDArray[np.float32], codes: NDArray[np.uint8], rows: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.int64], float]:
    """Searches for some points of the index itself: their vectors, (Q, D), the positions in
    ``rows`` of the ten others most similar to each, (Q, 10), and the recall of codes.

    Where there are too few points for that, Q is 0, and the recall 1."""
    if len(rows) <= NEIGHBOURS:
        return z[:0], np.zeros((0, NEIGHBOURS), np.int64), 1.0
    rng = np.random.default_rng(1)
    asked = np.sort(rng.choice(len(rows), min(len(rows), _QUERIES), replace=False))
    queries, theirs = z[rows[asked]], codes[rows]
    near = _nearest_others(z, rows, queries, asked)
    return queries, near, _measured_by_code(theirs[asked], theirs[near], theirs, len(rows))


Neighbours = Callable[[NDArray[np.int64]], tuple[NDArray[np.float32], NDArray[np.uint8]]]
"""For rows of a sample, int64 (Q,), the ten other points of the whole index that are most similar
to each: their vectors, float32 (Q, 10, D), and codes, uint8 (Q, 10, B/8)."""


def trained_on_sample(
    z: NDArray[np.float32],
    codes: NDArray[np.uint8],
    points: int,
    model: str,
    neighbours: Neighbours,
) -> Cells:
    """The cells of an index of which only a sample is at hand.

    Args:
        z: float32 (S, D), unit length, and codes: uint8 (S, B/8), packed: those of a sample of
            about :func:`sample_size` points, more than ten.
        points: how many the index has.
        model: fingerprint of their model.
    """
    rng = np.random.default_rng(0)
    centroids = _spherical_kmeans(z, min(len(z), _count_for(points)), rng)
    queries, cell, code_recall = _sample_searched(z, codes, points, centroids, neighbours)
    probes, recall = _measured(queries, cell, centroids)
    return Cells(centroids, model, points, probes, recall, code_recall)


def measured_on_sample(
    cells: Cells,
    z: NDArray[np.float32],
    codes: NDArray[np.uint8],
    points: int,
    neighbours: Neighbours,
) -> Cells:
    """The same cells, with the recall of searches of the index as it is now.

    Args:
        z, codes, points, neighbours: as for :func:`trained_on_sample`.
    """
    queries, cell, code_recall = _sample_searched(z, codes, points, cells.centroids, neighbours)
    recall = float((_ranks(queries, cell, cells.centroids) < cells.probes).mean())
    return replace(cells, recall=recall, code_recall=code_recall)


def _sample_searched(
    z: NDArray[np.float32],
    codes: NDArray[np.uint8],
    points: int,
    centroids: NDArray[np.float32],
    neighbours: Neighbours,
) -> tuple[NDArray[np.float32], NDArray[np.uint32], float]:
    """Searches for some points of a sample: their vectors, (Q, D), the cells of the ten others most
    similar to each, (Q, 10), and the recall of codes."""
    rng = np.random.default_rng(1)
    asked = np.sort(rng.choice(len(z), min(len(z), _QUERIES), replace=False))
    near_z, near_codes = neighbours(asked)
    cell = _assigned(near_z.reshape(-1, z.shape[1]), centroids).reshape(near_z.shape[:2])
    return z[asked], cell, _measured_by_code(codes[asked], near_codes, codes, points)


def sample_size(points: int) -> int:
    """Of how many points the centroids of an index with so many are found."""
    return _SAMPLE_PER_CELL * _count_for(points)


def _count_for(points: int) -> int:
    return max(1, min(points, round(_PER_ROOT * sqrt(points))))


def _spherical_kmeans(
    z: NDArray[np.float32], count: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Centroids of unit length, float32 (count, D)."""
    centroids = z[rng.choice(len(z), count, replace=False)].copy()
    for _ in range(_ROUNDS):
        cell = _assigned(z, centroids)
        order = np.argsort(cell, kind="stable")
        starts = np.flatnonzero(np.diff(cell[order], prepend=np.uint32(2**32 - 1)))
        sums = np.add.reduceat(z[order], starts, axis=0)
        centroids[cell[order][starts]] = sums
        empty = np.setdiff1d(np.arange(count), cell)
        centroids[empty] = z[rng.choice(len(z), len(empty))]
        centroids /= np.maximum(np.linalg.norm(centroids, axis=1, keepdims=True), 1e-12)
    return centroids


def _assigned(z: NDArray[np.float32], centroids: NDArray[np.float32]) -> NDArray[np.uint32]:
    found = np.empty(len(z), np.uint32)
    for start in range(0, len(z), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        found[part] = (z[part] @ centroids.T).argmax(axis=1)
    return found


def _measured(
    queries: NDArray[np.float32], near: NDArray[np.uint32], centroids: NDArray[np.float32]
) -> tuple[int, float]:
    """Cells to look into, and the recall of that many.

    Args:
        queries: (Q, D). near: (Q, 10), the cells of the points most similar to each.
    """
    if not len(queries):
        return 1, 1.0
    ranks = _ranks(queries, near, centroids)
    found = np.cumsum(np.bincount(ranks.ravel(), minlength=len(centroids))) / ranks.size
    probes = int(np.argmax(found >= _RECALL)) + 1
    return probes, float(found[probes - 1])


def _ranks(
    queries: NDArray[np.float32], near: NDArray[np.uint32], centroids: NDArray[np.float32]
) -> NDArray[np.int64]:
    """How many cells are nearer to the query than each of its neighbours' cells, (Q, 10)."""
    order = np.argsort(-(queries @ centroids.T), axis=1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(len(centroids))[None], axis=1)
    return np.take_along_axis(rank, near.astype(np.int64), axis=1)


def _measured_by_code(
    queries: NDArray[np.uint8], near: NDArray[np.uint8], codes: NDArray[np.uint8], points: int
) -> float:
    """The recall of the nearest codes.

    Args:
        queries: (Q, B/8). near: (Q, 10, B/8), the codes of the points most similar to each.
        codes: (S, B/8), of all points of the index or of a sample. points: how many it has.
    """
    candidates = max(_CODE_CANDIDATES, round(_CODE_SHARE * points))
    most = max(1, min(len(codes), round(candidates * len(codes) / points)))
    hits = 0.0
    for query, neighbours in zip(queries, near, strict=True):
        distance = hamming(codes, query)
        farthest = np.partition(distance, most - 1)[most - 1]
        nearer = int((distance < farthest).sum())
        # Of those that are equally far, as many as there is room for.
        share = (most - nearer) / int((distance == farthest).sum())
        there = hamming(neighbours, query)
        hits += int((there < farthest).sum()) + share * int((there == farthest).sum())
    return hits / float(near.shape[0] * near.shape[1])


def _nearest_others(
    z: NDArray[np.float32],
    rows: NDArray[np.int64],
    queries: NDArray[np.float32],
    asked: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Positions in ``rows`` of the ten points most similar to each query, but for itself."""
    best = np.full((len(queries), NEIGHBOURS), -np.inf, np.float32)
    at = np.zeros((len(queries), NEIGHBOURS), np.int64)
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        likeness = queries @ z[rows[start : start + _ROWS_AT_ONCE]].T
        own = (asked >= start) & (asked < start + likeness.shape[1])
        likeness[own, asked[own] - start] = -np.inf
        likeness = np.concatenate([best, likeness], axis=1)
        here = np.arange(start, start + likeness.shape[1] - NEIGHBOURS)
        places = np.concatenate([at, np.broadcast_to(here, (len(at), len(here)))], axis=1)
        chosen = np.argpartition(-likeness, NEIGHBOURS - 1, axis=1)[:, :NEIGHBOURS]
        best = np.take_along_axis(likeness, chosen, axis=1)
        at = np.take_along_axis(places, chosen, axis=1)
    return at
