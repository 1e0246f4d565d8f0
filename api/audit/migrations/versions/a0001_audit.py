"""The rows of the audit log."""

from alembic import op
from sqlalchemy import BigInteger, Column, String

revision = "a0001"
down_revision = None

_text = String().with_variant(String(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "audit",
        Column("chain", _text, primary_key=True),
        Column("seq", BigInteger, primary_key=True, autoincrement=False),
        Column("at", _text, nullable=False),
        Column("body", _text, nullable=False),
        Column("hash", _text, nullable=False),
    )
    op.create_index("audit_by_time", "audit", ["at", "chain", "seq"])
