"""Models that did not learn from some sources, and what they make of pictures of these."""

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.manifests import Picture, canvases, counted
from bench.runs import SCRATCH
from bench.source_judging import Seen, asked
from engine.files import writing_atomically
from engine.model.encoder import Encoder
from engine.model.manifest import MANIFEST, Manifest, read_manifest, unfinished_models
from engine.ood.calibration import CALIBRATION, OodGate

__all__ = ["FOLD", "Model", "fold_model", "gate_of", "model_of", "scores_elsewhere", "seen_by"]

FOLD = "fold.json"
"""In the folder of a model: which sources it was not to learn from."""

# Shipped before manifests said it: it learned from the first manifest's split "train".
UNRECORDED = {"5f2900fd348e5292"}
CACHE = SCRATCH / "sources"
PART = 500  # pictures that are encoded, and kept, together
OF_SOURCE = 60  # scores of a source among those of other sources, so that they count about alike


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


def gate_of(model: Model) -> OodGate | None:
    """The model's gate; None = it has none."""
    return OodGate.load(model.folder, model.manifest.fingerprint)


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
    gate_file = model.folder / CALIBRATION
    decides = hashlib.sha256(model.manifest.fingerprint.encode())
    decides.update(gate_file.read_bytes() if gate_file.is_file() else b"")
    decides.update("\n".join(str(one.path) for one in chosen).encode())
    parts = list(_observed(model, chosen, CACHE / decides.hexdigest()[:16]))
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    z = joined.pop("z")
    return Seen(chosen, z, joined or None)


def _observed(
    model: Model, pictures: Sequence[Picture], cache: Path
) -> Iterator[dict[str, NDArray[np.float32]]]:
    """z, and the scores of the gate's detectors by name, part by part; each part is kept, so that a
    benchmark that was stopped goes on."""
    cache.mkdir(parents=True, exist_ok=True)
    encoder = gate = None
    for start in range(0, len(pictures), PART):
        path = cache / f"{start:06}.npz"
        if not path.is_file():
            if encoder is None:
                encoder, gate = Encoder.load(model.folder), gate_of(model)
            preprocess = encoder.manifest.preprocess
            seen = encoder.observe(list(canvases(pictures[start : start + PART], preprocess)))
            scores = {} if gate is None else gate.scores(seen)
            with writing_atomically(path) as stream:
                np.savez(stream, z=seen.z, **scores)  # type: ignore[arg-type]
            print(
                f"{model.folder}: {start + len(seen)} of {len(pictures)} encoded", file=sys.stderr
            )
        with np.load(path) as kept:
            yield dict(kept)


def scores_elsewhere(
    folds: Sequence[tuple[Model, Seen]],
    without: str | None = None,
) -> dict[str, NDArray[np.float32]]:
    """What the detectors of folds say of pictures of known kinds from the sources left out: by
    detector, float32 (N,).

    Args:
        without: a source that is not to count, as it is judged by them.

    Raises:
        SystemExit: a fold has no gate, or no picture is of a kind that it learned.
    """
    found: dict[str, list[NDArray[np.float32]]] = {}
    for model, seen in folds:
        if seen.scores is None:
            raise SystemExit(f"{model.folder} has no gate; build it again")
        taught = {row["class"] for row in model.trained_on}
        rows: list[int] = []
        for source in model.only or ():
            if source == without:
                continue
            for kind in sorted({one.kind for one in seen.pictures if one.source == source}):
                if kind in taught:
                    rows += asked(seen.pictures, kind, source, OF_SOURCE)
        for name, scores in seen.scores.items():
            found.setdefault(name, []).append(scores[rows])
    scores = {name: np.concatenate(parts) for name, parts in found.items()}
    if not scores or not len(next(iter(scores.values()))):
        raise SystemExit("the folds left out nothing that they have learned from other sources")
    return scores
