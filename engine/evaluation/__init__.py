"""How good the search is, in figures and pictures."""
