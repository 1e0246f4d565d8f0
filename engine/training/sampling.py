"""Batches that hold images of one class from several sources, and one slice in several windows.

Where every class comes from its own collection, a network learns the collection. So a class is
drawn first, then its sources, then a patient, and only then an image: a collection of thousands
does not drown one of a dozen, nor a patient with many slices one with few. How often classes and
sources are drawn is tempered as in multilingual training, where the sizes of languages are as
uneven (Conneau and Lample, "Cross-lingual Language Model Pretraining", 2019).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from engine.errors import TrainingDataError
from engine.training.data import TrainingSet

__all__ = ["source_batches", "tempered"]

_MATE = 0.5
"""How often the same slice in another window follows an image, where there is one."""


def tempered(counts: NDArray[np.integer], temper: float) -> NDArray[np.float64]:
    """Shares proportional to counts^temper, float64 of the same shape, 0 where a count is 0."""
    weights = np.where(counts > 0, np.asarray(counts, dtype=np.float64) ** temper, 0.0)
    shares: NDArray[np.float64] = weights / weights.sum()
    return shares


@dataclass(frozen=True)
class _Source:
    """The images of one class and source, patient by patient."""

    patients: tuple[NDArray[np.int64], ...]
    mates: Mapping[int, NDArray[np.int64]]

    @property
    def images(self) -> int:
        return sum(len(patient) for patient in self.patients)

    def drawn(self, rng: np.random.Generator) -> int:
        return int(rng.choice(self.patients[rng.integers(len(self.patients))]))


@dataclass(frozen=True)
class _Class:
    sources: tuple[_Source, ...]
    shares: NDArray[np.float64]

    def drawn(self, count: int, rng: np.random.Generator) -> list[int]:
        """``count`` images; where there are several sources, they are not all of one."""
        found: list[int] = []
        used: set[int] = set()
        while len(found) < count:
            number = int(rng.choice(len(self.sources), p=self.shares))
            if len(found) == count - 1 and used == {number} and len(self.sources) > 1:
                others = self.shares.copy()
                others[number] = 0
                number = int(rng.choice(len(self.sources), p=others / others.sum()))
            used.add(number)
            source = self.sources[number]
            image = source.drawn(rng)
            found.append(image)
            mates = source.mates.get(image)
            # The last place is kept for another source.
            if mates is not None and len(found) < count - 1 and rng.random() < _MATE:
                found.append(int(rng.choice(mates)))
        return found


def source_batches(
    data: TrainingSet,
    batch_size: int,
    steps: int,
    generator: torch.Generator,
    *,
    per_class: int,
    temper: float,
) -> Iterator[NDArray[np.int64]]:
    """The indices of the images of each batch, int64 (batch_size,).

    Args:
        steps: number of batches.
        per_class: images of one class in a batch.
        temper: see :class:`engine.training.config.TrainConfig`.

    Raises:
        TrainingDataError: the data do not say which source an image is of.
    """
    if data.sources is None or not data.classes:
        raise TrainingDataError(
            "batches by source need images with classes and sources; give both, or draw plain ones"
        )
    rng = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
    kinds, classes = _classes(data, data.sources, temper)
    shares = tempered(kinds, temper)
    for _ in range(steps):
        drawn: list[int] = []
        for number in rng.choice(len(classes), -(-batch_size // per_class), p=shares):
            drawn += classes[number].drawn(per_class, rng)
        yield np.array(drawn[:batch_size], dtype=np.int64)


def _classes(
    data: TrainingSet, of_source: NDArray[np.int64], temper: float
) -> tuple[NDArray[np.int64], list[_Class]]:
    """The images of each kind that has some, and how to draw from it."""
    kinds = data.kinds()
    groups = np.arange(len(data)) if data.groups is None else data.groups
    sizes, found = [], []
    for kind in np.unique(kinds):
        of_kind = np.flatnonzero(kinds == kind)
        sources = []
        for source in np.unique(of_source[of_kind]):
            images = of_kind[of_source[of_kind] == source]
            patients = tuple(images[groups[images] == group] for group in np.unique(groups[images]))
            sources.append(_Source(patients, _mates(data, images)))
        counts = np.array([source.images for source in sources])
        sizes.append(len(of_kind))
        found.append(_Class(tuple(sources), tempered(counts, temper)))
    return np.array(sizes, dtype=np.int64), found


def _mates(data: TrainingSet, images: NDArray[np.int64]) -> dict[int, NDArray[np.int64]]:
    """For each image that shows a slice that others of these show too, those others."""
    if data.scenes is None:
        return {}
    shown: dict[int, list[int]] = {}
    for image in images.tolist():
        if (scene := int(data.scenes[image])) >= 0:
            shown.setdefault(scene, []).append(image)
    return {
        image: np.array([other for other in same if other != image], dtype=np.int64)
        for same in shown.values()
        if len(same) > 1
        for image in same
    }
