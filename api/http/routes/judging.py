"""How the model judges what it is asked about: the calibration of its gate, and drift."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict

from api.audit.drift import MOST_DAYS, MOST_LATEST, Drift, Judged, drift
from api.audit.log import open_log
from api.http.deps import ArchiveDep
from api.http.problems import problem_responses
from api.http.remembered import Remembered
from engine.evaluation.intervals import wilson
from engine.ood.calibration import OodGate
from engine.ood.curve import Flagged, calibration_curve
from indexer.archive import TenantArchive

__all__ = [
    "DAYS",
    "LATEST",
    "CalibrationDocument",
    "DriftDocument",
    "FlaggedDocument",
    "QuestionsDocument",
    "ShareDocument",
    "get_calibration",
    "get_drift",
    "router",
]

router = APIRouter(tags=["service"])

DAYS, LATEST = 30, 200
_DRIFT_SECONDS = 15.0
_CURVE_SECONDS = 86_400.0


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, protected_namespaces=())


class ShareDocument(_Document):
    """A share of judged images that are foreign. `low`, `high`: its 95 % interval (Wilson)."""

    judged: int
    foreign: int
    share: float | None
    low: float
    high: float


class QuestionsDocument(ShareDocument):
    """The same of questions. `unfamiliar`: so many were that."""

    unfamiliar: int


class DayDocument(QuestionsDocument):
    """The same of one day, as in "2026-11-30", UTC."""

    day: str


class FlaggedDocument(ShareDocument):
    """The same of calibration images: `foreign` are those whose p is at or below `expected`."""

    expected: float


_SHARE: dict[str, Any] = {
    "judged": 200,
    "foreign": 9,
    "share": 0.045,
    "low": 0.0239,
    "high": 0.0833,
}


class CalibrationDocument(_Document):
    """The gate that judges whether an image is of a kind that the model knows.

    - `calibrated`: there is one. Without it there are no verdicts, and the rest is empty.
    - `alpha`: the share of known images that may be called foreign. `level`: that which may be
      called other than known; null: it was calibrated without images of other sources, and calls
      none unfamiliar.
    - `images`: known images that it was calibrated on. `detectors`: by which it judges, together.
    - `curve`: each half of the calibration images, judged by the other half: which share of them
      has a p at or below each share, and would be called foreign or, with a `level`, other than
      known.
    """

    model_config = ConfigDict(
        frozen=True,
        protected_namespaces=(),
        json_schema_extra={
            "examples": [
                {
                    "calibrated": True,
                    "alpha": 0.03,
                    "level": 0.05,
                    "images": 200,
                    "detectors": ["knn", "appearance"],
                    "curve": [{"expected": 0.05, **_SHARE}],
                }
            ]
        },
    )

    calibrated: bool
    alpha: float | None
    level: float | None
    images: int
    detectors: list[str]
    curve: list[FlaggedDocument]


class DriftDocument(_Document):
    """Which share of the caller's questions was foreign to the model, as the audit log has it.

    - `recorded`: the service keeps an audit log. Without it the rest is empty.
    - `alpha`: the share of known images that may be called foreign; null: nothing is judged. A
      share whose interval lies above it is of images that the model does not know. `level`: that
      which may be called other than known; null: none is called unfamiliar.
    - `days`: those with such questions, in order. `latest`: the last ones together.
    - `since`: the first day that was looked at; fewer days are than were asked for where there
      are more than some thousand questions.

    An access counts once, by the least familiar of its images. Verdicts are those of the gate that
    was in force then.
    """

    model_config = ConfigDict(
        frozen=True,
        protected_namespaces=(),
        json_schema_extra={
            "examples": [
                {
                    "recorded": True,
                    "alpha": 0.03,
                    "level": 0.05,
                    "days": [{"day": "2026-11-30", "unfamiliar": 3, **_SHARE}],
                    "latest": {"unfamiliar": 3, **_SHARE},
                    "since": "2026-11-01",
                }
            ]
        },
    )

    recorded: bool
    alpha: float | None
    level: float | None
    days: list[DayDocument]
    latest: QuestionsDocument | None
    since: str | None


@router.get(
    "/v1/model/calibration",
    operation_id="getCalibration",
    summary="The gate that judges whether the model knows an image",
    responses=problem_responses(503),
)
def get_calibration(request: Request, archive: ArchiveDep) -> CalibrationDocument:
    """On how many images it was calibrated, and how often it calls known images foreign."""
    gate = archive.engine.gate
    if gate is None:
        return CalibrationDocument(
            calibrated=False, alpha=None, level=None, images=0, detectors=[], curve=[]
        )
    known: Remembered = request.state.remembered
    # Of the model, and so the same for all tenants.
    curve: list[Flagged] = known.of(
        "",
        "calibration",
        lambda: calibration_curve(gate),
        stamp=(archive.manifest.fingerprint, gate.alpha, gate.images, id(gate)),
        seconds=_CURVE_SECONDS,
    )
    return CalibrationDocument(
        calibrated=True,
        alpha=gate.alpha,
        level=_level(gate),
        images=gate.images,
        detectors=[one.name for one in gate.detectors],
        curve=[
            FlaggedDocument(expected=one.expected, **_share(one.flagged, one.images))
            for one in curve
        ],
    )


@router.get(
    "/v1/model/drift",
    operation_id="getDrift",
    summary="Which share of the questions was foreign to the model",
    responses=problem_responses(400, 422, 503),
)
def get_drift(
    request: Request,
    archive: ArchiveDep,
    days: Annotated[
        int,
        Query(
            description="The last so many days, today included.",
            json_schema_extra={"minimum": 1, "maximum": MOST_DAYS},
        ),
    ] = DAYS,
    latest: Annotated[
        int,
        Query(
            description="The last so many questions.",
            json_schema_extra={"minimum": 1, "maximum": MOST_LATEST},
        ),
    ] = LATEST,
) -> DriftDocument:
    """By day, and of the last questions together, with intervals; read anew after 15 seconds."""
    gate = archive.engine.gate
    alpha = None if gate is None else gate.alpha
    level = None if gate is None else _level(gate)
    if not archive.settings.audit.enabled:
        return DriftDocument(
            recorded=False, alpha=alpha, level=level, days=[], latest=None, since=None
        )
    known: Remembered = request.state.remembered
    found = known.of(
        archive.tenant,
        ("drift", days, latest),
        lambda: _read(archive, days, latest),
        seconds=_DRIFT_SECONDS,
    )
    return DriftDocument(
        recorded=True,
        alpha=alpha,
        level=level,
        days=[DayDocument(day=one.day or "", **_share_of(one)) for one in found.days],
        latest=QuestionsDocument(**_share_of(found.latest)),
        since=found.since,
    )


def _read(archive: TenantArchive, days: int, latest: int) -> Drift:
    with open_log(archive.settings) as log:
        return drift(log, archive.tenant, days=days, latest=latest)


def _level(gate: OodGate) -> float | None:
    return None if gate.elsewhere is None else gate.level


def _share_of(judged: Judged) -> dict[str, Any]:
    return {**_share(judged.foreign, judged.judged), "unfamiliar": judged.unfamiliar}


def _share(foreign: int, judged: int) -> dict[str, Any]:
    low, high = wilson(foreign, judged)
    return {
        "judged": judged,
        "foreign": foreign,
        "share": round(foreign / judged, 4) if judged else None,
        "low": round(low, 4),
        "high": round(high, 4),
    }
