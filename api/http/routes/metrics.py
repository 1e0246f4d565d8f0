"""Figures of the service, for Prometheus."""

from fastapi import APIRouter, Request, Response

from api.http.metrics import MEDIA_TYPE, Metrics
from api.http.problems import problem_responses

__all__ = ["router"]

router = APIRouter(tags=["service"])

_EXAMPLE = "# TYPE precedent_requests_in_flight gauge\nprecedent_requests_in_flight 1.0\n"


@router.get(
    "/metrics",
    operation_id="getMetrics",
    summary="Figures of the service, in the format of Prometheus",
    response_class=Response,
    responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}, "example": _EXAMPLE}}},
        **problem_responses(503),
    },
)
def get_metrics(request: Request) -> Response:
    """Of this process; numbers of images and jobs are of all tenants together."""
    metrics: Metrics = request.state.metrics
    return Response(metrics.text(), media_type=MEDIA_TYPE)
