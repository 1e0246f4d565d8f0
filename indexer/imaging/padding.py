"""Pixel padding: which stored values are not part of the picture."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from indexer.imaging.header import number

__all__ = ["PADDING_KEYWORDS", "Padding", "padding_of"]

PADDING_KEYWORDS = tuple(
    f"{form}PixelPadding{part}"
    for form in ("", "Float", "DoubleFloat")
    for part in ("Value", "RangeLimit")
)
"""Keywords of the elements that :func:`padding_of` reads."""

# How far lossy compression moves padding, as shares of the range of stored values; never less than
# two values of a long range, never a good part of a short one.
_FAR, _NEAR = (1 / 16, 1 / 64), 1 / 256
_AT_LEAST, _AT_MOST = 2.0, 1 / 50
# Moved padding lies close around what was declared. If more values than this share of it are just
# a little farther away, they are the picture.
_STRAYED = 0.05
# Padding that has moved far lies on both sides, where the smaller has at least this share of the
# larger, and the picture on one, but for this share of it. Air, or what is dark, lies otherwise.
_BALANCED, _ON_THE_OTHER_SIDE = 0.25, 0.001


@dataclass(frozen=True, slots=True)
class Padding:
    """Pixel padding: stored values from ``low`` to ``high`` are not part of the picture (PS3.3
    C.7.5.1.1.2). lossy: they were compressed with loss, and come out as values nearby."""

    low: float
    high: float
    lossy: bool = False

    def covers(self, stored: NDArray[Any]) -> NDArray[np.bool_]:
        """Boolean mask of ``stored``'s shape, True where a value is padding."""
        inside: NDArray[np.bool_] = (stored >= self.low) & (stored <= self.high)
        return inside

    def among(
        self, values: NDArray[np.float64], counts: NDArray[np.integer[Any]] | None
    ) -> "Padding":
        """The padding of a frame with these ``values`` (N,): after lossy compression a wider
        range, if the values allow it. counts: integers (N,), how often each value occurs; None =
        once."""
        if not self.lossy or values.size == 0:
            return self
        spread = float(values.max()) - float(values.min())
        moves = [spread * share for share in _FAR]
        moves.append(min(max(spread * _NEAR, _AT_LEAST), spread * _AT_MOST))
        for moved in moves:
            if self._has_moved(moved, values, counts, far=moved is not moves[-1]):
                return Padding(self.low - moved, self.high + moved)
        return self

    def _has_moved(
        self,
        by: float,
        values: NDArray[np.float64],
        counts: NDArray[np.integer[Any]] | None,
        *,
        far: bool,
    ) -> bool:
        """Whether the values around the padding are padding, too, that moved ``by`` at most."""
        distances = np.where(values < self.low, values - self.low, values - self.high)
        distances[self.covers(values)] = 0.0
        weights = np.ones(values.shape) if counts is None else counts

        def count(which: NDArray[np.bool_]) -> float:
            return float(weights[which].sum())

        near = np.abs(distances) <= by
        if far:
            sides = count(near & (distances < 0)), count(near & (distances > 0))
            picture = count(distances < -by), count(distances > by)
            if min(sides) < _BALANCED * max(sides):
                return False
            if min(picture) > _ON_THE_OTHER_SIDE * max(picture):
                return False
        return count(~near & (np.abs(distances) <= 3 * by)) <= _STRAYED * count(near)


def padding_of(header: Dataset, dtype: np.dtype[Any], *, lossy: bool) -> Padding | None:
    """The padding that ``header`` declares for stored values of ``dtype``; None when it declares
    none. lossy: the values were compressed with loss at some time."""
    form = {"f4": "Float", "f8": "DoubleFloat"}.get(dtype.str[1:], "")
    low = number(header, f"{form}PixelPaddingValue")
    if low is None:
        return None
    limit = number(header, f"{form}PixelPaddingRangeLimit")
    ends = [low, low if limit is None else limit]
    if dtype.kind in "iu":
        ends = [_wrap(int(end), dtype) for end in ends]
    return Padding(min(ends), max(ends), lossy)


def _wrap(number: int, dtype: np.dtype[Any]) -> int:
    """``number`` as 16 bits read in the signedness of the pixels, which writers confuse."""
    if dtype.kind == "i" and number > 0x7FFF:
        return number - 0x10000
    return number + 0x10000 if dtype.kind == "u" and number < 0 else number
