"""The command line, one module per command. ``main.main`` runs it; no other package imports it."""
