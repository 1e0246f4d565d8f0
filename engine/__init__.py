"""The search engine: model, codes, vector store and ranking.

What a program needs of it can be imported from here: ``Index`` for images that are arrays, and what
searches take and answer. Each name is imported when it is first used, so that ``import engine``
loads neither PyTorch nor NumPy. Files and folders are read by :mod:`indexer`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from engine import reproducibility

if TYPE_CHECKING:
    from engine.errors import ImageRefused, PrecedentError
    from engine.index import Index
    from engine.model.encoder import Encoder
    from engine.model.manifest import SHIPPED
    from engine.model.preprocess import Preprocess
    from engine.ood.calibration import OodGate
    from engine.records import (
        Answer,
        EncodedImages,
        Evidence,
        Hit,
        ImageRecord,
        OodVerdict,
    )
    from engine.search.query import Query, parse_where
    from engine.settings import Settings, load_settings

__all__ = [
    "SHIPPED",
    "Answer",
    "EncodedImages",
    "Encoder",
    "Evidence",
    "Hit",
    "ImageRecord",
    "ImageRefused",
    "Index",
    "OodGate",
    "OodVerdict",
    "PrecedentError",
    "Preprocess",
    "Query",
    "Settings",
    "__version__",
    "load_settings",
    "parse_where",
]

__version__ = "0.1.0"

_HOMES = {
    "engine.errors": ("ImageRefused", "PrecedentError"),
    "engine.index": ("Index",),
    "engine.model.encoder": ("Encoder",),
    "engine.model.manifest": ("SHIPPED",),
    "engine.model.preprocess": ("Preprocess",),
    "engine.ood.calibration": ("OodGate",),
    "engine.records": ("Answer", "EncodedImages", "Evidence", "Hit", "ImageRecord", "OodVerdict"),
    "engine.search.query": ("Query", "parse_where"),
    "engine.settings": ("Settings", "load_settings"),
}
"""Where the names are defined."""

reproducibility.request()

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
