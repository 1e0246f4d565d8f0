"""The proportions of pixels that the standard says, and pictures on another grid."""

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

__all__ = ["pixel_ratio", "squared"]


def pixel_ratio(header: Dataset, frame: int = 0) -> float:
    """How high a pixel is as a share of its width; 1 where the header does not say.

    Spacing first, then the ratio, which stands where there is no spacing (PS3.3 C.7.6.3.1.7); the
    first value is the distance of rows (PS3.3 10.7.1.3).
    """
    per_frame = header.get("PerFrameFunctionalGroupsSequence") or []
    shared = header.get("SharedFunctionalGroupsSequence") or []
    measures = [
        item
        for group in (*per_frame[frame : frame + 1], *shared[:1])
        for item in group.get("PixelMeasuresSequence") or []
    ]
    for scope in (*measures, header):
        for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
            pair = scope.get(keyword)
            if pair and len(pair) == 2:
                return float(pair[0]) / float(pair[1])
    pair = header.get("PixelAspectRatio")
    return float(pair[0]) / float(pair[1]) if pair and len(pair) == 2 else 1.0


def squared(pixels: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.uint8]:
    """The picture on another grid over the same field, by linear interpolation: uint8 of
    ``shape``, and 3 where ``pixels`` has colours."""
    out = pixels.astype(np.float64)
    for axis, count in enumerate(shape):
        held = out.shape[axis]
        at = np.clip((np.arange(count) + 0.5) * held / count - 0.5, 0, held - 1)
        below = np.floor(at).astype(int)
        share = (at - below).reshape([-1 if axis == a else 1 for a in range(out.ndim)])
        above = np.minimum(below + 1, held - 1)
        out = out.take(below, axis) * (1 - share) + out.take(above, axis) * share
    return np.rint(out).astype(np.uint8)
