"""Maps every error of the HTTP service to an RFC 9457 problem document."""

import logging
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.observing import note_problem
from api.http.request_ids import request_id_of
from engine.errors import (
    AccessError,
    AuditError,
    DestinationUnknown,
    DocumentError,
    ImageNotFound,
    ImageRefused,
    JobError,
    JobNotFound,
    KeyNotFound,
    LedgerError,
    ModelError,
    NotAllowed,
    NotAuthenticated,
    PrecedentError,
    ProviderUnavailable,
    QueryError,
    QueryExpired,
    RefusalReason,
    SendingNotFound,
    SourceChanged,
    SourceError,
    SourceGone,
    StorageError,
    StoreError,
    StoreLocked,
    StoreNotFound,
)

__all__ = [
    "MEDIA_TYPE",
    "FieldProblem",
    "NotReady",
    "Problem",
    "UnexpectedErrors",
    "install_problems",
    "log_problem",
    "problem_of",
    "problem_response",
    "problem_responses",
]

MEDIA_TYPE = "application/problem+json"
_TYPE = "urn:precedent:problem:"
_LOG = logging.getLogger("precedent.api")


class FieldProblem(BaseModel):
    """What is wrong with one field of a request. Its value is not repeated, because it may identify
    a patient."""

    model_config = ConfigDict(frozen=True)

    field: str
    message: str


class Problem(BaseModel):
    """An error, as RFC 9457 problem details.

    `type` and `code` are stable. Scripts should test `code`: it is the most specific, and for an
    image that cannot be used it names the reason. `errors` lists invalid fields of the request.
    """

    model_config = ConfigDict(
        frozen=True,
        json_schema_extra={
            "examples": [
                {
                    "type": "urn:precedent:problem:image-not-found",
                    "title": "No such image",
                    "status": 404,
                    "detail": "no indexed image has id '00000000-0000-0000-0000-000000000000'; "
                    "ids are in the answers of a search",
                    "code": "image-not-found",
                    "instance": "/v1/images/00000000-0000-0000-0000-000000000000",
                    "request_id": "0b9d3c5a1f8e4d6c9a7b2e4f6a8c0d1e",
                }
            ]
        },
    )

    type: str = Field(description="URN of the kind of problem.")
    title: str
    status: int
    detail: str = Field(description="What is wrong this time, and the way out.")
    code: str
    instance: str = Field(description="Path that was asked for.")
    request_id: str | None = Field(
        default=None, description="Id of the request, as in the header X-Request-Id."
    )
    errors: list[FieldProblem] | None = None
    missing: list[str] | None = Field(
        default=None, description="What the service lacks to be ready: model, store, ledger …"
    )


