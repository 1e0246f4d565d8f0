"""Turns stored pixel values into display values: uint8, 0 = black.

The order is that of the standard's greyscale pipeline (PS3.4 N.2): modality LUT, VOI LUT
or window, then the polarity of MONOCHROME1 or of the presentation LUT shape INVERSE.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from indexer.imaging.header import text
from indexer.imaging.lookup import Inputs
from indexer.imaging.modality import AIR, Modality, modality_of
from indexer.imaging.padding import Padding
from indexer.imaging.voi import Curve, View, linear, named_window, voi_of

__all__ = ["is_inverted", "render_color", "render_grey", "robust_range", "stored_range", "stretch"]

_Values = NDArray[np.float64]

# Percentiles are taken from at most about so many pixels, on a regular grid.
_SAMPLES = 1_000_000
_ENDS = (1.0, 99.0)
# A VOI LUT or window that leaves the image fewer grey levels than this is ignored.
_MIN_LEVELS = 8
_PIXELS_AT_ONCE = 2**17


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


def _to_uint8(shares: _Values) -> NDArray[np.uint8]:
    return np.rint(np.clip(shares, 0.0, 1.0) * 255.0).astype(np.uint8)


def stretch(stored: NDArray[Any]) -> NDArray[np.uint8]:
    """``stored`` (H, W), integers or floats, its robust range mapped to 0…255: uint8 (H, W)."""
    curve = linear(*robust_range(*_distinct(_grid(stored))))
    return _apply(stored, lambda block: _to_uint8(curve(block)))


def stored_range(stored: NDArray[Any], bits_stored: int, *, signed: bool) -> Inputs:
    """The range of values that may be stored like ``stored`` (H, W): of integers all that
    ``bits_stored`` bits can hold, of floats all that there are."""
    if stored.dtype.kind not in "iu":
        finite = stored[np.isfinite(stored)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
        return Inputs(low, high, signed=low < 0)
    half = 2.0 ** (bits_stored - 1)
    return Inputs(-half, half - 1, signed=True) if signed else Inputs(0.0, 2 * half - 1, False)


def is_inverted(photometric: str, header: Dataset) -> bool:
    """Whether the lowest value is white: in MONOCHROME1, and with the presentation LUT shape
    INVERSE, which only says the same again (PS3.3 C.11.6, C.8.11.3)."""
    shape = text(header, "PresentationLUTShape").upper()
    return photometric == "MONOCHROME1" or shape == "INVERSE"


def render_grey(
    stored: NDArray[Any],
    scopes: list[Dataset],
    possible: Inputs,
    *,
    little_endian: bool,
    inverted: bool,
    padding: Padding | None,
    colored: Padding | None = None,
    view: View = "header",
) -> NDArray[np.uint8]:
    """The display values of a MONOCHROME frame: uint8 (H, W), 0 = black.

    Args:
        stored: (H, W), integers or floats as stored.
        scopes: the datasets to look for transformations (modality LUT, VOI LUT, window) in, the
            most specific first and the header last.
        possible: the range of values that may be stored; decides the sign of the first value that
            a LUT maps.
        little_endian: byte order of LUT data.
        inverted: the lowest value is white.
        padding: values to exclude from the percentiles and to show as black.
        colored: values to exclude from the percentiles, since they are shown in colours.
        view: the window to show values in Hounsfield units through.
    """
    modality = modality_of(scopes, possible, little_endian=little_endian)
    values, counts = _distinct(_grid(stored))
    if padding is not None:
        padding = padding.among(values, counts)
        # An image of nothing but padding is shown as it is.
        padding = None if np.all(padding.covers(values)) else padding
    for outside in filter(None, (padding, colored)):
        values, counts = _without(outside.covers(values), values, counts)
    outputs = modality.curve(values)
    lowest, highest = (outputs.min(), outputs.max()) if outputs.size else (0.0, 0.0)
    if not (np.isfinite(lowest) and np.isfinite(highest)):
        # The rescale overflows: ignore it, and the window, which refers to its output.
        modality, scopes, outputs = Modality.none(possible), [], values
    elif modality.hounsfield and lowest < AIR and stored.dtype.kind in "iu":
        outputs, counts = _without(outputs < AIR, outputs, counts)
    low, high = robust_range(outputs, counts)
    curve = named_window(view, modality)
    if curve is None:
        curve = voi_of(scopes, modality, little_endian=little_endian)
        if curve is None or _is_useless(curve, low, high):
            curve = linear(low, high)
    shares = curve

    def shade(values: _Values) -> NDArray[np.uint8]:
        finite = np.isfinite(values)
        shown = _to_uint8(shares(modality.curve(np.where(finite, values, 0.0))))
        if inverted:
            shown = np.uint8(255) - shown
        shown[~finite] = 0
        if padding is not None:
            shown[padding.covers(values)] = 0
        return shown

    return _apply(stored, shade)


def _without(
    outside: NDArray[np.bool_], values: _Values, counts: NDArray[np.integer[Any]] | None
) -> tuple[_Values, NDArray[np.integer[Any]] | None]:
    """Those of ``values`` and ``counts`` (N,) that are not ``outside`` (N,); all if none is
    left."""
    if not np.any(outside) or np.all(outside):
        return values, counts
    return values[~outside], None if counts is None else counts[~outside]


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


def _is_useless(voi: Curve, low: float, high: float) -> bool:
    if not high > low:
        return False
    ends = np.clip(voi(np.array([low, high])), 0.0, 1.0)
    return bool(abs(ends[1] - ends[0]) * 255 < _MIN_LEVELS)
