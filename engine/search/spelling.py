"""Fits the values of a filter to those of the archive, and says which of them nothing has."""

from collections.abc import Iterable
from dataclasses import replace
from typing import TypeGuard

from engine.store.ahead import AheadStore
from engine.store.base import Condition, Filter, Match, VectorStore
from engine.store.payload import FACET_FIELDS, FILTER_FIELDS, FieldKind

__all__ = ["as_spelled", "look_ahead"]

_FREE_FIELDS = ("labels", "manufacturer", "source")
"""Facet fields whose values people write as they like."""
_MOST_VALUES = 1000
"""Values of a field that are compared without regard to case."""
_MOST_CHECKED = 16
"""Values of a filter that are looked for in the archive."""
_MOST_NAMED = 8


def as_spelled(store: VectorStore, where: Filter) -> tuple[Filter, tuple[str, ...]]:
    """The filter with its values spelled as in the archive, and remarks for the reader.

    A value of labels, manufacturer or source stands for all values of the archive that differ
    from it by upper and lower case only. Other fields have one spelling, see ``parse_where``.

    Returns:
        The filter, and a sentence for each value that no image has.
    """
    remarks: list[str] = []
    fitted = replace(
        where,
        must=tuple(_fitted(store, one, remarks) for one in where.must),
        must_not=tuple(_fitted(store, one, remarks) for one in where.must_not),
    )
    return fitted, tuple(dict.fromkeys(remarks))


def _fitted(store: VectorStore, condition: Condition, remarks: list[str]) -> Condition:
    if not _is_fitted(condition):
        return condition
    listed: dict[str, int] = {}
    if condition.field in _FREE_FIELDS:
        listed = _listed(store, condition.field)
        condition = _respelled(condition, listed)
    for value in condition.values[:_MOST_CHECKED]:
        here = _having(condition.field, value)
        if value in listed:
            continue
        if store.count(here, exact=False) == 0 and store.count(here) == 0:
            remarks.append(f"no image has {condition.field} {value!r}{_others(store, condition)}")
    return condition


def look_ahead(store: AheadStore, where: Filter) -> None:
    """Sends what :func:`as_spelled` will ask for this filter."""
    for condition in (*where.must, *where.must_not):
        if not _is_fitted(condition):
            continue
        if condition.field in _FREE_FIELDS:
            store.facets_ahead([condition.field], Filter(), _MOST_VALUES)
            continue
        for value in condition.values[:_MOST_CHECKED]:
            store.count_ahead(_having(condition.field, value), exact=False)


def _is_fitted(condition: Condition) -> TypeGuard[Match]:
    return isinstance(condition, Match) and FILTER_FIELDS.get(condition.field) in (
        FieldKind.KEYWORD,
        FieldKind.INTEGER,
    )


def _having(field: str, value: str | int) -> Filter:
    return Filter(must=(Match(field, (value,)),))  # type: ignore[arg-type]


def _listed(store: VectorStore, field: str) -> dict[str, int]:
    """The most frequent values of a field."""
    return store.facets([field], Filter(), _MOST_VALUES)[field]


def _respelled(asked: Match, listed: Iterable[str]) -> Match:
    spellings: dict[str, list[str]] = {}
    for value in listed:
        spellings.setdefault(value.casefold(), []).append(value)
    values = [
        spelled
        for value in asked.values
        # One that is not listed may be there all the same, beyond the most frequent ones.
        for spelled in spellings.get(str(value).casefold(), [str(value)])
    ]
    return Match(asked.field, tuple(dict.fromkeys(values)))


def _others(store: VectorStore, asked: Match) -> str:
    if asked.field not in FACET_FIELDS:
        return ""
    known = list(store.facets([asked.field], Filter(), _MOST_NAMED + 1)[asked.field])
    if not known:
        return "; none has any"
    more = ", …" if len(known) > _MOST_NAMED else ""
    return f"; there are {', '.join(known[:_MOST_NAMED])}{more}"
