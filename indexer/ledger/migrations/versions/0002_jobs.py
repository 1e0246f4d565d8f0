"""Jobs with tasks and manifests; the source and the tenant of an instance; stale points.

A run becomes a job with the same number, because instances name it.
"""

from alembic import op
from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    ForeignKeyConstraint,
    Integer,
    PrimaryKeyConstraint,
    String,
    text,
)

revision = "0002"
down_revision = "0001"

_text = String().with_variant(String(collation="C"), "postgresql")


def upgrade() -> None:
    op.add_column("instances", Column("source", _text))
    op.add_column("instances", Column("tenant", _text, nullable=False, server_default="default"))
    op.create_index("instances_by_sop", "instances", ["sop"])
    op.create_index("instances_by_source", "instances", ["source", "seen_in", "locator"])
    op.create_table("stale", Column("id", _text, nullable=False), PrimaryKeyConstraint("id"))
    _make_jobs()
    op.execute(
        "INSERT INTO jobs (id, kind, source, state) SELECT run, 'run', '', 'finished' FROM runs"
    )
    if op.get_context().dialect.name == "postgresql":
        op.execute("SELECT setval(pg_get_serial_sequence('jobs', 'id'), max(id)) FROM jobs")
    op.drop_table("runs")


def _make_jobs() -> None:
    op.create_table(
        "jobs",
        Column("id", Integer, primary_key=True),
        Column("kind", _text, nullable=False),
        Column("source", _text, nullable=False),
        Column("spec", _text, nullable=False, server_default="{}"),
        Column("options", _text, nullable=False, server_default="{}"),
        Column("state", _text, nullable=False),
        Column("priority", Integer, nullable=False, server_default=text("0")),
        Column("created_at", _text),
        Column("started_at", _text),
        Column("finished_at", _text),
        Column("note", _text),
        sqlite_autoincrement=True,
    )
    counts = ("total", "done", "unchanged", "indexed", "duplicates", "points")
    op.create_table(
        "tasks",
        Column("job", Integer, nullable=False),
        Column("number", Integer, nullable=False),
        Column("kind", _text, nullable=False),
        Column("state", _text, nullable=False),
        Column("attempts", Integer, nullable=False, server_default=text("0")),
        Column("not_before", Float, nullable=False, server_default=text("0")),
        Column("queued_at", Float),
        Column("beat_at", Float),
        Column("worker", _text),
        *(Column(name, BigInteger, nullable=False, server_default=text("0")) for name in counts),
        Column("refused", _text, nullable=False, server_default="{}"),
        Column("seconds", Float, nullable=False, server_default=text("0")),
        Column("error", _text),
        PrimaryKeyConstraint("job", "number"),
        ForeignKeyConstraint(["job"], ["jobs.id"], ondelete="CASCADE"),
    )
    op.create_index("tasks_by_state", "tasks", ["state", "not_before"])
    op.create_table(
        "manifest",
        Column("job", Integer, nullable=False),
        Column("locator", _text, nullable=False),
        Column("chunk", Integer, nullable=False),
        Column("label", _text),
        Column("fate", _text),
        Column("reason", _text),
        Column("detail", _text),
        PrimaryKeyConstraint("job", "locator"),
        ForeignKeyConstraint(["job"], ["jobs.id"], ondelete="CASCADE"),
    )
    op.create_index("manifest_by_chunk", "manifest", ["job", "chunk", "locator"])
