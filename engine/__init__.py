"""The search engine: model, codes, vector store and ranking."""

from engine import reproducibility

__version__ = "0.1.0"

reproducibility.request()
