"""Creates the HTTP application: JSON routes, error documents, body limit, security headers."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import engine
from api.http.guard import Guard
from api.http.limits import FRAME_ALLOWANCE, BodyLimit
from api.http.problems import Problem, UnexpectedErrors, install_problems, problem_responses
from api.http.routes import health, images, ingest, jobs_create, recommend, search
from api.http.serving import Serving
from api.http.work import Work
from api.security.access import Access
from api.security.policy import POLICY
from engine.settings import Settings, load_settings
from indexer.archive import Archive

__all__ = ["create_app"]

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self' data:; style-src 'self'; script-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    # With "no-referrer" browsers would name "null" as origin of the page's own form.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_ROUTES = (search, recommend, images, ingest, jobs_create, health)
_NOT_STORED = ("text/html", "application/json", "application/problem+json")
_DESCRIPTION = (
    "Finds the earlier cases that look like this one. For research use; not a medical device. "
    "Every error is an RFC 9457 problem document."
)


def create_app(settings: Settings | None = None, archive: Archive | None = None) -> FastAPI:
    """The application. It opens its archive at startup and closes it at shutdown.

    Args:
        settings: None = those of ``archive``, or, without one, of the environment and the
            settings file.
        archive: an open archive to serve instead; it is left open.

    Raises:
        SettingsError: neither was given, and the settings loaded are not valid.
    """
    if settings is None:
        settings = load_settings() if archive is None else archive.settings
    access = Access(settings)
    app = FastAPI(
        title="Precedent",
        summary="Similar-image search for medical image archives",
        description=_DESCRIPTION,
        version=engine.__version__,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        # FastAPI's documentation pages load scripts from other hosts, which the content security
        # policy and most hospital networks block.
        docs_url=None,
        redoc_url=None,
        # Telemetry would quote requests, and send them wherever environment variables say.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
        lifespan=_lifespan(settings, archive, access),
    )
    install_problems(app)
    for routes in _ROUTES:
        app.include_router(routes.router)
    _complete_openapi(app)
    # The middleware added last is the outermost: every response gets the security headers.
    app.add_middleware(BodyLimit, max_bytes=settings.server.max_upload_bytes + FRAME_ALLOWANCE)
    app.add_middleware(Guard, access=access)
    app.add_middleware(UnexpectedErrors)
    app.add_middleware(SecurityHeaders)
    return app


class SecurityHeaders:
    """ASGI middleware that adds security headers to every response, and keeps HTML and JSON out of
    caches."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                if headers.get("content-type", "").startswith(_NOT_STORED):
                    headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self._app(scope, receive, with_headers)


def _lifespan(settings: Settings, given: Archive | None, access: Access) -> Any:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
        with (
            closing(access),
            Serving(settings, given) as serving,
            Work(settings, serving) as work,
        ):
            yield {"serving": serving, "access": access, "work": work}

    return lifespan


def _complete_openapi(app: FastAPI) -> None:
    """Adds to the OpenAPI document the schema of :class:`Problem`, to which all routes refer, and
    the examples of answers as they were written: FastAPI takes every null out of them."""

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(
                title=app.title,
                version=app.version,
                summary=app.summary,
                description=app.description,
                license_info=app.license_info,
                routes=app.routes,
            )
            schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
            parts = schema.pop("$defs", {})
            document["components"]["schemas"] |= {**parts, "Problem": schema}
            for route in (route for routes in _ROUTES for route in routes.router.routes):
                if isinstance(route, APIRoute):
                    _set_examples(document["paths"][route.path_format], route)
            _set_security(document)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]


def _set_security(document: dict[str, Any]) -> None:
    """Adds to the document which operations ask for a key, and the scopes that they need."""
    document["components"]["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "description": "An API key of this service."}
    }
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            needed = POLICY.get((method.upper(), path))
            refusals = problem_responses(401, 403)
            if needed is None:
                operation["security"] = [{}, {"key": []}]
            else:
                operation["security"] = [{"key": [needed.value]}]
            for status, answer in refusals.items():
                operation["responses"].setdefault(str(status), answer)


def _set_examples(path: dict[str, Any], route: APIRoute) -> None:
    """Sets the examples of a route's answers in the document's entry of its path."""
    for method in route.methods or ():
        for status, answer in route.responses.items():
            for media, content in answer.get("content", {}).items():
                if "example" in content:
                    described = path[method.lower()]["responses"][str(status)]
                    described["content"][media]["example"] = content["example"]
