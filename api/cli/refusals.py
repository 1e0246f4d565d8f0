"""Refused instances by reason, for the terminal and for JSON: how many, and what to do about them.

The worst come first: what may be an image that nobody finds, because reading failed here; then
files that are broken; then what is not supported or above a limit; then what is no picture anyway.
Among equals, those of which there are more.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.table import Table

from engine.errors import QueryError, RefusalReason

__all__ = ["ReasonOption", "by_reason", "parse_reason", "refusals_table"]

_R = RefusalReason
_WHAT_TO_DO: tuple[dict[RefusalReason, str], ...] = (
    {
        _R.WORKER_DIED: "look at it with another viewer; give workers more memory, then `jobs "
        "retry --refused`",
        _R.READER_DIED: "raise `indexing.reader_memory_bytes`; tried again by each run",
        _R.TOO_SLOW: "raise it, or give workers more cores; tried again by each run",
        _R.UNREADABLE: "permissions, the share, the server, shorter names; it is tried again by "
        "each run",
    },
    {
        _R.TRUNCATED: "send it again from its source",
        _R.DAMAGED: "send it again; look at it with another viewer",
        _R.EMPTY_FILE: "send it again from its source",
        _R.CONFLICTING_UID: "find out which is right, remove the other; with `--delete-vanished` "
        "the one that stays is taken in the same run",
    },
    {
        _R.UNSUPPORTED_SYNTAX: "convert it",
        _R.UNSUPPORTED_PIXELS: "convert it",
        _R.TOO_LARGE: "raise that limit if the file is right",
        _R.NESTED_TOO_DEEP: "look at it: files are not like that",
    },
    {
        _R.TOO_SMALL: "nothing, or lower the limit",
        _R.NOT_A_PICTURE: "nothing, or set `indexing.take_derived` and index with "
        "`--retry-refused`",
        _R.NO_PIXELS: "nothing",
        _R.NOT_AN_IMAGE: "nothing; such files lie beside images",
    },
)
"""By reason, the worst reasons first; the words of docs/deployment.md."""

_WORDS = {reason: words for group in _WHAT_TO_DO for reason, words in group.items()}
_RANK = {reason: rank for rank, group in enumerate(_WHAT_TO_DO) for reason in group}

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
        {"reason": reason.value, "count": count, "what_to_do": _WORDS[reason]}
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
