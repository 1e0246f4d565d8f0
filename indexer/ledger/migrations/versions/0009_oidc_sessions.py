"""Sessions of the service's page, of people whom an identity provider knows."""

from alembic import op
from sqlalchemy import Column, String

revision = "0009"
down_revision = "0008"

_text = String().with_variant(String(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "oidc_sessions",
        Column("digest", _text, primary_key=True),
        Column("sign_in", _text, nullable=False, unique=True),
        Column("issuer", _text, nullable=False),
        Column("subject", _text, nullable=False),
        Column("name", _text, nullable=False),
        Column("tenant", _text, nullable=False),
        Column("scopes", _text, nullable=False),
        Column("created_at", _text, nullable=False),
        Column("seen_at", _text, nullable=False),
        Column("ended_at", _text),
    )
