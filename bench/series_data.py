"""The series of the benchmark of series: which images make one, of which patient, of which kind."""

import csv
import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench.runs import SCRATCH
from engine.model.encoder import Encoder

__all__ = ["LEAST_SLICES", "Series", "all_series", "encoded"]

LEAST_SLICES = 4
"""Fewer slices make no series here."""
_VOLUME = 12
"""Of a volume in ``more`` there are so many slices at most for each plane and window; where a
patient has more of one kind, they are of several acquisitions, one after another."""
_CYCLE = 20
"""Phases of a heartbeat in the cine series, which are numbered slice by slice."""
_AT_ONCE = 512


@dataclass(frozen=True)
class Series:
    """A series of slices.

    patient: as the manifest's group names it. kind: class and subclass, of what it shows and how.
    part: the row of the table that it belongs to. half: "validation" or "test", by patient.
    files: in the order of the slices.
    """

    name: str
    patient: str
    kind: str
    part: str
    half: str
    files: tuple[Path, ...]


def all_series(folder: Path) -> list[Series]:
    """The series of ``folder``: cardiac MR by its manifest, and the volumes of ``more``."""
    return [*_cardiac(folder), *_volumes(folder / "more")]


def _cardiac(folder: Path) -> Iterator[Series]:
    """Of each patient the slices at the end of systole, and those at the end of diastole.

    The patients of the part that the shipped model was trained on are for validation.
    """
    phases: dict[tuple[str, str], dict[int, list[tuple[int, Path]]]] = {}
    for row in _rows(folder / "manifest.csv"):
        found = re.search(r"-IM-\d+-(\d+)\.", row["file"])
        if row["class"] == "CardiacMR" and found:
            number = int(found[1])
            by_phase = phases.setdefault((row["group"], row["split"]), defaultdict(list))
            by_phase[number % _CYCLE].append((number, folder / row["file"]))
    for (patient, split), by_phase in sorted(phases.items()):
        half = "validation" if split == "train" else "test"
        for phase, numbered in sorted(by_phase.items()):
            if len(numbered) >= LEAST_SLICES:
                files = tuple(path for _, path in sorted(numbered))
                name = f"{patient}, phase {phase}"
                yield Series(name, patient, "CardiacMR", "cardiac MR", half, files)


def _volumes(folder: Path) -> Iterator[Series]:
    """Patients are put into the halves in turn, in an order that their names' hashes give."""
    slices: dict[tuple[str, str, str], list[tuple[int, Path]]] = defaultdict(list)
    for row in _rows(folder / "manifest.csv"):
        part = _part(row["class"])
        found = re.search(r"_(\d+)(_[a-z]+)?\.jpg$", row["file"])
        if part is not None and found:
            key = part, row["group"], f"{row['class']}/{row['subclass']}"
            slices[key].append((int(found[1]), folder / row["file"]))
    patients = sorted({(part, patient) for part, patient, _ in slices}, key=_hash)
    turns: dict[str, int] = defaultdict(int)
    halves = {}
    for part, patient in patients:
        halves[part, patient] = ("validation", "test")[turns[part] % 2]
        turns[part] += 1
    for (part, patient, kind), numbered in sorted(slices.items()):
        files = [path for _, path in sorted(numbered)]
        for number, some in enumerate(_acquisitions(part, files)):
            if len(some) >= LEAST_SLICES:
                name = f"{patient}, {kind}, {number + 1}"
                yield Series(name, patient, kind, part, halves[part, patient], tuple(some))


def _acquisitions(part: str, files: Sequence[Path]) -> list[Sequence[Path]]:
    if part == "spine MR, every other slice":
        # Each of these patients has one series.
        return [files[::2], files[1::2]]
    return [files[start : start + _VOLUME] for start in range(0, len(files), _VOLUME)]


def _part(name: str) -> str | None:
    if name == "SpineMR":
        return "spine MR, every other slice"
    if name in ("BrainMR", "AbdomenMR"):
        return "brain MR" if name == "BrainMR" else None
    return "CT and PET" if name.endswith("CT") or name == "PET" else None


def _hash(of: tuple[str, str]) -> str:
    return hashlib.sha256("/".join(of).encode()).hexdigest()


def _rows(manifest: Path) -> Iterator[dict[str, str]]:
    with manifest.open(newline="", encoding="utf-8") as stream:
        yield from csv.DictReader(stream)


def encoded(encoder: Encoder, series: Sequence[Series]) -> list[NDArray[np.float32]]:
    """Of each series the vectors of its slices, float32 (slices, D); what was encoded before is
    read from ``bench/.scratch``."""
    files = [path for one in series for path in one.files]
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.read_bytes())
    name = f"series-{encoder.manifest.fingerprint}-{digest.hexdigest()[:16]}.npy"
    kept = SCRATCH / name
    if kept.exists():
        z = np.load(kept)
    else:
        canvas = encoder.manifest.preprocess.canvas
        parts = []
        for start in range(0, len(files), _AT_ONCE):
            images = [Image.open(path) for path in files[start : start + _AT_ONCE]]
            parts.append(encoder.encode([canvas(np.asarray(image)) for image in images]).z)
        z = np.concatenate(parts)
        SCRATCH.mkdir(exist_ok=True)
        np.save(kept, z)
    ends = np.cumsum([len(one.files) for one in series])
    return np.split(z, ends[:-1])
