"""The ledger: the database that records which instances were seen, indexed or refused, and why.

``database.open_database`` opens it, ``instances.Ledger`` reads and writes it.
"""
