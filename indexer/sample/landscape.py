"""A drawn landscape: a picture that is no medical image, for the OOD gate to notice."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

__all__ = ["landscape"]

_WIDTH, _HEIGHT = 480, 320
_SKY, _HAZE = (70, 130, 200), (250, 215, 170)
_HILLS = ((120, 145, 165), (85, 125, 105), (55, 95, 60))  # from far to near
_TRUNK, _LEAVES = (80, 55, 35), (30, 75, 40)
_WALL, _ROOF, _WINDOW = (205, 190, 165), (150, 60, 45), (250, 235, 150)


def landscape(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Sky, sun, three ranges of hills, trees and a house; uint8 (320, 480, 3)."""
    fall = np.linspace(0, 1, _HEIGHT)[:, None, None] * np.ones((1, _WIDTH, 1))
    sky = np.array(_SKY) * (1 - fall) + np.array(_HAZE) * fall
    image = Image.fromarray(sky.astype(np.uint8))
    draw = ImageDraw.Draw(image)
    x, y, radius = rng.uniform(60, 420), rng.uniform(40, 100), rng.uniform(16, 30)
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(255, 245, 205))
    for number, colour in enumerate(_HILLS):
        ridge = _ridge(rng, 0.45 + 0.17 * number)
        outline = [*enumerate(ridge.tolist()), (_WIDTH, _HEIGHT), (0, _HEIGHT)]
        draw.polygon(outline, fill=colour)
    for x in rng.uniform(0, _WIDTH, 14):
        _tree(draw, float(x), float(ridge[int(x)]), float(rng.uniform(22, 50)))
    _house(draw, float(rng.uniform(60, 380)), 300.0)
    grain = rng.normal(0, 3, (_HEIGHT, _WIDTH, 1))
    return np.clip(np.rint(np.asarray(image) + grain), 0, 255).astype(np.uint8)


def _ridge(rng: np.random.Generator, height: float) -> NDArray[np.float64]:
    """Where a range of hills ends, in pixels from the top, for each column."""
    x = np.arange(_WIDTH) / _WIDTH
    waves = [
        rng.uniform(0.4, 1) / order * np.sin(2 * np.pi * (order * x + rng.random()))
        for order in (1, 2, 3, 5, 8, 13)
    ]
    top: NDArray[np.float64] = _HEIGHT * (height + 0.05 * np.sum(waves, axis=0))
    return top


def _tree(draw: ImageDraw.ImageDraw, x: float, foot: float, height: float) -> None:
    draw.rectangle((x - 2, foot - height / 4, x + 2, foot + 4), fill=_TRUNK)
    for level in range(3):
        top, half = foot - height * (1 - 0.2 * level), height * (0.14 + 0.06 * level)
        draw.polygon(
            [(x, top), (x - half, top + height * 0.42), (x + half, top + height * 0.42)],
            fill=_LEAVES,
        )


def _house(draw: ImageDraw.ImageDraw, x: float, foot: float) -> None:
    draw.rectangle((x - 32, foot - 40, x + 32, foot), fill=_WALL)
    draw.polygon([(x - 40, foot - 40), (x + 40, foot - 40), (x, foot - 72)], fill=_ROOF)
    draw.rectangle((x - 7, foot - 24, x + 7, foot), fill=_TRUNK)
    for side in (-20, 20):
        draw.rectangle((x + side - 6, foot - 30, x + side + 6, foot - 18), fill=_WINDOW)
