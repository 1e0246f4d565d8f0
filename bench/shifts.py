"""What each group of augmentations is worth on pictures that look otherwise.

    python -m bench.shifts FOLDER [--jobs 2]
    python -m bench.shifts FOLDER --model DIR    # how one model bears them

One model with all of them, one without each, one without any; queries changed as other
archives change them, in ways that are written apart from the training's own.
"""

import argparse
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps
from rich.console import Console

from bench.collection import Collection, Part
from bench.machine import write_results
from bench.phantoms import KNOWN, phantom_images
from engine.evaluation.metrics import precision_at, relevance
from engine.evaluation.rankings import rankings
from engine.model.encoder import Encoder
from engine.model.preprocess import Preprocess
from engine.training.augment import AugmentConfig

__all__ = ["GROUPS", "SHIFTS", "shifted", "shifted_precision"]

Picture = Image.Image

# The fields of AugmentConfig that belong together; all but standardising, which is the
# preprocessing's.
GROUPS: dict[str, tuple[str, ...]] = {
    "grey windows and tone": ("narrow", "tone", "window", "gamma"),
    "polarity": ("invert",),
    "geometry": ("rotate", "scale", "shift"),
    "resolution and noise": ("coarsen", "noise"),
    "shade, borders, markers": ("shade", "border", "marker"),
}


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
    """Macro P@1 of the class, by shift of the queries; and of phantoms, drawn not scanned."""
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


def main() -> None:
    from bench.quality import show
    from bench.runs import Run, Scale, make_all

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--model", type=Path, help="train nothing, look at this one")
    arguments = parser.parse_args()
    if arguments.model:
        encoder = Encoder.load(arguments.model)
        preprocess = encoder.manifest.preprocess
        collection = Collection(arguments.folder, preprocess)
        parts = collection["database"], collection["query"].balanced(100, by="class")
        bears = shifted_precision(encoder, preprocess, *parts)
        one = [{"query": shift, "precision at 1": value} for shift, value in bears.items()]
        show(Console(), f"model {encoder.manifest.fingerprint}", one, list(one[0]))
        print(
            write_results("shifts-model", {"model": encoder.manifest.fingerprint, "shifts": bears})
        )
        return
    scale = Scale(warm_epochs=0, epochs=6)
    everything = AugmentConfig()
    nothing = replace(everything, **{field: 0.0 for group in GROUPS.values() for field in group})
    variants = {"all": everything}
    for group, fields in GROUPS.items():
        variants[f"without {group}"] = replace(everything, **dict.fromkeys(fields, 0.0))
    variants["none"] = nothing
    rows: list[dict[str, Any]] = []
    for normalise in ("standardise", "fixed"):
        chosen = replace(scale, normalise=normalise)
        runs = [
            Run(name, chosen, 64, seed, augment=augment, by="class", judged_by="class", shifts=True)
            for name, augment in variants.items()
            if normalise == "standardise" or name in ("all", "none")
            for seed in arguments.seeds
        ]
        results = make_all(arguments.folder, runs, jobs=arguments.jobs, done=_heard)
        for name in dict.fromkeys(run.row for run in runs):
            found = [r["shifts"] for run, r in zip(runs, results, strict=True) if run.row == name]
            rows.append(
                {
                    "augmentation": name
                    if normalise == "standardise"
                    else f"{name}, not standardised",
                    **{shift: round(mean(one[shift] for one in found), 4) for shift in found[0]},
                }
            )
    shown = [
        {"query": shift, **{str(row["augmentation"]): row[shift] for row in rows}}
        for shift in [*SHIFTS, "phantoms"]
    ]
    show(Console(width=220), "macro precision at 1", shown, list(shown[0]))
    print(write_results("shifts", {"rows": rows}))


def _heard(run: Any, result: dict[str, Any]) -> None:
    print(f"{run.row}, seed {run.seed}: {result['shifts']}", flush=True)


if __name__ == "__main__":
    main()
