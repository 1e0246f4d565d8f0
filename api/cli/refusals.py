"""Refused instances by reason, for the terminal and for JSON: how many, and what to do about them.

The worst come first, as ``api.refusals`` has them; among equals, those of which there are more.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.table import Table

from api.refusals import GROUPS, REFUSALS
from engine.errors import QueryError, RefusalReason

__all__ = ["ReasonOption", "by_reason", "parse_reason", "refusals_table"]

_RANK = {reason: rank for rank, group in enumerate(GROUPS.values()) for reason in group}

ReasonOption = Annotated[
    str | None,
    typer.Option("--reason", help="Only what was refused for this reason.", metavar="REASON"),
]


def parse_reason(given: str | None) -> RefusalReason | None:
    """The reason that --reason names; None = none is given.

    Raises:
        QueryError: there is no such reason.
    """
    if given is None:
        return None
    try:
        return RefusalReason(given)
    except ValueError:
        known = ", ".join(RefusalReason)
        raise QueryError(f"--reason is {given!r}; use one of {known}") from None


def by_reason(refused: Mapping[str, int]) -> list[dict[str, Any]]:
    """One object for each reason, the worst first: reason, count, what_to_do.

    refused: how many instances, by reason.
    """
    counted = [(RefusalReason(name), count) for name, count in refused.items() if count]
    counted.sort(key=lambda one: (_RANK[one[0]], -one[1], one[0]))
    return [
        {"reason": reason.value, "count": count, "what_to_do": REFUSALS[reason].do}
        for reason, count in counted
    ]


def refusals_table(refused: Mapping[str, int]) -> Table:
    """A table with a row for each reason, the worst first."""
    table = Table(title="Refused", title_justify="left")
    table.add_column("reason", no_wrap=True)
    table.add_column("instances", justify="right")
    table.add_column("what to do", overflow="fold")
    for one in by_reason(refused):
        table.add_row(one["reason"], f"{one['count']:,}", one["what_to_do"])
    return table
