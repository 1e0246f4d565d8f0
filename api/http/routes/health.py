"""The health check."""

from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict

from api.http.deps import ArchiveDep
from api.http.problems import problem_responses
from engine.store.base import Filter

__all__ = ["HealthDocument", "router"]

router = APIRouter(tags=["service"])


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
