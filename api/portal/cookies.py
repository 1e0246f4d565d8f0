"""Cookies of the pages: of this host alone, over TLS alone, and out of reach of scripts.

They are Lax, so that a link from elsewhere leads to a page. Where an EHR shows the page in a frame
of its own site, browsers send no such ones: there they are partitioned, one jar for each site
around the frame (CHIPS), and sent in frames of that site alone.
"""

from fastapi import Response

__all__ = ["drop_cookie", "set_cookie"]

_LAX = "Path=/; HttpOnly; Secure; SameSite=lax"
# The framework knows the last attribute only under later versions of Python.
_FRAMED = "Path=/; HttpOnly; Secure; SameSite=none; Partitioned"


def set_cookie(
    answer: Response, name: str, value: str, seconds: int, *, framed: bool = False
) -> None:
    """Sets a cookie. value: of letters, digits and ``-._~``. seconds: for which it is kept. framed:
    whether it is for a frame of another site."""
    attributes = _FRAMED if framed else _LAX
    answer.headers.append("set-cookie", f"{name}={value}; Max-Age={seconds}; {attributes}")


def drop_cookie(answer: Response, name: str, *, framed: bool | None = None) -> None:
    """Removes a cookie. framed: as it was set; None = whichever it was."""
    for attributes in (_LAX, _FRAMED):
        if framed is None or framed == (attributes is _FRAMED):
            answer.headers.append("set-cookie", f'{name}=""; Max-Age=0; {attributes}')
