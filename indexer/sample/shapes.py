"""Anti-aliased shapes, smooth noise and blur: what the phantoms are drawn with.

Coordinates and lengths are those of ``indexer.sample.points``.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from indexer.sample.points import Point, Points

__all__ = ["Canvas", "Floats", "Patch", "Size", "blur", "bump", "contraction", "ramp"]

Floats: TypeAlias = NDArray[np.float32]
Size: TypeAlias = tuple[int, int]  # rows and columns

_OVERSAMPLING = 3
_CURVE_STEPS = 8
_FEW_PIXELS = 2.5


def bump(level: float, centre: float, width: float) -> float:
    """A Gaussian weight in (0, 1]: how much of a structure a slice at ``level`` shows."""
    return float(np.exp(-(((level - centre) / width) ** 2)))


def ramp(level: float, start: float, end: float) -> float:
    """0 before ``start``, 1 after ``end`` and smooth in between (start may exceed end)."""
    t = min(max((level - start) / (end - start), 0.0), 1.0)
    return t * t * (3 - 2 * t)


def contraction(phase: float) -> np.float64:
    """How far a heart has contracted: 0 at the phases 0 and 1 (filled), 1 at 0.5."""
    return np.float64(0.5 - 0.5 * np.cos(2 * np.pi * phase))


@dataclass(frozen=True, slots=True)
class Patch:
    """Part of an image: mask float32 (h, w) in [0, 1] at these rows and columns."""

    rows: slice
    cols: slice
    mask: Floats


class Canvas:
    """A float32 (H, W) image that shapes are painted on.

    Args:
        size: rows and columns.
        fill: the value everywhere before something is painted.
    """

    def __init__(self, size: Size, fill: float = 0.0) -> None:
        height, width = size
        self.size = size
        self.pixel = 2.0 / min(size)
        self.x: Floats = ((np.arange(width) + 0.5 - width / 2) * self.pixel)[None, :].astype("f4")
        self.y: Floats = ((np.arange(height) + 0.5 - height / 2) * self.pixel)[:, None].astype("f4")
        self.image: Floats = np.full(size, fill, np.float32)

    def paint(self, shape: Patch | None, value: float | Floats, opacity: float = 1.0) -> None:
        """Replaces what is under the shape with a value or with an image of equal size."""
        if shape is None or opacity <= 0:
            return
        part = self.image[shape.rows, shape.cols]
        new = value[shape.rows, shape.cols] if isinstance(value, np.ndarray) else value
        part += shape.mask * np.float32(opacity) * (new - part)

    def add(self, shape: Patch | None, value: float | Floats) -> None:
        """Adds a value, or an image of equal size, under the shape: projections sum up."""
        if shape is None:
            return
        new = value[shape.rows, shape.cols] if isinstance(value, np.ndarray) else value
        self.image[shape.rows, shape.cols] += shape.mask * np.float32(1) * new

    def whole(self, shape: Patch | None) -> Floats:
        """The shape as a mask of the whole image."""
        mask = np.zeros(self.size, np.float32)
        if shape is not None:
            mask[shape.rows, shape.cols] = shape.mask
        return mask

    def union(self, shapes: Iterable[Patch | None]) -> Floats:
        """The shapes together as one mask of the whole image, float32 (H, W) in [0, 1]."""
        mask = np.zeros(self.size, np.float32)
        for shape in shapes:
            mask = np.maximum(mask, self.whole(shape))
        return mask

    @contextmanager
    def within(self, mask: Floats) -> Iterator[None]:
        """Confines what is painted meanwhile to a mask, float32 (H, W) in [0, 1]."""
        before = self.image.copy()
        yield
        self.image = np.asarray(before + mask * (self.image - before), np.float32)

    def ellipse(
        self,
        centre: Point,
        radii: Point,
        angle: float = 0.0,
        soft: float = 0.0,
    ) -> Patch | None:
        """An ellipse turned by ``angle`` degrees, its edge ``soft`` wide (at least a pixel)."""
        reach = max(radii) + soft + self.pixel
        window = self._window(centre[0] - reach, centre[1] - reach, 2 * reach, 2 * reach)
        if window is None or min(radii) <= 0:
            return None
        rows, cols = window
        x, y = self.x[:, cols] - centre[0], self.y[rows] - centre[1]
        turn = np.deg2rad(angle)
        u = (x * np.cos(turn) + y * np.sin(turn)) / radii[0]
        v = (y * np.cos(turn) - x * np.sin(turn)) / radii[1]
        distance = (np.sqrt(u * u + v * v) - 1) * min(radii)
        return Patch(rows, cols, self._edge(distance, soft))

    def path(
        self, points: Points, radius: float | Sequence[float], soft: float = 0.0
    ) -> Patch | None:
        """A line through the points as thick as twice the radius, or the radius at each point."""
        radii = [radius] * len(points) if isinstance(radius, (int, float)) else list(radius)
        reach = max(radii) + soft + self.pixel
        xs, ys = [p[0] for p in points], [p[1] for p in points]
        window = self._window(
            min(xs) - reach,
            min(ys) - reach,
            max(xs) - min(xs) + 2 * reach,
            max(ys) - min(ys) + 2 * reach,
        )
        if window is None:
            return None
        rows, cols = window
        x, y = self.x[:, cols], self.y[rows]
        distance = np.full((rows.stop - rows.start, cols.stop - cols.start), 9.0, np.float32)
        for k in range(len(points) - 1):
            (ax, ay), (bx, by) = points[k], points[k + 1]
            dx, dy = bx - ax, by - ay
            length = max(dx * dx + dy * dy, 1e-9)
            t = np.clip(((x - ax) * dx + (y - ay) * dy) / length, 0, 1)
            gap = np.hypot(x - ax - t * dx, y - ay - t * dy)
            np.minimum(distance, gap - (radii[k] + t * (radii[k + 1] - radii[k])), out=distance)
        return Patch(rows, cols, self._edge(distance, soft))

    def outline(self, points: Points, soft: float = 0.0) -> Patch | None:
        """The inside of the smooth closed curve through the points (Catmull-Rom)."""
        curve = _closed_curve(points)
        low, high = curve.min(0) - soft * 2 - self.pixel, curve.max(0) + soft * 2 + self.pixel
        window = self._window(low[0], low[1], high[0] - low[0], high[1] - low[1])
        if window is None:
            return None
        rows, cols = window
        height, width = rows.stop - rows.start, cols.stop - cols.start
        left, top = self.x[0, cols.start], self.y[rows.start, 0]
        scale = _OVERSAMPLING / self.pixel
        sheet = Image.new("L", (width * _OVERSAMPLING, height * _OVERSAMPLING))
        corners = (curve - (left - self.pixel / 2, top - self.pixel / 2)) * scale
        ImageDraw.Draw(sheet).polygon([(float(a), float(b)) for a, b in corners], fill=255)
        mask = np.asarray(sheet.reduce(_OVERSAMPLING), np.float32) / np.float32(255)
        return Patch(rows, cols, blur(mask, soft / self.pixel) if soft > 0 else mask)

    def texture(self, rng: np.random.Generator, cells: float, stretch: float = 1.0) -> Floats:
        """Smooth noise of mean 0 and standard deviation near 1, float32 (H, W).

        Args:
            rng: where the noise comes from.
            cells: blobs along the shorter side of the image.
            stretch: above 1, blobs are that much longer in y than in x.
        """
        height, width = self.size
        down = max(3, round(cells * height / min(self.size) / stretch))
        across = max(3, round(cells * width / min(self.size)))
        coarse = rng.standard_normal((down, across)).astype(np.float32)
        sheet = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        fine = np.asarray(sheet, np.float32)
        return np.asarray(fine / (fine.std() + np.float32(1e-6)), np.float32)

    def blur(self, sigma: float) -> None:
        """Blurs the image by a Gaussian of this standard deviation, in our unit of length."""
        self.image = blur(self.image, sigma / self.pixel)

    def _edge(self, distance: Floats, soft: float) -> Floats:
        width = np.float32(max(soft, self.pixel))
        return np.asarray(np.clip(0.5 - distance / width, 0, 1), np.float32)

    def _window(
        self, left: float, top: float, width: float, height: float
    ) -> tuple[slice, slice] | None:
        rows_total, cols_total = self.size
        first_col = int((left / self.pixel) + cols_total / 2)
        first_row = int((top / self.pixel) + rows_total / 2)
        cols = slice(
            max(0, first_col - 1), min(cols_total, first_col + int(width / self.pixel) + 3)
        )
        rows = slice(
            max(0, first_row - 1), min(rows_total, first_row + int(height / self.pixel) + 3)
        )
        return None if cols.stop <= cols.start or rows.stop <= rows.start else (rows, cols)


def blur(image: Floats, sigma: float) -> Floats:
    """A Gaussian blur, sigma in pixels; beyond the edges the image goes on as it ends."""
    # No matrix products: their threads cost more than they give on a busy machine.
    if sigma <= 0.05:
        return image
    smooth = _taps if sigma <= _FEW_PIXELS else _boxes
    return np.ascontiguousarray(smooth(smooth(image, sigma).T, sigma).T)


def _taps(image: Floats, sigma: float) -> Floats:
    """Convolves along the first axis, tap by tap."""
    reach, rows = int(np.ceil(3 * sigma)), len(image)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    padded = np.pad(image, ((reach, reach), (0, 0)), mode="edge")
    total = np.zeros_like(image)
    for k, weight in enumerate(weights):
        total += weight * padded[k : k + rows]
    return total


def _boxes(image: Floats, sigma: float) -> Floats:
    """Three running means along the first axis, which together come close to a Gaussian."""
    reach = round((np.sqrt(4 * sigma**2 + 1) - 1) / 2)
    width = 2 * reach + 1
    result: NDArray[np.float64] = image.astype(np.float64)
    for _ in range(3):
        padded = np.pad(result, ((reach + 1, reach), (0, 0)), mode="edge")
        sums = np.cumsum(padded, axis=0)
        result = (sums[width:] - sums[:-width]) / width
    return result.astype(np.float32)


def _closed_curve(points: Points) -> NDArray[np.float64]:
    p = np.asarray(points, np.float64)
    before, after, beyond = np.roll(p, 1, 0), np.roll(p, -1, 0), np.roll(p, -2, 0)
    t = (np.arange(_CURVE_STEPS) / _CURVE_STEPS)[None, :, None]
    a, b, c, d = (q[:, None, :] for q in (before, p, after, beyond))
    curve = 0.5 * (
        2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3
    )
    return np.asarray(curve.reshape(-1, 2))
