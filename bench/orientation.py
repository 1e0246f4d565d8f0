"""What turning slices into the usual view (``indexing.orient``) gives, and what it costs.

    python -m bench.orientation FOLDER [--model DIR] [--queries 60] [--archive 200]

FOLDER has slices of CT and MR as they are usually shown, and ``manifest.csv`` (see
``bench.collection``); its calibration images are the queries, its training images the archive. Each
case stores queries or archive in the seven other ways in which a slice can lie (mirrored, upside
down, transposed), in turn, and counts how often the first hit is of the query's class, macro.
"""

import argparse
import itertools
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from bench.collection import Collection
from bench.machine import write_results
from bench.tables import show
from engine.evaluation.metrics import precision_at, relevance
from engine.evaluation.rankings import rankings
from engine.model.encoder import Encoder
from engine.model.manifest import SHIPPED, read_manifest
from engine.records import EncodedImages
from indexer.imaging.orientation import Turn

__all__ = ["OTHERWISE", "turned"]

OTHERWISE = [Turn(*found) for found in itertools.product((False, True), repeat=3) if any(found)]
"""The ways in which a slice can lie, but for the usual one."""
_SLICES = ("AbdomenCT", "BreastMRI", "CardiacMR", "ChestCT", "HeadCT")


def turned(canvases: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Each canvas (S, S) stored in one of the other ways, these in turn."""
    return [OTHERWISE[i % len(OTHERWISE)].applied(one) for i, one in enumerate(canvases)]


def precision(
    asked: EncodedImages,
    classes: NDArray[np.str_],
    held: EncodedImages,
    held_classes: NDArray[np.str_],
) -> float:
    """Share of queries whose first hit is of their class, mean over classes."""
    ranking = rankings(asked, held, 1, orders=("content",))["content"]
    names = np.unique(held_classes)
    hits = relevance(ranking, classes[:, None] == names, held_classes[:, None] == names)
    first = precision_at(hits, 1)
    return mean(float(first[classes == name].mean()) for name in np.unique(classes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, default=SHIPPED)
    parser.add_argument("--queries", type=int, default=60, help="of each class")
    parser.add_argument("--archive", type=int, default=200, help="images of each class")
    arguments = parser.parse_args()
    manifest = read_manifest(arguments.model)
    encoder = Encoder.load(arguments.model, precision="fp32")
    collection = Collection(arguments.folder, manifest.preprocess)
    asked = collection["calibration"].only(_SLICES).balanced(arguments.queries, by="class")
    held = collection["train"].only(_SLICES).balanced(arguments.archive, by="class")
    usual = encoder.encode(list(asked.canvases))
    otherwise = encoder.encode(turned(asked.canvases))
    archive = encoder.encode(list(held.canvases))
    stored_otherwise = encoder.encode(turned(held.canvases))

    def row(case: str, off: Any, on: Any) -> dict[str, Any]:
        shares = [
            round(precision(query, asked.classes, of, held.classes), 4) for query, of in (off, on)
        ]
        return {"case": case, "off": shares[0], "on": shares[1]}

    rows = [
        row("everything stored as usual", (usual, archive), (usual, archive)),
        row("DICOM queries stored otherwise", (otherwise, archive), (usual, archive)),
        row("archive stored otherwise, DICOM queries", (usual, stored_otherwise), (usual, archive)),
        # A picture without a header is shown, and saved, as it is stored.
        row("archive stored otherwise, rasters of it", (otherwise, stored_otherwise),
            (otherwise, archive)),
        row("archive stored otherwise, rasters as usual", (usual, stored_otherwise),
            (usual, archive)),
    ]  # fmt: skip
    title = f"first hit right, {len(asked)} queries, {len(held)} images"
    show(Console(width=110), title, rows, ["case", "off", "on"])
    print(write_results("orientation", {"model": manifest.fingerprint, "rows": rows}))


if __name__ == "__main__":
    main()
