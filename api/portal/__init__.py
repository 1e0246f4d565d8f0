"""The pages that people open, rendered on the server. ``routes.add_portal`` is its front door."""
