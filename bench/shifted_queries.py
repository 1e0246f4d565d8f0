"""Queries changed as other archives would show them, and the precision of a model on these.

They are windowed, cropped or noisy. The changes are implemented independently of those in training
(``engine.training.augment``).
"""

from collections.abc import Callable, Iterable
from statistics import mean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps

from bench.collection import Part
from bench.phantoms import KNOWN, phantom_images
from engine.evaluation.metrics import precision_at, relevance
from engine.evaluation.rankings import rankings
from engine.model.encoder import Encoder
from engine.model.preprocess import Preprocess

__all__ = ["SHIFTS", "shifted", "shifted_precision"]

Picture = Image.Image


def _levels(image: Picture, low: float, high: float) -> Picture:
    """Between two percentiles."""
    grey = np.asarray(image, dtype=np.float32)
    bottom, top = np.percentile(grey, [low, high])
    return Image.fromarray(
        ((grey - bottom) / max(top - bottom, 1) * 255).clip(0, 255).astype(np.uint8)
    )


def _gamma(image: Picture, exponent: float) -> Picture:
    return image.point([round(255 * (value / 255) ** exponent) for value in range(256)])


def _cropped(image: Picture) -> Picture:
    side = image.width
    margin = round(side * 0.12)
    box = (margin, margin, side - margin, side - margin)
    return image.crop(box).resize(image.size, Image.Resampling.BICUBIC)


def _shrunk(image: Picture) -> Picture:
    small = image.resize((round(image.width * 0.72), round(image.height * 0.72)))
    board = Image.new("L", image.size)
    board.paste(small, (round(image.width * 0.1), round(image.height * 0.16)))
    return board


def _coarse(image: Picture) -> Picture:
    small = image.resize((image.width // 3, image.height // 3), Image.Resampling.BOX)
    return small.resize(image.size, Image.Resampling.NEAREST)


def _noisy(image: Picture) -> Picture:
    rng = np.random.default_rng(np.asarray(image).astype(np.int64).sum())
    noisy = np.asarray(image) + rng.normal(0, 20, image.size[::-1])
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def _framed(image: Picture) -> Picture:
    board = ImageOps.expand(image, border=image.width // 10, fill=0).resize(image.size)
    board.paste(255, (4, 4, 4 + image.width // 8, 4 + image.width // 16))
    return board


def _vignette(image: Picture) -> Picture:
    y, x = np.mgrid[-1 : 1 : image.height * 1j, -1 : 1 : image.width * 1j]
    falloff = np.exp(-((x + 0.3) ** 2 + (y - 0.2) ** 2))
    return Image.fromarray((np.asarray(image) * falloff).astype(np.uint8))


SHIFTS: dict[str, Callable[[Picture], Picture]] = {
    "as they are": lambda image: image,
    "narrow window": lambda image: _levels(image, 40, 99.5),
    "saturated": lambda image: _levels(image, 30, 88),
    "gamma 0.5": lambda image: _gamma(image, 0.5),
    "gamma 2": lambda image: _gamma(image, 2.0),
    "equalised": ImageOps.equalize,
    "inverted": ImageOps.invert,
    "cropped": _cropped,
    "shrunk": _shrunk,
    "rotated 12°": lambda image: image.rotate(12, Image.Resampling.BILINEAR),
    "a third of the resolution": _coarse,
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(image.width / 50)),
    "noisy": _noisy,
    "framed and marked": _framed,
    "vignette": _vignette,
}


def shifted(
    canvases: Iterable[NDArray[np.uint8]], shift: Callable[[Picture], Picture]
) -> list[NDArray[np.uint8]]:
    """Each canvas changed, in their order."""
    return [np.asarray(shift(Image.fromarray(canvas))) for canvas in canvases]


def shifted_precision(
    encoder: Encoder, preprocess: Preprocess, database: Part, queries: Part
) -> dict[str, float]:
    """Macro-averaged P@1 by class, for each change of the queries and for synthetic phantoms."""
    held = encoder.encode(list(database.canvases))
    found: dict[str, float] = {}
    for name, shift in SHIFTS.items():
        canvases = shifted(queries.canvases, shift)
        found[name] = _macro_precision(encoder, canvases, queries.classes, held, database.classes)
    names, drawn = zip(*phantom_images(25, 999, KNOWN), strict=True)
    canvases = [preprocess.canvas(image) for image in drawn]
    found["phantoms"] = _macro_precision(encoder, canvases, np.array(names), held, database.classes)
    return found


def _macro_precision(
    encoder: Encoder,
    canvases: list[NDArray[np.uint8]],
    asked: NDArray[np.str_],
    held: Any,
    classes: NDArray[np.str_],
) -> float:
    ranking = rankings(encoder.encode(canvases), held, 1, orders=("content",))["content"]
    names = np.unique(classes)
    hits = relevance(ranking, asked[:, None] == names, classes[:, None] == names)
    first = precision_at(hits, 1)
    return round(mean(float(first[asked == name].mean()) for name in np.unique(asked)), 4)
