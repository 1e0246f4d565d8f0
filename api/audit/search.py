"""Finds rows of the audit log: who had access to a study, what a key was used for."""

import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from api.audit.log import AuditLog
from api.audit.rows import Row
from engine.errors import QueryError

__all__ = ["OUTCOMES", "VERDICTS", "Place", "Wanted", "found", "newest", "time_of"]

OUTCOMES = ("ok", "refused", "failed")
VERDICTS = ("known", "unfamiliar", "foreign")
_MOST_READ = 20_000
"""Rows that one page looks at; where few match, it has fewer than were asked for."""
_READ_AT_ONCE = 200
_WRITTEN = re.compile(r"[A-Za-z0-9_-]{1,200}", re.ASCII)
_AT = re.compile(r"[0-9T:.+-]{10,40}", re.ASCII)
_CHAIN = re.compile(r"[0-9a-z]{1,32}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What rows have to match; None = anything does.

    who: id or name of whoever asked. route: a part of the route or command. study, image: shown,
    or asked for. outcome: one of :data:`OUTCOMES`. verdict: one of :data:`VERDICTS`.
    tenant: of whoever asked. since: the earliest time. until: the first that is too late.
    """

    who: str | None = None
    route: str | None = None
    study: str | None = None
    image: str | None = None
    outcome: str | None = None
    tenant: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    verdict: str | None = None

    def __post_init__(self) -> None:
        if self.outcome not in (None, *OUTCOMES):
            raise QueryError(f"outcome is {self.outcome!r}; use one of {', '.join(OUTCOMES)}")
        if self.verdict not in (None, *VERDICTS):
            raise QueryError(f"verdict is {self.verdict!r}; use one of {', '.join(VERDICTS)}")

    def matches(self, document: Mapping[str, Any]) -> bool:
        """Whether a row that says this is wanted."""
        who = document["who"]
        return (
            (self.who is None or self.who in (who["id"], who["name"]))
            and (self.tenant is None or self.tenant == who["tenant"])
            and (self.route is None or self.route.lower() in document["action"].lower())
            and (self.study is None or self.study in document["studies"])
            and (self.image is None or self.image.lower() in document["images"])
            and (self.outcome is None or self.outcome == document["outcome"])
            and (self.verdict is None or self.verdict == document["verdict"])
        )


@dataclass(frozen=True, slots=True)
class Place:
    """A row's place in the order of time. at: UTC, ISO 8601, as the row has it."""

    at: str
    chain: str
    seq: int

    def __str__(self) -> str:
        """As an answer hands it out, to go on from there."""
        told = json.dumps([self.at, self.chain, self.seq], separators=(",", ":"))
        return urlsafe_b64encode(told.encode()).decode().rstrip("=")

    @classmethod
    def parse(cls, written: str) -> "Place":
        """Raises QueryError: the text is no place."""
        try:
            if not _WRITTEN.fullmatch(written):
                raise ValueError("no place")
            padded = written + "=" * (-len(written) % 4)
            at, chain, seq = json.loads(urlsafe_b64decode(padded))
            whole = _AT.fullmatch(at) and _CHAIN.fullmatch(chain) and type(seq) is int
            if not whole or not 0 <= seq < 2**63:
                raise ValueError("no place")
        except (ValueError, TypeError, RecursionError):
            raise QueryError(
                f"page {written[:40]!r} is none; give `next_page` of the answer before, or nothing"
            ) from None
        return cls(at, chain, seq)


def found(log: AuditLog, wanted: Wanted, limit: int) -> tuple[list[Row], bool]:
    """The latest rows that match, at most ``limit``, in the order of time; whether there are more.

    Raises:
        AuditError: the log cannot be read.
    """
    rows = (
        row
        for row in log.between(
            wanted.since, wanted.until, naming=_naming(wanted), latest_first=True
        )
        if _matches(row, wanted)
    )
    last = list(islice(rows, limit + 1))
    return last[:limit][::-1], len(last) > limit


def newest(
    log: AuditLog, wanted: Wanted, limit: int, after: Place | None = None
) -> tuple[list[Row], Place | None]:
    """The rows that match, the latest first, and where to go on; None = there are no more.

    Args:
        limit: most rows. There may be fewer, or none, also where others follow: a page looks at
            some thousands of rows at most.
        after: where the page before ended; None = this is the first.

    Raises:
        AuditError: the log cannot be read.
    """
    beyond = None if after is None else (after.at, after.chain, after.seq)
    rows = log.between(
        wanted.since,
        wanted.until,
        naming=_naming(wanted),
        latest_first=True,
        beyond=beyond,
        at_a_time=max(limit + 1, _READ_AT_ONCE),
    )
    shown: list[Row] = []
    for count, row in enumerate(rows, 1):
        if _matches(row, wanted):
            shown.append(row)
        if len(shown) == limit or count == _MOST_READ:
            ended = next(rows, None) is None
            return shown, None if ended else Place(row.at, row.chain, row.seq)
    return shown, None


def time_of(written: str, option: str) -> datetime:
    """The time that a text says, UTC unless it says otherwise.

    Args:
        option: what the text was given as, for the message.

    Raises:
        QueryError: it says none.
    """
    try:
        told = datetime.fromisoformat(written)
        return told.replace(tzinfo=UTC) if told.tzinfo is None else told.astimezone(UTC)
    except (ValueError, OverflowError):
        raise QueryError(
            f"{option} is {written[:80]!r}; write it as in 2031-12-31 or 2031-12-31T08:00"
        ) from None


def _naming(wanted: Wanted) -> list[str]:
    """Texts of rows that match, as they stand in the body: the database looks for them, so that not
    every row has to be parsed here."""
    named = {"outcome": wanted.outcome, "tenant": wanted.tenant, "verdict": wanted.verdict}
    image = None if wanted.image is None else wanted.image.lower()
    return [
        *(json.dumps(one) for one in (wanted.study, image, wanted.who) if one is not None),
        *(f'"{name}":{json.dumps(one)}' for name, one in named.items() if one is not None),
    ]


def _matches(row: Row, wanted: Wanted) -> bool:
    try:
        return wanted.matches(row.document)
    except (ValueError, KeyError, TypeError, AttributeError):
        # `precedent audit verify` tells of rows that were changed.
        return False
