"""What a Qdrant server allows in one request: the limits of a collection in strict mode."""

from dataclasses import dataclass

from qdrant_client import models

__all__ = ["UNLIMITED", "Limits"]


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits that bear on what is asked here, by the server's names; None = there is none.

    upsert_max_batchsize: points of one upsert. max_query_limit: hits of one search, points of a
    page, values of a facet. search_max_batchsize: searches of one request. filter_max_conditions:
    conditions of a filter. condition_max_size: values of one condition. search_max_hnsw_ef,
    search_max_oversampling: of a search that is not exact. search_allow_exact: whether counts and
    searches may be exact.
    """

    upsert_max_batchsize: int | None = None
    max_query_limit: int | None = None
    search_max_batchsize: int | None = None
    filter_max_conditions: int | None = None
    condition_max_size: int | None = None
    search_max_hnsw_ef: int | None = None
    search_max_oversampling: float | None = None
    search_allow_exact: bool = True

    @classmethod
    def of(cls, info: models.CollectionInfo) -> "Limits":
        """Of the collection that the server describes so."""
        strict = info.config.strict_mode_config
        if strict is None or not strict.enabled:
            return cls()
        return cls(
            upsert_max_batchsize=strict.upsert_max_batchsize,
            max_query_limit=strict.max_query_limit,
            search_max_batchsize=strict.search_max_batchsize,
            filter_max_conditions=strict.filter_max_conditions,
            condition_max_size=strict.condition_max_size,
            search_max_hnsw_ef=strict.search_max_hnsw_ef,
            search_max_oversampling=strict.search_max_oversampling,
            search_allow_exact=strict.search_allow_exact is not False,
        )

    def points_at_once(self, wanted: int) -> int:
        """Points of an upsert, at most ``wanted``."""
        return _within(wanted, self.upsert_max_batchsize)

    def page(self, wanted: int) -> int:
        """Points of a page, or values of a facet, at most ``wanted``."""
        return _within(wanted, self.max_query_limit)

    def searches_at_once(self, wanted: int) -> int:
        """Searches of a request, at most ``wanted``."""
        return _within(wanted, self.search_max_batchsize)

    def values_at_once(self, wanted: int) -> int:
        """Values of a condition, at most ``wanted``."""
        return _within(wanted, self.condition_max_size)

    def pages(self, limit: int) -> list[tuple[int, int]]:
        """A search for ``limit`` hits as several: of each the offset and the limit."""
        at_once = max(1, self.page(limit))
        return [(start, min(at_once, limit - start)) for start in range(0, limit, at_once)]

    def ef(self, wanted: int) -> int:
        return _within(wanted, self.search_max_hnsw_ef)

    def oversampling(self, wanted: float) -> float:
        most = self.search_max_oversampling
        return wanted if most is None else min(wanted, most)


UNLIMITED = Limits()
"""Of a collection that is not in strict mode."""


def _within(wanted: int, most: int | None) -> int:
    return wanted if most is None else max(1, min(wanted, most))
