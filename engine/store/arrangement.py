"""Constants of the vector index that all stores share: graph, quantisation, oversampling."""

__all__ = [
    "EF",
    "EF_CONSTRUCT",
    "FULL_SCAN_KB",
    "LINKS",
    "QUANTILE",
    "VECTOR",
    "WORDS",
    "oversampling",
]

VECTOR = "blended"
WORDS = "words"
"""The names of the vectors: of every point, and of those that are found by words as well."""
"""Name of the vector of a point."""
LINKS, EF_CONSTRUCT, EF = 16, 100, 128
"""HNSW parameters of profile "precise": m (edges of a node), ef_construct and, for searches, ef."""
FULL_SCAN_KB = 10_000
"""Below this many kilobytes of vectors all are compared, even where there is a graph."""
QUANTILE = 0.99
"""Quantile of the values that eight-bit vectors cover; values beyond it are clipped."""
_LEAST, _MOST, _RESCORED = 4.0, 64.0, 512
"""Bounds of the oversampling, and how many candidates to rescore where it lies within them."""


def oversampling(limit: int) -> float:
    """How many candidates to fetch by quantised vectors for each of ``limit`` points returned.

    The candidates are scored again by their full vectors. Within a class the vectors of a
    well-trained model lie so close together that the ten nearest may only be among the first few
    hundred by eight-bit vectors (docs/search.md).
    """
    return max(_LEAST, min(_MOST, _RESCORED / limit))
