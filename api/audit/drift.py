"""How many of a tenant's questions were foreign to the model, day by day, as the log has them."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from api.audit.log import AuditLog
from engine.errors import QueryError

__all__ = ["MOST_DAYS", "MOST_LATEST", "Drift", "Judged", "drift"]

MOST_DAYS = 90
MOST_LATEST = 1000
_MOST_ROWS = 5000
_SECONDS = 2.0
"""After so long no further day is looked at."""


@dataclass(frozen=True, slots=True)
class Judged:
    """Accesses that asked about an image and got a verdict: how many, and how many of them that it
    is foreign, or unfamiliar. day: as in "2026-11-30", UTC; None = of several."""

    judged: int
    foreign: int
    unfamiliar: int = 0
    day: str | None = None


@dataclass(frozen=True, slots=True)
class Drift:
    """days: those with such accesses, in order. latest: the last ones of all. since: the first day
    that was looked at; an earlier one may have been asked for."""

    days: tuple[Judged, ...]
    latest: Judged
    since: str


def drift(
    log: AuditLog,
    tenant: str,
    *,
    days: int,
    latest: int,
    now: datetime | None = None,
    most: int = _MOST_ROWS,
    seconds: float = _SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> Drift:
    """What the log says of a tenant's questions.

    The latest days are looked at first, until all were, or ``most`` accesses were found, or
    ``seconds`` have passed; a day is looked at whole. An access counts once, by the least familiar
    of its images.

    Args:
        days: the last so many, today included. latest: so many of the last accesses.

    Raises:
        QueryError: ``days`` or ``latest`` is out of range. AuditError: the log cannot be read.
    """
    if not 1 <= days <= MOST_DAYS:
        raise QueryError(f"days is {days}; ask for 1 to {MOST_DAYS}")
    if not 1 <= latest <= MOST_LATEST:
        raise QueryError(f"latest is {latest}; ask for 1 to {MOST_LATEST} accesses")
    end = (now or datetime.now(UTC)).astimezone(UTC)
    day = end.replace(hour=0, minute=0, second=0, microsecond=0)
    stop = clock() + seconds
    found: list[Judged] = []
    last: list[str] = []
    count = 0
    for number in range(days):
        begin = day - timedelta(days=number)
        verdicts = _verdicts(log, tenant, begin, begin + timedelta(days=1))
        if verdicts:
            found.append(_judged(verdicts, begin.date().isoformat()))
            last += verdicts[: latest - len(last)]
        count += len(verdicts)
        if count >= most or clock() >= stop:
            break
    return Drift(tuple(found[::-1]), _judged(last), begin.date().isoformat())


def _judged(verdicts: list[str], day: str | None = None) -> Judged:
    return Judged(len(verdicts), verdicts.count("foreign"), verdicts.count("unfamiliar"), day)


def _verdicts(log: AuditLog, tenant: str, since: datetime, until: datetime) -> list[str]:
    """The verdicts of the accesses of a time, the latest first."""
    found: list[str] = []
    # The database looks for the verdict, since most rows have none. Of the tenant's name it knows
    # only that the row has it somewhere.
    naming = ['"verdict":"', f'"{tenant}"']
    for row in log.between(since, until, naming=naming, latest_first=True):
        try:
            document = row.document
            mine = document["who"]["tenant"] == tenant and document["outcome"] == "ok"
            verdict = document["verdict"]
        except (ValueError, KeyError, TypeError):
            # `precedent audit verify` tells of rows that were changed.
            continue
        if mine and isinstance(verdict, str):
            found.append(verdict)
    return found
