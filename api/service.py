"""The whole HTTP service: the JSON routes and the search page (portal)."""

from fastapi import FastAPI

from api.http.app import create_app
from api.portal.routes import add_portal
from engine.settings import Settings
from indexer.archive import Archive

__all__ = ["create_service"]


def create_service(settings: Settings | None = None, archive: Archive | None = None) -> FastAPI:
    """The application with the search page; arguments and errors as for
    :func:`api.http.app.create_app`."""
    app = create_app(settings, archive)
    add_portal(app)
    return app
