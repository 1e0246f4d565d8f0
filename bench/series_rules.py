"""Rules by which a series is compared with others, tried beside each other.

A rule takes the slices of a query series and those of all series, and gives for each series a
score; higher is more alike. The engine has ``best image`` (its rule "image") and ``mean of best``
("series", "study"); the others were tried.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["RULES", "Compared"]

Array = NDArray[np.float64]
_NEAREST = 64
"""Series whose slices tell what is usual near a query; as many as the engine compares."""


@dataclass(frozen=True)
class Compared:
    """A query series and all series.

    query: float64 (Q, D), unit rows. z: float64 (N, D), the slices of all series, one series after
    another. starts: int (U,), row of the first slice of each. others: bool (U,), which of them may
    be answers.
    """

    query: Array
    z: Array
    starts: NDArray[np.intp]
    others: NDArray[np.bool_]

    @property
    def sizes(self) -> NDArray[np.intp]:
        return np.diff(np.append(self.starts, len(self.z)))

    @property
    def owners(self) -> NDArray[np.intp]:
        return np.repeat(np.arange(len(self.starts)), self.sizes)

    def likeness(self) -> Array:
        """The cosine of each query slice with each slice: float64 (Q, N)."""
        return self.query @ self.z.T

    def best(self, likeness: Array | None = None) -> Array:
        """Of each query slice the best match in each series: float64 (Q, U)."""
        found = self.likeness() if likeness is None else likeness
        matches: Array = np.maximum.reduceat(found, self.starts, axis=1)
        return matches

    def near(self) -> NDArray[np.intp]:
        """The series most alike by the mean of best matches, without what may be no answer."""
        score = np.where(self.others, self.best().mean(axis=0), -np.inf)
        order = np.argsort(-score, kind="stable")[:_NEAREST]
        return order[self.others[order]]


Rule = Callable[[Compared], Array]


def best_image(of: Compared) -> Array:
    return of.best().max(axis=0)


def mean_of_best(of: Compared) -> Array:
    return of.best().mean(axis=0)


def both_ways(of: Compared) -> Array:
    """The mean of what each side finds in the other (chamfer)."""
    likeness = of.likeness()
    back = np.add.reduceat(likeness.max(axis=0), of.starts) / of.sizes
    return (of.best(likeness).mean(axis=0) + back) / 2


def trimmed(keep: float) -> Rule:
    """The mean without the worst matches."""

    def rule(of: Compared) -> Array:
        best = np.sort(of.best(), axis=0)[::-1]
        mean: Array = best[: max(1, round(keep * len(best)))].mean(axis=0)
        return mean

    return rule


def median(of: Compared) -> Array:
    middle: Array = np.median(of.best(), axis=0)
    return middle


def by_distance(of: Compared) -> Array:
    """The mean logarithm of the distances: a match twice as near counts, however near it is."""
    return -np.log(1 - of.best().clip(-1, 1) + 1e-3).mean(axis=0)


def in_order(cost: float) -> Rule:
    """Matches lose by how far apart the two slices lie in their series, from either end."""

    def rule(of: Compared) -> Array:
        likeness = of.likeness()
        here = np.linspace(0, 1, len(of.query))[:, None]
        there = np.concatenate([np.linspace(0, 1, size) for size in of.sizes])
        ways = [likeness - cost * np.abs(here - place) for place in (there, 1 - there)]
        return np.maximum(*[of.best(way).mean(axis=0) for way in ways])

    return rule


def distinct(of: Compared) -> Array:
    """Query slices count by how little they are like the series near by (as idf weighs words)."""
    best = of.best()
    weight = 1 - best[:, of.near()].mean(axis=1)
    return weight @ best / weight.sum()


def standardised(of: Compared) -> Array:
    """Each query slice's matches by how far they stand out among the series near by."""
    best = of.best()
    near = best[:, of.near()]
    spread = near.std(axis=1, keepdims=True) + 1e-6
    score: Array = ((best - near.mean(axis=1, keepdims=True)) / spread).mean(axis=0)
    return score


def centred(then: Rule = mean_of_best) -> Rule:
    """Vectors from the mean of what lies near: what all series near by have in common says nothing
    about which of them is most alike. Only these are put into another order."""

    def rule(of: Compared) -> Array:
        return _first_of_all(of, then(_moved(of, _mean_of(of, of.near()), None)))

    return rule


def whitened(shrink: float, then: Rule = mean_of_best) -> Rule:
    """The same, and directions in which series near by differ much count less."""

    def rule(of: Compared) -> Array:
        near = of.near()
        rows = of.z[np.isin(of.owners, near)]
        middle = _mean_of(of, near)
        apart = rows - middle
        covariance = apart.T @ apart / len(rows)
        values, axes = np.linalg.eigh(covariance)
        values = values.clip(0) + shrink * values.sum() / len(values)
        return _first_of_all(of, then(_moved(of, middle, axes / np.sqrt(values))))

    return rule


def _first_of_all(of: Compared, score: Array) -> Array:
    """The score for series near by, before all others, which stay in the order of the mean."""
    near = of.near()
    found = mean_of_best(of) - 10
    found[near] = score[near]
    return found


def with_mean(other: Rule) -> Rule:
    """The sum of a score and the mean of best matches, each in its spread among series near by."""

    def rule(of: Compared) -> Array:
        near = of.near()
        parts = [one(of) for one in (mean_of_best, other)]
        apart = [(one - one[near].mean()) / (one[near].std() + 1e-9) for one in parts]
        return _first_of_all(of, (apart[0] + apart[1]) / 10)

    return rule


def _mean_of(of: Compared, near: NDArray[np.intp]) -> Array:
    sums = np.add.reduceat(of.z, of.starts, axis=0)
    middle: Array = (sums / of.sizes[:, None])[near].mean(axis=0)
    return middle


def _moved(of: Compared, middle: Array, axes: Array | None) -> Compared:
    def made(z: Array) -> Array:
        moved = z - middle
        moved = moved if axes is None else moved @ axes
        return moved / np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), 1e-12)

    return Compared(made(of.query), made(of.z), of.starts, of.others)


RULES: dict[str, Rule] = {
    "best image": best_image,
    "mean of best": mean_of_best,
    "both ways": both_ways,
    "three quarters": trimmed(0.75),
    "median": median,
    "by distance": by_distance,
    "in order, .1": in_order(0.1),
    "in order, .5": in_order(0.5),
    "distinct slices": distinct,
    "standardised": standardised,
    "centred": centred(),
    "centred, both ways": centred(both_ways),
    "whitened, .1": whitened(0.1),
    "whitened, 1": whitened(1.0),
    "whitened, both ways": whitened(1.0, both_ways),
    "mean and whitened": with_mean(whitened(0.1)),
}
