"""Synthetic labelled images for training, drawn from the sample archive's phantoms.

    python -m bench.phantoms OUT [--per-class 400] [--seed 0]

They stand in for scanners that the training collections lack: CT in the windows that radiologists
use, other fields of view, and anatomy and pictures of which there are no real training images. No
image shows a real person.
"""

import argparse
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from rich.progress import track

from indexer.sample import phantoms

Grey = NDArray[np.uint8]
Draw = Callable[[np.random.Generator], Grey]
Window = tuple[int, int]

# Centre and width in HU; each image takes one of its kind's, shifted and stretched a little.
SOFT, LUNG, BONE, BRAIN, WIDE, LIVER = (
    (40, 400), (-600, 1500), (500, 2200), (40, 90), (0, 2000), (70, 180),
)  # fmt: skip


def windowed(hu: NDArray[np.float32], rng: np.random.Generator, *choices: tuple[int, int]) -> Grey:
    """Applies one of the CT windows: float (H, W) in HU → uint8 (H, W)."""
    centre, width = choices[rng.integers(len(choices))]
    width *= rng.uniform(0.75, 1.35)
    centre += rng.normal(0, 0.08) * width
    low = centre - width / 2
    return grey((hu - low) / width)


def grey(image: NDArray[np.floating]) -> Grey:
    """Float (H, W), shown from 0 to 1 → uint8."""
    return (np.clip(image, 0, 1) * 255).astype(np.uint8)


def stretched(image: NDArray[np.floating], rng: np.random.Generator) -> Grey:
    """Float (H, W) in any unit → uint8 between its percentiles, as radiographs and MR are."""
    low, high = np.percentile(image, [rng.uniform(0, 2), rng.uniform(97.5, 100)])
    return grey((image - low) / max(high - low, 1e-6))


def _chest_hu(rng: np.random.Generator) -> NDArray[np.float32]:
    return phantoms.chest_ct(rng, level=rng.uniform(0, 1), lesion=rng.random() < 0.2)


def _chest_ct(rng: np.random.Generator) -> Grey:
    return windowed(_chest_hu(rng), rng, SOFT, LUNG, LUNG, WIDE, BONE)


def _abdomen_hu(rng: np.random.Generator) -> NDArray[np.float32]:
    return phantoms.abdomen_ct(rng, level=rng.uniform(0, 1), lesion=rng.random() < 0.2)


def _abdomen_ct(rng: np.random.Generator) -> Grey:
    return windowed(_abdomen_hu(rng), rng, SOFT, SOFT, LIVER, WIDE)


def _head_hu(rng: np.random.Generator) -> NDArray[np.float32]:
    return phantoms.head_ct(rng, level=rng.uniform(0, 1), lesion=rng.random() < 0.2)


def _head_ct(rng: np.random.Generator) -> Grey:
    return windowed(_head_hu(rng), rng, BRAIN, BRAIN, SOFT, BONE, WIDE)


def _chest_xray(rng: np.random.Generator) -> Grey:
    return stretched(phantoms.chest_xray(rng, lesion=rng.random() < 0.2), rng)


def _hand(rng: np.random.Generator) -> Grey:
    return stretched(phantoms.hand_xray(rng, left=rng.random() < 0.5), rng)


def _knee(rng: np.random.Generator) -> Grey:
    return stretched(phantoms.knee_xray(rng, left=rng.random() < 0.5), rng)


def _breast_mr(rng: np.random.Generator) -> Grey:
    image = phantoms.breast_mr(rng, level=rng.uniform(0, 1), lesion=rng.random() < 0.2)
    return stretched(image, rng)


def _cardiac_mr(rng: np.random.Generator) -> Grey:
    image = phantoms.cardiac_mr(rng, level=rng.uniform(0, 1), phase=rng.uniform(0, 1))
    return stretched(image, rng)


def _head_mr(rng: np.random.Generator) -> Grey:
    tissues = phantoms.HEAD_T1 if rng.random() < 0.5 else phantoms.HEAD_T2
    image = phantoms.head_mr(rng, level=rng.uniform(0, 1), tissues=tissues)
    return stretched(image, rng)


def _mammogram(rng: np.random.Generator) -> Grey:
    return stretched(
        phantoms.mammogram(rng, left=rng.random() < 0.5, oblique=rng.random() < 0.5), rng
    )


