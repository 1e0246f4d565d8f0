"""Training data: lists of labelled files, and their canvases in memory."""

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
from engine.model.preprocess import Preprocess

__all__ = ["Example", "TrainingSet", "batch_indices", "batches", "from_csv", "from_folder"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Example:
    """An image file of a training set.

    label: name of its class; None = unknown, for all examples of a list or for none.
    group: its patient or study, for example: a split never separates images of one group. None = in
        no group.
    """

    path: Path
    label: str | None = None
    group: str | None = None


def from_folder(root: Path) -> list[Example]:
    """The files in the subfolders of ``root``, sorted, labelled with the name of the subfolder.

    Hidden files are skipped.

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
    table: Path,
    *,
    file_column: str = "file",
    label_column: str = "label",
    group_column: str | None = None,
) -> list[Example]:
    """The files that a CSV table lists, one row each; paths are relative to the table's folder.

    group_column: the column with patients or studies, see :class:`Example`; None = no groups.

    Raises:
        TrainingDataError: the table cannot be read, lacks a column or has no rows.
    """
    try:
        with table.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            columns = reader.fieldnames or []
            for column in (file_column, label_column, group_column):
                if column is not None and column not in columns:
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
                group = row[group_column] or None if group_column else None
                path = table.parent / row[file_column]
                examples.append(Example(path, row[label_column], group))
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingDataError(f"{table} cannot be read: {error}") from None
    if not examples:
        raise TrainingDataError(f"{table} has no rows")
    return examples


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """Canvases and labels in memory.

    canvases: uint8 (N, S, S) or (N, S, S, 3). labels: int64 (N,), indices into ``classes``; without
        classes the images are unlabelled, and labels are 0 … N − 1.
    groups: int64 (N,), equal for images of one group, which a split never separates; None = no
        groups.
    sources: int64 (N,), equal for images of one collection, hospital or scanner; None = unknown.
    scenes: int64 (N,), equal for images that show one slice, in several CT windows for example;
        −1 = no other shows it; None = none does.
    parents: for each class the kind that it belongs to, as "chest CT" is of its planes; empty =
        every class is a kind of its own.
    """

    canvases: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    groups: NDArray[np.int64] | None = None
    sources: NDArray[np.int64] | None = None
    scenes: NDArray[np.int64] | None = None
    parents: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def check_read_as(self, preprocess: Preprocess) -> None:
        """Checks that the canvases have the shape of those that a model is shown.

        Raises:
            TrainingDataError: they have another.
        """
        side = preprocess.size
        if self.canvases.shape[1:] != (side, side, *((3,) if preprocess.colour else ())):
            raise TrainingDataError(
                f"canvases have shape {self.canvases.shape[1:]}, the model's are {side} pixels "
                f"wide{' and coloured' if preprocess.colour else ''}; read the images "
                "with the model's own Preprocess"
            )

    @classmethod
    def read(
        cls,
        examples: Sequence[Example],
        read: Callable[[Path], NDArray[np.uint8]],
    ) -> "TrainingSet":
        """Reads every file once; files that are refused are logged and skipped.

        Args:
            read: path → canvas. May raise ImageRefused.

        Raises:
            TrainingDataError: fewer than two classes (or, without labels, fewer than two
                images) can be read, or only some examples have a label.
        """
        canvases, kept = [], []
        for example in examples:
            try:
                canvases.append(read(example.path))
            except ImageRefused as refused:
                _log.warning("left out %s: %s", example.path.name, refused)
                continue
            kept.append(example)
        names = [example.label for example in kept if example.label is not None]
        if names and len(names) < len(kept):
            raise TrainingDataError(
                f"{len(kept) - len(names)} of {len(kept)} images have no label; "
                "label all of them, or none"
            )
        classes = tuple(sorted(set(names)))
        if len(kept) < 2 or len(classes) == 1:
            raise TrainingDataError(
                f"{len(canvases)} of {len(examples)} files could be read, of {len(classes)} "
                "class(es); hashing learns from at least two"
            )
        index = {name: i for i, name in enumerate(classes)}
        labels = [index[name] for name in names] if classes else range(len(kept))
        number: dict[str, int] = {}
        groups = [
            number.setdefault(example.group or f"alone {i}", len(number))
            for i, example in enumerate(kept)
        ]
        return cls(
            np.stack(canvases),
            np.array(labels, dtype=np.int64),
            classes,
            np.array(groups, dtype=np.int64),
        )

    def subset(self, chosen: NDArray[np.intp]) -> "TrainingSet":
        """The images at these indices, with all classes kept."""
        labels = self.labels[chosen] if self.classes else np.arange(len(chosen))
        groups, sources, scenes = (
            None if values is None else values[chosen]
            for values in (self.groups, self.sources, self.scenes)
        )
        return TrainingSet(
            self.canvases[chosen], labels, self.classes, groups, sources, scenes, self.parents
        )

    def kinds(self) -> NDArray[np.int64]:
        """For each image the kind of its class, int64 (N,); without parents the class itself."""
        return np.array(self.parents, dtype=np.int64)[self.labels] if self.parents else self.labels

    def split(self, share: float, seed: int) -> tuple["TrainingSet", "TrainingSet"]:
        """Splits into a larger and a smaller part; no group is in both.

        Args:
            share: share of the images in the smaller part, as nearly as whole groups allow.

        Raises:
            TrainingDataError: the groups are too few or too large for such a split.
        """
        groups = np.arange(len(self)) if self.groups is None else self.groups
        names, sizes = np.unique(groups, return_counts=True)
        order = np.random.default_rng(seed).permutation(len(names))
        last = int(np.searchsorted(np.cumsum(sizes[order]), share * len(self)))
        held_out = np.isin(groups, names[order[: last + 1]])
        if not 0 < held_out.sum() <= len(self) / 2:
            raise TrainingDataError(
                f"{len(names)} groups of {len(self)} images cannot be split so that a share "
                f"of {share} is held out; give more patients, or hold out less"
            )
        return self.subset(np.flatnonzero(~held_out)), self.subset(np.flatnonzero(held_out))

    def digest(self) -> str:
        """SHA-256, hex, of canvases, labels, class names, groups, sources, scenes and parents."""
        named = (self.canvases.shape, self.classes, *([self.parents] if self.parents else []))
        running = hashlib.sha256(repr(named).encode())
        running.update(np.ascontiguousarray(self.canvases).data)
        running.update(np.ascontiguousarray(self.labels).data)
        for values in (self.groups, self.sources, self.scenes):
            if values is not None:
                running.update(np.ascontiguousarray(values).data)
        return running.hexdigest()

    def counts(self) -> Tensor:
        """Number of images of each class, int64 (C,); without classes int64 (N,), all 1."""
        return torch.from_numpy(np.bincount(self.labels, minlength=len(self.classes)))


def batches(
    data: TrainingSet, batch_size: int, generator: torch.Generator, images_per_class: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of one epoch: images float (N, 1|3, S, S) in [0, 1], labels int64 (N,).

    The images come in random order. A last, smaller batch is left out, as BatchNorm and pair losses
    need full ones.

    images_per_class: K > 0 draws K images of each of batch_size / K random classes for each batch
        instead, so that images of rare classes have positives in the batch. An image may then come
        twice in an epoch, or not at all.
    """
    for chosen in batch_indices(data, batch_size, generator, images_per_class):
        yield canvas_tensor(data.canvases[chosen]), torch.from_numpy(data.labels[chosen])


def batch_indices(
    data: TrainingSet, batch_size: int, generator: torch.Generator, images_per_class: int = 0
) -> Iterator[NDArray[np.int64]]:
    """The indices of the images of :func:`batches`, int64 (batch_size,) each."""
    if images_per_class:
        yield from _class_batches(data, batch_size, generator, images_per_class)
        return
    order = torch.randperm(len(data), generator=generator).numpy()
    for start in range(0, len(order) - batch_size + 1, batch_size):
        yield order[start : start + batch_size]


def _class_batches(
    data: TrainingSet, batch_size: int, generator: torch.Generator, per_class: int
) -> Iterator[NDArray[np.int64]]:
    members = [
        found for c in range(len(data.classes)) if len(found := np.flatnonzero(data.labels == c))
    ]
    for _ in range(len(data) // batch_size):
        drawn: list[NDArray[np.int64]] = []
        while len(drawn) * per_class < batch_size:
            for c in torch.randperm(len(members), generator=generator).tolist():
                picks = torch.randint(len(members[c]), (per_class,), generator=generator)
                drawn.append(members[c][picks.numpy()])
        yield np.concatenate(drawn)[:batch_size]
