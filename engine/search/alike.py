"""Where two images look alike, by occlusion: how much less like the other one an image is when a
part of it is taken out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["CELLS", "AlikeMap", "alike_map", "take_out"]

CELLS = 8
"""Cells of a map, across and down."""
_SHARE = 4
"""The marked cells are at most one in so many."""

Encode = Callable[[Sequence[NDArray[np.uint8]]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True, eq=False)
class AlikeMap:
    """What in one canvas makes it like another one.

    similarity: of the two as they are, in [-1, 1]. weights: float32 (CELLS, CELLS), row by row: by
    how much the similarity falls, on average, when a square of two by two cells with this one among
    them is taken out; below 0 = it rises.
    """

    similarity: float
    weights: NDArray[np.float32]

    @property
    def marked(self) -> NDArray[np.bool_]:
        """bool (CELLS, CELLS): the quarter of the cells with the highest weights, without those
        whose weight is not above 0."""
        highest = np.argsort(-self.weights, axis=None, kind="stable")[: CELLS * CELLS // _SHARE]
        found = np.zeros(CELLS * CELLS, dtype=bool)
        found[highest] = True
        return found.reshape(CELLS, CELLS) & (self.weights > 0)


def alike_map(encode: Encode, canvas: NDArray[np.uint8], other: NDArray[np.uint8]) -> AlikeMap:
    """What in a canvas makes it like the other one, which stays as it is.

    The encoder's vector is not a sum over places: both maps of the tower go through attention. So
    parts are taken out one after the other, 49 in all, and all are encoded in one call.

    Args:
        encode: N canvases → float32 (N, D), rows whose dot products are similarities.
        canvas, other: uint8 (S, S) or (S, S, 3), as ``Preprocess.canvas`` gives them.
    """
    squares, smooth = _squares(), _smoothed(canvas)
    z = encode([other, canvas, *(_replaced(canvas, smooth, one) for one in squares)])
    similarities = (z[1:] @ z[0]).astype(np.float64)
    drops = similarities[0] - similarities[1:]
    covering = np.stack(squares).astype(np.float64)
    weights = np.tensordot(drops, covering, axes=1) / covering.sum(axis=0)
    return AlikeMap(float(similarities[0]), weights.astype(np.float32))


def take_out(canvas: NDArray[np.uint8], cells: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The canvas without what is in some cells: in their place is its mean around each pixel, in a
    square of a third of its side, so that an even background stays as it is.

    Args:
        canvas: uint8 (S, S) or (S, S, 3).
        cells: bool (CELLS, CELLS); True = taken out.

    Returns:
        A new array of the same shape, uint8.
    """
    return _replaced(canvas, _smoothed(canvas), cells)


def _squares() -> list[NDArray[np.bool_]]:
    """Every square of two by two cells, each bool (CELLS, CELLS)."""
    found = []
    for row in range(CELLS - 1):
        for column in range(CELLS - 1):
            one = np.zeros((CELLS, CELLS), dtype=bool)
            one[row : row + 2, column : column + 2] = True
            found.append(one)
    return found


def _replaced(
    canvas: NDArray[np.uint8], by: NDArray[np.uint8], cells: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    side = canvas.shape[0]
    cell = np.arange(side) * CELLS // side
    pixels = cells[cell[:, None], cell[None, :]]
    found = canvas.copy()
    found[pixels] = by[pixels]
    return found


def _smoothed(canvas: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Each pixel's mean over a square of a third of the side; beyond the edge it goes on as at the
    edge."""
    radius = canvas.shape[0] // 6
    width = 2 * radius + 1
    beside = ((0, 0),) * (canvas.ndim - 2)
    wide = np.pad(canvas.astype(np.int64), ((radius, radius),) * 2 + beside, mode="edge")
    sums = np.pad(wide.cumsum(axis=0).cumsum(axis=1), ((1, 0),) * 2 + beside)
    total = sums[width:, width:] - sums[:-width, width:] - sums[width:, :-width]
    mean: NDArray[np.uint8] = np.rint((total + sums[:-width, :-width]) / width**2).astype(np.uint8)
    return mean
