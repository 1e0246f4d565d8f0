"""Benchmarks. Modules that are commands print a table and write JSON to bench/results."""

import engine  # noqa: F401 - before torch, for what it settles
