"""The answers on an archive and its model as a whole, as the OpenAPI document describes them."""

from pydantic import BaseModel, ConfigDict

from .answers import Image

__all__ = [
    "ArchiveMap",
    "Calibration",
    "Drift",
    "FlaggedShare",
    "ForeignQuestions",
    "ForeignQuestionsOfDay",
    "ForeignShare",
    "Growth",
    "GrowthPeriod",
    "MapPoint",
    "MapRegion",
    "Refusal",
    "Refusals",
    "RefusedExample",
]


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())


class MapPoint(Image):
    """An image of the map, and its place in it, from 0 to 1."""

    x: float
    y: float


class MapRegion(_Answer):
    """A square of the map; ``example`` is the id of its most central image."""

    column: int
    row: int
    images: int
    example: str


class ArchiveMap(_Answer):
    """A sample of the images in the plane in which their features differ most; ``kept`` is the
    share of their variance that each axis has."""

    points: list[MapPoint]
    images: int
    kept: list[float]
    regions: list[MapRegion]
    model: str


class GrowthPeriod(_Answer):
    """A day or month: images indexed in it, and by its end."""

    period: str
    images: int
    in_all: int


class Growth(_Answer):
    """When images were indexed; of ``without_time`` it is not known."""

    by: str
    periods: list[GrowthPeriod]
    without_time: int


class RefusedExample(_Answer):
    """A refused instance; its name is told to those alone who may see it."""

    instance: str | None
    detail: str
    sop: str | None


class Refusal(_Answer):
    """A reason for which instances are refused."""

    reason: str
    instances: int
    examples: list[RefusedExample]


class Refusals(_Answer):
    """What is refused, the most frequent reason first."""

    refusals: list[Refusal]
    instances: int


class ForeignShare(_Answer):
    """A share of judged images that are foreign, with its 95 % interval; None: none was judged."""

    judged: int
    foreign: int
    share: float | None
    low: float
    high: float


class ForeignQuestions(ForeignShare):
    """The same of questions, of which so many were ``unfamiliar``."""

    unfamiliar: int


class ForeignQuestionsOfDay(ForeignQuestions):
    """The same of one day, UTC."""

    day: str


class FlaggedShare(ForeignShare):
    """The same of calibration images: of those whose p is at or below ``expected``."""

    expected: float


class Calibration(_Answer):
    """The gate that judges whether an image is of a kind that the model knows."""

    calibrated: bool
    alpha: float | None
    level: float | None
    images: int
    detectors: list[str]
    curve: list[FlaggedShare]


class Drift(_Answer):
    """Which share of the questions was foreign, by day and of the ``latest`` together; there is
    nothing unless the service has ``recorded`` accesses."""

    recorded: bool
    alpha: float | None
    level: float | None
    days: list[ForeignQuestionsOfDay]
    latest: ForeignQuestions | None
    since: str | None
