"""What a search will most likely ask of a server, sent ahead (engine/store/ahead.py).

Two round trips in a row are the aim: first estimates of how many images pass the filters and the
rungs of the coarse filter, with what is to be known of the filters' values; then, by these
estimates, the counts, the hits and the facets. Where the image's vector has to be fetched first,
the second round trip has all that needs it, and goes by the number of images that pass the filters
alone. A search that turns out otherwise asks further, and is only slower.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from engine.records import ImageRecord
from engine.search import facets, placeholders, shortlist, spelling
from engine.search.ladder import Climb
from engine.search.query import Query, without_own
from engine.search.sizes import Size
from engine.settings import SearchSettings
from engine.store.ahead import AheadStore
from engine.store.base import Filter, Nearest

__all__ = ["Outlook", "look_ahead", "look_at_filters"]

_RUNGS = 4
"""So many rungs are counted beforehand where the first may leave too few images."""
_SHARE_OF_CODES = 0.02
"""Of images whose codes are near, for a guess whether they will be counted."""
_LIKELY_COUNTED = 2
"""Candidates are counted beforehand where a guess is up to so many times the limit."""

Candidates = Callable[[Filter, Callable[[Filter], Size | None]], Climb]
"""The outcome of climbing the ladder with these filters, if sizes are as the function tells."""


def look_at_filters(store: AheadStore, query: Query) -> None:
    """Sends what does not depend on the image: for a query whose image is being fetched."""
    spelling.look_ahead(store, query.where)
    store.count_ahead(query.where, exact=False)
    _look_at_all(store, query)


def look_ahead(
    store: AheadStore,
    settings: SearchSettings,
    query: Query,
    own: Sequence[ImageRecord],
    rungs: Callable[[Filter, int], list[Filter]],
    candidates: Candidates,
    asked: Callable[[Climb], list[Nearest]],
    likely: int | None,
) -> None:
    """Sends what a search for one image will ask.

    Args:
        own: records of the query image.
        rungs: the filters of the first rungs of the ladder, so many.
        candidates: climbs the ladder.
        asked: what is asked first of the rung taken.
        likely: about so many images pass the filters; None = that is not known yet, and the counts
            are waited for.
    """
    if likely is None:
        spelling.look_ahead(store, query.where)
    else:
        query = replace(query, where=spelling.as_spelled(store, query.where)[0])
    placeholders.look_ahead(store, settings, own, query.exclude, query.group_by)
    where = without_own(query.where, query.exclude, own)
    narrowed = [] if query.exact else rungs(where, _RUNGS)
    if not where.must and narrowed and narrowed[0].coarse is not None and narrowed[0].coarse.cells:
        # The first cells nearly always have enough.
        narrowed = narrowed[:1]
    for one in (where, *narrowed):
        store.count_ahead(one, exact=False)
    _look_at_all(store, query)
    if likely is None:
        fitted, _ = spelling.as_spelled(store, query.where)
        if fitted != query.where:
            query = replace(query, where=fitted)
            look_ahead(store, settings, query, own, rungs, candidates, asked, likely)
            return
    # After a guess the estimates are there, and may have it otherwise.
    for guess in (None,) if likely is None else (likely, None):
        taken = candidates(where, Outlook(store, settings, guess).of)
        shortlist.look_ahead(store, asked(taken))
        if query.facets:
            values, most = settings.facet_values, settings.max_faceted
            facets.look_ahead(store, where, taken.matching, values=values, max_counted=most)


def _look_at_all(store: AheadStore, query: Query) -> None:
    if query.facets:
        store.count_ahead(Filter(), exact=False)


@dataclass(frozen=True, slots=True)
class Outlook:
    """How many images pass filters, by estimates; those that will be counted are, meanwhile.

    likely: about so many pass the query's filters; None = the store is asked for estimates.
    """

    store: AheadStore
    settings: SearchSettings
    likely: int | None

    def of(self, where: Filter) -> Size | None:
        """None = not known, so as many as are wanted."""
        most = self.settings.max_counted
        if self.likely is None:
            about = self.store.count(where, exact=False)
            if about <= most:
                self.store.count_ahead(where)
            return Size(about, about > most)
        expected, known = float(self.likely), where.coarse is None
        if where.coarse is not None:
            cells = self.store.cells
            probed = len(where.coarse.cells)
            expected *= _SHARE_OF_CODES if cells is None or not probed else probed / len(cells)
        if expected <= (most if known else _LIKELY_COUNTED * most):
            self.store.count_ahead(where)
        return Size(self.likely, self.likely > most) if known else None
