"""The shape of a frame's pixels, and pictures with square ones."""

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset

from indexer.imaging.header import numbers

__all__ = ["ASPECT_KEYWORDS", "pixel_aspect", "squared"]

ASPECT_KEYWORDS = (
    "PixelSpacing",
    "ImagerPixelSpacing",
    "NominalScannedPixelSpacing",
    "PixelAspectRatio",
    "ImagePlanePixelSpacing",
)
"""Keywords of the elements that :func:`pixel_aspect` reads, each vertical, then horizontal.

The first that makes sense counts. Pixel Aspect Ratio is for images without the spacings before it
(PS3.3 table C.7-11c); the last is that of a radiotherapy image in a plane of the patient (C.8.8.2).
"""

# Nobody writes images with pixels of more extreme proportions.
_ABSURD = 8.0
# Less than this share nobody sees, and resampling costs sharpness and time.
_UNSEEN = 0.01


def pixel_aspect(scopes: list[Dataset]) -> float:
    """Height over width of the pixels of a frame (PS3.3 C.7.6.3.1.7 and 10.7.1.3), 1.0 when its
    header says nothing sensible.

    Args:
        scopes: the datasets that describe the frame, the most specific first.
    """
    for keyword in ASPECT_KEYWORDS:
        for scope in scopes:
            found = numbers(scope, keyword)
            if len(found) >= 2 and min(found[:2]) > 0:
                aspect = found[0] / found[1]
                if 1 / _ABSURD <= aspect <= _ABSURD:
                    return aspect
    return 1.0


def squared(pixels: NDArray[np.uint8], aspect: float, max_pixels: int) -> NDArray[np.uint8]:
    """``pixels`` resampled so that what they show has its proportions when pixels are square:
    uint8 (H, W) or (H, W, 3), like ``pixels``.

    The side along which pixels are larger gets more of them; the other fewer, if there would be
    more than ``max_pixels``.

    Args:
        pixels: uint8 (H, W) or (H, W, 3), display values.
        aspect: height over width of a pixel.
    """
    if abs(math.log(aspect)) <= _UNSEEN:
        return pixels
    height, width = pixels.shape[:2]
    higher, wider = max(1, round(height * aspect)), max(1, round(width / aspect))
    high, wide = (higher, width) if aspect > 1 else (height, wider)
    if high * wide > max_pixels:
        high, wide = (height, wider) if aspect > 1 else (higher, width)
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.resize((wide, high), Image.Resampling.BILINEAR))
