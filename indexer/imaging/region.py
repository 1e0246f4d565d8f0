"""A part of a picture that is searched for in place of the whole."""

import io
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engine.errors import ImageRefused, QueryError, RefusalReason
from indexer.imaging.orientation import Turn

__all__ = ["LEAST_SIDE", "Region", "WholePicture", "parse_region"]

LEAST_SIDE = 32
"""Fewest pixels of a region's side: of less a model sees nothing but its enlargement."""
_DIGITS = 4
_ROUNDING = 10**-_DIGITS


@dataclass(frozen=True, slots=True)
class Region:
    """A rectangle in a picture as its file has it, not turned.

    x, y: its left and upper edge, width, height: its sides, all as shares of the picture's.
    """

    x: float
    y: float
    width: float
    height: float

    def __str__(self) -> str:
        return ",".join(f"{one:g}" for one in (self.x, self.y, self.width, self.height))

    def cut(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The part of a picture, every pixel that it has a share of.

        Args:
            pixels: uint8 (H, W) or (H, W, 3), not turned.

        Raises:
            ImageRefused: it has fewer than ``LEAST_SIDE`` pixels across or down.
        """
        height, width = pixels.shape[:2]
        left, right = _span(self.x, self.width, width)
        top, bottom = _span(self.y, self.height, height)
        if min(right - left, bottom - top) < LEAST_SIDE:
            raise ImageRefused(
                RefusalReason.TOO_SMALL,
                f"the region has {right - left} x {bottom - top} of the picture's {width} x "
                f"{height} pixels; choose one of {LEAST_SIDE} x {LEAST_SIDE} or more",
            )
        return pixels[top:bottom, left:right]


def _span(start: float, share: float, pixels: int) -> tuple[int, int]:
    """The first pixel of a span, and the one after its last."""
    # What is a whole number but for rounding is no pixel more.
    first = math.floor(round(start * pixels, 3))
    return first, min(pixels, math.ceil(round((start + share) * pixels, 3)))


def parse_region(written: str) -> Region:
    """The region of "x,y,w,h", as addresses and forms have it, rounded to four digits.

    Raises:
        QueryError: these are not four numbers, or the rectangle is not within the picture.
    """
    try:
        x, y, width, height = (round(float(one), _DIGITS) for one in written.split(","))
    except (ValueError, OverflowError):
        raise QueryError(
            f"region is {written[:60]!r}; give four numbers, as in 0.25,0.25,0.5,0.5: left edge, "
            "upper edge, width and height, as shares of the picture's"
        ) from None
    within = all(math.isfinite(one) for one in (x, y, width, height))
    within = within and min(x, y) >= 0 and min(width, height) > 0
    if not (within and x + width <= 1 + _ROUNDING and y + height <= 1 + _ROUNDING):
        raise QueryError(
            f"region {written[:60]} is not within the picture, whose edges are 0 and 1; its width "
            "and height are above 0"
        )
    return Region(x, y, width, height)


@dataclass(frozen=True, slots=True)
class WholePicture:
    """A picture, for regions that are cut from it later. png: not turned, without metadata. turn:
    what brings it into the usual view."""

    png: bytes
    turn: Turn

    @classmethod
    def of(cls, pixels: NDArray[np.uint8], turn: Turn, side: int) -> "WholePicture":
        """pixels: uint8 (H, W) or (H, W, 3). side: the longest one that is kept; larger pictures
        are made smaller."""
        image = Image.fromarray(np.ascontiguousarray(pixels))
        scale = side / max(image.size)
        if scale < 1:
            size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
            image = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
        out = io.BytesIO()
        image.save(out, "PNG", compress_level=1)
        return cls(out.getvalue(), turn)

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """uint8 (H, W) or (H, W, 3), not turned."""
        with Image.open(io.BytesIO(self.png)) as image:
            return np.asarray(image)
