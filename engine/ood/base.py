"""What a detector of foreign images is: fit on what is known, then score; higher = more foreign."""

from typing import Any, ClassVar, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from engine.errors import ModelError
from engine.records import Observations

__all__ = [
    "Detector",
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
    """A score of how foreign an image is.

    name: stable; verdicts, settings and stored calibrations carry it.
    needs: fields of ``Observations`` that it looks at and that not every model has.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]

    def fit(self, known: Observations, labels: NDArray[np.int64] | None = None) -> Self:
        """Learns what is known, and returns itself.

        Args:
            known: of R known images; best those that the model was trained on.
            labels: int64 (R,), their classes, for the detectors that use them.

        Raises:
            ModelError: there is no image, or the observations lack what it ``needs``.
        """

    def score(self, observations: Observations) -> NDArray[np.float32]:
        """float32 (N,), higher = more foreign.

        Raises:
            ModelError: it was not fitted, or the observations lack what it ``needs``.
        """

    def state(self) -> State:
        """What it needs to score alike elsewhere, as arrays. Raises ModelError: not fitted."""

    @classmethod
    def from_state(cls, state: State) -> Self:
        """The detector whose ``state`` this is. Raises KeyError or ValueError: it is none."""


def some(known: Observations, name: str) -> Observations:
    """``known``. Raises ModelError when it is of no images."""
    if not len(known):
        raise ModelError(f"detector {name!r} was given no known images; fit it on some")
    return known


def fitted(value: _T | None, name: str) -> _T:
    """``value``, which ``fit`` sets. Raises ModelError when it did not."""
    if value is None:
        raise ModelError(f"detector {name!r} is not fitted; call fit with known images first")
    return value


def logits_of(observations: Observations, name: str) -> NDArray[np.float32]:
    """The logits, float32 (N, C). Raises ModelError when there are none."""
    if observations.logits is None:
        raise ModelError(
            f"detector {name!r} looks at the classifier's logits, and there are none; take a "
            "model with a classifier, observe the image itself, or leave this detector out"
        )
    return observations.logits


def nearest(
    asked: NDArray[np.float32], reference: NDArray[np.float32], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Euclidean distances to the k nearest references, and which they are, nearest first.

    Args:
        asked, reference: float32 (N, F) and (R, F).
        k: how many; all R where there are fewer.

    Returns:
        float32 and int64, each (N, min(k, R)).
    """
    k = min(k, len(reference))
    distances = np.empty((len(asked), k), dtype=np.float32)
    rows = np.empty((len(asked), k), dtype=np.int64)
    squares = np.square(reference).sum(axis=1)
    for start in range(0, len(asked), _ROWS):
        part = asked[start : start + _ROWS]
        # |a − b|² = |a|² + |b|² − 2 a·b
        all_squares = np.square(part).sum(axis=1)[:, None] + squares - 2 * (part @ reference.T)
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
