"""What people and portals touch: the command line, the HTTP service, the page."""
