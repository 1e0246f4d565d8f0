"""Cells: the points of an index divided by their vectors, so that a search looks into a few.

The centroids are found by spherical k-means on a sample. A point belongs to the cell whose centroid
is most similar to it. The images most similar to a query lie in the cells nearest to it, nearly all
of them in the first few (inverted lists: Sivic and Zisserman, "Video Google", ICCV 2003). How many
cells that takes is measured on the index itself.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from engine.codes import hamming

__all__ = ["LEAST_POINTS", "Cells", "trained"]

LEAST_POINTS = 10_000
"""Fewer points are compared whole: that takes no longer than to choose among them."""
_PER_ROOT = 2.0
"""Cells for each square root of the number of points."""
_SAMPLE_PER_CELL = 20
_ROUNDS = 6
_QUERIES = 128
"""Points that are searched for to measure recall."""
_NEIGHBOURS = 10
_CODE_CANDIDATES, _CODE_SHARE = 1000, 0.0075
"""As many candidates as a search by code has by default (engine/settings.py)."""
_RECALL = 0.995
"""Of the ten most similar points, the share that a search by default is to find."""
_ROWS_AT_ONCE = 4096
_GROWN = 4
"""Cells are made anew when the index has grown by this factor."""


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
    count = max(1, min(len(rows), round(_PER_ROOT * sqrt(len(rows)))))
    sample = np.sort(rng.choice(rows, min(len(rows), _SAMPLE_PER_CELL * count), replace=False))
    centroids = _spherical_kmeans(np.asarray(z[sample]), count, rng)
    cell = np.empty(len(rows), np.uint32)
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        cell[part] = _assigned(z[rows[part]], centroids)
    asked = np.sort(rng.choice(len(rows), min(len(rows), _QUERIES), replace=False))
    probes, recall, code_recall = _measured(z, codes, rows, cell, centroids, asked)
    return Cells(centroids, model, len(rows), probes, recall, code_recall), cell


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
    z: NDArray[np.float32],
    codes: NDArray[np.uint8],
    rows: NDArray[np.int64],
    cell: NDArray[np.uint32],
    centroids: NDArray[np.float32],
    asked: NDArray[np.int64],
) -> tuple[int, float, float]:
    """Cells to look into, and the recall of that many cells and of the nearest codes.

    Args:
        asked: positions in ``rows`` of the points that are searched for.
    """
    if len(rows) <= _NEIGHBOURS:
        return 1, 1.0, 1.0
    queries = z[rows[asked]]
    near = _nearest_others(z, rows, queries, asked)
    order = np.argsort(-(queries @ centroids.T), axis=1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(len(centroids))[None], axis=1)
    within = np.take_along_axis(rank, cell[near].astype(np.int64), axis=1)
    found = np.cumsum(np.bincount(within.ravel(), minlength=len(centroids))) / within.size
    probes = int(np.argmax(found >= _RECALL)) + 1
    candidates = max(_CODE_CANDIDATES, round(_CODE_SHARE * len(rows)))
    packed, hits = codes[rows], 0.0
    for position, neighbours in zip(asked, near, strict=True):
        distance = hamming(packed, packed[position])
        most = min(candidates, len(distance))
        farthest = np.partition(distance, most - 1)[most - 1]
        nearer = int((distance < farthest).sum())
        # Of those that are equally far, as many as there is room for.
        share = (most - nearer) / int((distance == farthest).sum())
        there = distance[neighbours]
        hits += int((there < farthest).sum()) + share * int((there == farthest).sum())
    return probes, float(found[probes - 1]), hits / within.size


def _nearest_others(
    z: NDArray[np.float32],
    rows: NDArray[np.int64],
    queries: NDArray[np.float32],
    asked: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Positions in ``rows`` of the ten points most similar to each query, but for itself."""
    best = np.full((len(queries), _NEIGHBOURS), -np.inf, np.float32)
    at = np.zeros((len(queries), _NEIGHBOURS), np.int64)
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        likeness = queries @ z[rows[start : start + _ROWS_AT_ONCE]].T
        own = (asked >= start) & (asked < start + likeness.shape[1])
        likeness[own, asked[own] - start] = -np.inf
        likeness = np.concatenate([best, likeness], axis=1)
        here = np.arange(start, start + likeness.shape[1] - _NEIGHBOURS)
        places = np.concatenate([at, np.broadcast_to(here, (len(at), len(here)))], axis=1)
        chosen = np.argpartition(-likeness, _NEIGHBOURS - 1, axis=1)[:, :_NEIGHBOURS]
        best = np.take_along_axis(likeness, chosen, axis=1)
        at = np.take_along_axis(places, chosen, axis=1)
    return at
