"""Content-guided ranking: puts candidates into a total order, the same on every run.

Source: Nan et al., Medical Image Analysis 2025, 103553. Ordering by Hamming distance alone leaves
ties in whatever order the database returns them; the similarity of the blended features breaks
them.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engine.codes import hamming
from engine.errors import QueryError
from engine.records import Hit, Point

__all__ = ["ORDERS", "ranked"]

ORDERS = ("content", "hamming")


def ranked(points: Sequence[Point], code: NDArray[np.uint8], order: str) -> list[Hit]:
    """The points as hits, in a total order.

    Args:
        points: with their scores (similarity to the query), in any order.
        code: uint8 (B/8,), the query's packed code.
        order: "content" = similarity descending, then Hamming distance, then id;
            "hamming" = Hamming distance ascending, then similarity descending, then id.

    Raises:
        QueryError: ``order`` is unknown.
    """
    if order not in ORDERS:
        raise QueryError(f"order is {order!r}; use one of {', '.join(ORDERS)}")
    if not points:
        return []
    distances = hamming(np.stack([point.code for point in points]), code)
    hits = [
        (int(distance), Hit.of(point, float(point.score or 0.0), int(distance)))
        for point, distance in zip(points, distances, strict=True)
    ]
    if order == "content":
        hits.sort(key=lambda one: (-one[1].similarity, one[0], one[1].id))
    else:
        hits.sort(key=lambda one: (one[0], -one[1].similarity, one[1].id))
    return [hit for _, hit in hits]
