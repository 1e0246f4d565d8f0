"""Turns stored pixel values into display values: uint8, 0 = black.

The order is that of the standard's greyscale pipeline (PS3.4 N.2): modality LUT, VOI LUT
or window, then the polarity of MONOCHROME1.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from indexer.imaging.header import items, number, text, value
from indexer.imaging.lookup import LookupTable, read_lut

__all__ = ["Padding", "render_color", "render_grey", "robust_range", "stretch"]

_Values = NDArray[np.float64]
_Curve = Callable[[_Values], _Values]

# Percentiles are taken from at most about so many pixels, on a regular grid.
_SAMPLES = 1_000_000
_ENDS = (1.0, 99.0)
# A VOI LUT or window that leaves the image fewer grey levels than this is ignored.
_MIN_LEVELS = 8
_PIXELS_AT_ONCE = 2**17


@dataclass(frozen=True, slots=True)
class Padding:
    """Pixel padding: stored values from ``low`` to ``high`` are not part of the picture (PS3.3
    C.7.5.1.1.2)."""

    low: float
    high: float

    def covers(self, stored: NDArray[Any]) -> NDArray[np.bool_]:
        """Boolean mask of ``stored``'s shape, True where a value is padding."""
        inside: NDArray[np.bool_] = (stored >= self.low) & (stored <= self.high)
        return inside


def robust_range(
    values: _Values, counts: NDArray[np.integer[Any]] | None = None
) -> tuple[float, float]:
    """1st and 99th percentile; minimum and maximum if these coincide; (0, 0) of no values.

    Args:
        values: float64 (N,), without NaN.
        counts: integers (N,), how often each of the values occurs; None = once.
    """
    if values.size == 0:
        return 0.0, 0.0
    if counts is None:
        low, high = np.percentile(values, _ENDS)
    else:
        low, high = _percentiles(values, counts)
    # Interpolating between values at both ends of the float range overflows.
    if low == high or not np.isfinite((low, high)).all():
        low, high = values.min(), values.max()
    return float(low), float(high)


def _percentiles(values: _Values, counts: NDArray[np.integer[Any]]) -> _Values:
    """Weighted percentiles: bit for bit those of np.percentile over the repeated values."""
    order = np.argsort(values, kind="stable")
    ascending, upto = values[order], np.cumsum(counts[order])
    places = (upto[-1] - 1) * (np.array(_ENDS) / 100)
    before = np.floor(places).astype(np.intp)
    # The value at a sorted position is the first whose cumulative count exceeds that position.
    left = ascending[np.searchsorted(upto, before, side="right")]
    right = ascending[np.searchsorted(upto, np.minimum(before + 1, upto[-1] - 1), side="right")]
    share, apart = places - before, right - left
    ends: _Values = np.where(share < 0.5, left + apart * share, right - apart * (1 - share))
    return ends


def _linear(low: float, high: float) -> _Curve:
    if not high > low:
        return lambda values: np.zeros(values.shape)
    if math.isinf(high - low):
        # The difference overflows; that of the halves does not.
        return lambda values: (values / 2 - low / 2) / (high / 2 - low / 2)
    return lambda values: (values - low) / (high - low)


def _to_uint8(shares: _Values) -> NDArray[np.uint8]:
    return np.rint(np.clip(shares, 0.0, 1.0) * 255.0).astype(np.uint8)


def stretch(stored: NDArray[Any]) -> NDArray[np.uint8]:
    """``stored`` (H, W), integers or floats, its robust range mapped to 0…255: uint8 (H, W)."""
    curve = _linear(*robust_range(*_distinct(_grid(stored))))
    return _apply(stored, lambda block: _to_uint8(curve(block)))


def render_grey(
    stored: NDArray[Any],
    scopes: list[Dataset],
    *,
    signed: bool,
    little_endian: bool,
    inverted: bool,
    padding: Padding | None,
) -> NDArray[np.uint8]:
    """The display values of a MONOCHROME frame: uint8 (H, W), 0 = black.

    Args:
        stored: (H, W), integers or floats as stored.
        scopes: the datasets to look for transformations (modality LUT, VOI LUT, window) in, the
            most specific first.
        signed: whether stored values are two's complement; decides the sign of the first value
            that a LUT maps.
        little_endian: byte order of LUT data.
        inverted: MONOCHROME1, the lowest value is white.
        padding: values to exclude from the percentiles and to show as black.
    """
    modality = _modality(scopes, signed=signed, little_endian=little_endian)
    values, counts = _distinct(_grid(stored))
    if padding is not None and not np.all(covered := padding.covers(values)):
        values, counts = values[~covered], None if counts is None else counts[~covered]
    else:
        # An image of nothing but padding is shown as it is.
        padding = None
    low, high = robust_range(modality(values), counts)
    if not (math.isfinite(low) and math.isfinite(high)):
        # The rescale overflows: ignore it, and the window, which refers to its output.
        modality, scopes = _as_stored, []
        low, high = robust_range(values, counts)
    voi = _voi(scopes, signed=signed, little_endian=little_endian)
    if voi is None or _is_useless(voi, low, high):
        voi = _linear(low, high)
    curve = voi

    def shade(values: _Values) -> NDArray[np.uint8]:
        finite = np.isfinite(values)
        shown = _to_uint8(curve(modality(np.where(finite, values, 0.0))))
        if inverted:
            shown = np.uint8(255) - shown
        shown[~finite] = 0
        if padding is not None:
            shown[padding.covers(values)] = 0
        return shown

    return _apply(stored, shade)


