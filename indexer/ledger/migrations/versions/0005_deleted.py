"""Hashes of the locators of instances that were deleted, so that they are not indexed again."""

from alembic import op
from sqlalchemy import Column, PrimaryKeyConstraint, String

revision = "0005"
down_revision = "0004"

_text = String().with_variant(String(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "deleted",
        Column("locator_sha256", _text, nullable=False),
        PrimaryKeyConstraint("locator_sha256"),
    )
