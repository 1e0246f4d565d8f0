"""How an archive becomes points."""

import engine  # noqa: F401 - before torch, for what it settles
