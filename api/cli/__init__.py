"""The command line. Nothing imports it; ``api.cli.main`` is its front door."""
