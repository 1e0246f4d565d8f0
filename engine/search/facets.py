"""Counts by field value over what matched."""

from engine.store.base import Filter, VectorStore
from engine.store.payload import FACET_FIELDS

__all__ = ["facet_counts"]


def facet_counts(store: VectorStore, where: Filter, values: int) -> dict[str, dict[str, int]]:
    """For each facet field its most frequent values with counts; fields without any left out."""
    counts = {field: store.facet(field, where, values) for field in FACET_FIELDS}
    return {field: found for field, found in counts.items() if found}
