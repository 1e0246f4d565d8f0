"""The ledger's tables, and the data types and rows that are read from and written to them.

A change here needs a migration; see ``indexer/ledger/migrations``.
"""

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Dialect,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    Row,
    String,
    Table,
    TypeDecorator,
    bindparam,
    text,
    update,
)
from sqlalchemy.types import TypeEngine

from engine.errors import RefusalReason
from indexer.sources.base import Discovered

__all__ = [
    "CURABLE",
    "TRANSIENT",
    "Done",
    "Owner",
    "Pending",
    "Prefixes",
    "Refused",
    "State",
    "Text",
    "deleted",
    "done_row",
    "finish_statement",
    "instances",
    "is_unchanged",
    "jobs",
    "keys",
    "manifest",
    "manifest_row",
    "manifest_statement",
    "metadata",
    "oidc_sessions",
    "points",
    "refused_row",
    "sessions",
    "stale",
    "storable",
    "tasks",
]


class State(StrEnum):
    """The state of an instance: to be read, in the index, or refused."""

    PENDING = "pending"
    DONE = "done"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Pending:
    """A pending instance: one that is to be read."""

    locator: str
    label: str | None


@dataclass(frozen=True, slots=True)
class Done:
    """The outcome of an instance that is in the index.

    content: sha256 hex of its file. points: (id, frame) pairs. duplicate: the points were already
    there, written for another instance with the same content or the same pixels. pixels: sha256
    hex of the display pixels of its frames; None = not recorded. decoder: what decoded its
    compressed frames; None = nothing had to. partial: which frames are missing or broken, for
    people; None = none.
    """

    locator: str
    content: str
    points: tuple[tuple[str, int], ...]
    study: str | None = None
    series: str | None = None
    sop: str | None = None
    patient: str | None = None
    duplicate: bool = False
    pixels: str | None = None
    decoder: str | None = None
    partial: str | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """The outcome of an instance that was refused. detail: one sentence. sop: its SOP Instance
    UID, if that was read."""

    locator: str
    reason: RefusalReason
    detail: str
    sop: str | None = None


@dataclass(frozen=True, slots=True)
class Owner:
    """An instance that has a point. content: sha256 hex of its file. at: when it was recorded as
    indexed, UTC, ISO 8601. pixels: sha256 hex of its display pixels; None = not recorded. partial:
    which of its frames are missing or broken, for people; None = none."""

    locator: str
    content: str
    at: str = field(default="", compare=False)
    pixels: str | None = field(default=None, compare=False)
    partial: str | None = field(default=None, compare=False)


class Prefixes:
    """A set of prefixes of locators, without those that begin with another one of the set."""

    def __init__(self, prefixes: Sequence[str]) -> None:
        self._sorted: list[str] = []
        for prefix in sorted(prefixes or [""]):
            if not self._sorted or not prefix.startswith(self._sorted[-1]):
                self._sorted.append(prefix)
        self.first = self._sorted[0]

    def cover(self, locator: str) -> bool:
        """Whether the locator starts with one of the prefixes."""
        place = bisect_right(self._sorted, locator)
        return place > 0 and locator.startswith(self._sorted[place - 1])

    def following(self, locator: str) -> str | None:
        """A lower bound of the covered locators after this one; None = no later one is covered."""
        place = bisect_right(self._sorted, locator)
        if place > 0 and locator.startswith(self._sorted[place - 1]):
            return locator
        return self._sorted[place] if place < len(self._sorted) else None


TRANSIENT = (
    RefusalReason.UNREADABLE,
    RefusalReason.TOO_SLOW,
    RefusalReason.READER_DIED,
    RefusalReason.CONFLICTING_UID,
)
"""Refusals that may go away although the file stays as it is: tried again on every run."""

CURABLE = (
    RefusalReason.NOT_AN_IMAGE,
    RefusalReason.TRUNCATED,
    RefusalReason.DAMAGED,
    RefusalReason.NO_PIXELS,
    RefusalReason.UNSUPPORTED_SYNTAX,
    RefusalReason.UNSUPPORTED_PIXELS,
    RefusalReason.WORKER_DIED,
)
"""Refusals that another version of the reader may not repeat: tried again once by each version."""

_NOT_STORABLE = re.compile("[\0\ud800-\udfff]")


def storable(value: str) -> str:
    """The text with U+FFFD for what PostgreSQL has no place for: NUL and lone surrogates."""
    if value.isascii() and "\0" not in value:
        return value
    return _NOT_STORABLE.sub("\ufffd", value)


