"""Turns luminance and colour difference into red, green and blue (PS3.3 C.7.6.3.1.2)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["full_range_to_rgb", "partial_range_to_rgb"]

# From red, green and blue, as the standard writes it; for a range of 0 to 1.
_FULL = np.array([[0.2990, 0.5870, 0.1140], [-0.1687, -0.3313, 0.5000], [0.5000, -0.4187, -0.0813]])
# YBR_PARTIAL_422 was retired, and its equations with it: PS3.3-2011 has them. Luminance takes the
# values 16 to 235 of 0 to 255, colour difference 16 to 240.
_PARTIAL = np.array(
    [[0.2568, 0.5041, 0.0979], [-0.1482, -0.2910, 0.4392], [0.4392, -0.3678, -0.0714]]
)
_ROWS_AT_ONCE = 64


def full_range_to_rgb(values: NDArray[Any], bits: int) -> NDArray[Any]:
    """Red, green and blue of YBR_FULL ``values`` of ``bits`` bits: (H, W, 3), their dtype."""
    middle = 1 << (bits - 1)
    return _converted(values, np.linalg.inv(_FULL), (0, middle, middle), (1 << bits) - 1)


def partial_range_to_rgb(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Red, green and blue of YBR_PARTIAL_422 ``values``, chroma repeated: uint8 (H, W, 3)."""
    return _converted(values, np.linalg.inv(_PARTIAL), (16, 128, 128), 255)


def _converted(
    values: NDArray[Any], matrix: NDArray[np.float64], zero: tuple[int, ...], top: int
) -> NDArray[Any]:
    out = np.empty_like(values)
    turned = matrix.T.astype(np.float32)
    offset = np.array(zero, np.float32)
    # In parts, so that the floats of a large picture need not be held at once.
    for row in range(0, len(values), _ROWS_AT_ONCE):
        part = (values[row : row + _ROWS_AT_ONCE].astype(np.float32) - offset) @ turned
        out[row : row + _ROWS_AT_ONCE] = np.clip(np.rint(part), 0, top)
    return out
