"""Whether the service lives, answers, and is ready for requests."""

import logging
from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict

from api.http.deps import ArchiveDep
from api.http.problems import NotReady, problem_responses
from api.http.readiness import Readiness
from engine.store.base import Filter

__all__ = ["HealthDocument", "ReadyDocument", "router"]

router = APIRouter(tags=["service"])
_LOG = logging.getLogger("precedent.api")


class HealthDocument(BaseModel):
    """State of the service.

    - `points`: number of images (frames) in the index.
    - `model`: fingerprint of the model that made the index.

    Both are null for callers without a key, where keys are in use.
    """

    model_config = ConfigDict(
        frozen=True,
        json_schema_extra={
            "examples": [{"status": "ok", "points": 7211, "model": "6f2d9c0b7a31e5d4"}]
        },
    )

    status: Literal["ok"]
    points: int | None
    model: str | None


class ReadyDocument(BaseModel):
    """The service is ready. `checked`: what it needs, and has."""

    model_config = ConfigDict(
        frozen=True,
        json_schema_extra={
            "examples": [{"status": "ready", "checked": ["model", "store", "ledger"]}]
        },
    )

    status: Literal["ready"]
    checked: list[str]


@router.get(
    "/healthz",
    operation_id="getHealth",
    summary="Whether the service answers",
    responses=problem_responses(503),
)
def get_health(request: Request, archive: ArchiveDep) -> HealthDocument:
    """Answers 200 when model and index are open and the index can count its points."""
    points = archive.store.count(Filter())
    if request.state.caller is None:
        return HealthDocument(status="ok", points=None, model=None)
    return HealthDocument(status="ok", points=points, model=archive.manifest.fingerprint)


@router.get("/livez", include_in_schema=False)
async def get_liveness() -> Response:
    """Answers 200 as long as the process answers anything, whatever it lacks: one that does not is
    to be started anew. For whoever runs the service, and in its event loop."""
    return Response("alive\n", media_type="text/plain")


@router.get(
    "/readyz",
    operation_id="getReadiness",
    summary="Whether requests should be sent here",
    responses=problem_responses(503),
)
def get_readiness(request: Request) -> ReadyDocument:
    """Answers 503, and says what, while something that answers need is missing, and once the
    service is being ended: requests that have come are finished, and others belong elsewhere."""
    readiness: Readiness = request.state.readiness
    if readiness.is_draining:
        raise NotReady("the service is being ended; ask another one", draining=True)
    missing = readiness.missing()
    for name, error in missing.items():
        _LOG.warning("not ready: %s: %s", name, error)
    if missing:
        raise NotReady(
            f"{', '.join(missing)} cannot be used at the moment; the service's log says why",
            missing=tuple(missing),
        )
    return ReadyDocument(status="ready", checked=list(readiness.names))
