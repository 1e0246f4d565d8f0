"""Signed tokens for the pages of other sites, each for one study and one site.

A token says which key asked for it, and is worth nothing without it: the key is looked up at each
use, so that what ends the key ends its tokens. It is taken by the embedded page alone.
"""

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import jwt

from engine.errors import NotAuthenticated, QueryError
from engine.loopback import is_loopback

__all__ = ["MOST_MINUTES", "Embed", "EmbedTokens", "site_origin"]

MOST_MINUTES = 10
_ALGORITHM = "HS256"
_TYPE = "precedent-embed+jwt"
_AUDIENCE = "precedent-embed"
_ORIGIN = re.compile(r"(https?)://([a-z0-9](?:[a-z0-9.-]*[a-z0-9])?)(?::(\d{1,5}))?", re.ASCII)
_USUAL_PORTS = {"https": "443", "http": "80"}


@dataclass(frozen=True, slots=True)
class Embed:
    """What a token allows: to show the cases related to a study in the pages of one site.

    key: public id of the API key. origin: of the site, as browsers write it. acting: the person at
    that site, as its server says.
    """

    key: str
    tenant: str
    study: str
    origin: str
    acting: str


def site_origin(written: str) -> str:
    """An origin as browsers write it.

    Raises:
        QueryError: it is none, or pages from there come without TLS.
    """
    match = _ORIGIN.fullmatch(written.lower())
    if match is None or (match[1] == "http" and not is_loopback(match[2])):
        raise QueryError(
            f"{written[:200]!r} is no origin of a site; write scheme, host and port alone, as in "
            "https://portal.example (http only on this machine)"
        )
    port = match[3]
    if port is not None and not 0 < int(port) < 65536:
        raise QueryError(f"{written[:200]!r} has no port between 1 and 65535")
    plain = port is None or str(int(port)) == _USUAL_PORTS[match[1]]
    return f"{match[1]}://{match[2]}" + ("" if plain or port is None else f":{int(port)}")


class EmbedTokens:
    """Makes tokens, and reads them.

    Args:
        secret: by which they are signed.
        clock: seconds since 1970.
    """

    def __init__(self, secret: bytes, clock: Callable[[], float] = time.time) -> None:
        self._secret = secret
        self._clock = clock

    def make(self, embed: Embed, minutes: int) -> tuple[str, datetime]:
        """A token, and when it ends, UTC.

        Raises:
            QueryError: it would last too long.
        """
        if not 1 <= minutes <= MOST_MINUTES:
            raise QueryError(f"minutes is {minutes}; a token lasts 1 to {MOST_MINUTES}")
        now = int(self._clock())
        until = now + 60 * minutes
        claims = {
            "aud": _AUDIENCE,
            "sub": embed.key,
            "tenant": embed.tenant,
            "study": embed.study,
            "origin": embed.origin,
            "act": {"sub": embed.acting},
            "iat": now,
            "exp": until,
        }
        token = jwt.encode(claims, self._secret, _ALGORITHM, headers={"typ": _TYPE})
        return token, datetime.fromtimestamp(until, UTC)

    def read(self, token: str) -> tuple[Embed, int]:
        """What a token of ours allows, and for how many more seconds; 0 = no longer.

        Raises:
            NotAuthenticated: it is none.
        """
        try:
            found = jwt.decode_complete(
                token,
                self._secret,
                algorithms=[_ALGORITHM],
                audience=_AUDIENCE,
                # The end is judged by our own clock.
                options={"require": ["exp", "sub"], "verify_exp": False, "verify_iat": False},
            )
            claims: dict[str, Any] = found["payload"]
            if found["header"].get("typ") != _TYPE:
                raise NotAuthenticated("this token is none for a page of another site")
            embed = Embed(
                claims["sub"],
                claims["tenant"],
                claims["study"],
                claims["origin"],
                claims["act"]["sub"],
            )
            left = int(claims["exp"]) - self._clock()
        except (jwt.PyJWTError, ValueError, TypeError, KeyError, RecursionError):
            raise NotAuthenticated("this token is none for a page of another site") from None
        # A moment is left until there is none.
        return embed, max(0, math.ceil(left))