class NotReady(HTTPException):
    """The service should not be sent requests now. missing: what it lacks. draining: it is being
    ended."""

    def __init__(self, detail: str, missing: tuple[str, ...] = (), *, draining: bool = False):
        super().__init__(HTTPStatus.SERVICE_UNAVAILABLE, detail)
        self.code = "draining" if draining else "not-ready"
        self.missing = missing


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of problem. detail: replaces the error's own message where that may name paths on the
    server; None = the message itself is sent."""

    name: str
    status: HTTPStatus
    title: str
    detail: str | None = None


_UNEXPECTED = _Kind(
    "internal",
    HTTPStatus.INTERNAL_SERVER_ERROR,
    "The service failed",
    "an error that was not foreseen; the service's log says where it happened",
)
_NO_INDEX = _Kind(
    "store",
    HTTPStatus.SERVICE_UNAVAILABLE,
    "The index is not available",
    "the index cannot answer at the moment; the service's log says why",
)
_KINDS: Mapping[type[BaseException], _Kind] = {
    PrecedentError: _UNEXPECTED,
    QueryError: _Kind("query", HTTPStatus.BAD_REQUEST, "The query cannot be answered"),
    ImageNotFound: _Kind("image-not-found", HTTPStatus.NOT_FOUND, "No such image"),
    QueryExpired: _Kind("query-expired", HTTPStatus.GONE, "This search is over"),
    ImageRefused: _Kind(
        "image-refused", HTTPStatus.UNPROCESSABLE_ENTITY, "The image cannot be used"
    ),
    AccessError: _Kind("access", HTTPStatus.BAD_REQUEST, "This key cannot be made"),
    KeyNotFound: _Kind("key-not-found", HTTPStatus.NOT_FOUND, "No such key"),
    NotAuthenticated: _Kind(
        "not-authenticated", HTTPStatus.UNAUTHORIZED, "The service does not know who asks"
    ),
    NotAllowed: _Kind("not-allowed", HTTPStatus.FORBIDDEN, "This is not allowed"),
    ProviderUnavailable: _Kind(
        "identity-provider",
        HTTPStatus.SERVICE_UNAVAILABLE,
        "The identity provider cannot be asked",
        "this token cannot be checked, because the identity provider does not answer; try again "
        "later, or send an API key; the service's log says why",
    ),
    StoreError: _NO_INDEX,
    StoreNotFound: _Kind(
        "store",
        HTTPStatus.SERVICE_UNAVAILABLE,
        "There is no index yet",
        "nothing has been indexed yet; the service answers soon after something is",
    ),
    StoreLocked: _Kind(
        "store-locked",
        HTTPStatus.SERVICE_UNAVAILABLE,
        "The index is in use",
        "another process holds the index; try again when it is done",
    ),
    LedgerError: _Kind(
        "ledger",
        HTTPStatus.SERVICE_UNAVAILABLE,
        "The ledger is not available",
        "the ledger cannot answer at the moment; the service's log says why",
    ),
    AuditError: _Kind(
        "audit",
        HTTPStatus.SERVICE_UNAVAILABLE,
        "The access cannot be recorded",
        "the audit log takes no rows at the moment, and without one nothing is answered; the "
        "service's log says why",
    ),
    StorageError: _Kind(
        "storage",
        HTTPStatus.SERVICE_UNAVAILABLE,
        "The object store is not available",
        "where thumbnails lie does not answer, or refuses; the service's log says why",
    ),
    JobError: _Kind("job", HTTPStatus.CONFLICT, "The job does not allow this"),
    JobNotFound: _Kind("job-not-found", HTTPStatus.NOT_FOUND, "No such job"),
    DocumentError: _Kind("document", HTTPStatus.CONFLICT, "No document can be made or sent"),
    DestinationUnknown: _Kind(
        "destination-unknown", HTTPStatus.BAD_REQUEST, "There is no such destination"
    ),
    SendingNotFound: _Kind("sending-not-found", HTTPStatus.NOT_FOUND, "No such sending"),
    SourceError: _Kind(
        "source",
        HTTPStatus.BAD_GATEWAY,
        "The source is not available",
        "where the image comes from cannot be reached, or refuses; the service's log says why",
    ),
    SourceGone: _Kind("source-gone", HTTPStatus.GONE, "The original is not there any more"),
    SourceChanged: _Kind("source-changed", HTTPStatus.CONFLICT, "The original has changed"),
    ModelError: _Kind(
        "model",
        HTTPStatus.SERVICE_UNAVAILABLE,
        "The model is not available",
        "the model cannot be used; the service's log says why",
    ),
}
_HTTP_DETAILS: Mapping[int, tuple[str, str]] = {
    404: ("not-found", "nothing is served at this address; /openapi.json lists what is"),
    405: ("method-not-allowed", "this address takes another method; the Allow header names it"),
    413: ("too-large", "the request is larger than the service takes"),
    415: ("unsupported-media-type", "this address takes another Content-Type; see /openapi.json"),
}
_HTTP_TITLES: Mapping[int, str] = {413: "Content Too Large"}
"""Of RFC 9110, where Pythons differ."""


def problem_of(error: Exception, path: str, request_id: str | None = None) -> Problem:
    """The problem document for an error that occurred in a request for ``path``."""
    return _problem_of(error, path).model_copy(update={"request_id": request_id})


def _problem_of(error: Exception, path: str) -> Problem:
    match error:
        case PrecedentError():
            return _of_precedent_error(error, path)
        case NotReady():
            kind = _Kind(error.code, HTTPStatus.SERVICE_UNAVAILABLE, "The service is not ready")
            problem = _problem(kind, error.code, error.detail, path)
            return problem.model_copy(update={"missing": list(error.missing) or None})
        case RequestValidationError():
            return _of_validation_error(error, path)
        case HTTPException():
            return _of_http_error(error, path)
        case _:
            return _problem(_UNEXPECTED, _UNEXPECTED.name, _UNEXPECTED.detail or "", path)


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` argument of a route that may answer with problems of these statuses."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": content}
        for status in statuses
    }


def log_problem(problem: Problem, error: Exception) -> None:
    """Logs the message of an error with a 5xx status, because its problem document omits it."""
    if problem.status >= HTTPStatus.INTERNAL_SERVER_ERROR and isinstance(error, PrecedentError):
        _LOG.error("%s: %s", error.code, error)


def install_problems(app: FastAPI) -> None:
    """Makes ``app`` answer the errors that :func:`problem_of` maps with problem documents."""
    for kind in (PrecedentError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _respond)


class UnexpectedErrors:
    """ASGI middleware that logs an unexpected exception and answers it with a 500 problem document.

    If the response has already begun, the exception is raised again. Starlette's own handler runs
    outside all middleware, so its response would lack the security headers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except ClientDisconnect:
            # In the middle of its body: nobody is there for an answer, and nothing went wrong here.
            return
        except Exception as error:
            _log_unexpected(error)
            if started:
                raise
            problem = problem_of(error, scope["path"], request_id_of(scope))
            await problem_response(problem)(scope, receive, send)


