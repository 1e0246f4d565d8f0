"""How uvicorn runs the application."""

from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from api.http.protocol import limited_protocol
from engine.settings import ServerSettings

__all__ = ["server_config"]

_MIB = 1024**2


def server_config(
    app: FastAPI, server: ServerSettings, refused: Callable[[int], None] = lambda _: None
) -> uvicorn.Config:
    """The configuration of a server for the application, with the limits of the settings.

    Args:
        refused: called with the status of each answer that the application never sees.
    """
    return uvicorn.Config(
        app,
        http=limited_protocol(server, refused),
        ws="none",
        log_level="warning",
        access_log=False,
        # The application itself believes proxies, those that the settings name.
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=max(1, round(server.idle_seconds)),
        # Headers that come bit by bit are cut here; whole ones are measured by the application.
        h11_max_incomplete_event_size=min(server.max_header_bytes + 1024, _MIB),
    )
