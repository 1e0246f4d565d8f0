"""Finds rows of the audit log: who had access to a study, what a key was used for."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any

from api.audit.log import AuditLog
from api.audit.rows import Row
from engine.errors import QueryError

__all__ = ["OUTCOMES", "Wanted", "found"]

OUTCOMES = ("ok", "refused", "failed")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What rows have to match; None = anything does.

    who: id or name of whoever asked. route: a part of the route or command. study, image: shown,
    or asked for. outcome: one of :data:`OUTCOMES`. tenant: of whoever asked.
    since: the earliest time. until: the first that is too late.
    """

    who: str | None = None
    route: str | None = None
    study: str | None = None
    image: str | None = None
    outcome: str | None = None
    tenant: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def __post_init__(self) -> None:
        if self.outcome not in (None, *OUTCOMES):
            raise QueryError(f"outcome is {self.outcome!r}; use one of {', '.join(OUTCOMES)}")

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
        )


def found(log: AuditLog, wanted: Wanted, limit: int) -> tuple[list[Row], bool]:
    """The latest rows that match, at most ``limit``, in the order of time; whether there are more.

    Raises:
        AuditError: the log cannot be read.
    """
    # The database looks for the texts, so that not every row has to be parsed here. Of names, which
    # may be written with escapes, it knows nothing.
    image = None if wanted.image is None else wanted.image.lower()
    naming = [f'"{one}"' for one in (wanted.study, image) if one is not None and one.isascii()]
    rows = (
        row
        for row in log.between(wanted.since, wanted.until, naming=naming, latest_first=True)
        if _matches(row, wanted)
    )
    last = list(islice(rows, limit + 1))
    return last[:limit][::-1], len(last) > limit


def _matches(row: Row, wanted: Wanted) -> bool:
    try:
        return wanted.matches(row.document)
    except (ValueError, KeyError, TypeError, AttributeError):
        # `precedent audit verify` tells of rows that were changed.
        return False
