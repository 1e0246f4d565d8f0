"""The pages beside the search, for whom they are, and where somebody is led who asked for none."""

from api.portal.catalogues import gettext, later
from api.security.access import Caller
from api.security.policy import Scope

__all__ = ["home_of", "pages_beside"]

_BESIDE = (
    (Scope.SEARCH, "archive", later("Archive")),
    (Scope.SEARCH, "model", later("Model")),
    (Scope.INDEX, "jobs", later("Jobs")),
    (Scope.ADMIN, "keys", later("Keys")),
    (Scope.AUDIT, "audit", later("Audit log")),
)
"""What they ask for, their addresses relative to the search page, and their names."""


def pages_beside(caller: Caller | None) -> list[tuple[str, str]]:
    """Addresses and names of those that somebody may see."""
    if caller is None:
        return []
    return [(address, gettext(name)) for scope, address, name in _BESIDE if scope in caller.scopes]


def home_of(caller: Caller | None) -> str:
    """The page for somebody who asked for no other one, relative to the search page: that itself,
    which is the empty address, or else the first one that they may see."""
    if caller is None or Scope.SEARCH in caller.scopes:
        return ""
    return next((address for address, _ in pages_beside(caller)), "")
