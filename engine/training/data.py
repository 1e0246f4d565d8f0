"""What to learn from: lists of labelled files, and their canvases in memory."""

import csv
import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.errors import ImageRefused, TrainingDataError
from engine.model.encoder import canvas_tensor

__all__ = ["Example", "TrainingSet", "batches", "from_csv", "from_folder"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Example:
    """A file and the name of its class."""

    path: Path
    label: str


def from_folder(root: Path) -> list[Example]:
    """One class per subfolder of ``root``, in sorted order; hidden files are passed over.

    Raises:
        TrainingDataError: ``root`` is no folder, or has no subfolders with files.
    """
    if not root.is_dir():
        raise TrainingDataError(f"{root} is not a folder; name one with a subfolder per class")
    examples = [
        Example(path, folder.name)
        for folder in sorted(p for p in root.iterdir() if p.is_dir())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    ]
    if not examples:
        raise TrainingDataError(
            f"{root} has no files in subfolders; put one folder per class in it"
        )
    return examples


def from_csv(
    table: Path, *, file_column: str = "file", label_column: str = "label"
) -> list[Example]:
    """One row per file; relative paths are taken from the table's folder.

    Raises:
        TrainingDataError: the table cannot be read, lacks a column or has no rows.
    """
    try:
        with table.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            columns = reader.fieldnames or []
            for column in (file_column, label_column):
                if column not in columns:
                    raise TrainingDataError(
                        f"{table} has no column {column!r}, only {', '.join(columns)}; "
                        "name the columns to use"
                    )
            examples = []
            for row in reader:
                if not row[file_column] or not row[label_column]:
                    raise TrainingDataError(
                        f"{table}, line {reader.line_num}: {file_column!r} or {label_column!r} "
                        "is empty; give both or remove the line"
                    )
                examples.append(Example(table.parent / row[file_column], row[label_column]))
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingDataError(f"{table} cannot be read: {error}") from None
    if not examples:
        raise TrainingDataError(f"{table} has no rows")
    return examples


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """Canvases and labels in memory.

    canvases: uint8 (N, S, S) or (N, S, S, 3). labels: int64 (N,), indices into classes.
    """

    canvases: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def read(
        cls,
        examples: Sequence[Example],
        read: Callable[[Path], NDArray[np.uint8]],
    ) -> "TrainingSet":
        """Reads every file once; those that are refused are logged and left out.

        Args:
            read: path → canvas. May raise ImageRefused.

        Raises:
            TrainingDataError: fewer than two classes have an image that can be read.
        """
        canvases, names = [], []
        for example in examples:
            try:
                canvases.append(read(example.path))
            except ImageRefused as refused:
                _log.warning("left out %s: %s", example.path.name, refused)
                continue
            names.append(example.label)
        classes = tuple(sorted(set(names)))
        if len(classes) < 2:
            raise TrainingDataError(
                f"{len(canvases)} of {len(examples)} files could be read, of {len(classes)} "
                "class(es); hashing learns from at least two"
            )
        index = {name: i for i, name in enumerate(classes)}
        labels = np.array([index[name] for name in names], dtype=np.int64)
        return cls(np.stack(canvases), labels, classes)

    def digest(self) -> str:
        """sha256, hex, of canvases, labels and class names: two equal sets have the same."""
        running = hashlib.sha256(repr((self.canvases.shape, self.classes)).encode())
        running.update(np.ascontiguousarray(self.canvases).data)
        running.update(np.ascontiguousarray(self.labels).data)
        return running.hexdigest()

    def counts(self) -> Tensor:
        """Images per class, int64 (C,)."""
        return torch.from_numpy(np.bincount(self.labels, minlength=len(self.classes)))


def batches(
    data: TrainingSet, batch_size: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch in random order: images float (N, 1|3, S, S) in [0, 1], labels int64 (N,).

    The last, smaller batch is left out: BatchNorm and pair losses want full ones.
    """
    order = torch.randperm(len(data), generator=generator).numpy()
    for start in range(0, len(order) - batch_size + 1, batch_size):
        chosen = order[start : start + batch_size]
        yield canvas_tensor(data.canvases[chosen]), torch.from_numpy(data.labels[chosen])
