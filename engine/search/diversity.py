"""Re-ranks hits so that they differ from each other: maximal marginal relevance (MMR).

Source: Carbonell and Goldstein, "The Use of MMR, Diversity-Based Reranking for Reordering
Documents and Producing Summaries", SIGIR 1998. Hits are chosen one by one; each time the one with
the highest (1 − d) · r(hit, query) − d · max r(hit, c) over the hits c chosen before.
"""

from collections.abc import Sequence

import numpy as np

from engine.records import Hit
from engine.search.similarity import cosines, unit
from engine.store.base import VectorStore

__all__ = ["diverse"]


def diverse(store: VectorStore, hits: Sequence[Hit], k: int, diversity: float) -> list[Hit]:
    """``k`` of the hits, in the order in which they are chosen.

    Args:
        store: holds the vectors of the hits.
        hits: the shortlist, most similar first; of equally good hits the earlier one is chosen.
        diversity: d in [0, 1]; 0 = the first ``k`` hits.
    """
    if diversity == 0 or len(hits) <= 1:
        return list(hits[:k])
    points = store.get([hit.id for hit in hits], with_z=True)
    vectors = {point.id: point.z for point in points if point.z is not None}
    # Leave out hits that have been deleted from the store since.
    left = [hit for hit in hits if hit.id in vectors]
    if not left:
        return []
    z = unit(np.stack([vectors[hit.id] for hit in left]))
    relevance = np.array([hit.similarity for hit in left])
    likeness = np.zeros(len(left))
    chosen: list[int] = []
    while len(chosen) < min(k, len(left)):
        worth = (1 - diversity) * relevance - diversity * likeness
        worth[chosen] = -np.inf
        best = int(worth.argmax())  # the first of equals
        beside = cosines(z, z[best])
        likeness = beside if not chosen else np.maximum(likeness, beside)
        chosen.append(best)
    return [left[at] for at in chosen]
