"""Checks that the audit log is whole: no row changed, removed, added or moved."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from api.audit.log import COMMANDS, AuditLog, forgotten_in
from api.audit.rows import START, Head, Row, canonical, digest
from engine.errors import AuditError

__all__ = ["Flaw", "Forgotten", "Verified", "heads_document", "read_heads", "verify"]


@dataclass(frozen=True, slots=True)
class Flaw:
    """A place where the log is not whole. seq: number of the row; what: a sentence."""

    chain: str
    seq: int
    what: str

    def __str__(self) -> str:
        return f"chain {self.chain}, row {self.seq}: {self.what}"


@dataclass(frozen=True, slots=True)
class Forgotten:
    """That rows were forgotten. at: when; before: rows of before this time; who: by whom. Times:
    UTC, ISO 8601."""

    at: str
    before: str
    who: str


@dataclass(slots=True)
class Verified:
    """What was found. rows: number of rows; heads: the last row of each chain; forgotten: each
    time that some were forgotten, as far as its row is still there."""

    rows: int = 0
    heads: dict[str, Head] = field(default_factory=dict)
    flaws: list[Flaw] = field(default_factory=list)
    forgotten: list[Forgotten] = field(default_factory=list)


def verify(log: AuditLog, heads: Mapping[str, Head] | None = None) -> Verified:
    """Checks every row of every chain.

    A row removed from within a chain, or changed, breaks the chain. One that was removed from the
    end shows by what was written after it: by a later process's first row, which names the last
    row of before, or by ``heads``.

    Args:
        heads: the last rows as they were at an earlier time; None = none were kept.
    """
    found = Verified()
    forgotten = log.forgotten()
    # Rows that others name, by chain and number: first rows of chains, and the heads given.
    named = [*(heads or {}).values()]
    sought = _by_place(named)
    met: dict[tuple[str, int], str] = {}
    links: list[tuple[Row, Head]] = []
    before: Row | None = None
    for row in log.rows():
        if before is not None and before.chain != row.chain:
            before = None
        found.rows += 1
        found.heads[row.chain] = row.head
        document = _document(row)
        if document is None:
            found.flaws.append(Flaw(row.chain, row.seq, "it was changed"))
        else:
            found.flaws += _flaws(row, document, before, forgotten.get(row.chain))
            if (link := _link(document)) is not None:
                links.append((row, link))
            if row.chain == COMMANDS and forgotten_in(document):
                found.forgotten.append(_told(document))
        if (row.chain, row.seq) in sought:
            met[row.chain, row.seq] = row.hash
        before = row
    for head in named:
        _check_head(head, met.get((head.chain, head.seq)), forgotten, found)
    for row, link in links:
        _check_link(log, row, link, forgotten, found)
    return found


def _document(row: Row) -> dict[str, Any] | None:
    """What the row says; None = it is not what was written."""
    try:
        document = row.document
        own = (document["chain"], document["seq"], document["at"])
        whole = own == (row.chain, row.seq, row.at) and isinstance(document["previous"], str)
        # What is read of it further on.
        _link(document)
        if forgotten_in(document):
            _told(document)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return None
    same = digest(row.body) == row.hash and canonical(document) == row.body
    return document if whole and same else None


def _flaws(
    row: Row, document: Mapping[str, Any], before: Row | None, forgotten: Head | None
) -> Iterator[Flaw]:
    previous = document["previous"]
    if forgotten is not None and forgotten.seq == row.seq and forgotten.hash != row.hash:
        yield Flaw(row.chain, row.seq, "another row was to be forgotten here")
    if before is not None:
        if row.seq != before.seq + 1:
            yield Flaw(row.chain, before.seq + 1, _gone(before.seq + 1, row.seq - 1))
        elif previous != before.hash:
            yield Flaw(row.chain, row.seq, "it does not follow the row before it")
        return
    # The first row that is left of its chain.
    first = 0 if forgotten is None else forgotten.seq + 1
    if row.seq > first:
        yield Flaw(row.chain, first, _gone(first, row.seq - 1))
    elif row.seq == first:
        expected = START if forgotten is None else forgotten.hash
        if previous != expected:
            yield Flaw(row.chain, row.seq, "it does not follow the row before it")


def _gone(first: int, last: int) -> str:
    return "it is missing" if first == last else f"it and those up to {last} are missing"


def _check_head(
    head: Head, hash_here: str | None, forgotten: Mapping[str, Head], found: Verified
) -> None:
    if hash_here is not None:
        if hash_here != head.hash:
            found.flaws.append(Flaw(head.chain, head.seq, "another row stood here"))
        return
    if _was_forgotten(head, forgotten):
        return
    last = found.heads.get(head.chain)
    if last is None:
        what = "the whole chain is missing, which had this row"
    else:
        what = f"it is missing; the chain ends with row {last.seq}"
    found.flaws.append(Flaw(head.chain, head.seq, what))


def _check_link(
    log: AuditLog, row: Row, link: Head, forgotten: Mapping[str, Head], found: Verified
) -> None:
    """Checks that the row is there after which a chain began."""
    here = log.hash_of(link.chain, link.seq)
    if here == link.hash or (here is None and _was_forgotten(link, forgotten)):
        return
    what = "it is missing" if here is None else "another row stood here"
    found.flaws.append(Flaw(link.chain, link.seq, f"{what}; chain {row.chain} began after it"))


def _was_forgotten(head: Head, forgotten: Mapping[str, Head]) -> bool:
    last = forgotten.get(head.chain)
    if last is None or head.seq > last.seq:
        return False
    return head.seq < last.seq or head.hash == last.hash


def _link(document: Mapping[str, Any]) -> Head | None:
    """The row that was the newest when this one began its chain; None = it says none."""
    after = document.get("began", {}).get("after")
    return None if after is None else Head(str(after[0]), int(after[1]), str(after[2]))


def _told(document: Mapping[str, Any]) -> Forgotten:
    who = document["who"]
    name = who["name"] or who["id"] or who["kind"]
    return Forgotten(document["at"], document["about"]["before"], name)


def _by_place(heads: list[Head]) -> set[tuple[str, int]]:
    return {(head.chain, head.seq) for head in heads}


def heads_document(heads: Mapping[str, Head], at: datetime) -> dict[str, Any]:
    """The file of heads, to be kept where whoever can write to the log cannot."""
    return {
        "at": at.astimezone(UTC).isoformat(timespec="seconds"),
        "heads": {chain: {"seq": one.seq, "hash": one.hash} for chain, one in heads.items()},
    }


def read_heads(file: Path) -> dict[str, Head]:
    """The heads in a file of :func:`heads_document`.

    Raises:
        AuditError: it cannot be read, or is none.
    """
    try:
        found = json.loads(file.read_text())["heads"]
        return {
            str(chain): Head(str(chain), int(one["seq"]), str(one["hash"]))
            for chain, one in found.items()
        }
    except OSError as error:
        raise AuditError(f"{file} cannot be read ({error.strerror}); name another file") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise AuditError(
            f"{file} is no file of heads; `precedent audit export --heads FILE` writes one"
        ) from None
