"""Reads images from archives, encodes them, and keeps the index and the ledger of what was read."""

import engine  # noqa: F401 - before torch: it sets what torch reads as it loads
