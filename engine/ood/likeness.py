"""One scale for similarities of all kinds of images: how near a hit is, as known neighbours go.

Cosines of features mean other things for other kinds: .96 may be what two hands have that nobody
would call alike, and what no two brains ever reach. Here a similarity is ranked among those that
known images, around where the query lies, have to their own nearest known images.
"""

from typing import Self

import numpy as np
from numpy.typing import NDArray

from engine.errors import ModelError
from engine.ood.base import Reference, State, nearest

__all__ = ["LikenessScale"]

_QUANTILES = 16
_ROWS = 512
_ENDS = (-1.0, 1.0)


class LikenessScale:
    """Turns similarities to a query into likeness, float in [0, 1].

    The likeness of a hit is the share of known neighbours that are less similar than it is:
    neighbours, that are the ``neighbours`` nearest known images of other patients, of each of the
    ``around`` known images nearest to the query. 0.8: this hit is nearer to the query than four in
    five neighbours are to known images of this kind. Between hits of one query it rises with the
    similarity. Of a query that nothing known is like, every hit has a likeness near 0.

    Args:
        references: z of R known images. float32 (R, D), of unit length.
        quantiles: for each of them the similarities to its neighbours at the levels (i + .5) / Q,
            rising. float32 (R, Q).
        around: how many known images near the query count; all if there are fewer.

    Raises:
        ModelError: there are no references, or another number of quantiles.
    """

    def __init__(
        self, references: NDArray[np.float32], quantiles: NDArray[np.float32], around: int = 10
    ) -> None:
        if not len(references) or len(quantiles) != len(references):
            raise ModelError(
                f"a scale of likeness with {len(references)} known images and {len(quantiles)} "
                "rows of similarities; it needs the same number of both, and one at least"
            )
        self._reference = Reference.of(references)
        self._quantiles = quantiles
        self._around = around
        count = quantiles.shape[1]
        self._levels = np.concatenate([[0.0], (np.arange(count) + 0.5) / count, [1.0]])

    @classmethod
    def fitted(
        cls,
        references: NDArray[np.float32],
        patients: NDArray[np.int64] | None = None,
        neighbours: int = 50,
    ) -> Self:
        """The scale of known images.

        Args:
            references: float32 (R, D), of unit length.
            patients: int64 (R,), equal for images of one patient, which are no neighbours of each
                other; None = all are of different ones.
            neighbours: how many; all others if there are fewer.

        Raises:
            ModelError: there are not two patients.
        """
        owners = np.arange(len(references)) if patients is None else patients
        if len(np.unique(owners)) < 2:
            raise ModelError("a scale of likeness takes known images of two patients or more")
        levels = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
        rows = []
        for start in range(0, len(references), _ROWS):
            part = slice(start, start + _ROWS)
            similarity = references[part] @ references.T
            similarity[owners[part, None] == owners[None, :]] = np.nan
            # Nan is sorted to the end, so that the nearest are the first of the negated.
            found = np.sort(-similarity, axis=1)[:, :neighbours]
            rows.append(np.nanquantile(-found, levels, axis=1).T)
        return cls(references, np.concatenate(rows).astype(np.float32).clip(*_ENDS))

    def of(
        self, queries: NDArray[np.float32], similarities: NDArray[np.floating]
    ) -> NDArray[np.float64]:
        """The likeness of hits with these similarities.

        Args:
            queries: z of the query's images. float32 (N, D), of unit length. Of several images the
                scales of all of them are averaged.
            similarities: float (H,), in [-1, 1].

        Returns:
            float64 (H,) in [0, 1].
        """
        asked = np.clip(np.asarray(similarities, dtype=np.float64), *_ENDS)
        _, rows = nearest(queries, self._reference, self._around)
        found = np.zeros(len(asked))
        for row in rows.reshape(-1):
            known = np.concatenate([[_ENDS[0]], self._quantiles[row], [_ENDS[1]]])
            found += np.interp(asked, known, self._levels)
        return found / max(rows.size, 1)

    def state(self) -> State:
        """What is stored beside the references: distances, float16 (R, Q), 1 − the similarities,
        and around, int64 (1,). Near 1, float16 keeps differences from 1 better than the values."""
        return {
            "distances": (1 - self._quantiles).astype(np.float16),
            "around": np.array([self._around]),
        }

    @classmethod
    def from_state(cls, state: State, references: NDArray[np.float32]) -> Self:
        """The scale with this state and these references."""
        quantiles = 1 - state["distances"].astype(np.float32)
        return cls(references, quantiles, int(state["around"].item()))
