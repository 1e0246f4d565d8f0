"""Charts as numbers to draw: bars, columns, points in a plane. Templates draw them as SVG."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import pairwise

from api.http.routes.archive import MAP_SIDE, GrowthDocument, MapDocument, MapPointDocument
from api.http.routes.judging import FlaggedDocument, ShareDocument
from api.portal.catalogues import decimal, gettext
from api.portal.question import Question
from api.portal.words import TITLES, title_of

__all__ = [
    "Bar",
    "BarChart",
    "Column",
    "Interval",
    "Key",
    "Mark",
    "Square",
    "bar_charts",
    "colours_of",
    "columns",
    "curve",
    "intervals",
    "keys",
    "marks",
    "squares",
]

_WIDTH = 100.0
_SHOWN = 10
"""Bars of a chart that are shown before "more"."""
_YEAR = "study_year"
_SORTED = (_YEAR, "age_band")
"""Fields whose values have an order of their own."""
_MARKS = 7
"""Values of a field that have a mark of their own."""
OTHER, UNKNOWN = _MARKS, _MARKS + 1
_MOST_COLUMNS = 400
_COLUMNS = "ABCDE"
"""Names of the columns of a map."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A value and its count. link: address of the search for it, from the search page. width: in
    percent of the longest."""

    value: str
    count: int
    link: str
    width: float


@dataclass(frozen=True, slots=True)
class BarChart:
    """The values of a field. first: those that are shown; more: the others. at_least: the counts
    are lower bounds."""

    field: str
    title: str
    first: tuple[Bar, ...]
    more: tuple[Bar, ...]
    at_least: bool


def bar_charts(counts: Mapping[str, Mapping[str, int]], at_least: Iterable[str]) -> list[BarChart]:
    """A chart for each field that any image has, in the order of the pages."""
    bounds = set(at_least)
    made = []
    for field in TITLES:
        values = list(counts.get(field, {}).items())
        if not values:
            continue
        if field in _SORTED:
            values.sort()
        most = max(count for _, count in values)
        bars = tuple(
            Bar(
                value,
                count,
                Question(where=(f"{field}={value}",)).address(),
                round(_WIDTH * count / most, 2),
            )
            for value, count in values
        )
        # Of what is ordered no part is left out in the middle.
        shown = len(bars) if field in _SORTED else _SHOWN
        made.append(BarChart(field, title_of(field), bars[:shown], bars[shown:], field in bounds))
    return made


@dataclass(frozen=True, slots=True)
class Column:
    """A period of growth, also one without any images. x: from 0. height: in percent."""

    period: str
    images: int
    in_all: int
    x: int
    height: float


def columns(growth: GrowthDocument) -> list[Column]:
    """A column for each period from the first to the last; of very many the latest."""
    if not growth.periods:
        return []
    known = {one.period: one for one in growth.periods}
    names = _between(growth.periods[0].period, growth.periods[-1].period)[-_MOST_COLUMNS:]
    most = max(one.images for one in growth.periods)
    made, in_all = [], 0
    for x, name in enumerate(names):
        found = known.get(name)
        in_all = in_all if found is None else found.in_all
        images = 0 if found is None else found.images
        made.append(Column(name, images, in_all, x, round(_WIDTH * images / most, 2)))
    return made


def _between(first: str, last: str) -> list[str]:
    """The days or months from one to another, both included."""
    if len(first) > len("2026-11"):
        start, end = date.fromisoformat(first), date.fromisoformat(last)
        return [(start + timedelta(days=n)).isoformat() for n in range((end - start).days + 1)]
    start_month, end_month = (int(one[:4]) * 12 + int(one[5:7]) - 1 for one in (first, last))
    return [f"{n // 12:04}-{n % 12 + 1:02}" for n in range(start_month, end_month + 1)]


@dataclass(frozen=True, slots=True)
class Key:
    """An entry of the legend. mark: number of its colour and shape. link: address of the search for
    it, from the search page; None = it is not one value."""

    mark: int
    text: str
    count: int
    link: str | None


@dataclass(frozen=True, slots=True)
class Mark:
    """An image in the map. x, y: from 0 to 1000. mark: number of its colour and shape."""

    image: MapPointDocument
    x: int
    y: int
    mark: int


@dataclass(frozen=True, slots=True)
class Square:
    """A square of the map. name: as in "B2". mostly: what most of its images have; None = it is not
    known."""

    name: str
    images: int
    example: MapPointDocument
    mostly: str | None


def colours_of(points: Sequence[MapPointDocument]) -> list[str]:
    """The fields by which a map can be coloured: those that any of its images has."""
    return [field for field in TITLES if any(_value(point, field) for point in points)]


def keys(points: Sequence[MapPointDocument], field: str) -> tuple[list[Key], dict[str, int]]:
    """The legend of a map that is coloured by a field, and the mark of each value."""
    counts = Counter(value for point in points if (value := _value(point, field)) is not None)
    if field in _SORTED:
        groups = _runs(sorted(counts))
    else:
        frequent = sorted(counts, key=lambda value: (-counts[value], value))
        groups = [[value] for value in frequent[:_MARKS]]
    marked = {value: mark for mark, group in enumerate(groups) for value in group}
    made = [
        Key(
            mark,
            group[0] if len(group) == 1 else _from_to(group[0], group[-1]),
            sum(counts[value] for value in group),
            Question(where=_terms(field, group)).address(),
        )
        for mark, group in enumerate(groups)
    ]
    others = sum(count for value, count in counts.items() if value not in marked)
    if others:
        made.append(Key(OTHER, gettext("Other"), others, None))
    unknown = len(points) - counts.total()
    if unknown:
        made.append(Key(UNKNOWN, gettext("Not known"), unknown, None))
    return made, marked


def _from_to(low: str, high: str) -> str:
    return gettext("%(low)s to %(high)s") % {"low": low, "high": high}


def _terms(field: str, group: list[str]) -> tuple[str, ...]:
    """The filter terms of a run of values."""
    if field == _YEAR and len(group) > 1:
        return (f"{field}={group[0]}..{group[-1]}",)
    return tuple(f"{field}={value}" for value in group)


def _runs(values: list[str]) -> list[list[str]]:
    """Ordered values as few enough runs, of about as many values each."""
    count = min(len(values), _MARKS)
    ends = [round(len(values) * n / count) for n in range(count + 1)] if count else [0]
    return [values[a:b] for a, b in pairwise(ends)]


def marks(points: Sequence[MapPointDocument], field: str, marked: Mapping[str, int]) -> list[Mark]:
    """The images of a map with their marks."""
    made = []
    for point in points:
        value = _value(point, field)
        mark = UNKNOWN if value is None else marked.get(value, OTHER)
        made.append(Mark(point, round(1000 * point.x), round(1000 * point.y), mark))
    return made


def squares(found: MapDocument, field: str) -> list[Square]:
    """The squares of a map that have images, row by row."""
    by_id = {point.id: point for point in found.points}
    within: dict[tuple[int, int], Counter[str]] = {}
    for point in found.points:
        place = tuple(min(int(one * MAP_SIDE), MAP_SIDE - 1) for one in (point.x, point.y))
        if (value := _value(point, field)) is not None:
            within.setdefault((place[0], place[1]), Counter())[value] += 1
    made = []
    for one in found.regions:
        common = within.get((one.column, one.row), Counter()).most_common(1)
        name = f"{_COLUMNS[one.column]}{one.row + 1}"
        mostly = common[0][0] if common else None
        made.append(Square(name, one.images, by_id[one.example], mostly))
    return made


def _value(point: MapPointDocument, field: str) -> str | None:
    """What an image has of a field; of several labels the first."""
    found = getattr(point, field)
    if isinstance(found, list):
        return found[0] if found else None
    return None if found is None else str(found)


@dataclass(frozen=True, slots=True)
class Interval:
    """A share with its interval, in percent of the height from above. x: in percent. text: what it
    is of."""

    text: str
    x: float
    y: float
    low: float
    high: float


def intervals(shares: Sequence[tuple[str, ShareDocument]], top: float) -> list[Interval]:
    """Shares side by side. top: the one at the upper edge."""
    return [
        Interval(
            text,
            round(_WIDTH * (number + 0.5) / len(shares), 2),
            *(_from_above(value / top) for value in (one.share or 0.0, one.low, one.high)),
        )
        for number, (text, one) in enumerate(shares)
    ]


def curve(found: Sequence[FlaggedDocument], top: float) -> list[Interval]:
    """Shares that were seen over those that were expected, on axes of square roots that end at
    ``top``: small shares, of which there is most to see, have more room there."""
    return [
        Interval(
            f"{decimal(100 * one.expected, 1)} %",
            round(_WIDTH * math.sqrt(min(1.0, one.expected / top)), 2),
            *(
                _from_above(math.sqrt(value / top))
                for value in (one.share or 0.0, one.low, one.high)
            ),
        )
        for one in found
    ]


def _from_above(part: float) -> float:
    return round(_WIDTH * (1 - min(1.0, part)), 2)