async def _respond(request: Request, error: Exception) -> JSONResponse:
    problem = problem_of(error, request.url.path, request_id_of(request.scope))
    log_problem(problem, error)
    headers = error.headers if isinstance(error, HTTPException) else None
    return problem_response(problem, headers)


def problem_response(problem: Problem, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The answer that carries a problem document."""
    note_problem(problem.code)
    return JSONResponse(
        problem.model_dump(mode="json", exclude_none=True),
        problem.status,
        headers=headers,
        media_type=MEDIA_TYPE,
    )


def _of_precedent_error(error: PrecedentError, path: str) -> Problem:
    kind = next(_KINDS[base] for base in type(error).__mro__ if base in _KINDS)
    if isinstance(error, ImageRefused):
        problem = _problem(kind, error.code, error.detail, path)
        if error.reason is RefusalReason.TOO_LARGE:
            return problem.model_copy(update={"status": HTTPStatus.REQUEST_ENTITY_TOO_LARGE.value})
        return problem
    return _problem(kind, error.code, kind.detail or str(error), path)


def _of_validation_error(error: RequestValidationError, path: str) -> Problem:
    # The first part of a location is "body" or "query"; it is left out if a field name follows.
    found = [
        FieldProblem(
            field=".".join(str(part) for part in one["loc"][1:]) or str(one["loc"][0]),
            message=one["msg"],
        )
        for one in error.errors()
    ]
    detail = "; ".join(f"{one.field}: {one.message}" for one in found)
    kind = _Kind("invalid-request", HTTPStatus.UNPROCESSABLE_ENTITY, "The request is not valid")
    return _problem(kind, kind.name, detail, path).model_copy(update={"errors": found})


def _of_http_error(error: HTTPException, path: str) -> Problem:
    status = HTTPStatus(error.status_code)
    code, sentence = _HTTP_DETAILS.get(
        error.status_code, (status.phrase.lower().replace(" ", "-"), status.phrase)
    )
    # The detail of Starlette's own errors is only the status phrase.
    detail = sentence if error.detail == status.phrase else error.detail
    title = _HTTP_TITLES.get(error.status_code, status.phrase)
    return _problem(_Kind(code, status, title), code, detail, path)


def _problem(kind: _Kind, code: str, detail: str, path: str) -> Problem:
    return Problem(
        type=_TYPE + kind.name,
        title=kind.title,
        status=kind.status.value,
        detail=detail,
        code=code,
        instance=path,
    )


def _log_unexpected(error: Exception) -> None:
    # Only type and traceback: the message of an unexpected error may quote the request.
    places = "".join(traceback.format_tb(error.__traceback__))
    _LOG.error("unexpected %s\n%s", type(error).__name__, places)
