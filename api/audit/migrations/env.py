"""Alembic's entry point: runs the migrations on the connection that ``migrate`` passes on."""

from alembic import context

from api.audit.schema import AUDIT, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=AUDIT.version_table,
)
with context.begin_transaction():
    context.run_migrations()
