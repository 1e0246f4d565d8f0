"""Facets: how many of the matching images have each value of a field."""

from engine.search.sizes import Size, sample_of, sampled_parts
from engine.store.base import PARTS, Filter, VectorStore
from engine.store.payload import FACET_FIELDS

__all__ = ["Facets", "facet_counts"]

Facets = dict[str, dict[str, int]]
"""Field → value → number of images."""


def facet_counts(
    store: VectorStore, where: Filter, size: Size, *, values: int, max_counted: int
) -> tuple[Facets, bool]:
    """The most frequent values of each facet field with their counts.

    Args:
        where: which images to count.
        size: how many images pass ``where``.
        values: most values listed for a field.
        max_counted: when more images than this pass a filter and counting takes time, they are not
            all counted; a fixed sample of about this many images of the index is, and the counts
            are scaled up.

    Returns:
        The counts, without fields that no image has, and whether they are estimates.
    """
    # Without any filter a server knows the counts from its payload indexes.
    filtered = bool(where.must or where.must_not)
    estimated = filtered and not store.counts_at_once and size.count > max_counted
    counted, factor = where, 1.0
    if estimated:
        parts = sampled_parts(store.count(Filter(), exact=False), max_counted)
        counted, factor = sample_of(where, parts), PARTS / parts
        estimated = factor > 1
    counts = store.facets(FACET_FIELDS, counted, values)
    return {
        field: {value: round(factor * count) for value, count in found.items()}
        for field, found in counts.items()
        if found
    }, estimated
