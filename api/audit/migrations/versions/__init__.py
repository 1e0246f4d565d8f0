"""The steps from one revision of the audit log's table to the next."""
