"""The ledger's tables, and what passes in and out of them."""

from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    bindparam,
    update,
)

from engine.errors import RefusalReason

__all__ = [
    "Done",
    "Owner",
    "Pending",
    "Refused",
    "State",
    "done_row",
    "finish_statement",
    "instances",
    "metadata",
    "points",
    "refused_row",
    "runs",
]


class State(StrEnum):
    """What became of an instance."""

    PENDING = "pending"
    DONE = "done"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Pending:
    """An instance to read."""

    locator: str
    label: str | None


@dataclass(frozen=True, slots=True)
class Done:
    """An instance that is in the index. content: sha256 hex. points: (id, frame) pairs."""

    locator: str
    content: str
    points: tuple[tuple[str, int], ...]
    study: str | None = None
    series: str | None = None
    sop: str | None = None
    patient: str | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """An instance that is not. detail: one sentence."""

    locator: str
    reason: RefusalReason
    detail: str


@dataclass(frozen=True, slots=True)
class Owner:
    """The instance that a point came from."""

    locator: str
    content: str


metadata = MetaData()

instances = Table(
    "instances",
    metadata,
    Column("locator", String, primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("modified", BigInteger, nullable=False),
    Column("label", String),
    Column("state", String, nullable=False),
    Column("reason", String),
    Column("detail", String),
    Column("content", String),
    Column("study", String),
    Column("series", String),
    Column("sop", String),
    Column("patient", String),
    Column("seen_in", Integer, nullable=False),
    Column("finished_in", Integer),
    Column("finished_at", String),
    Index("instances_by_run", "seen_in", "state", "locator"),
    Index("instances_by_study", "study"),
    Index("instances_by_patient", "patient"),
)

points = Table(
    "points",
    metadata,
    Column("locator", ForeignKey("instances.locator", ondelete="CASCADE"), primary_key=True),
    Column("id", String, primary_key=True),
    Column("frame", Integer, nullable=False),
    Index("points_by_id", "id"),
)

runs = Table("runs", metadata, Column("run", Integer, primary_key=True))


def done_row(outcome: Done) -> dict[str, str | None]:
    return {
        "which": outcome.locator,
        "fate": State.DONE,
        "why": None,
        "sentence": None,
        "sha256": outcome.content,
        "study_uid": outcome.study,
        "series_uid": outcome.series,
        "sop_uid": outcome.sop,
        "pseudonym": outcome.patient,
    }


def refused_row(outcome: Refused) -> dict[str, str | None]:
    nothing = dict.fromkeys(("sha256", "study_uid", "series_uid", "sop_uid", "pseudonym"))
    return {
        "which": outcome.locator,
        "fate": State.REFUSED,
        "why": outcome.reason,
        "sentence": outcome.detail,
        **nothing,
    }


finish_statement = (
    update(instances)
    .where(instances.c.locator == bindparam("which"))
    .values(
        state=bindparam("fate"),
        reason=bindparam("why"),
        detail=bindparam("sentence"),
        content=bindparam("sha256"),
        study=bindparam("study_uid"),
        series=bindparam("series_uid"),
        sop=bindparam("sop_uid"),
        patient=bindparam("pseudonym"),
        finished_in=bindparam("run"),
        finished_at=bindparam("at"),
    )
)
