"""The search request: how many hits, filters, order, grouping and page."""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from uuid import UUID

from engine.errors import ImageNotFound, QueryError
from engine.records import ImageRecord
from engine.search.ladder import Rung
from engine.search.ranking import ORDERS
from engine.store.base import Condition, Filter, Match, Range
from engine.store.payload import FILTER_FIELDS, FieldKind

__all__ = [
    "GROUPS",
    "MAX_K",
    "MAX_RADIUS",
    "Cursor",
    "Query",
    "parse_group",
    "parse_id",
    "parse_where",
    "without_own",
]

GROUPS = ("study", "patient")

MAX_K = 1000
MAX_RADIUS = 1024
_MAX_VALUES = 256
_LARGEST = 2**31 - 1
_UPPER = ("modality", "body_part", "view", "laterality", "sex")
"""Fields whose values are code strings, and so in upper case (PS3.5 6.2)."""
_ASKABLE = sorted(name for name, kind in FILTER_FIELDS.items() if kind is not FieldKind.TENANT)


@dataclass(frozen=True, slots=True)
class Cursor:
    """The start of the next page of hits, written as in "cells-16:20"; an answer's ``next_page``.

    rung: label of the rung of the first page; on another rung the list would be another one.
    offset: number of hits (one for each group, when grouped) before the page.
    """

    rung: str
    offset: int

    @classmethod
    def parse(cls, text: str) -> "Cursor":
        """The cursor that :meth:`__str__` wrote.

        Raises:
            QueryError: the text is not a cursor.
        """
        found = re.fullmatch(r"([a-z]+(?:-\d{1,5}){0,2}):([1-9]\d{0,5})", text)
        try:
            if found is None:
                raise ValueError(text)
            return cls(Rung.labelled(found[1]).label, int(found[2]))
        except ValueError:
            raise QueryError(
                f"page {text[:40]!r} is none; give `next_page` of the answer before, or nothing"
            ) from None

    def __str__(self) -> str:
        return f"{self.rung}:{self.offset}"


@dataclass(frozen=True, slots=True)
class Query:
    """A search request, except for the query image.

    k: number of hits. where: filters, see :func:`parse_where`.
    order: "content" (by similarity) or "hamming" (by Hamming distance), see ranking.py.
    exact: skip the coarse filter and compare with all images that pass the filters.
    radius: every image within this Hamming distance is to be compared, whatever the coarse filter
        would leave out; None = no such promise.
    group_by: "study" or "patient": only the first hit of each; an image that names none is a
        group by itself.
    exclude: "study" excludes the query's own study, "patient" also the query's own patient.
    page: cursor from the previous page's answer; everything else must be as it was for that page.
    facets: count the field values of the matching images.

    Raises:
        QueryError: a value is out of range or unknown.
    """

    k: int = 10
    where: Filter = field(default_factory=Filter)
    order: str = "content"
    exact: bool = False
    radius: int | None = None
    group_by: str | None = None
    exclude: str | None = None
    page: Cursor | None = None
    facets: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.k <= MAX_K:
            raise QueryError(f"k is {self.k}; ask for 1 to {MAX_K} hits")
        if self.order not in ORDERS:
            raise QueryError(f"order is {self.order!r}; use one of {', '.join(ORDERS)}")
        if self.radius is not None and not 0 <= self.radius <= MAX_RADIUS:
            raise QueryError(f"radius is {self.radius}; use 0 to {MAX_RADIUS} bits")
        if self.radius is not None and self.exact:
            raise QueryError("an exact search compares everything; leave out the radius")
        for name, value in (("group_by", self.group_by), ("exclude", self.exclude)):
            if value not in (None, *GROUPS):
                raise QueryError(f"{name} is {value!r}; use one of {', '.join(GROUPS)}")
        if self.offset + self.k > MAX_K:
            raise QueryError(
                f"the list goes on to hit {MAX_K}, {self.offset + self.k} was asked for; narrow "
                "the search with filters"
            )
        if self.page is not None and self.radius is not None and not self._keeps_promise():
            raise QueryError(f"page {self.page} is of a search without this radius; ask as before")
        if self.page is not None and (self.page.rung == "exact") != self.exact:
            raise QueryError(
                f"page {self.page} is of {'an exact' if not self.exact else 'another'} search; "
                "ask as before"
            )

    def _keeps_promise(self) -> bool:
        """Whether the rung of the page has every image within the radius."""
        rung = Rung.labelled("dense" if self.page is None else self.page.rung)
        if rung.name == "codes":
            return rung.radius is not None and rung.radius >= (self.radius or 0)
        return rung.name == "dense"

    @property
    def offset(self) -> int:
        """Number of hits on the pages before."""
        return 0 if self.page is None else self.page.offset


