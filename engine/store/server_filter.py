"""Translates filters into those of a Qdrant server."""

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from qdrant_client import models

from engine.codes import band_widths, bands, flips, neighbourhood
from engine.errors import StoreError, StoreLimited
from engine.store.base import Coarse, Condition, Filter, Ids, Match, Part, Range
from engine.store.payload import BAND_PREFIX, BUCKET_FIELD, cell_field
from engine.store.server_limits import UNLIMITED, Limits

__all__ = ["contradicts_itself", "translated"]

_T = TypeVar("_T")

_MOST_FLIPS = 3
"""Where more bits of a band may differ, thousands of values would be looked up, and let nearly
everything pass: then it all passes."""
_VALUES_AT_ONCE = 256
"""Most values in one condition."""


def translated(where: Filter, limits: Limits = UNLIMITED) -> models.Filter | None:
    """The filter as Qdrant's; None = all points.

    Args:
        limits: that the server sets. Where it allows too few conditions for the coarse filter, all
            points are candidates.

    Raises:
        StoreLimited: the server allows fewer conditions.
        StoreError: it has an id that is no UUID, a number of more than 64 bits, or invalid text.
    """
    at_once, most = limits.values_at_once(_VALUES_AT_ONCE), limits.filter_max_conditions
    try:
        found = _to_filter(where, at_once)
        if most is not None and (count := _count(found)) > most:
            found = _to_filter(replace(where, coarse=None), at_once)
            if _count(found) > most:
                raise StoreLimited(
                    f"this takes a filter of {count} conditions, and the strict mode of the server "
                    f"allows {most} (filter_max_conditions, and {at_once} values of each); ask for "
                    "less at once, or have that limit raised"
                )
        return found
    except (TypeError, ValueError, OverflowError) as error:
        said = str(error).splitlines()[0]
        raise StoreError(
            f"the index cannot be asked for this ({said}): numbers have at most 64 bits, ids "
            "are UUIDs, and texts valid Unicode"
        ) from None


def contradicts_itself(where: Filter) -> bool:
    """Whether no point can pass, as something that has to hold is excluded too."""
    return any(_implies(one, other) for one in where.must for other in where.must_not)


def _implies(one: Condition, other: Condition) -> bool:
    """Whether one condition, as it is written, holds only where the other one does."""
    same_field = isinstance(one, Match) and isinstance(other, Match) and one.field == other.field
    if same_field or (isinstance(one, Ids) and isinstance(other, Ids)):
        return set(one.values) <= set(other.values)  # type: ignore[union-attr]
    return one == other


def _count(where: models.Filter | None) -> int:
    """The conditions of a filter, with those of filters within it."""
    if where is None:
        return 0
    clauses: list[Any] = [*(where.must or []), *(where.should or []), *(where.must_not or [])]
    return sum(_count(one) if isinstance(one, models.Filter) else 1 for one in clauses)


def _to_filter(where: Filter, at_once: int) -> models.Filter | None:
    must = [_to_condition(condition, at_once) for condition in where.must]
    must_not = [_to_condition(condition, at_once) for condition in where.must_not]
    if must_not:
        # In a filter of its own: the server drops a condition here that stands in "must" as well.
        must.append(models.Filter(must_not=must_not))
    # At the top level, Qdrant iterates over the matches; in a nested filter it would check them
    # a second time.
    near = [] if where.coarse is None else _near(where.coarse, at_once)
    if not must and not near:
        return None
    return models.Filter(must=must or None, should=near or None)


def _near(coarse: Coarse, at_once: int) -> list[models.Condition]:
    """Conditions of which one holds for every candidate; [] = all points are.

    Points that somebody wrote who did not know these cells have no number of them, and are
    always candidates.
    """
    near: list[models.Condition] = []
    if coarse.radius is not None:
        near = _within(coarse.code, coarse.radius, at_once)
        if not near:
            return []
    if coarse.cells:
        field = cell_field(coarse.of)
        near += _matches(field, coarse.cells, at_once)
        near.append(models.IsEmptyCondition(is_empty=models.PayloadField(key=field)))
    return near or [models.HasIdCondition(has_id=[])]


def _within(packed: bytes, radius: int, at_once: int) -> list[models.Condition]:
    """Conditions of which one holds for every point within the radius, and for some others; [] =
    nearly all points are.

    Two codes that are at most r bits apart have a band that is at most s bits apart, see
    :func:`engine.codes.flips`.
    """
    code = np.frombuffer(packed, np.uint8)
    widths = band_widths(8 * len(code))
    s = flips(len(widths), radius)
    if s > _MOST_FLIPS:
        return []
    return [
        condition
        for j, (value, width) in enumerate(zip(bands(code).tolist(), widths, strict=True))
        for condition in _matches(f"{BAND_PREFIX}{j}", neighbourhood(value, s, width), at_once)
    ]


def _to_condition(condition: Condition, at_once: int) -> models.Condition:
    match condition:
        case Ids(values):
            ids = [str(uuid.UUID(value)) for value in values]
            return _any_of(
                [models.HasIdCondition(has_id=list(some)) for some in _chunks(ids, at_once)]
            )
        case Part(count):
            return _any_of(_matches(BUCKET_FIELD, tuple(range(count)), at_once))
        case Range(field, low, high):
            between = models.Range(gte=_real(low), lte=_real(high))
            return models.FieldCondition(key=field, range=between)
        case Match(field, values):
            return _any_of(_matches(field, values, at_once))


def _matches(
    field: str, values: Sequence[str] | Sequence[int], at_once: int
) -> list[models.Condition]:
    """Conditions of which at least one holds if and only if the field has one of the values."""
    if all(isinstance(value, bool) for value in values):
        return [
            models.FieldCondition(key=field, match=models.MatchValue(value=value))
            for value in values
        ]
    for value in values:
        _expressible(value)
    return [
        models.FieldCondition(key=field, match=models.MatchAny(any=list(some)))  # type: ignore[arg-type]
        for some in _chunks(values, at_once)
    ]


def _any_of(conditions: list[Any]) -> models.Condition:
    if not conditions:
        # A filter with an empty "should" would match all points.
        return models.HasIdCondition(has_id=[])
    return conditions[0] if len(conditions) == 1 else models.Filter(should=conditions)


def _chunks(values: Sequence[_T], at_once: int) -> Iterable[Sequence[_T]]:
    return (values[start : start + at_once] for start in range(0, len(values), at_once))


def _expressible(value: str | int) -> None:
    if isinstance(value, str):
        value.encode()
    elif not -(2**63) <= value < 2**63:
        raise OverflowError(f"{value} is too large")


def _real(bound: int | None) -> float | None:
    return None if bound is None else float(bound)
