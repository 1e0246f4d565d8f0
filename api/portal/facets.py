"""The filters of the search page: values with their counts, ranges, and chips to take away."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from api.portal.catalogues import gettext
from api.portal.question import Question, field_of
from api.portal.words import TITLES, title_of
from engine.search.query import parse_where
from engine.store.counts import Facets
from engine.store.payload import FACET_FIELDS
from indexer.archive import TenantArchive

__all__ = ["Chip", "FacetList", "FacetValue", "chips", "counted", "facet_lists", "maker"]

_SHOWN = 6
"""Values of a field that are shown before "more"."""
_OPEN = 4
_YEAR = "study_year"
_OF_COMPANIES = frozenset(
    (
        *("medical", "systems", "system", "healthcare", "healthineers", "solutions", "corporation"),
        *(
            "corp",
            "company",
            "co",
            "inc",
            "ltd",
            "limited",
            "llc",
            "gmbh",
            "ag",
            "sa",
            "bv",
            "nv",
            "kg",
        ),
    )
)
"""Words that one maker is written with or without."""


@dataclass(frozen=True, slots=True)
class FacetValue:
    """A value to filter by.

    count: images. link: address of the page with this filter added, or taken away if it is active.
    spellings: how many spellings of it are counted together.
    """

    value: str
    count: int
    link: str
    active: bool
    spellings: int = 1


@dataclass(frozen=True, slots=True)
class FacetList:
    """A field to filter by.

    first: the values that are shown; more: those behind "more". typed: there may be others, which
    can be typed. at_least: the counts are lower bounds. low, high: the range that is filtered by,
    as text; None = the field has no ranges.
    """

    field: str
    title: str
    first: tuple[FacetValue, ...]
    more: tuple[FacetValue, ...]
    open: bool
    typed: bool = False
    at_least: bool = False
    low: str | None = None
    high: str | None = None


@dataclass(frozen=True, slots=True)
class Chip:
    """A filter that is set. link: address of the page without it."""

    title: str
    text: str
    link: str


def counted(archive: TenantArchive, where: Sequence[str]) -> Facets:
    """Counts of the images that pass these filter terms.

    Those of a field that is filtered by are of the images that pass the other filters: what could
    be chosen as well is among them.
    """
    found = archive.engine.facets(parse_where(where))
    counts: dict[str, dict[str, int]] = dict(found)
    at_least, estimated = set(found.at_least), found.estimated
    for field in dict.fromkeys(map(field_of, where)):
        if field not in FACET_FIELDS:
            continue
        others = [term for term in where if field_of(term) != field]
        wider = archive.engine.facets(parse_where(others))
        counts[field] = wider.get(field, {})
        estimated = estimated or wider.estimated
        at_least |= {field} & set(wider.at_least)
    ordered = {field: counts[field] for field in TITLES if counts.get(field)}
    return Facets(ordered, at_least=sorted(at_least), estimated=estimated)


def facet_lists(facets: Facets, question: Question, most: int) -> list[FacetList]:
    """The fields to filter by. most: values that are counted of a field."""
    made: list[FacetList] = []
    for field, counts in facets.items():
        values = _values(field, counts, question)
        active = any(one.active for one in values)
        # A field with a single value narrows nothing.
        if len(values) < 2 and not active:
            continue
        if field == _YEAR:
            values.sort(key=lambda one: one.value, reverse=True)
        else:
            values.sort(key=lambda one: not one.active)
        low, high = _range(question) if field == _YEAR else (None, None)
        made.append(
            FacetList(
                field,
                title_of(field),
                tuple(values[:_SHOWN]),
                tuple(values[_SHOWN:]),
                open=active or bool(low or high) or len(made) < _OPEN,
                typed=len(counts) >= most,
                at_least=field in facets.at_least,
                low=low,
                high=high,
            )
        )
    return made


def _values(field: str, counts: dict[str, int], question: Question) -> list[FacetValue]:
    spelled: dict[str, list[str]] = {}
    for value in counts:
        spelled.setdefault(_key(field, value), []).append(value)
    chosen = {term.casefold() for term in question.where}
    made = []
    for values in spelled.values():
        terms = [f"{field}={value}" for value in values]
        active = any(term.casefold() in chosen for term in terms)
        mine = {term.casefold() for term in terms}
        kept = [term for term in question.where if term.casefold() not in mine]
        made.append(
            FacetValue(
                # The most frequent spelling comes first.
                values[0],
                sum(counts[value] for value in values),
                question.address(where=tuple(kept if active else (*kept, *terms))),
                active,
                len(values),
            )
        )
    return made


def _key(field: str, value: str) -> str:
    return maker(value) if field == "manufacturer" else value


def maker(written: str) -> str:
    """What the spellings of one maker have in common, as "siemens" of "SIEMENS Healthineers"."""
    words = re.findall(r"[^\W_]+", written.casefold())
    named = [word for word in words if word not in _OF_COMPANIES]
    return " ".join(named or words) or written


def _range(question: Question) -> tuple[str, str]:
    for term in question.where:
        name, _, text = term.partition("=")
        if name.strip() == _YEAR and ".." in text:
            low, _, high = text.partition("..")
            return low.strip(), high.strip()
    return "", ""


def chips(question: Question) -> list[Chip]:
    """The filters that are set; spellings of one maker are one of them."""
    groups: dict[tuple[str, str], list[str]] = {}
    for term in question.where:
        left, _, value = term.partition("=")
        groups.setdefault((left.strip(), _key(field_of(term), value.strip())), []).append(term)
    return [_chip(left, terms, question) for (left, _), terms in groups.items()]


def _chip(left: str, terms: Iterable[str], question: Question) -> Chip:
    mine = tuple(terms)
    field = field_of(mine[0])
    text = mine[0].partition("=")[2].strip()
    if field == _YEAR and ".." in text:
        low, _, high = text.partition("..")
        if low.strip() and high.strip():
            said = gettext("%(low)s to %(high)s")
        else:
            said = gettext("from %(low)s") if low.strip() else gettext("up to %(high)s")
        text = said % {"low": low.strip(), "high": high.strip()}
    if left.endswith("!"):
        text = gettext("not %(value)s") % {"value": text}
    kept = tuple(term for term in question.where if term not in mine)
    return Chip(title_of(field), text, question.address(where=kept))
