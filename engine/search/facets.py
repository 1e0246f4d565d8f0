"""Counts by field value over what matched."""

from engine.search.sizes import Size, sample_of, sampled_buckets
from engine.store.base import Filter, VectorStore
from engine.store.payload import BUCKETS, FACET_FIELDS

__all__ = ["Facets", "facet_counts"]

Facets = dict[str, dict[str, int]]


def facet_counts(
    store: VectorStore, where: Filter, size: Size, *, values: int, max_counted: int
) -> tuple[Facets, bool]:
    """For each facet field its most frequent values with counts; fields without any left out.

    Args:
        size: of what ``where`` lets pass.
        values: at most so many of a field.
        max_counted: of more images than this the counts are estimates, from a fixed sample
            of the index that has about so many images.

    Returns:
        The counts, and whether they are estimates.
    """
    filtered = bool(where.must or where.must_not or where.bands)
    estimated = filtered and size.count > max_counted  # of the whole index, the store knows
    counted, factor = where, 1.0
    if estimated:
        buckets = sampled_buckets(store.count(Filter(), exact=False), max_counted)
        counted, factor = sample_of(where, buckets), BUCKETS / buckets
        estimated = factor > 1
    counts = {field: store.facet(field, counted, values) for field in FACET_FIELDS}
    return {
        field: {value: round(factor * count) for value, count in found.items()}
        for field, found in counts.items()
        if found
    }, estimated
