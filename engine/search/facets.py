"""Facets: how many of the matching images have each value of a field."""

from typing import TYPE_CHECKING

from engine.search.sizes import Size, sample_of, sampled_parts
from engine.store.base import PARTS, Filter, VectorStore
from engine.store.counts import Facets
from engine.store.payload import FACET_FIELDS

if TYPE_CHECKING:
    from engine.store.ahead import AheadStore

__all__ = ["facet_counts", "look_ahead"]


def facet_counts(
    store: VectorStore, where: Filter, size: Size, *, values: int, max_counted: int
) -> Facets:
    """The most frequent values of each facet field with their counts.

    Args:
        where: which images to count.
        size: how many images pass ``where``.
        values: most values listed for a field.
        max_counted: when more images than this pass a filter and counting takes time, they are not
            all counted; a fixed sample of about this many images of the index is, and the counts
            are scaled up.

    Returns:
        The counts, without fields that no image has; they say which of them are lower bounds, and
        whether they are estimates.
    """
    counted, factor = _counted(store, where, size, max_counted)
    counts = store.facets(FACET_FIELDS, counted, values)
    scaled = {
        field: {value: round(factor * count) for value, count in found.items()}
        for field, found in counts.items()
        if found
    }
    return Facets(scaled, at_least=counts.at_least, estimated=factor > 1)


def look_ahead(
    store: "AheadStore", where: Filter, size: Size, *, values: int, max_counted: int
) -> None:
    """Sends what :func:`facet_counts` will ask."""
    counted, _ = _counted(store, where, size, max_counted)
    store.facets_ahead(FACET_FIELDS, counted, values)


def _counted(
    store: VectorStore, where: Filter, size: Size, max_counted: int
) -> tuple[Filter, float]:
    """Which images are counted, and by how much the counts are then scaled up."""
    # Without any filter a server knows the counts from its payload indexes.
    filtered = bool(where.must or where.must_not)
    if not filtered or store.counts_at_once or size.count <= max_counted:
        return where, 1.0
    parts = sampled_parts(store.count(Filter(), exact=False), max_counted)
    return sample_of(where, parts), PARTS / parts
