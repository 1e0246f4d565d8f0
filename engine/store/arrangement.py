"""Figures of the profiles that every store shares, and the name of the vector they arrange."""

__all__ = ["EF", "EF_CONSTRUCT", "FULL_SCAN_KB", "LINKS", "QUANTILE", "VECTOR", "oversampling"]

VECTOR = "blended"
LINKS, EF_CONSTRUCT, EF = 16, 100, 128
"""Of the graph, where there is one: edges a node, and nodes kept in view while building it
and while searching it."""
FULL_SCAN_KB = 10_000
"""Vectors of fewer kilobytes are compared one by one, graph or not."""
QUANTILE = 0.99
"""Share of the values that eight-bit vectors tell apart; those beyond are cut off."""
_LEAST, _MOST, _RESCORED = 4.0, 64.0, 512


def oversampling(limit: int) -> float:
    """Candidates that quantised vectors find, for each that is scored again and returned.

    Vectors of a well-trained model lie so close together within a class that eight bits leave
    the ten nearest somewhere among the first hundreds (docs/search.md).
    """
    return max(_LEAST, min(_MOST, _RESCORED / limit))
