"""Who an EHR says that somebody is, and what the settings let whoever comes from there do."""

import re
from collections.abc import Mapping
from typing import Any

from api.security.oidc.identity import Identity
from api.security.policy import Scope
from engine.errors import NotAllowed, NotAuthenticated
from engine.smart_settings import SmartSettings

__all__ = ["user_of"]

_REFERENCE = re.compile(
    r"(?P<base>https?://[!-~]{1,150}/)?(?P<type>[A-Z][A-Za-z]{1,40})/[A-Za-z0-9.-]{1,64}"
)
_MOST_CHARACTERS = 255


def user_of(claims: Mapping[str, Any], settings: SmartSettings) -> Identity:
    """Who the claims of an ID token are of. The id is the address of the user's resource, which no
    other EHR has.

    Raises:
        NotAuthenticated: they do not tell who it is.
        NotAllowed: it is nobody who may come here, as a patient. It has who it is.
    """
    written = claims.get("fhirUser")
    found = _REFERENCE.fullmatch(written) if isinstance(written, str) else None
    if found is None:
        raise NotAuthenticated(
            "the EHR does not say who has signed in (claim fhirUser); let it give the scopes "
            "openid and fhirUser to this app"
        )
    who = found[0] if found["base"] else f"{settings.issuer.rstrip('/')}/{found[0]}"
    name = claims.get("name")
    usable = isinstance(name, str) and name.isprintable() and name.strip()
    shown = str(name) if usable and len(str(name)) <= _MOST_CHARACTERS else who
    if found["type"] not in settings.users or len(who) > _MOST_CHARACTERS:
        raise NotAllowed(
            f"the EHR says that who has signed in is a {found['type']}, and none may come here; "
            "smart.NAME.users says who may",
            subject=who[:_MOST_CHARACTERS],
            name=shown,
        )
    return Identity(who, shown, settings.tenant, frozenset(map(Scope, settings.scopes)))
