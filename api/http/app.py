"""Creates the HTTP application: JSON routes, error documents, body limit, security headers."""

from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, closing
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import anyio.to_thread
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import engine
from api.audit.log import open_log
from api.audit.rows import Head as AuditHead
from api.audit.writer import Writer
from api.http.arrival import Bodies
from api.http.audit import Audited
from api.http.audit_at_hand import AuditAtHand
from api.http.bodies import body_schemas
from api.http.compression import Compression
from api.http.fhir.described import SCHEMAS as FHIR_SCHEMAS
from api.http.guard import Guard
from api.http.head import Head
from api.http.job_events import Events
from api.http.ledger import LedgerAtHand
from api.http.limits import FRAME_ALLOWANCE, BodyLimit
from api.http.metrics import Metrics
from api.http.observing import Observed
from api.http.origins import Origins, security_headers
from api.http.pictures import Previews
from api.http.problems import Problem, UnexpectedErrors, install_problems, problem_responses
from api.http.proxies import Proxies
from api.http.qido.described import SCHEMAS as QIDO_SCHEMAS
from api.http.readiness import Readiness
from api.http.remembered import Remembered
from api.http.request_ids import RequestIds
from api.http.routes import (
    about,
    archive as archive_routes,
    audit_log,
    batch,
    cds_hooks,
    documents,
    duplicates,
    embed_tokens,
    fhir,
    health,
    images,
    ingest,
    jobs,
    jobs_create,
    judging,
    keys,
    metrics as metrics_route,
    qido,
    recommend,
    search,
    sendings,
    stow,
)
from api.http.sender import Sender
from api.http.serving import Serving
from api.http.slots import ALWAYS_ANSWERED, Load, Overload, Slots
from api.http.throttle import Throttle
from api.http.timing import Timed
from api.http.tracing import Traces, tracing
from api.http.work import Work
from api.security.access import Access
from api.security.policy import POLICY
from api.security.rates import Rates
from engine.errors import PrecedentError
from engine.settings import ServerSettings, Settings, load_settings
from indexer.archive import Archive

__all__ = ["create_app"]

_THREADS_BESIDE = 16
_LATELY = timedelta(days=7)
_ROUTES = (
    search,
    batch,
    recommend,
    fhir,
    qido,
    cds_hooks,
    images,
    duplicates,
    archive_routes,
    about,
    judging,
    jobs,
    jobs_create,
    ingest,
    stow,
    embed_tokens,
    documents,
    sendings,
    keys,
    audit_log,
    health,
    metrics_route,
)
_ANY_KEY = ("/v1/whoami",)
"""Paths that any key may ask for, whatever its scopes."""
_CREDENTIALS = "An API key of this service, or an access token of its identity provider."
_NOT_STORED = (
    "text/html",
    "application/json",
    "application/problem+json",
    "application/fhir+json",
    "application/dicom+json",
)
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
    rates = Rates(settings, access.database)
    load = Load()
    metrics = Metrics(settings, load, access.database)
    traces = tracing(settings.server)
    app = FastAPI(
        title="Precedent",
        summary="Similar-image search for medical image archives",
        description=_DESCRIPTION,
        version=engine.__version__,
        servers=[{"url": "/", "description": "This service."}],
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        # FastAPI's documentation pages load scripts from other hosts, which the content security
        # policy and most hospital networks block.
        docs_url=None,
        redoc_url=None,
        # Telemetry would quote requests, and send them wherever environment variables say.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
        lifespan=_lifespan(settings, archive, access, rates, metrics, traces),
    )
    app.state.metrics = metrics
    app.state.language = settings.server.language
    install_problems(app)
    for routes in _ROUTES:
        app.include_router(routes.router)
    _complete_openapi(app)
    server = settings.server
    # The middleware added last is the outermost.
    app.add_middleware(Slots, server=server, load=load)
    app.add_middleware(
        BodyLimit,
        max_bytes=server.max_upload_bytes + FRAME_ALLOWANCE,
        max_store_bytes=settings.receive.max_request_bytes,
    )
    app.add_middleware(Throttle, rates=rates)
    app.add_middleware(Guard, access=access)
    app.add_middleware(Bodies, server=server)
    app.add_middleware(Compression)
    app.add_middleware(UnexpectedErrors)
    if settings.audit.enabled:
        app.add_middleware(Audited)
    app.add_middleware(Overload, server=server, load=load)
    app.add_middleware(Timed)
    # It answers preflights itself, and says of some answers that other origins may have them.
    app.add_middleware(Origins, server=server)
    app.add_middleware(SecurityHeaders, server=server)
    observers = (metrics,) if traces is None else (metrics, traces)
    app.add_middleware(Observed, observers=observers, lines=server.log_requests)
    app.add_middleware(Proxies, trusted=server.trusted_proxies)
    app.add_middleware(RequestIds)
    app.add_middleware(Head)
    return app


