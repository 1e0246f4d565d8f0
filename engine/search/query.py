"""What a person asks: how many hits, filtered how, in which order."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from engine.errors import QueryError
from engine.search.ranking import ORDERS
from engine.store.base import Condition, Filter, Match, Range
from engine.store.payload import FILTER_FIELDS, FieldKind

__all__ = ["MAX_K", "Query", "parse_where"]

MAX_K = 1000
_MAX_VALUES = 256
_LARGEST = 2**31 - 1
_ASKABLE = sorted(name for name, kind in FILTER_FIELDS.items() if kind is not FieldKind.TENANT)


@dataclass(frozen=True, slots=True)
class Query:
    """A search besides its image.

    k: hits wanted. where: facet filters, see :func:`parse_where`.
    order: "content" or "hamming". exact: skip the pre-filter, compare with everything.

    Raises:
        QueryError: k or order is out of range.
    """

    k: int = 10
    where: Filter = field(default_factory=Filter)
    order: str = "content"
    exact: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.k <= MAX_K:
            raise QueryError(f"k is {self.k}; ask for 1 to {MAX_K} hits")
        if self.order not in ORDERS:
            raise QueryError(f"order is {self.order!r}; use one of {', '.join(ORDERS)}")


def parse_where(terms: Iterable[str]) -> Filter:
    """Filter terms as people write them.

    ``modality=CT``; ``study_year=2015..2020`` for a range, either end of which may be left
    open; ``modality!=CT`` to leave out. All terms hold together, but several of one field
    with ``=`` mean any of its values.

    Raises:
        QueryError: a term is not of this form, names no field or has a wrong value.
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
