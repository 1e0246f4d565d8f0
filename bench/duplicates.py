"""How many copies `precedent duplicates` finds, and what else it takes for copies.

    python -m bench.duplicates DATA [--model DIR…] [--most 1500]

DATA as in ``bench.manifests``; pictures of patients that the model has not learned from. Each is
copied as archives copy pictures, and compared with its copy. What is no copy: each picture and the
one of the same patient that is most like it, and of another patient. A pair is found when its
codes differ in at most so many bits and r is at least t, as in ``engine.search.duplicates``.
"""

import argparse
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from bench.machine import write_results
from bench.manifests import Picture, read_pictures
from bench.tables import show
from bench.weights import spread_out
from engine.codes import hamming
from engine.model.encoder import Encoder
from engine.model.manifest import SHIPPED
from engine.records import EncodedImages
from engine.search.duplicates import MAX_BITS, SIMILARITY

HELD_OUT = ("query", "validation")
THRESHOLDS = ((0.9999, 2), (SIMILARITY, MAX_BITS), (0.998, MAX_BITS), (0.995, MAX_BITS))
LEAST_SIDE = 128
"""Pictures of fewer pixels a side are small."""


def jpeg(quality: int) -> Callable[[Image.Image], Image.Image]:
    def copy(image: Image.Image) -> Image.Image:
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=quality)
        return Image.open(stream).convert("L")

    return copy


def resized(share: float) -> Callable[[Image.Image], Image.Image]:
    def copy(image: Image.Image) -> Image.Image:
        size = (max(1, round(image.width * share)), max(1, round(image.height * share)))
        return image.resize(size, Image.Resampling.BICUBIC)

    return copy


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG, quality 95": jpeg(95),
    "JPEG, quality 85": jpeg(85),
    "JPEG, quality 50": jpeg(50),
    "150 % of the size": resized(1.5),
    "90 % of the size": resized(0.9),
    "half the size": resized(0.5),
}


def read(picture: Picture) -> Image.Image:
    with Image.open(picture.path) as image:
        return image.convert("L")


def encoded(encoder: Encoder, images: Sequence[Image.Image]) -> EncodedImages:
    canvas = encoder.manifest.preprocess.canvas
    return encoder.encode([canvas(np.asarray(image)) for image in images])


def pairs(one: EncodedImages, other: EncodedImages) -> tuple[NDArray[Any], NDArray[Any]]:
    """r, float32 (N,), and differing bits, int (N,), of the images in the same row."""
    return (one.z * other.z).sum(axis=1), hamming(one.codes, other.codes)


def nearest(held: EncodedImages, allowed: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The row of the most similar image among those allowed, bool (N, N); −1 = none is."""
    r = np.where(allowed, held.z @ held.z.T, -np.inf)
    return np.where(allowed.any(axis=1), r.argmax(axis=1), -1)


def of(images: EncodedImages, rows: NDArray[np.int64]) -> EncodedImages:
    return EncodedImages(images.z[rows], images.codes[rows])


def row(name: str, r: NDArray[Any], bits: NDArray[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"pairs": name, "count": len(r)}
    for least, most in THRESHOLDS:
        taken = (r >= np.float32(least)) & (bits <= most)
        found[f"{least}, {most} bits"] = round(float(taken.mean()), 4)
    alike = r >= np.float32(SIMILARITY)
    inside = (bits[alike] <= MAX_BITS).mean() if alike.any() else None
    found[f"of r ≥ {SIMILARITY}, within {MAX_BITS} bits"] = inside and round(float(inside), 4)
    return found


def figures(encoder: Encoder, pictures: Sequence[Picture]) -> list[dict[str, Any]]:
    images = [read(one) for one in pictures]
    held = encoded(encoder, images)
    small = np.array([min(image.size) < LEAST_SIDE for image in images])
    rows = []
    for name, copy in COPIES.items():
        r, bits = pairs(held, encoded(encoder, [copy(image) for image in images]))
        for kind, chosen in (("small", small), ("others", ~small)):
            if chosen.any():
                rows.append(row(f"{name}, {kind}", r[chosen], bits[chosen]))
    patients = np.array([one.patient for one in pictures])
    same = patients[:, None] == patients[None]
    others = ~np.eye(len(pictures), dtype=bool)
    for name, allowed in (("same patient", same & others), ("another patient", ~same)):
        found = nearest(held, allowed)
        rows_with = np.flatnonzero(found >= 0)
        r, bits = pairs(of(held, rows_with), of(held, found[rows_with]))
        rows.append(row(f"no copy: nearest of {name}", r, bits))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, nargs="+", default=[SHIPPED])
    parser.add_argument("--most", type=int, default=1500, help="pictures")
    arguments = parser.parse_args()
    every = [one for one in read_pictures(arguments.folder) if one.part in HELD_OUT]
    pictures = spread_out(every, arguments.most, 0)
    console = Console(width=190)
    results = {}
    for model in arguments.model:
        encoder = Encoder.load(model)
        rows = results[encoder.manifest.fingerprint] = figures(encoder, pictures)
        show(console, f"model {encoder.manifest.fingerprint}", rows, list(rows[0]))
    print(write_results("duplicates", {"models": results}))


if __name__ == "__main__":
    main()
