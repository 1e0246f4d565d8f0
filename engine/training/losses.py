"""The return type of the hashing losses."""

from typing import NamedTuple

from torch import Tensor

__all__ = ["LossTerms"]


class LossTerms(NamedTuple):
    """total: the scalar to minimise. parts: its terms by name, before they are weighted."""

    total: Tensor
    parts: dict[str, Tensor]
