"""Instances know the digest of their display pixels."""

from alembic import op
from sqlalchemy import Column, String

revision = "0003"
down_revision = "0002"

_text = String().with_variant(String(collation="C"), "postgresql")


def upgrade() -> None:
    op.add_column("instances", Column("pixels", _text))
