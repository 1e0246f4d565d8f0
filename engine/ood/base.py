"""The interface of OOD detectors, and what they share.

A detector is fitted on known images and then scores others; a higher score = more foreign.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from engine.errors import ModelError
from engine.records import Observations

__all__ = [
    "Detector",
    "Reference",
    "State",
    "fitted",
    "log_sum_exp",
    "logits_of",
    "nearest",
    "some",
]

State = dict[str, NDArray[Any]]
_T = TypeVar("_T")
# Rows compared at once: bounds the matrix of similarities.
_ROWS = 1024


class Detector(Protocol):
    """Scores how foreign images are.

    name: identifies the detector in verdicts, settings and stored calibrations; never changed.
    needs: the optional fields of ``Observations`` that it uses.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]

    def fit(self, known: Observations, labels: NDArray[np.int64] | None = None) -> Self:
        """Fits the detector to known images, and returns it.

        Args:
            known: observations of R known images; best of those that the model was trained on.
            labels: int64 (R,), their classes, for the detectors that use them.

        Raises:
            ModelError: there are no images, or a field that it ``needs`` is None.
        """

    def score(self, observations: Observations) -> NDArray[np.float32]:
        """The scores of N images: float32 (N,), higher = more foreign.

        Raises:
            ModelError: it is not fitted, or a field that it ``needs`` is None.
        """

    def state(self) -> State:
        """What it has learned, as arrays by name. Raises ModelError: it is not fitted."""

    @classmethod
    def from_state(cls, state: State) -> Self:
        """The detector with this state. Raises KeyError or ValueError: the state is not valid."""


def some(known: Observations, name: str) -> Observations:
    """Returns ``known``. Raises ModelError: it has no images."""
    if not len(known):
        raise ModelError(f"detector {name!r} was given no known images; fit it on some")
    return known


def fitted(value: _T | None, name: str) -> _T:
    """Returns ``value``, which ``fit`` sets. Raises ModelError: it is None, so not fitted."""
    if value is None:
        raise ModelError(f"detector {name!r} is not fitted; call fit with known images first")
    return value


def logits_of(observations: Observations, name: str) -> NDArray[np.float32]:
    """The classifier's logits, float32 (N, C). Raises ModelError: there are none."""
    if observations.logits is None:
        raise ModelError(
            f"detector {name!r} looks at the classifier's logits, and there are none; take a "
            "model with a classifier, observe the image itself, or leave this detector out"
        )
    return observations.logits


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """Known images that others are compared with. rows: float32 (R, F). squares: float32 (R,), the
    squared length of each: adding them up takes longer than a comparison."""

    rows: NDArray[np.float32]
    squares: NDArray[np.float32]

    @classmethod
    def of(cls, rows: NDArray[np.float32]) -> Self:
        return cls(rows, np.square(rows).sum(axis=1))

    def __len__(self) -> int:
        return len(self.rows)


def nearest(
    asked: NDArray[np.float32], reference: Reference, k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Euclidean distances to the k nearest references, and their rows, nearest first.

    Args:
        asked: float32 (N, F).
        k: number of neighbours; all R if there are fewer.

    Returns:
        Distances, float32, and rows of ``reference``, int64; each (N, min(k, R)).
    """
    k = min(k, len(reference))
    distances = np.empty((len(asked), k), dtype=np.float32)
    rows = np.empty((len(asked), k), dtype=np.int64)
    for start in range(0, len(asked), _ROWS):
        part = asked[start : start + _ROWS]
        # |a − b|² = |a|² + |b|² − 2 a·b
        all_squares = np.square(part).sum(axis=1)[:, None] + reference.squares
        all_squares -= 2 * (part @ reference.rows.T)
        found = np.argpartition(all_squares, k - 1, axis=1)[:, :k]
        near = np.take_along_axis(all_squares, found, axis=1)
        order = near.argsort(axis=1, kind="stable")
        rows[start : start + _ROWS] = np.take_along_axis(found, order, axis=1)
        least = np.maximum(np.take_along_axis(near, order, axis=1), 0)
        distances[start : start + _ROWS] = np.sqrt(least)
    return distances, rows


def log_sum_exp(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """log Σ exp over each row of logits (N, C), float64 (N,), without overflow."""
    top = logits.max(axis=1).astype(np.float64)
    total: NDArray[np.float64] = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
    return total
