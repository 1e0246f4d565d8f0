"""API keys of the service."""

from alembic import op
from sqlalchemy import Column, String

revision = "0006"
down_revision = "0005"

_text = String().with_variant(String(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "keys",
        Column("id", _text, primary_key=True),
        Column("name", _text, nullable=False),
        Column("digest", _text, nullable=False),
        Column("scopes", _text, nullable=False),
        Column("tenant", _text, nullable=False),
        Column("created_at", _text, nullable=False),
        Column("expires_at", _text),
        Column("revoked_at", _text),
    )
