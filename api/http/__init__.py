"""The HTTP service: ``app.create_app`` makes it; routes elsewhere may use ``deps`` and
``problems``."""
