"""What was seen, indexed or refused, and why: ``database.open_database``, ``instances.Ledger``."""
