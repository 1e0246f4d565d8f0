"""Instances, their points, and runs.

Ledgers were first made without revisions: what such a one already has is left as it is.
"""

from alembic import op
from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKeyConstraint,
    Integer,
    PrimaryKeyConstraint,
    String,
)

revision = "0001"
down_revision = None

_text = String().with_variant(String(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "instances",
        Column("locator", _text, nullable=False),
        Column("size", BigInteger, nullable=False),
        Column("modified", BigInteger, nullable=False),
        Column("label", _text),
        Column("state", _text, nullable=False),
        Column("reason", _text),
        Column("detail", _text),
        Column("content", _text),
        Column("study", _text),
        Column("series", _text),
        Column("sop", _text),
        Column("patient", _text),
        Column("seen_in", Integer, nullable=False),
        Column("finished_in", Integer),
        Column("finished_at", _text),
        PrimaryKeyConstraint("locator"),
        if_not_exists=True,
    )
    for name, columns in {
        "instances_by_run": ["seen_in", "state", "locator"],
        "instances_by_study": ["study"],
        "instances_by_patient": ["patient"],
    }.items():
        op.create_index(name, "instances", columns, if_not_exists=True)
    op.create_table(
        "points",
        Column("locator", _text, nullable=False),
        Column("id", _text, nullable=False),
        Column("frame", Integer, nullable=False),
        PrimaryKeyConstraint("locator", "id"),
        ForeignKeyConstraint(["locator"], ["instances.locator"], ondelete="CASCADE"),
        if_not_exists=True,
    )
    op.create_index("points_by_id", "points", ["id"], if_not_exists=True)
    op.create_table(
        "runs",
        Column("run", Integer, nullable=False),
        PrimaryKeyConstraint("run"),
        if_not_exists=True,
    )
