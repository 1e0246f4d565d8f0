"""What chance decides about a phantom: where the body lies, how outlines vary, and the noise.

The order of the draws is part of each phantom: another order gives another patient.
"""

import numpy as np

from indexer.sample.points import Point, Points
from indexer.sample.shapes import Canvas, Floats, blur

__all__ = ["derive", "exposure", "grain", "jitter", "near", "noise_for", "random_bends"]


def near(rng: np.random.Generator, place: Point, spread: float | Point) -> Point:
    """Draws a point around ``place``; ``spread`` is its standard deviation, or that of x and y."""
    across, down = spread if isinstance(spread, tuple) else (spread, spread)
    return float(rng.normal(place[0], across)), float(rng.normal(place[1], down))


def jitter(rng: np.random.Generator, points: Points, amount: float) -> list[Point]:
    """Moves each point at random, in x and y with the standard deviation ``amount``."""
    moved = np.asarray(points) + rng.normal(0, amount, (len(points), 2))
    return [(float(x), float(y)) for x, y in moved]


def random_bends(rng: np.random.Generator, amount: float, steps: int = 12) -> list[Point]:
    """Draws the moves that bend a ``ring`` of this many points; standard deviation ``amount``."""
    return jitter(rng, [(0.0, 0.0)] * steps, amount)


def derive(rng: np.random.Generator) -> np.random.Generator:
    """Seeds a generator by one draw from ``rng``, for a structure that takes many draws.

    The other structures stay as they are, however many draws this one takes.
    """
    return np.random.default_rng(int(rng.integers(2**32)))


def noise_for(rng: np.random.Generator, level: float) -> np.random.Generator:
    """Seeds a generator for the noise of one slice.

    The slices of a series draw the same anatomy from equally seeded generators; what is
    noise has to differ from slice to slice all the same.
    """
    return np.random.default_rng((int(rng.integers(2**32)), round(level * 65536)))


def grain(noise: np.random.Generator, shape: tuple[int, ...], sigma: float) -> Floats:
    """Draws white Gaussian noise, float32 of this shape, in the unit of ``sigma``."""
    return np.float32(sigma) * noise.standard_normal(shape).astype(np.float32)


def exposure(
    c: Canvas,
    noise: np.random.Generator,
    *,
    soft: float,
    sigma: float,
    top: float,
    left: bool = True,
) -> Floats:
    """Returns what an X-ray detector records of the canvas, float32 (H, W) from 0 to ``top``.

    Args:
        c: the attenuation; it stays as it is.
        noise: where the noise comes from.
        soft: standard deviation of the detector's blur, in pixels.
        sigma: standard deviation of the noise, in the unit of the canvas.
        top: the detector saturates here.
        left: the canvas shows a left hand, knee or breast; False mirrors it to a right one.
    """
    image = blur(c.image, soft) + grain(noise, c.size, sigma)
    image = np.asarray(np.clip(image, 0, top), np.float32)
    return image if left else np.ascontiguousarray(image[:, ::-1])
