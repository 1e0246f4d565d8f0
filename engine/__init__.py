"""What makes the search: the model, the codes, the store and the ranking."""

from engine import reproducibility

__version__ = "0.1.0"

reproducibility.request()
