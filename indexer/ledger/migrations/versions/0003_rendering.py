"""How an instance was read: which version rendered it, by which decoder, and what was missing.

``pixels`` tells the same picture in another encoding from another picture.
"""

from alembic import op
from sqlalchemy import Column, String

revision = "0003"
down_revision = "0002"

_text = String().with_variant(String(collation="C"), "postgresql")


def upgrade() -> None:
    for name in ("rendering", "pixels", "decoder", "partial"):
        op.add_column("instances", Column(name, _text))
