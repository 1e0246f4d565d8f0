"""Draws examples of queries with a wrong answer, for the model card.

    python -m bench.failures FOLDER [--model DIR] [--out docs/images/failures.png]

No image of a collection is shown: the queries are synthetic (``bench.phantoms``, with another seed
than in training, and ``indexer.sample.foreign``), changed as in ``bench.shifts``, and searched for
in the real database. The caption says what the image shows, how it was changed, and the class of
its first hit or the error of the OOD gate.
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from bench.collection import Collection
from bench.phantoms import KNOWN, OTHER, phantom_images
from bench.shifted_queries import SHIFTS, shifted
from engine.evaluation.rankings import rankings
from engine.model.encoder import Encoder
from engine.model.manifest import SHIPPED
from engine.ood.calibration import OodGate
from engine.records import EncodedImages
from indexer.sample.foreign import document_images, noise_images

SEED = 4242
COLUMNS, SIDE, CAPTION = 6, 128, 44


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, default=SHIPPED)
    parser.add_argument("--out", type=Path, default=Path("docs/images/failures.png"))
    arguments = parser.parse_args()
    encoder = Encoder.load(arguments.model)
    gate = OodGate.load(arguments.model, encoder.manifest.fingerprint, encoder.decoder_fingerprint)
    if gate is None:
        raise SystemExit(f"{arguments.model} has no gate; run precedent calibrate")
    canvas = encoder.manifest.preprocess.canvas
    database = Collection(arguments.folder, encoder.manifest.preprocess)["database"]
    held = encoder.encode(list(database.canvases))
    wrong: dict[str, tuple[NDArray[np.uint8], str]] = {}
    refused: dict[str, tuple[NDArray[np.uint8], str]] = {}
    drawn = [(name, canvas(image)) for name, image in phantom_images(12, SEED, KNOWN)]
    for change, shift in SHIFTS.items():
        canvases = shifted((image for _, image in drawn), shift)
        seen = encoder.observe(canvases)
        found = rankings(EncodedImages(seen.z, seen.codes), held, 1, orders=("content",))
        first = database.classes[found["content"][:, 0]]
        missed = [i for i, (name, _) in enumerate(drawn) if first[i] != name]
        print(f"{change}: {len(missed)} of {len(drawn)} drawn images find another class")
        for i in missed:
            name = drawn[i][0]
            wrong.setdefault(
                f"{name} {first[i]} {change}", (canvases[i], f"{name}, {change}\nfinds {first[i]}")
            )
        verdicts = gate.verdicts(seen)
        flagged = [i for i, verdict in enumerate(verdicts) if verdict.foreign]
        print(f"{change}: {len(flagged)} of {len(drawn)} called foreign")
        for i in sorted(set(flagged) - set(missed)):
            name = drawn[i][0]
            refused.setdefault(
                f"{name} {change}", (canvases[i], f"{name}, {change}\ncalled foreign")
            )
    foreign = [
        *[(name, image) for name, image in phantom_images(20, SEED, OTHER)],
        *[("document", image) for image in document_images(60, SEED)],
        *[("noise", image) for image in noise_images(60, SEED)],
    ]
    canvases = [canvas(image) for _, image in foreign]
    passed: dict[str, list[tuple[NDArray[np.uint8], str]]] = {}
    for (name, _), image, verdict in zip(
        foreign, canvases, gate.verdicts(encoder.observe(canvases)), strict=True
    ):
        if not verdict.foreign:
            kind = name.replace(" (synthetic)", "")
            passed.setdefault(kind, []).append((image, f"{kind}\nnot called foreign"))
    print("foreign but passed:", {name: len(found) for name, found in passed.items()})
    # As many kinds of failure as there is room for, rather than many of one kind.
    shown = _spread(list(wrong.values()), 2 * COLUMNS)
    shown += _spread(list(refused.values()), COLUMNS)
    shown += _spread([pair for found in passed.values() for pair in found[:3]], COLUMNS)
    if not shown:
        raise SystemExit("nothing failed; ask harder questions")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    _grid(shown).quantize(32).save(arguments.out, optimize=True)
    print(arguments.out)


def _spread(
    pairs: list[tuple[NDArray[np.uint8], str]], count: int
) -> list[tuple[NDArray[np.uint8], str]]:
    """Up to ``count`` items, evenly spaced in the list."""
    at = np.linspace(0, len(pairs) - 1, min(count, len(pairs))).round().astype(int)
    return [pairs[i] for i in at]


def _grid(pairs: list[tuple[NDArray[np.uint8], str]]) -> Image.Image:
    rows = -(-len(pairs) // COLUMNS)
    board = Image.new("L", (COLUMNS * (SIDE + 8), rows * (SIDE + CAPTION)), 255)
    draw, font = ImageDraw.Draw(board), ImageFont.load_default(11)
    for i, (image, caption) in enumerate(pairs):
        x, y = i % COLUMNS * (SIDE + 8) + 4, i // COLUMNS * (SIDE + CAPTION) + 4
        board.paste(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC), (x, y))
        draw.multiline_text((x, y + SIDE + 4), caption, fill=0, font=font)
    return board


if __name__ == "__main__":
    main()
