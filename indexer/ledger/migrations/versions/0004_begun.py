"""How often the work on a task was begun by workers that then died; see ``Leases.begin``."""

from alembic import op
from sqlalchemy import Column, Integer, text

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("tasks", Column("begun", Integer, nullable=False, server_default=text("0")))
