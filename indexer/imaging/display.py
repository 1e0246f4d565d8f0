"""Stored pixel values become what a display shows: uint8, 0 = black.

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
# A window that leaves the image fewer grey levels than this shows nothing.
_MIN_LEVELS = 8
_PIXELS_AT_ONCE = 1_000_000


@dataclass(frozen=True, slots=True)
class Padding:
    """Stored values from ``low`` to ``high`` lie outside the picture (PS3.3 C.7.5.1.1.2)."""

    low: float
    high: float

    def covers(self, stored: NDArray[Any]) -> NDArray[np.bool_]:
        """Boolean mask of ``stored``'s shape, True where a value is padding."""
        inside: NDArray[np.bool_] = (stored >= self.low) & (stored <= self.high)
        return inside


def robust_range(values: _Values) -> tuple[float, float]:
    """1st and 99th percentile; the extremes when these coincide; (0, 0) of no values."""
    if values.size == 0:
        return 0.0, 0.0
    low, high = np.percentile(values, (1.0, 99.0))
    # Between numbers at both ends of their range no percentile can be computed.
    if low == high or not np.isfinite((low, high)).all():
        low, high = values.min(), values.max()
    return float(low), float(high)


def _linear(low: float, high: float) -> _Curve:
    if not high > low:
        return lambda values: np.zeros(values.shape)
    if math.isinf(high - low):
        # Doubles from one end of their range to the other: at half the size they can be told.
        return lambda values: (values / 2 - low / 2) / (high / 2 - low / 2)
    return lambda values: (values - low) / (high - low)


def _to_uint8(shares: _Values) -> NDArray[np.uint8]:
    return np.rint(np.clip(shares, 0.0, 1.0) * 255.0).astype(np.uint8)


def stretch(stored: NDArray[Any]) -> NDArray[np.uint8]:
    """``stored`` (H, W) of any number type, its robust range spread over 0..255."""
    values = _grid(stored).astype(np.float64)
    curve = _linear(*robust_range(values[np.isfinite(values)]))
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
    """What a display shows of a MONOCHROME frame: uint8 (H, W), 0 = black.

    Args:
        stored: (H, W), integers or floats as stored.
        scopes: the datasets to look for transformations in, the most specific first.
        signed: whether stored values are two's complement; settles ambiguous LUTs.
        little_endian: byte order of LUT data.
        inverted: MONOCHROME1, the lowest value is white.
        padding: values to leave out of the statistics and to show as black.
    """
    modality = _modality(scopes, signed=signed, little_endian=little_endian)
    grid = _grid(stored)
    keep = np.isfinite(grid)
    if padding is not None and not np.all(covered := padding.covers(grid)):
        keep &= ~covered
    else:
        # An image of nothing but padding is shown as it is.
        padding = None
    values = grid[keep].astype(np.float64)
    low, high = robust_range(modality(values))
    if not (math.isfinite(low) and math.isfinite(high)):
        # A slope that leads out of all numbers says nothing; neither does a window after it.
        modality, scopes = _as_stored, []
        low, high = robust_range(values)
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
    """RGB values of ``bits_stored`` bits, (H, W, 3), as uint8 (H, W, 3)."""
    if stored.dtype == np.uint8 and bits_stored == 8:
        return np.ascontiguousarray(stored)
    top = float(2**bits_stored - 1)
    return _apply(stored, lambda values: _to_uint8(values / top))


def _grid(stored: NDArray[Any]) -> NDArray[Any]:
    step = max(1, int(np.ceil(np.sqrt(stored.size / _SAMPLES))))
    return stored[::step, ::step]


def _apply(
    stored: NDArray[Any], shade: Callable[[_Values], NDArray[np.uint8]]
) -> NDArray[np.uint8]:
    """``shade`` of every value of ``stored``, without a float copy of a large image."""
    small = stored.dtype.kind in "iu" and stored.dtype.itemsize <= 2
    if small and stored.size > 2**16:
        # Few distinct values: shade each once and look the pixels up.
        info = np.iinfo(stored.dtype)
        table = shade(np.arange(info.min, info.max + 1, dtype=np.float64))

        def render(block: NDArray[Any]) -> NDArray[np.uint8]:
            return table[block.astype(np.intp) - info.min]
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
