"""The images of the benchmarks: a folder with a manifest, read once into canvases.

``manifest.csv`` has the columns file, split (train, calibration, database, query, ood), class,
subclass and group (the patient, for example); no group is in two splits.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engine.model.preprocess import Preprocess
from engine.training.data import TrainingSet

__all__ = ["Collection", "Part"]


@dataclass(frozen=True)
class Part:
    """The images of a split: canvases uint8 (N, S, S), classes, subclasses, groups and files."""

    canvases: NDArray[np.uint8]
    classes: NDArray[np.str_]
    subclasses: NDArray[np.str_]
    groups: NDArray[np.str_]
    files: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.canvases)

    def take(self, chosen: NDArray[np.intp] | NDArray[np.bool_]) -> "Part":
        return Part(
            self.canvases[chosen],
            self.classes[chosen],
            self.subclasses[chosen],
            self.groups[chosen],
            self.files[chosen],
        )

    def labels(self, by: str) -> NDArray[np.str_]:
        """by: "class" or "subclass"."""
        return self.classes if by == "class" else self.subclasses

    def balanced(self, per_label: int, by: str = "subclass", seed: int = 0) -> "Part":
        """Up to ``per_label`` random images of each label, in their original order."""
        rng = np.random.default_rng(seed)
        labels = self.labels(by)
        chosen = [
            rng.permutation(np.flatnonzero(labels == label))[:per_label]
            for label in np.unique(labels)
        ]
        return self.take(np.sort(np.concatenate(chosen)))

    def without(self, classes: Sequence[str]) -> "Part":
        return self.take(~np.isin(self.classes, list(classes)))

    def only(self, classes: Sequence[str]) -> "Part":
        return self.take(np.isin(self.classes, list(classes)))

    def training_set(self, by: str) -> TrainingSet:
        names, labels = np.unique(self.labels(by), return_inverse=True)
        groups = np.unique(self.groups, return_inverse=True)[1]
        return TrainingSet(
            self.canvases, labels.astype(np.int64), tuple(names.tolist()), groups.astype(np.int64)
        )


class Collection:
    """The collection by split; each split is read when it is first used.

    Args:
        folder: has manifest.csv.
        preprocess: makes the canvases.
    """

    def __init__(self, folder: Path, preprocess: Preprocess) -> None:
        self.folder, self.preprocess = folder, preprocess
        with (folder / "manifest.csv").open(newline="", encoding="utf-8") as stream:
            self._rows = list(csv.DictReader(stream))
        by_group: dict[str, str] = {}
        for row in self._rows:
            # A group's name alone says little ("1"): with its class it is one patient or block.
            key = f"{row['class']}/{row['group']}"
            if row["group"] and by_group.setdefault(key, row["split"]) != row["split"]:
                raise SystemExit(f"{key} is in two splits: {row['split']} and {by_group[key]}")
        self._parts: dict[str, Part] = {}

    def __getitem__(self, split: str) -> Part:
        if split not in self._parts:
            rows = [row for row in self._rows if row["split"] == split]
            if not rows:
                raise SystemExit(f"{self.folder}/manifest.csv has no split {split!r}")
            canvases = [
                self.preprocess.canvas(np.asarray(Image.open(self.folder / row["file"])))
                for row in rows
            ]
            columns = {
                name: np.array([row[name] for row in rows])
                for name in ("class", "subclass", "group", "file")
            }
            self._parts[split] = Part(np.stack(canvases), *columns.values())
        return self._parts[split]