def _ultrasound(rng: np.random.Generator) -> Grey:
    image = phantoms.ultrasound(rng, phase=rng.uniform(0, 1), doppler=rng.random() < 0.3)
    return np.asarray(Image.fromarray(image).convert("L"))


def _angiogram(rng: np.random.Generator) -> Grey:
    return stretched(phantoms.angiogram(rng, phase=rng.uniform(0, 1)), rng)


def _dead_leaves(rng: np.random.Generator) -> Grey:
    """Overlapping shapes of power-law sizes, which have the statistics of natural scenes
    (Lee, Mumford and Huang, "Occlusion Models for Natural Images", IJCV 2001)."""
    side = 160
    image = Image.new("L", (side, side), int(rng.integers(256)))
    draw = ImageDraw.Draw(image)
    smallest = rng.uniform(2, 8)
    for _ in range(int(rng.integers(5, 400))):
        radius = min(smallest / (1 - rng.random()) ** rng.uniform(0.4, 0.9), side)
        x, y = rng.uniform(0, side, 2)
        tone = int(rng.integers(256))
        kind = rng.integers(3)
        if kind == 0:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=tone)
        elif kind == 1:
            draw.rectangle((x - radius, y - radius / 2, x + radius, y + radius / 2), fill=tone)
        else:
            corners = rng.normal((x, y), radius, (int(rng.integers(3, 7)), 2))
            draw.polygon([tuple(corner) for corner in corners], fill=tone)
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 2)))
    shade = np.linspace(rng.uniform(0.4, 1), rng.uniform(0.4, 1), side)
    noise = rng.normal(0, rng.uniform(0, 12), (side, side))
    return (np.asarray(image) * shade[:, None] + noise).clip(0, 255).astype(np.uint8)


KNOWN: dict[str, Draw] = {
    "AbdomenCT": _abdomen_ct,
    "BreastMRI": _breast_mr,
    "CXR": _chest_xray,
    "CardiacMR": _cardiac_mr,
    "ChestCT": _chest_ct,
    "Hand": _hand,
    "HeadCT": _head_ct,
    "KneeXR": _knee,
}
# CT whose values are known, and the windows that readers see it in.
HU: dict[str, tuple[Callable[[np.random.Generator], NDArray[np.float32]], tuple[Window, ...]]] = {
    "AbdomenCT": (_abdomen_hu, (SOFT, LIVER, BONE, WIDE)),
    "ChestCT": (_chest_hu, (SOFT, LUNG, BONE, WIDE)),
    "HeadCT": (_head_hu, (BRAIN, SOFT, BONE, WIDE)),
}
OTHER: dict[str, Draw] = {
    "HeadMR (synthetic)": _head_mr,
    "Mammogram (synthetic)": _mammogram,
    "Ultrasound (synthetic)": _ultrasound,
    "Angiogram (synthetic)": _angiogram,
    "Picture (synthetic)": _dead_leaves,
}


def phantom_images(count: int, seed: int, kinds: dict[str, Draw]) -> Iterator[tuple[str, Grey]]:
    """``count`` images of each kind with its name; each from a patient of its own."""
    for number, (name, draw) in enumerate(kinds.items()):
        for i in range(count):
            yield name, draw(np.random.default_rng((seed, number, i)))


def slices_in_windows(
    count: int, seed: int, kinds: Collection[str], windows: int = 2
) -> Iterator[tuple[str, list[Grey]]]:
    """``count`` CT slices of each kind with its name, each in several different windows."""
    for number, (name, (draw, choices)) in enumerate(HU.items()):
        for i in range(count if name in kinds else 0):
            rng = np.random.default_rng((seed, number, i))
            hu = draw(rng)
            chosen = rng.choice(len(choices), windows, replace=False)
            yield name, [windowed(hu, rng, choices[one]) for one in chosen]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--per-class", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    kinds = {**KNOWN, **OTHER}
    images = phantom_images(arguments.per_class, arguments.seed, kinds)
    total = arguments.per_class * len(kinds)
    for number, (name, image) in enumerate(track(images, "phantoms", total)):
        folder = arguments.out / name
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number % arguments.per_class:05d}.png")


if __name__ == "__main__":
    main()