def without_own(
    where: Filter,
    exclude: str | None,
    own: Sequence[ImageRecord],
    nobody: Collection[str] = (),
) -> Filter:
    """The filter, with the studies of ``own`` excluded; with "patient", their patients too.

    Args:
        exclude: "study", "patient" or None.
        own: records of the query images.
        nobody: values of the field patient that stand for no one (placeholders.py).
    """
    fields = {None: (), "study": ("study",), "patient": ("study", "patient")}[exclude]
    named = {field: {getattr(record, field) for record in own} - {None} for field in fields}
    if "patient" in named:
        named["patient"] -= set(nobody)
    mine = tuple(Match(field, tuple(sorted(values))) for field, values in named.items() if values)
    return replace(where, must_not=(*where.must_not, *mine))


def parse_where(terms: Iterable[str]) -> Filter:
    """Parses filter terms as users write them.

    ``modality=CT`` selects a value and ``modality!=CT`` excludes it; ``study_year=2015..2020`` is a
    range, in which either bound may be left out. Terms are combined with AND, except that several
    ``=`` terms of one field select any of their values. Case does not matter in the values of
    coded fields; for the others see ``engine.search.spelling``.

    Raises:
        QueryError: a term is not of this form, names an unknown field or has a wrong value.
    """
    any_of: dict[str, list[str]] = {}
    must: list[Condition] = []
    must_not: list[Condition] = []
    for term in terms:
        left, equals, text = term.partition("=")
        excluded = left.rstrip().endswith("!")
        name = left.strip().removesuffix("!").strip()
        if not equals or not text.strip():
            raise QueryError(f"filter {term!r} is not of the form field=value, as in modality=CT")
        if name not in _ASKABLE:
            raise QueryError(
                f"filter {term!r}: no field {name!r}; use one of {', '.join(_ASKABLE)}"
            )
        if ".." in text and FILTER_FIELDS[name] is FieldKind.INTEGER:
            low, _, high = text.partition("..")
            bounds = Range(name, _integer(term, low), _integer(term, high))
            (must_not if excluded else must).append(bounds)
        elif excluded:
            must_not.append(_match(name, [text]))
        else:
            any_of.setdefault(name, []).append(text)
    must.extend(_match(name, values) for name, values in any_of.items())
    return Filter(must=tuple(must), must_not=tuple(must_not))


def _match(field: str, texts: list[str]) -> Match:
    values = [text.strip() for text in texts]
    if len(values) > _MAX_VALUES:
        raise QueryError(f"filter on {field} has {len(values)} values; give up to {_MAX_VALUES}")
    kind = FILTER_FIELDS[field]
    if kind is FieldKind.INTEGER:
        return Match(field, tuple(_number(f"{field}={value}", value) for value in values))
    if kind is FieldKind.BOOL:
        known = {"true": True, "yes": True, "false": False, "no": False}
        for value in values:
            if value.lower() not in known:
                raise QueryError(f"filter {field}={value}: use true or false")
        return Match(field, tuple(known[value.lower()] for value in values))
    if field in _UPPER:
        return Match(field, tuple(value.upper() for value in values))
    return Match(field, tuple(values))


def _integer(term: str, text: str) -> int | None:
    return _number(term, text) if text.strip() else None


def _number(term: str, text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise QueryError(f"filter {term!r}: {text.strip()!r} is not a whole number") from None
    if abs(number) > _LARGEST:
        raise QueryError(f"filter {term!r}: the number is beyond ±{_LARGEST}")
    return number


def parse_id(text: str) -> str:
    """The id of an image as the index writes it. Raises ImageNotFound if the text is not a UUID."""
    try:
        return str(UUID(text))
    except ValueError:
        raise ImageNotFound(
            f"{text[:64]!r} is not the id of an image; ids are UUIDs, as searches return them"
        ) from None


def parse_group(text: str | None) -> str | None:
    """The value of ``group_by`` or ``exclude`` given as text: None for "none" and for "".

    Other values are returned as they are; :class:`Query` checks them.
    """
    return None if text in (None, "", "none") else text
