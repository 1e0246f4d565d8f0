"""How an archive becomes points."""
