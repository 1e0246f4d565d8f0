"""The search page, rendered as HTML on the server; ``routes.add_portal`` adds it to a service."""