class SecurityHeaders:
    """ASGI middleware that adds security headers to every response, and keeps HTML and JSON out of
    caches."""

    def __init__(self, app: ASGIApp, server: ServerSettings) -> None:
        self._app = app
        self._headers = security_headers(server)
        self._hsts = f"max-age={server.hsts_seconds}" if server.hsts_seconds else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
                # On plain HTTP it would not be believed (RFC 6797, 7.2).
                if self._hsts is not None and scope.get("scheme") == "https":
                    headers.setdefault("Strict-Transport-Security", self._hsts)
                if headers.get("content-type", "").startswith(_NOT_STORED):
                    headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self._app(scope, receive, with_headers)


def _lifespan(
    settings: Settings,
    given: Archive | None,
    access: Access,
    rates: Rates,
    metrics: Metrics,
    traces: Traces | None,
) -> Any:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        # A thread for each request at work, and some for those that are only let in, and for health
        # checks.
        threads = anyio.to_thread.current_default_thread_limiter()
        threads.total_tokens = settings.server.max_at_once + _THREADS_BESIDE
        with ExitStack() as opened:
            for one in (access, rates, traces):
                if one is not None:
                    opened.enter_context(closing(one))
            audit = None
            if settings.audit.enabled:
                audit = opened.enter_context(Writer(lambda: open_log(settings)))
            at_hand = opened.enter_context(closing(AuditAtHand(settings)))
            ledger = opened.enter_context(closing(LedgerAtHand(settings)))
            previews = opened.enter_context(closing(Previews(settings)))
            try:
                serving = opened.enter_context(Serving(settings, given))
                work = opened.enter_context(Work(settings, serving))
                sender = opened.enter_context(Sender(settings, serving, audit))
            except PrecedentError as error:
                # For whoever runs the service: the server itself logs a long traceback, and ends.
                app.state.failed = error
                raise
            metrics.archive.serving = serving
            metrics.archive.received = work.waiting_bytes
            metrics.archive.sendings = sender.outbox.count
            if audit is not None:
                metrics.archive.heads = partial(_audit_heads, settings)
            opened.callback(metrics.listen(settings.server))
            # What answers need. Whoever adds to the service what may be missing adds it here.
            checks = {
                "model": serving.check_model,
                "store": serving.check_store,
                "ledger": ledger.check,
            }
            if audit is not None:
                checks["audit"] = partial(_check_audit, settings)
            app.state.readiness = Readiness(checks)
            yield {
                "serving": serving,
                "access": access,
                "rates": rates,
                "audit": audit,
                "audit_at_hand": at_hand,
                "ledger": ledger,
                "previews": previews,
                "readiness": app.state.readiness,
                "events": Events(),
                "remembered": Remembered(),
                "metrics": metrics,
                "work": work,
                "sender": sender,
            }

    return lifespan


def _check_audit(settings: Settings) -> None:
    """Raises AuditError if no access can be recorded."""
    with open_log(settings) as log:
        log.check()


def _audit_heads(settings: Settings) -> list[AuditHead]:
    """The last row of each chain of the audit log that was written to lately."""
    with open_log(settings) as log:
        return list(log.heads(datetime.now(UTC) - _LATELY).values())


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
                servers=app.servers,
                routes=app.routes,
            )
            schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
            parts = schema.pop("$defs", {})
            document["components"]["schemas"] |= {
                **parts,
                **FHIR_SCHEMAS,
                **QIDO_SCHEMAS,
                "Problem": schema,
            }
            body_schemas(document)
            for route in (route for routes in _ROUTES for route in routes.router.routes):
                if isinstance(route, APIRoute) and route.include_in_schema:
                    _set_examples(document["paths"][route.path_format], route)
            _set_security(document)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]


def _set_security(document: dict[str, Any]) -> None:
    """Adds to the document which operations ask for a key, and the scopes that they need."""
    document["components"]["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "description": _CREDENTIALS}
    }
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            needed = POLICY.get((method.upper(), path))
            refusals = problem_responses(401, 403)
            if path in _ANY_KEY:
                operation["security"] = [{"key": []}]
            elif needed is None:
                operation["security"] = [{}, {"key": []}]
            else:
                operation["security"] = [{"key": [needed.value]}]
            # What any request may be answered before its route sees it.
            limits = problem_responses(408, 429, 431, 503) if path not in ALWAYS_ANSWERED else {}
            for status, answer in {**refusals, **limits}.items():
                operation["responses"].setdefault(str(status), answer)


def _set_examples(path: dict[str, Any], route: APIRoute) -> None:
    """Sets the examples of a route's answers in the document's entry of its path."""
    for method in route.methods or ():
        for status, answer in route.responses.items():
            for media, content in answer.get("content", {}).items():
                if "example" in content:
                    described = path[method.lower()]["responses"][str(status)]
                    described["content"][media]["example"] = content["example"]
