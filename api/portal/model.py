"""The page of the model: what it is, how its gate is calibrated, and whether questions drift."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse

from api.http.deps import ArchiveDep
from api.http.routes.about import get_model
from api.http.routes.judging import DriftDocument, get_calibration, get_drift
from api.portal import charts, words
from api.portal.advice import about_drift
from api.portal.catalogues import gettext, grouped
from api.portal.page_route import PageRoute, page
from engine.model.manifest import Manifest

__all__ = ["router", "trained"]

router = APIRouter(
    route_class=PageRoute, include_in_schema=False, default_response_class=HTMLResponse
)

_TOP = 0.6
"""The share at the ends of the axes of the calibration curve."""
_TOLD_ELSEWHERE = ("config", "history", "run", "licence", "images")
_MOST_FACTS = 12
_LONGEST = 200


@router.get("/model")
def show_model(request: Request, archive: ArchiveDep) -> HTMLResponse:
    """What the model is, how it judges, and whether what it is asked drifts away from it."""
    calibration = get_calibration(request, archive)
    found = get_drift(request, archive)
    top = _top(found)
    values: dict[str, Any] = {
        "model": get_model(archive),
        "trained": trained(archive.manifest),
        "calibration": calibration,
        "curve": charts.curve(calibration.curve, _TOP),
        "drift": found,
        "days": charts.intervals([(one.day, one) for one in found.days], top),
        "top": top,
        "alpha_at": None if found.alpha is None else round(100 * (1 - found.alpha / top), 2),
        "advice": about_drift(found),
        "refuses": archive.settings.search.ood_policy == "refuse",
        "words": words,
    }
    return page(request, "model.html", values)


def _top(found: DriftDocument) -> float:
    """The share at the upper edge: intervals of days with few questions would leave no room for
    what there is to see."""
    shares = [one.share or 0.0 for one in found.days]
    return min(1.0, max([0.1, 3 * (found.alpha or 0.0), *(1.2 * one for one in shares)]))


def trained(manifest: Manifest) -> list[tuple[str, str]]:
    """What the manifest says of the training: names and values."""
    told = manifest.training
    found: list[tuple[str, str]] = []
    if isinstance(images := told.get("images"), int):
        found.append((gettext("Images"), grouped(images)))
    config = told.get("config")
    if isinstance(config, dict) and isinstance(epochs := config.get("epochs"), int):
        found.append((gettext("Epochs"), grouped(epochs)))
    for name, value in told.items():
        if name in _TOLD_ELSEWHERE:
            continue
        if isinstance(value, list) and all(isinstance(one, str) for one in value):
            value = ", ".join(value)
        if isinstance(value, str | int | float) and value != "":
            title = str(name).replace("_", " ")
            found.append((title[:1].upper() + title[1:], str(value)[:_LONGEST]))
    return found[:_MOST_FACTS]
