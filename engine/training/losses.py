"""What every hashing loss answers with."""

from typing import NamedTuple

from torch import Tensor

__all__ = ["LossTerms"]


class LossTerms(NamedTuple):
    """The scalar to minimise, and its parts before they are weighted, by name."""

    total: Tensor
    parts: dict[str, Tensor]
