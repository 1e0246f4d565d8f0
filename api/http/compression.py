"""Compresses long JSON answers.

Compressed length tells what two parts of an answer have in common (BREACH): an attacker who can
make a browser ask, put text into the answer and see its length, finds a secret beside that text.
So nothing that carries a secret is compressed: no page, whose forms have the token of the session,
and no answer with a credential. Answers about images hold none, and only callers with a key, which
no browser sends by itself, or pages of the service itself get them. Pictures are compressed as they
are.
"""

from starlette.middleware.gzip import DEFAULT_EXCLUDED_CONTENT_TYPES, GZipMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["Compression"]

_LEAST_BYTES = 1024
_LEVEL = 6
_NEVER = (*DEFAULT_EXCLUDED_CONTENT_TYPES, "image/*", "text/html")
_SECRETS = ("/v1/embed-tokens", "/v1/whoami", "/v1/keys", "/login", "/logout", "/smart")
"""Paths whose answers carry credentials, or say whose they are."""


class Compression:
    """ASGI middleware: gzip for answers of at least 1 KiB, where the caller takes it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._compressing = GZipMiddleware(
            app, _LEAST_BYTES, compresslevel=_LEVEL, exclude_content_types=_NEVER
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        chosen = self._app if path.startswith(_SECRETS) else self._compressing
        await chosen(scope, receive, send)
