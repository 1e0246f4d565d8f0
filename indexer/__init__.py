"""Reads images from archives, encodes them, and keeps the index and the ledger of what was read.

What a program needs to index a folder and to search it can be imported from here; each name is
imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

import engine  # noqa: F401 - before torch: it sets what torch reads as it loads

if TYPE_CHECKING:
    from indexer.archive import Archive, QueryImage, QueryReader
    from indexer.pipeline.run import IndexingReport
    from indexer.sources.folder import FolderSource

__all__ = ["Archive", "FolderSource", "IndexingReport", "QueryImage", "QueryReader"]

_HOMES = {
    "indexer.archive": ("Archive", "QueryImage", "QueryReader"),
    "indexer.pipeline.run": ("IndexingReport",),
    "indexer.sources.folder": ("FolderSource",),
}
"""Where the names are defined."""

if not TYPE_CHECKING:  # so that a misspelt name is an error to type checkers

    def __getattr__(name: str) -> object:
        for home, names in _HOMES.items():
            if name in names:
                found = getattr(import_module(home), name)
                globals()[name] = found
                return found
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
