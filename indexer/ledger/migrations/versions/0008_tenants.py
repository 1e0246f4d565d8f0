"""Each tenant has instances, points, deletions and jobs of its own, also of the same files.

All that there is belongs to the tenant that it names already, which is "default".
"""

from alembic import op
from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKeyConstraint,
    Integer,
    PrimaryKeyConstraint,
    String,
    inspect,
)

revision = "0008"
down_revision = "0007"

_text = String().with_variant(String(collation="C"), "postgresql")


def upgrade() -> None:
    for table in ("stale", "jobs"):
        op.add_column(table, Column("tenant", _text, nullable=False, server_default="default"))
    if op.get_context().dialect.name == "sqlite":
        _make_anew()
    else:
        _change_keys()
    op.create_index("instances_by_run", "instances", ["seen_in", "state", "locator", "tenant"])
    op.create_index("instances_by_source", "instances", ["source", "tenant", "seen_in", "locator"])


def _make_anew() -> None:
    """SQLite cannot change a primary key: the rows move into new tables."""
    op.create_table(
        "instances_anew",
        Column("locator", _text, nullable=False),
        Column("tenant", _text, nullable=False),
        Column("size", BigInteger, nullable=False),
        Column("modified", BigInteger, nullable=False),
        Column("label", _text),
        Column("state", _text, nullable=False),
        *(Column(name, _text) for name in ("reason", "detail", "content", "pixels")),
        *(Column(name, _text) for name in ("study", "series", "sop", "patient")),
        Column("seen_in", Integer, nullable=False),
        Column("finished_in", Integer),
        *(Column(name, _text) for name in ("finished_at", "source")),
        *(Column(name, _text) for name in ("rendering", "decoder", "partial")),
        PrimaryKeyConstraint("locator", "tenant"),
    )
    op.execute(
        "INSERT INTO instances_anew SELECT locator, tenant, size, modified, label, state, reason, "
        "detail, content, pixels, study, series, sop, patient, seen_in, finished_in, finished_at, "
        "source, rendering, decoder, partial FROM instances"
    )
    op.create_table(
        "points_anew",
        Column("tenant", _text, nullable=False),
        Column("locator", _text, nullable=False),
        Column("id", _text, nullable=False),
        Column("frame", Integer, nullable=False),
        PrimaryKeyConstraint("locator", "id", "tenant"),
        ForeignKeyConstraint(
            ["locator", "tenant"],
            ["instances_anew.locator", "instances_anew.tenant"],
            ondelete="CASCADE",
        ),
    )
    op.execute(
        "INSERT INTO points_anew (tenant, locator, id, frame) "
        "SELECT tenant, points.locator, id, frame FROM points JOIN instances USING (locator)"
    )
    op.create_table(
        "deleted_anew",
        Column("tenant", _text, nullable=False),
        Column("locator_sha256", _text, nullable=False),
        PrimaryKeyConstraint("tenant", "locator_sha256"),
    )
    op.execute(
        "INSERT INTO deleted_anew (tenant, locator_sha256) "
        "SELECT 'default', locator_sha256 FROM deleted"
    )
    # Points first: with the instances that they refer to they would be deleted one by one.
    for table in ("points", "instances", "deleted"):
        op.drop_table(table)
    for table in ("instances", "points", "deleted"):
        op.rename_table(f"{table}_anew", table)
    for column in ("study", "patient", "sop"):
        op.create_index(f"instances_by_{column}", "instances", [column])
    op.create_index("points_by_id", "points", ["id"])


def _change_keys() -> None:
    inspector = inspect(op.get_bind())
    for name in ("instances_by_run", "instances_by_source"):
        op.drop_index(name, "instances")
    for table in ("points", "deleted"):
        op.add_column(table, Column("tenant", _text, nullable=False, server_default="default"))
    op.execute(
        "UPDATE points SET tenant = instances.tenant FROM instances "
        "WHERE instances.locator = points.locator AND instances.tenant <> 'default'"
    )
    for key in inspector.get_foreign_keys("points"):
        op.drop_constraint(str(key["name"]), "points", type_="foreignkey")
    keys = {
        "instances": ["locator", "tenant"],
        "points": ["locator", "id", "tenant"],
        "deleted": ["tenant", "locator_sha256"],
    }
    for table, columns in keys.items():
        name = str(inspector.get_pk_constraint(table)["name"])
        op.drop_constraint(name, table, type_="primary")
        op.create_primary_key(name, table, columns)
        op.alter_column(table, "tenant", server_default=None)
    op.create_foreign_key(
        "points_locator_tenant_fkey",
        "points",
        "instances",
        ["locator", "tenant"],
        ["locator", "tenant"],
        ondelete="CASCADE",
    )
