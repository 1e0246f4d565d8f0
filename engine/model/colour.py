"""How much of a picture is in colour, which the canvas of a grey model does not tell."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["coloured_share"]

_LEAST_SPREAD = 32
"""Between a pixel's highest and lowest channel, of 255. JPEG leaves less in what was grey."""
_SIDE = 256


def coloured_share(pixels: NDArray[np.uint8]) -> float:
    """The share of a picture's pixels that have a colour, in [0, 1].

    Args:
        pixels: uint8 (H, W) or (H, W, 3), as displayed. Of large ones every n-th row and column
            counts.
    """
    if pixels.ndim == 2 or not pixels.size:
        return 0.0
    step = max(1, max(pixels.shape[:2]) // _SIDE)
    some = pixels[::step, ::step]
    spread = some.max(axis=2).astype(np.int16) - some.min(axis=2)
    return float(np.mean(spread >= _LEAST_SPREAD))