def render_color(stored: NDArray[Any], bits_stored: int) -> NDArray[np.uint8]:
    """RGB values (H, W, 3) of ``bits_stored`` bits each, scaled to uint8 (H, W, 3)."""
    if stored.dtype == np.uint8 and bits_stored == 8:
        return np.ascontiguousarray(stored)
    top = float(2**bits_stored - 1)
    return _apply(stored, lambda values: _to_uint8(values / top))


def _grid(stored: NDArray[Any]) -> NDArray[Any]:
    step = max(1, int(np.ceil(np.sqrt(stored.size / _SAMPLES))))
    return stored[::step, ::step]


def _distinct(stored: NDArray[Any]) -> tuple[_Values, NDArray[np.integer[Any]] | None]:
    """The finite values, float64 (N,), and None; or, for many pixels of at most 16 bits, each
    distinct value once and how often it occurs, integers (N,)."""
    if not _few_differ(stored):
        return stored[np.isfinite(stored)].astype(np.float64), None
    low = stored.min()
    counts = np.bincount(_above(stored, low).ravel())
    found = np.flatnonzero(counts)
    return (found + int(low)).astype(np.float64), counts[found]


def _few_differ(stored: NDArray[Any]) -> bool:
    return stored.dtype.kind in "iu" and stored.dtype.itemsize <= 2 and stored.size > 2**16


def _above(stored: NDArray[Any], low: np.integer[Any]) -> NDArray[np.unsignedinteger[Any]]:
    """``stored`` − ``low``, unsigned. A signed subtraction may overflow; its bits read as unsigned
    are right."""
    above: NDArray[np.unsignedinteger[Any]] = (stored - low).view(f"u{stored.dtype.itemsize}")
    return above


def _apply(
    stored: NDArray[Any], shade: Callable[[_Values], NDArray[np.uint8]]
) -> NDArray[np.uint8]:
    """``shade`` applied to ``stored`` (H, W): uint8 (H, W). Works block by block, without a float
    copy of the whole image."""
    if _few_differ(stored):
        # Shade each possible value once, and look the pixels up in that table.
        low, high = stored.min(), stored.max()
        table = shade(np.arange(int(low), int(high) + 1, dtype=np.float64))

        def render(block: NDArray[Any]) -> NDArray[np.uint8]:
            return table.take(_above(block, low))
    else:

        def render(block: NDArray[Any]) -> NDArray[np.uint8]:
            return shade(block.astype(np.float64))

    out = np.empty(stored.shape, dtype=np.uint8)
    height = max(1, _PIXELS_AT_ONCE * len(stored) // max(1, stored.size))
    for top in range(0, len(stored), height):
        out[top : top + height] = render(stored[top : top + height])
    return out


def _modality(scopes: list[Dataset], *, signed: bool, little_endian: bool) -> _Curve:
    """Modality LUT or rescale (PS3.3 C.11.1)."""
    for scope in scopes:
        table = _first_lut(scope, "ModalityLUTSequence", signed, little_endian)
        if table is not None:
            return table.look_up
        slope = number(scope, "RescaleSlope")
        intercept = number(scope, "RescaleIntercept")
        # A slope of 0 would turn every image into one grey.
        if slope and intercept is not None:
            return lambda values, a=slope, b=intercept: values * a + b  # type: ignore[misc]
    return _as_stored


def _as_stored(values: _Values) -> _Values:
    return values


def _voi(scopes: list[Dataset], *, signed: bool, little_endian: bool) -> _Curve | None:
    """VOI LUT or the first window (PS3.3 C.11.2), giving 0..1; None when there is none."""
    for scope in scopes:
        table = _first_lut(scope, "VOILUTSequence", signed, little_endian)
        if table is not None:
            return table.look_up_share
        center = number(scope, "WindowCenter")
        width = number(scope, "WindowWidth")
        if center is not None and width is not None:
            return _window(center, width, text(scope, "VOILUTFunction") or "LINEAR")
    return None


def _window(center: float, width: float, function: str) -> _Curve | None:
    """The functions of PS3.3 C.11.2.1.2 and C.11.2.1.3; None when the width is absurd."""
    if not center - width / 2 < center + width / 2 or (function == "LINEAR" and width < 1):
        return None
    if function == "SIGMOID":

        def sigmoid(values: _Values) -> _Values:
            exponent = np.clip(-4.0 * (values - center) / width, -700.0, 700.0)
            share: _Values = 1.0 / (1.0 + np.exp(exponent))
            return share

        return sigmoid
    if function == "LINEAR_EXACT":
        return _linear(center - width / 2, center + width / 2)
    if width == 1:
        return lambda values: (values > center - 0.5).astype(np.float64)
    return _linear(center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2)


def _is_useless(voi: _Curve, low: float, high: float) -> bool:
    if not high > low:
        return False
    ends = np.clip(voi(np.array([low, high])), 0.0, 1.0)
    return bool(abs(ends[1] - ends[0]) * 255 < _MIN_LEVELS)


def _first_lut(
    scope: Dataset, keyword: str, signed: bool, little_endian: bool
) -> LookupTable | None:
    tables = items(scope, keyword)
    if not tables:
        return None
    return read_lut(
        value(tables[0], "LUTDescriptor"),
        value(tables[0], "LUTData"),
        signed=signed,
        little_endian=little_endian,
    )
