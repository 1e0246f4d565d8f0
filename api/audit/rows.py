"""A row of the audit log: who had access to what, as canonical JSON, chained by hashes."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from api.security.seen import Seen

__all__ = [
    "BEGUN",
    "MOST_NAMED",
    "START",
    "Entry",
    "Head",
    "Row",
    "Who",
    "canonical",
    "digest",
    "outcome_of",
]

MOST_NAMED = 1000
"""Most studies and most images that a row names; how many there were stands beside them. All that
one search can show."""
BEGUN = 102
"""Status of the row of what is about to be done (HTTP: Processing)."""
START = "0" * 64
"""What the first row of a chain has for the hash of the row before."""
_LONGEST = 200
_REFUSED = (401, 403, 404, 429)


@dataclass(frozen=True, slots=True)
class Who:
    """Who had access.

    kind: of credential: "key", "session", "token", "open" (a service without keys), "user" (of the
        operating system), "service" (the program itself) or "unknown".
    id: public id of the key or account; of somebody unknown, the id that was claimed.
    """

    kind: str
    id: str | None = None
    name: str | None = None
    tenant: str | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """An access, as it is written down.

    action: method and template of the route, as in "GET /v1/images/{id}", or a command, as in
        "precedent search". Never an address or an argument as it was given.
    status: of HTTP, or the exit code of the command.
    outcome: "ok", "refused" or "failed".
    address: where the request came from, or the name of the machine that ran the command.
    request: id of the request; None = it has none.
    about: what else the access concerned, such as the key that was made: identifiers alone.
    """

    who: Who
    action: str
    status: int
    outcome: str
    seen: Seen = field(default_factory=Seen)
    address: str | None = None
    request: str | None = None
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Head:
    """The last row of a chain, or any other one: its chain, number and hash."""

    chain: str
    seq: int
    hash: str


@dataclass(frozen=True, slots=True)
class Row:
    """A row as it is stored. seq: its number in its chain, from 0. at: UTC, ISO 8601. body:
    canonical JSON. hash: SHA-256 hex of the body."""

    chain: str
    seq: int
    at: str
    body: str
    hash: str

    @classmethod
    def following(
        cls, before: Head | None, chain: str, at: str, entry: Entry, began: Mapping[str, Any]
    ) -> "Row":
        """The row that comes after another one in its chain.

        Args:
            before: None = it is the chain's first.
            began: of the first row: which process writes the chain, and after what.
        """
        seq = 0 if before is None else before.seq + 1
        seen = entry.seen
        document = {
            "chain": chain,
            "seq": seq,
            "previous": START if before is None else before.hash,
            "at": at,
            "who": {
                "kind": entry.who.kind,
                "id": _short(entry.who.id),
                "name": _short(entry.who.name),
                "tenant": _short(entry.who.tenant),
            },
            "action": _short(entry.action),
            "status": entry.status,
            "outcome": entry.outcome,
            "address": _short(entry.address),
            "request": _short(entry.request),
            "studies": [_short(one) for one in seen.studies[:MOST_NAMED]],
            "studies_in_all": len(seen.studies),
            "images": [_short(one) for one in seen.images[:MOST_NAMED]],
            "images_in_all": len(seen.images),
            "results": seen.results,
            "verdict": seen.verdict,
            "about": {
                name: _short(one) if isinstance(one, str) else one
                for name, one in entry.about.items()
            },
        }
        if before is None:
            document["began"] = dict(began)
        body = canonical(document)
        return cls(chain, seq, at, body, digest(body))

    @property
    def head(self) -> Head:
        return Head(self.chain, self.seq, self.hash)

    @property
    def document(self) -> dict[str, Any]:
        """What the row says. Raises ValueError: the body is no JSON object."""
        found = json.loads(self.body)
        if not isinstance(found, dict):
            raise ValueError("no object")  # noqa: TRY004 - as of other JSON that is none of ours
        return found


def canonical(document: Mapping[str, Any]) -> str:
    """The one way to write a document: names sorted, no blanks, ASCII alone."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()


def outcome_of(status: int) -> str:
    """The outcome that a status of HTTP stands for."""
    if status < 400:
        return "ok"
    return "refused" if status in _REFUSED else "failed"


def _short(text: str | None) -> str | None:
    if text is None:
        return None
    short = text[:_LONGEST]
    if short.isprintable():
        return short
    # What a terminal would obey, such as in a name that another service gave, shows as a mark.
    return "".join(one if one.isprintable() else "\ufffd" for one in short)
