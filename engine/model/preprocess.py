"""Preprocessing: from display pixels to the square canvas that the network takes."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.errors import ModelError

__all__ = ["Preprocess"]


@dataclass(frozen=True, slots=True)
class Preprocess:
    """How an image is prepared for the network; part of the model's fingerprint.

    size: side S of the canvas, in pixels.
    colour: keep three channels; False = luma only.
    normalise: "standardise" gives every image zero mean and unit variance, so that the window it
        was saved with matters less; "fixed" subtracts ``mean`` and divides by ``std`` (RGB, of
        values in [0, 1]), as pretrained towers expect.
    """

    size: int = 128
    colour: bool = False
    normalise: str = "standardise"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        if self.size < 16:
            raise ModelError(f"preprocessing size is {self.size}; use at least 16 pixels")
        if self.normalise not in ("standardise", "fixed"):
            raise ModelError(f"normalise is {self.normalise!r}; use 'standardise' or 'fixed'")

    def canvas(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The canvas: the image scaled to fit, aspect ratio kept, centred on black.

        Args:
            pixels: uint8 (H, W) or (H, W, 3), as displayed (0 = black).

        Returns:
            uint8 (S, S), or (S, S, 3) when ``colour``.
        """
        # Reading a manifest needs no imaging library.
        from PIL import Image

        image = Image.fromarray(pixels).convert("RGB" if self.colour else "L")
        scale = self.size / max(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        scaled = image.resize((width, height), Image.Resampling.BILINEAR)
        board = Image.new(scaled.mode, (self.size, self.size))
        board.paste(scaled, ((self.size - width) // 2, (self.size - height) // 2))
        return np.asarray(board)
