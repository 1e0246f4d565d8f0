"""Connected components that grow pair by pair, for many pairs at once."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["Components"]


class Components:
    """N items, each alone at first (union-find with path compression).

    Args:
        count: N.
    """

    def __init__(self, count: int) -> None:
        self._parent = np.arange(count, dtype=np.int64)

    def of(self, items: NDArray[np.int64]) -> NDArray[np.int64]:
        """The component of each item, by its smallest member: int64 (n,) → (n,)."""
        parent = self._parent
        roots: NDArray[np.int64] = parent[items]
        while True:
            above = parent[roots]
            if np.array_equal(above, roots):
                break
            roots = above
        parent[items] = roots
        return roots

    def join(self, a: NDArray[np.int64], b: NDArray[np.int64]) -> None:
        """Makes one component of those of ``a[i]`` and ``b[i]``, for every i."""
        while len(a):
            one, other = self.of(a), self.of(b)
            apart = one != other
            a, b = one[apart], other[apart]
            # Where several pairs would hang one root below others, the smallest of these wins;
            # the other pairs come again in the next round.
            np.minimum.at(self._parent, np.maximum(a, b), np.minimum(a, b))

    def groups(self) -> list[NDArray[np.int64]]:
        """The members, ascending, of every component with two or more; largest first."""
        roots = self.of(np.arange(len(self._parent)))
        order = np.argsort(roots, kind="stable")
        starts = np.flatnonzero(np.diff(roots[order], prepend=-1))
        parts = np.split(order, starts[1:]) if len(order) else []
        several = [part for part in parts if len(part) > 1]
        return sorted(several, key=lambda part: (-len(part), part[0]))
