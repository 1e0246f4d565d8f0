"""Migrations of the audit log's table; ``indexer.ledger.migrations`` says how to add one."""
