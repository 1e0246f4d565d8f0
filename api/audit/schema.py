"""The audit log's table. A change here needs a migration; see ``api/audit/migrations``."""

from sqlalchemy import BigInteger, Column, Index, MetaData, Table

from indexer.ledger.migrations import Tables
from indexer.ledger.schema import Text

__all__ = ["AUDIT", "audit", "metadata"]

metadata = MetaData()

audit = Table(
    "audit",
    metadata,
    Column("chain", Text, primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("at", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("hash", Text, nullable=False),
    Index("audit_by_time", "at", "chain", "seq"),
)
"""The rows. body: canonical JSON with all that a row says; chain, seq and at are copies of what is
in it, to find it by. hash: SHA-256 hex of the body, which has that of the row before."""

AUDIT = Tables(
    name="audit log",
    location="api.audit:migrations",
    head="a0001",
    version_table="audit_version",
    metadata=metadata,
)
