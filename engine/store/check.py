"""What a check of an index found, whichever kind of store it is in."""

from dataclasses import dataclass
from typing import Literal, Protocol

from engine.store.cells import LEAST_POINTS

__all__ = ["Check", "State", "check_cells"]

State = Literal["good", "warning", "bad"]
_WANTED, _POOR, _GROWN = 0.995, 0.98, 4
"""The recall that cells are made for, the one below which they are made anew, and the growth of the
index after which they are (engine/store/cells.py)."""


@dataclass(frozen=True, slots=True)
class Check:
    """What was found. name: of the check. sentence: says it. way_out: what to do about it; "" when
    there is nothing to do."""

    name: str
    state: State
    sentence: str
    way_out: str = ""


class _Cells(Protocol):
    @property
    def points(self) -> int: ...
    @property
    def probes(self) -> int: ...
    @property
    def recall(self) -> float: ...


def check_cells(cells: _Cells | None, points: int) -> Check | None:
    """Whether the cells of the coarse filter fit the index; None = it is too small for any.

    Args:
        points: how many the index has.
    """
    if points < LEAST_POINTS:
        return None
    anew = "make them anew with `precedent profile hash` (or precise, if it has a graph)"
    if cells is None:
        return Check(
            "cells",
            "warning",
            f"an index of {points:,} images has no cells, so that searches compare more of them",
            f"{anew}; the next `precedent index` does so as well",
        )
    said = (
        f"searches look into {cells.probes} cells and find {cells.recall:.1%} of the most similar"
    )
    if cells.recall < _POOR:
        return Check("cells", "warning", f"{said}, less than {_POOR:.0%}", anew)
    if points >= _GROWN * cells.points:
        return Check(
            "cells",
            "warning",
            f"the cells were made for {cells.points:,} images, and there are {points:,}",
            anew,
        )
    return Check("cells", "good", said if cells.recall >= _WANTED else f"{said} (made for 99.5 %)")
