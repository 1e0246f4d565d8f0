"""How uvicorn runs the application."""

import uvicorn
from fastapi import FastAPI

from api.http.protocol import limited_protocol
from engine.settings import ServerSettings

__all__ = ["server_config"]

_MIB = 1024**2


def server_config(app: FastAPI, server: ServerSettings) -> uvicorn.Config:
    """The configuration of a server for the application, with the limits of the settings."""
    return uvicorn.Config(
        app,
        http=limited_protocol(server, app.state.metrics.refused),
        ws="none",
        # Its log goes where everything else does, and requests are logged by the application.
        log_config=None,
        log_level="warning",
        access_log=False,
        # The application itself believes proxies, those that the settings name.
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=max(1, round(server.idle_seconds)),
        # Headers that come bit by bit are cut here; whole ones are measured by the application.
        h11_max_incomplete_event_size=min(server.max_header_bytes + 1024, _MIB),
    )
