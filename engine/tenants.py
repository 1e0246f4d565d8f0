"""Tenants: the parties that share an archive, of which none learns anything of another."""

import re

from engine.errors import QueryError

__all__ = ["DEFAULT_TENANT", "checked_tenant", "is_tenant"]

DEFAULT_TENANT = "default"
"""Whose images are that were indexed without a word about tenants."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)


def is_tenant(name: str) -> bool:
    """Whether a tenant may be named so: up to 64 letters, digits, '.', '_' and '-', of which the
    first is a letter or a digit."""
    return _NAME.fullmatch(name) is not None


def checked_tenant(name: str) -> str:
    """The name, if a tenant may have it.

    Raises:
        QueryError: none may.
    """
    if not is_tenant(name):
        raise QueryError(
            f"{name[:80]!r} is no tenant; use up to 64 letters, digits, '.', '_' and '-', the "
            "first a letter or a digit"
        )
    return name
