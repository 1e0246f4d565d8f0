"""Sessions of the service's page."""

from alembic import op
from sqlalchemy import Column, ForeignKey, String

revision = "0007"
down_revision = "0006"

_text = String().with_variant(String(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "sessions",
        Column("digest", _text, primary_key=True),
        Column("key", _text, ForeignKey("keys.id", ondelete="CASCADE"), nullable=False),
        Column("created_at", _text, nullable=False),
        Column("seen_at", _text, nullable=False),
    )
