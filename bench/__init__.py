"""Measurements: each module is one command that prints a table and writes JSON."""

import engine  # noqa: F401 - before torch, for what it settles
