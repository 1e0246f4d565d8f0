"""Searches by words: the images whose own embedding in the model's CLIP tower is nearest to that of
a text. How alike an image and a text are is on no scale of image and image: such an answer has no
verdict, no likeness and no codes."""

from engine.errors import QueryError
from engine.model.words import Said
from engine.records import Hit
from engine.search.ladder import Climb, Rung
from engine.search.placeholders import nobodies, remark_on_nothing
from engine.search.query import Query
from engine.search.shortlist import best_of_each, first_of_each, most_similar
from engine.search.sizes import size_of
from engine.search.spelling import as_spelled
from engine.settings import SearchSettings
from engine.store.base import VectorStore

__all__ = ["check_query", "found_by_words"]

_UNCALIBRATED = (
    "by words: what fits best comes first, however little it fits; similarities of text and image "
    "are on no scale, so there is no verdict and no likeness"
)


def check_query(query: Query) -> None:
    """Raises QueryError: the query asks for what a text has not."""
    if query.order != "content" or query.radius is not None:
        raise QueryError(
            "a text has no code; leave out the order 'hamming' and the radius, or search by an "
            "image"
        )
    if query.exclude is not None:
        raise QueryError("a text has no study or patient of its own; leave out exclude_own")
    if query.page is not None and query.page.rung not in ("dense", "exact"):
        raise QueryError(f"page {query.page} is of a search by an image; ask as before")


def found_by_words(
    store: VectorStore, settings: SearchSettings, said: Said, query: Query
) -> tuple[list[Hit], Climb, tuple[str, ...]]:
    """The hits from the first one on, one more than wanted where there are more, and their ties;
    what they were searched among; and remarks for the reader.

    Every image that passes the filters is compared.
    """
    where, remarks = as_spelled(store, query.where)
    nobody = nobodies(store, settings, (), None, query.group_by)
    size = size_of(store, where, settings.max_counted)
    rung = "exact" if query.exact else "dense"
    taken = Climb(Rung(rung), where, size, size, {rung: size.count}, note=_told(said))
    wanted = query.offset + query.k + 1
    if query.group_by is None:
        points = most_similar(store, said.vector, where, wanted, exact=True, vector="words")
    else:
        points = best_of_each(
            store,
            said.vector,
            where,
            query.group_by,
            wanted,
            exact=True,
            nobody=nobody,
            vector="words",
        )
    hits = [Hit.of(one, float(one.score or 0.0), None) for one in points]
    hits.sort(key=lambda hit: (-hit.similarity, hit.id))
    if query.group_by is not None:
        hits = list(first_of_each(hits, query.group_by, nobody))
    if not points:
        remarks = (*remarks, *remark_on_nothing(store, where, None))
    return hits, taken, remarks


def _told(said: Said) -> str:
    if said.read == said.tokens:
        return _UNCALIBRATED
    return (
        f"{_UNCALIBRATED}; the text has {said.tokens} tokens, and the model read the first "
        f"{said.read}"
    )
