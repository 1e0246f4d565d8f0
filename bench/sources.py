"""Leave-one-source-out benchmark: how well a model answers pictures of a scanner it never saw.

    python -m bench.sources DATA [--folds OUT…] [--model DIR]

DATA as in ``bench.manifests``. The shipped model and its gate are always judged. ``--folds``:
models that ``bench.weights --leave-out`` or ``--fold`` made; each is judged by the sources that it
left out, and refused where it learned from one of them. ``--model``: any other checkpoint, judged
by all sources; rows of sources that it learned from are no held-out figures, and are marked. What
is searched and asked is said in ``bench.source_judging``; the table of all kinds counts held-out
sources only. Figures are in ``bench/results/sources.json``.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from bench.machine import write_results
from bench.manifests import Picture, canvases, counted, read_pictures
from bench.runs import SCRATCH
from bench.source_judging import (
    INDEXES,
    Judged,
    Seen,
    asked,
    judged,
    kind_row,
    overall_row,
    source_row,
)
from bench.tables import show
from bench.weights import FOLD, spread_out
from engine.files import writing_atomically
from engine.model.encoder import Encoder
from engine.model.manifest import MANIFEST, SHIPPED, Manifest, read_manifest, unfinished_models
from engine.ood.calibration import OodGate

# Shipped before manifests said it: it learned from the first manifest's split "train".
UNRECORDED = {"5f2900fd348e5292"}
ENOUGH = 3  # held-out sources of a kind, for it to count in the mean
CACHE = SCRATCH / "sources"
PART = 500  # pictures that are encoded, and kept, together


@dataclass(frozen=True)
class Model:
    """A model to judge. only: the sources that judge it; None = all."""

    name: str
    folder: Path
    manifest: Manifest
    trained_on: list[dict[str, Any]]
    only: list[str] | None = None


def model_of(folder: Path, pictures: Sequence[Picture], name: str | None = None) -> Model:
    """A checkpoint, with the sources that it learned from.

    Raises:
        SystemExit: nothing says which.
    """
    folder = usable(folder)
    manifest = read_manifest(folder)
    trained_on = manifest.training.get("trained_on")
    if trained_on is None:
        if manifest.fingerprint not in UNRECORDED:
            raise SystemExit(
                f"{folder} does not say which sources it learned from; make it with bench.weights"
            )
        first = [one for one in pictures if not one.more]
        trained_on = list(counted(p for p in first if p.part in ("train", "validation")))
    return Model(name or manifest.fingerprint, folder, manifest, trained_on)


def fold_model(folder: Path, pictures: Sequence[Picture]) -> Model:
    """A fold, which is judged by what it left out.

    Raises:
        SystemExit: nothing says what that was, or it learned from it.
    """
    if not (folder / FOLD).is_file():
        raise SystemExit(f"{folder} has no {FOLD}; it is no fold that bench.weights made")
    left_out = json.loads((folder / FOLD).read_text())["left_out"]
    if not left_out:
        raise SystemExit(f"{folder} left out no source; judge it with --model")
    found = model_of(folder, pictures)
    learned = {row["source"] for row in found.trained_on}
    if shared := sorted(learned & set(left_out)):
        raise SystemExit(
            f"{folder} says that it left out {shared[0]}, but its model learned from it; "
            "no figure of it would be held out"
        )
    return Model(
        f"without {', '.join(left_out)}", found.folder, found.manifest, found.trained_on, left_out
    )


def usable(folder: Path) -> Path:
    """The folder, or where its training has not ended the best model so far in it."""
    if (folder / MANIFEST).is_file():
        return folder
    return (unfinished_models(folder) or [folder])[-1]


def thinned(pictures: Sequence[Picture], most: int) -> list[Picture]:
    """At most so many pictures of each kind, source and part, of its patients alike."""
    of: dict[tuple[str, str, str], list[Picture]] = {}
    for one in pictures:
        of.setdefault((one.kind, one.source, one.part), []).append(one)
    return [one for some in of.values() for one in spread_out(some, most, 0)]


def seen_by(model: Model, pictures: Sequence[Picture]) -> Seen:
    """What the model makes of the pictures that are searched or asked; encoded once."""
    needed = sorted(
        {at for at, one in enumerate(pictures) if one.more or one.part == "database"}
        | {
            at
            for kind, source in {(one.kind, one.source) for one in pictures}
            for at in asked(pictures, kind, source)
        }
    )
    chosen = [pictures[at] for at in needed]
    fingerprint = model.manifest.fingerprint
    gate_file = model.folder / "calibration.safetensors"
    decides = hashlib.sha256(fingerprint.encode())
    decides.update(gate_file.read_bytes() if gate_file.is_file() else b"")
    decides.update("\n".join(str(one.path) for one in chosen).encode())
    found = list(observed(model.folder, chosen, CACHE / decides.hexdigest()[:16]))
    verdicts = [foreign for _, foreign in found if foreign is not None]
    return Seen(
        chosen,
        np.concatenate([z for z, _ in found]),
        np.concatenate(verdicts) if verdicts else None,
    )


def observed(
    folder: Path, pictures: Sequence[Picture], cache: Path
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_] | None]]:
    """z and verdicts, part by part; each part is kept, so that a benchmark that was stopped goes
    on."""
    cache.mkdir(parents=True, exist_ok=True)
    encoder = gate = None
    for start in range(0, len(pictures), PART):
        path = cache / f"{start:06}.npz"
        if not path.is_file():
            if encoder is None:
                encoder = Encoder.load(folder)
                gate = OodGate.load(
                    folder, encoder.manifest.fingerprint, encoder.decoder_fingerprint
                )
            preprocess = encoder.manifest.preprocess
            seen = encoder.observe(list(canvases(pictures[start : start + PART], preprocess)))
            arrays = {"z": seen.z}
            if gate is not None:
                arrays["foreign"] = np.array([one.foreign for one in gate.verdicts(seen)])
            with writing_atomically(path) as stream:
                np.savez(stream, **arrays)
            print(f"{folder}: {start + len(seen)} of {len(pictures)} encoded", file=sys.stderr)
        with np.load(path) as kept:
            yield kept["z"], kept.get("foreign")


def report(model_judged: Sequence[Judged]) -> dict[str, Any]:
    """The rows of a model, or of several folds of one training together."""
    kinds = sorted({one.kind for one in model_judged})
    by_kind = [kind_row(kind, model_judged) for kind in kinds]
    by_kind = [row for row in by_kind if row["sources"]]
    enough = [row["class"] for row in by_kind if row["sources"] >= ENOUGH]
    alone = [one for one in model_judged if one.held_out and one.right.get("others") is None]
    return {
        "sources": [source_row(one) for one in model_judged],
        "classes": [*by_kind, overall_row(model_judged, enough)] if enough else by_kind,
        "unlike all others": [
            {
                "class": one.kind,
                "source": one.source,
                "queries": len(one),
                "caught": None if one.foreign is None else round(float(one.foreign.mean()), 4),
            }
            for one in alone
            if not one.taught
        ],
        "learned kinds called foreign": share(
            [one for one in model_judged if one.held_out and one.taught]
        ),
    }


def share(some: Sequence[Judged]) -> float | None:
    """Of the queries, the share called foreign; sources count alike."""
    flagged = [float(one.foreign.mean()) for one in some if one.foreign is not None]
    return round(float(np.mean(flagged)), 4) if flagged else None


def print_report(console: Console, name: str, figures: dict[str, Any]) -> None:
    def shown(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            {
                key: "yes" if value is True else "no" if value is False
                else f"{value[0]:.2f}–{value[1]:.2f}" if isinstance(value, list)
                else value
                for key, value in row.items()
            }
            for row in rows
        ]  # fmt: skip

    tail = [*(f"P@1 {index}" for index in INDEXES), "95 %", "foreign", "wrong", "passed"]
    show(
        console,
        f"{name}: each source, while the index holds the others",
        shown(figures["sources"]),
        ["class", "source", "held out", "queries", "patients", *tail],
    )
    show(
        console,
        f"{name}: held-out sources, each counted alike",
        shown(figures["classes"]),
        ["class", "sources", "queries", "patients", *tail],
    )
    if figures["unlike all others"]:
        show(
            console,
            f"{name}: kinds that neither training nor index has",
            figures["unlike all others"],
            ["class", "source", "queries", "caught"],
        )
    console.print(
        f"learned kinds called foreign, held-out sources: {figures['learned kinds called foreign']}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--folds", type=Path, nargs="+", default=[], metavar="DIR")
    parser.add_argument("--model", type=Path, nargs="+", default=[], metavar="DIR")
    parser.add_argument("--results", default="sources", help="name of the file of figures")
    parser.add_argument("--most", type=int, help="of a kind, source and part: for a first look")
    arguments = parser.parse_args()
    pictures = read_pictures(arguments.folder)
    if arguments.most is not None:
        pictures = thinned(pictures, arguments.most)
    console = Console(width=170)
    models = [model_of(SHIPPED, pictures, "shipped")]
    models += [model_of(folder, pictures) for folder in arguments.model]
    folds = [fold_model(folder, pictures) for folder in arguments.folds]
    results: dict[str, Any] = {"models": [], "folds": None}
    for model in models:
        figures = report(judged(seen_by(model, pictures), model.trained_on))
        print_report(console, model.name, figures)
        results["models"].append(
            {
                "model": model.manifest.fingerprint,
                "name": model.name,
                "learned from": sorted({row["source"] for row in model.trained_on}),
                **figures,
            }
        )
    if folds:
        together = [
            one
            for fold in folds
            for one in judged(seen_by(fold, pictures), fold.trained_on, fold.only)
        ]
        figures = report(together)
        print_report(console, f"{len(folds)} folds", figures)
        results["folds"] = {
            "left out": {fold.manifest.fingerprint: fold.only for fold in folds},
            **figures,
        }
    if arguments.most is None:
        print(write_results(arguments.results, results))


if __name__ == "__main__":
    main()
