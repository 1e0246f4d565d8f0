"""What makes the search: the model, the codes, the store and the ranking."""

__version__ = "0.1.0"
