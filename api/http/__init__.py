"""The HTTP service: JSON routes, their errors and limits. ``app.create_app`` makes it.

Routes elsewhere may use ``deps``, ``problems`` and ``routes.search``.
"""
