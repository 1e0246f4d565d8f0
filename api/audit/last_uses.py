"""When keys were used last, as far as the latest rows of the audit log tell."""

import re
from datetime import datetime

from api.audit.log import AuditLog

__all__ = ["last_uses"]

_LATEST = 10_000
_CHARACTERS = 3000
"""So many at the end of a row have who asked: a key's name has 200 characters, each of them written
with twelve at most."""
_WHO = re.compile(
    r'"who":\{"id":"([0-9a-f]{16})","kind":"(?:key|session)",'
    r'"name":(?:null|"(?:[^"\\]|\\.)*"),"tenant":"([^"\\]*)"\}\}$',
    re.ASCII,
)


def last_uses(log: AuditLog, tenant: str) -> dict[str, datetime]:
    """When each key of a tenant was used last, by its id: in a request, or in a session that it
    began. Keys that the latest 10,000 rows of the log do not name are not there.

    Raises:
        AuditError: the log cannot be read.
    """
    found: dict[str, datetime] = {}
    for at, end in log.latest_ends(_LATEST, _CHARACTERS):
        match = _WHO.search(end)
        if match is not None and match[2] == tenant and match[1] not in found:
            try:
                found[match[1]] = datetime.fromisoformat(at)
            except ValueError:
                continue  # `precedent audit verify` tells of rows that were changed
    return found
