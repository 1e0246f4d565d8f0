"""Projects a sample of the images of an archive onto the plane in which they differ most.

The plane is that of the first two principal components of the sample's vectors (Hotelling,
"Analysis of a complex of statistical variables into principal components", 1933). It shows what is
alike only as far as two axes can: images that lie apart differ, while images that lie together may
differ in what the other axes have. ``kept`` says how much the two have.
"""

from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from engine.search.sizes import sample_of, sampled_parts
from engine.store.base import Filter, VectorStore

__all__ = ["Projection", "Region", "project", "regions"]

_PAGE = 500
_TINY = 1e-9
"""A spread below this is none."""


@dataclass(frozen=True, slots=True, eq=False)
class Projection:
    """A sample of images in a plane.

    ids: of the images, ordered. places: float64 (N, 2), from 0 on; both axes have one scale, by
    which the longer one ends at 1. kept: the share of the vectors' variance that each axis has, the
    first one more. images: of how many it is a sample.
    """

    ids: tuple[str, ...]
    places: NDArray[np.float64]
    kept: tuple[float, float]
    images: int


@dataclass(frozen=True, slots=True)
class Region:
    """A square of the plane that has images. column, row: from 0. rows: those of its images in
    ``places``, the most central one first."""

    column: int
    row: int
    rows: tuple[int, ...]


def project(store: VectorStore, most: int, where: Filter | None = None) -> Projection:
    """A fixed sample of at most ``most`` images of those that pass ``where``, in their plane.

    No more vectors than these are read, however many images there are. The same images give the
    same places: the sample is chosen by the ids, which are hashes, and each axis points to where
    its largest part is positive.
    """
    passing = where or Filter()
    count = store.count(passing)
    sample = sample_of(passing, sampled_parts(count, most))
    found = islice(store.scroll(sample, page=min(most, _PAGE), with_z=True), most)
    ids: list[str] = []
    rows: list[NDArray[np.float32]] = []
    for point in found:
        if point.z is not None:
            ids.append(point.id)
            rows.append(point.z)
    if not rows:
        return Projection((), np.zeros((0, 2)), (0.0, 0.0), count)
    places, kept = _plane(np.stack(rows).astype(np.float64))
    return Projection(tuple(ids), places, kept, count)


def _plane(z: NDArray[np.float64]) -> tuple[NDArray[np.float64], tuple[float, float]]:
    """Places of vectors float64 (N, D) in the plane of their first two principal components."""
    z = z - z.mean(axis=0)
    # The eigenvectors of the smaller of the two matrices give those of the other one.
    wide = z.shape[1] > len(z)
    values, vectors = np.linalg.eigh(z @ z.T if wide else z.T @ z)
    axes = (z.T @ vectors if wide else vectors)[:, ::-1][:, :2]
    places = np.zeros((len(z), 2))
    for number, axis in enumerate(axes.T):
        length = np.linalg.norm(axis)
        if values[-1 - number] > _TINY and length > _TINY:
            sign = np.sign(axis[np.abs(axis).argmax()])
            places[:, number] = z @ (axis * (sign / length))
    whole = float(np.square(z).sum())
    parts = np.square(places).sum(axis=0) / whole if whole > _TINY else np.zeros(2)
    places -= places.min(axis=0)
    extent = float(places.max())
    if extent > _TINY:
        places /= extent
    return places, (float(parts[0]), float(parts[1]))


def regions(places: NDArray[np.float64], side: int) -> list[Region]:
    """The squares that have images, of ``side`` in a row; row by row.

    Args:
        places: float64 (N, 2), as of a :class:`Projection`.
    """
    cells = np.minimum((places * side).astype(np.int64), side - 1)
    found: dict[tuple[int, int], list[int]] = {}
    for number, (column, row) in enumerate(cells.tolist()):
        found.setdefault((row, column), []).append(number)
    made = []
    for (row, column), members in sorted(found.items()):
        own = places[members]
        away = np.square(own - own.mean(axis=0)).sum(axis=1)
        order = np.argsort(away, kind="stable")
        made.append(Region(column, row, tuple(members[at] for at in order)))
    return made
