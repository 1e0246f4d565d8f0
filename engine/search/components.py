"""Connected components of a graph whose edges are added in bulk (union-find)."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["Components"]


class Components:
    """A partition of the items 0 … N − 1, each at first a component of its own.

    Args:
        count: N.
    """

    def __init__(self, count: int) -> None:
        self._parent = np.arange(count, dtype=np.int64)

    def of(self, items: NDArray[np.int64]) -> NDArray[np.int64]:
        """For each item the smallest member of its component: int64 (n,) → (n,)."""
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
        """Merges the components of ``a[i]`` and ``b[i]``, for every i; int64 (n,) each."""
        while len(a):
            one, other = self.of(a), self.of(b)
            apart = one != other
            a, b = one[apart], other[apart]
            # When several pairs give one root different parents, the smallest is taken; the
            # other pairs are merged in the next round.
            np.minimum.at(self._parent, np.maximum(a, b), np.minimum(a, b))

    def groups(self) -> list[NDArray[np.int64]]:
        """The components of two or more items, largest first; members in ascending order."""
        roots = self.of(np.arange(len(self._parent)))
        order = np.argsort(roots, kind="stable")
        starts = np.flatnonzero(np.diff(roots[order], prepend=-1))
        parts = np.split(order, starts[1:]) if len(order) else []
        several = [part for part in parts if len(part) > 1]
        return sorted(several, key=lambda part: (-len(part), part[0]))
