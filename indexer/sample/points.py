"""Points of a body, and the places in the image where they lie.

Coordinates: the image centre is (0, 0), x grows to the right and y downwards, and the
shorter side of the image reaches from -1 to 1. All lengths are in this unit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

__all__ = ["SIDES", "Point", "Points", "Pose", "mirror", "ring", "scaled", "shifted"]

Point: TypeAlias = tuple[float, float]  # x and y
Points: TypeAlias = Sequence[Point]

SIDES = (-1.0, 1.0)
"""What x is multiplied by at the left and at the right of the midline of the image."""


def mirror(points: Points, side: float = -1.0) -> list[Point]:
    """Mirrors the points across the midline; a ``side`` of 1 leaves them where they are."""
    return [(side * x, y) for x, y in points]


def scaled(
    points: Points, across: float, down: float | None = None, about: Point = (0.0, 0.0)
) -> list[Point]:
    """Scales the points in x and in y, alike without ``down``; the point ``about`` stays."""
    down = across if down is None else down
    x0, y0 = about
    return [(x0 + (x - x0) * across, y0 + (y - y0) * down) for x, y in points]


def shifted(points: Points, across: float, down: float) -> list[Point]:
    """Moves the points, all alike, in x and in y."""
    return [(x + across, y + down) for x, y in points]


def ring(radius: float = 1.0, steps: int = 12, bends: Points | None = None) -> list[Point]:
    """Points around a circle; ``bends`` moves each of them."""
    angles = np.linspace(0, 2 * np.pi, steps, endpoint=False)
    moves = bends or [(0.0, 0.0)] * steps
    return [
        (float(radius * (np.cos(a) + dx)), float(radius * (np.sin(a) + dy)))
        for a, (dx, dy) in zip(angles, moves, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class Pose:
    """Where a body lies in the image: scaled, turned (degrees), then moved."""

    centre: Point = (0.0, 0.0)
    scale: Point = (1.0, 1.0)
    turn: float = 0.0

    def at(self, x: float, y: float) -> Point:
        """The place in the image of a point of the body."""
        u, v = x * self.scale[0], y * self.scale[1]
        cos, sin = np.cos(np.deg2rad(self.turn)), np.sin(np.deg2rad(self.turn))
        return (
            float(self.centre[0] + u * cos - v * sin),
            float(self.centre[1] + u * sin + v * cos),
        )

    def __call__(self, points: Points) -> list[Point]:
        """The places in the image of the points of the body."""
        return [self.at(x, y) for x, y in points]