class Text(TypeDecorator[str]):
    """Text that every database takes, and orders by its bytes.

    With the collation of a PostgreSQL database, pages would begin elsewhere than on SQLite,
    and indices would be broken by an update of the system's locales.
    """

    impl = String
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        collation = "C" if dialect.name == "postgresql" else None
        return dialect.type_descriptor(String(collation=collation))

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        return None if value is None else storable(value)


metadata = MetaData()

# No index and no key begins with the tenant: SQLite would read all rows of a tenant by it, even
# where another index leads to a few.
instances = Table(
    "instances",
    metadata,
    Column("locator", Text, primary_key=True),
    Column("tenant", Text, primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("modified", BigInteger, nullable=False),
    Column("label", Text),
    Column("state", Text, nullable=False),
    Column("reason", Text),
    Column("detail", Text),
    Column("content", Text),
    Column("pixels", Text),
    Column("study", Text),
    Column("series", Text),
    Column("sop", Text),
    Column("patient", Text),
    Column("seen_in", Integer, nullable=False),
    Column("finished_in", Integer),
    Column("finished_at", Text),
    Column("source", Text),
    Column("rendering", Text),
    Column("decoder", Text),
    Column("partial", Text),
    Index("instances_by_run", "seen_in", "state", "locator", "tenant"),
    Index("instances_by_study", "study"),
    Index("instances_by_patient", "patient"),
    Index("instances_by_sop", "sop"),
    Index("instances_by_source", "source", "tenant", "seen_in", "locator"),
)
"""A file that two tenants have is an instance of each."""

points = Table(
    "points",
    metadata,
    Column("locator", Text, primary_key=True),
    Column("id", Text, primary_key=True),
    Column("tenant", Text, primary_key=True),
    Column("frame", Integer, nullable=False),
    ForeignKeyConstraint(
        ["locator", "tenant"], ["instances.locator", "instances.tenant"], ondelete="CASCADE"
    ),
    Index("points_by_id", "id"),
)

stale = Table(
    "stale",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant", Text, nullable=False, server_default="default"),
)
"""Ids of points that a file no longer has; deleted from the index if no other file has them."""

deleted = Table(
    "deleted",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("locator_sha256", Text, primary_key=True),
)
"""Instances that were deleted on purpose. Only hashes, since a path may name a patient."""

# AUTOINCREMENT: the number of a removed job is not used again, because instances still refer to
# it as the job that saw them.
jobs = Table(
    "jobs",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("kind", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("spec", Text, nullable=False, server_default="{}"),
    Column("options", Text, nullable=False, server_default="{}"),
    Column("state", Text, nullable=False),
    Column("priority", Integer, nullable=False, server_default=text("0")),
    Column("created_at", Text),
    Column("started_at", Text),
    Column("finished_at", Text),
    Column("note", Text),
    Column("tenant", Text, nullable=False, server_default="default"),
    sqlite_autoincrement=True,
)


def _count(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False, server_default=text("0"))


tasks = Table(
    "tasks",
    metadata,
    Column("job", ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("kind", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("begun", Integer, nullable=False, server_default=text("0")),
    Column("not_before", Float, nullable=False, server_default=text("0")),
    Column("queued_at", Float),
    Column("beat_at", Float),
    Column("worker", Text),
    _count("total"),
    _count("done"),
    _count("unchanged"),
    _count("indexed"),
    _count("duplicates"),
    _count("points"),
    Column("refused", Text, nullable=False, server_default="{}"),
    Column("seconds", Float, nullable=False, server_default=text("0")),
    Column("error", Text),
    Index("tasks_by_state", "state", "not_before"),
)

manifest = Table(
    "manifest",
    metadata,
    Column("job", ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("locator", Text, primary_key=True),
    Column("chunk", Integer, nullable=False),
    Column("label", Text),
    Column("fate", Text),
    Column("reason", Text),
    Column("detail", Text),
    Index("manifest_by_chunk", "job", "chunk", "locator"),
)
"""The instances that a job has to read, each with the number of its chunk and its fate. fate: what
became of the instance, "indexed", "duplicate" or "refused"; None = it is still to be read."""

keys = Table(
    "keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("scopes", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("created_at", Text, nullable=False),
    Column("expires_at", Text),
    Column("revoked_at", Text),
)
"""API keys. digest: SHA-256 hex of the secret, which is kept nowhere. scopes: with blanks between.
Times: UTC, ISO 8601."""

sessions = Table(
    "sessions",
    metadata,
    Column("digest", Text, primary_key=True),
    Column("key", ForeignKey("keys.id", ondelete="CASCADE"), nullable=False),
    Column("created_at", Text, nullable=False),
    Column("seen_at", Text, nullable=False),
)
"""Sessions of the page. digest: SHA-256 hex of the cookie's secret. Times: UTC, ISO 8601."""

oidc_sessions = Table(
    "oidc_sessions",
    metadata,
    Column("digest", Text, primary_key=True),
    Column("sign_in", Text, nullable=False, unique=True),
    Column("issuer", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("scopes", Text, nullable=False),
    Column("created_at", Text, nullable=False),
    Column("seen_at", Text, nullable=False),
    Column("ended_at", Text),
)
"""Sessions of the page, of people whom an identity provider knows. digest: as in ``sessions``.
sign_in: SHA-256 hex of the secret of the sign-in, which began one session and begins no other.
issuer, subject, name: who it is, as the provider says. Times: UTC, ISO 8601."""


def is_unchanged(
    item: Discovered, row: Row[*tuple[Any, ...]] | None, *, retry_refused: bool, rendering: str
) -> bool:
    """Whether the ledger's row of an instance is still valid, so that it need not be read again.

    Args:
        rendering: of this version, see ``indexer.imaging.rendering``.
    """
    if row is None or row.state == State.PENDING:
        return False
    if row.state == State.REFUSED:
        may_be_cured = row.rendering != rendering and row.reason in CURABLE
        if retry_refused or row.reason in TRANSIENT or may_be_cured:
            return False
    label = None if item.label is None else storable(item.label)
    return (row.size, row.modified, row.label) == (item.size, item.modified, label)


def done_row(outcome: Done) -> dict[str, str | None]:
    """Parameters of :data:`finish_statement` for an indexed instance."""
    return {
        "which": outcome.locator,
        "new_state": State.DONE,
        "why": None,
        "sentence": None,
        "sha256": outcome.content,
        "study_uid": outcome.study,
        "series_uid": outcome.series,
        "sop_uid": outcome.sop,
        "pseudonym": outcome.patient,
        "pixels_sha256": outcome.pixels,
        "decoded_by": outcome.decoder,
        "missing_frames": outcome.partial,
    }


def refused_row(outcome: Refused) -> dict[str, str | None]:
    """Parameters of :data:`finish_statement` for a refused instance."""
    nothing = dict.fromkeys(
        (
            *("sha256", "study_uid", "series_uid", "pseudonym"),
            *("pixels_sha256", "decoded_by", "missing_frames"),
        )
    )
    return {
        "which": outcome.locator,
        "new_state": State.REFUSED,
        "why": outcome.reason,
        "sentence": outcome.detail,
        "sop_uid": outcome.sop,
        **nothing,
    }


def manifest_row(outcome: Done | Refused) -> dict[str, str | None]:
    """Parameters of :data:`manifest_statement`: the fate of an instance in its job."""
    if isinstance(outcome, Refused):
        fate, why, sentence = "refused", outcome.reason.value, outcome.detail
        return {"which": outcome.locator, "new_fate": fate, "why": why, "sentence": sentence}
    fate = "duplicate" if outcome.duplicate else "indexed"
    return {"which": outcome.locator, "new_fate": fate, "why": None, "sentence": None}


finish_statement = (
    update(instances)
    .where(instances.c.tenant == bindparam("whose"), instances.c.locator == bindparam("which"))
    .values(
        state=bindparam("new_state"),
        reason=bindparam("why"),
        detail=bindparam("sentence"),
        content=bindparam("sha256"),
        study=bindparam("study_uid"),
        series=bindparam("series_uid"),
        sop=bindparam("sop_uid"),
        patient=bindparam("pseudonym"),
        pixels=bindparam("pixels_sha256"),
        decoder=bindparam("decoded_by"),
        partial=bindparam("missing_frames"),
        rendering=bindparam("rendered_by"),
        finished_in=bindparam("run"),
        finished_at=bindparam("at"),
    )
)

manifest_statement = (
    update(manifest)
    .where(manifest.c.job == bindparam("run"), manifest.c.locator == bindparam("which"))
    .values(fate=bindparam("new_fate"), reason=bindparam("why"), detail=bindparam("sentence"))
)
