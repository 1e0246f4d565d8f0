"""Backups: everything of an embedded archive in one file, made, verified and restored."""
