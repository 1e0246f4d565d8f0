"""What people and portals touch: the command line, the HTTP service, the page."""

import engine  # noqa: F401 - before torch, for what it settles
