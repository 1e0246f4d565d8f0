"""The answers of the service, as its OpenAPI document describes them.

``tests/api/test_client_models.py`` holds them to the document. What a newer service adds is kept
in ``model_extra``; a text of which the document lists the values is any text here, since a newer
service may know more of them.
"""

from datetime import datetime

from pydantic import BaseModel, ConfigDict

__all__ = [
    "Answer",
    "BatchAnswer",
    "BatchResult",
    "CreatedJob",
    "Deleted",
    "Destination",
    "Destinations",
    "DuplicateGroup",
    "DuplicateImage",
    "Duplicates",
    "EmbedToken",
    "Facets",
    "FieldProblem",
    "Health",
    "Hit",
    "Image",
    "IndexState",
    "Instance",
    "Job",
    "Jobs",
    "ModelInfo",
    "OodVerdict",
    "Problem",
    "Ready",
    "RecommendationAnswer",
    "RecommendationEvidence",
    "RetriedJob",
    "SearchAnswer",
    "SearchEvidence",
    "Sending",
    "Sendings",
    "SentInstance",
    "Source",
    "Sources",
    "Stats",
    "Suggestion",
    "ViewerLink",
    "Vote",
    "Whoami",
]


class Answer(BaseModel):
    """What all answers are."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())


class FieldProblem(Answer):
    """What is wrong with one field of a request."""

    field: str
    message: str


class Problem(Answer):
    """An error, as RFC 9457 problem details. Test ``code``, which is stable."""

    type: str = "about:blank"
    title: str = ""
    status: int = 0
    detail: str = ""
    code: str = ""
    instance: str = ""
    request_id: str | None = None
    errors: list[FieldProblem] | None = None
    missing: list[str] | None = None


class Image(Answer):
    """One indexed image. ``frame`` is counted from 0; what is not known is None."""

    id: str
    study: str | None
    series: str | None
    sop: str | None
    frame: int
    modality: str | None
    body_part: str | None
    view: str | None
    laterality: str | None
    manufacturer: str | None
    sex: str | None
    age_band: str | None
    study_year: int | None
    labels: list[str]
    source: str | None
    burned_in: bool | None


class ViewerLink(Answer):
    """A link that opens a hit in one of the hospital's viewers; ``beside``: with the query."""

    name: str
    title: str
    url: str
    beside: str | None


class Hit(Image):
    """An indexed image that was found: ``similarity`` in [-1, 1], ``hamming`` in bits, ``likeness``
    in [0, 1] or None."""

    similarity: float
    hamming: int | None
    likeness: float | None
    name: str | None
    missing_frames: str | None
    viewers: list[ViewerLink]


class OodVerdict(Answer):
    """Whether the query is unlike what the model knows: "known", "unfamiliar" or "foreign". If
    ``foreign``, hits may look alike and mean nothing."""

    verdict: str
    foreign: bool
    p: float
    alpha: float
    scores: dict[str, float]
    p_values: dict[str, float]
    p_elsewhere: float | None
    level: float | None


class SearchEvidence(Answer):
    """How the hits of a search were found. Counts of the fields in ``facets_at_least`` are lower
    bounds."""

    rung: str
    radius: int | None
    cells: int | None
    cells_in_all: int | None
    matching: int
    candidates: int
    estimated: bool
    facets_estimated: bool
    facets_at_least: list[str]
    compared: int
    approximate: bool
    ranked: int
    rungs_tried: dict[str, int]
    order: str
    query_id: str | None = None
    model: str
    bits: int
    precision: str
    index_precision: str | None
    rendering: str | None
    rendered_otherwise: int
    note: str | None
    timings_ms: dict[str, float]


class SearchAnswer(Answer):
    """The answer to a search. ``ood`` is None where the model cannot judge the query."""

    ood: OodVerdict | None
    evidence: SearchEvidence
    hits: list[Hit]
    facets: dict[str, dict[str, int]]
    next_page: str | None


class BatchResult(Answer):
    """The ``answer`` for one image of a batch, or its ``problem``. ``number``: its place, from
    0."""

    number: int
    query: str
    answer: SearchAnswer | None
    problem: Problem | None


class BatchAnswer(Answer):
    """One result for each image, in the order sent."""

    results: list[BatchResult]


class Suggestion(Hit):
    """A recommended image. ``because``: id of the example that it is most like; None: an
    upload."""

    because: str | None


class Vote(Answer):
    """A label that hits carry. ``share`` is in [0, 1], and no probability."""

    label: str
    share: float
    hits: int


class RecommendationEvidence(Answer):
    """How recommended images were found. ``rule``: "image", or "series" or "study" where whole ones
    were compared, ``cases`` of them; ``liked`` of ``liked_of`` images were the examples."""

    rule: str
    liked: int
    liked_of: int
    disliked: int
    diversity: float
    model: str
    bits: int
    precision: str | None
    index_precision: str | None
    rungs: dict[str, int]
    candidates: int
    estimated: bool
    approximate: bool
    ranked: int
    cases: int | None
    cases_sampled: int
    nearer_to_disliked: int
    rendering: str | None
    rendered_otherwise: int
    note: str | None
    timings_ms: dict[str, float]


class RecommendationAnswer(Answer):
    """The cases most like examples."""

    ood: OodVerdict | None
    evidence: RecommendationEvidence
    hits: list[Suggestion]
    votes: list[Vote]


class Facets(Answer):
    """Number of images by field and value, of the ``count`` that match."""

    facets: dict[str, dict[str, int]]
    facets_estimated: bool
    facets_at_least: list[str]
    count: int


class DuplicateImage(Answer):
    """An image of a group of duplicates. ``similarity``: to the first one of the group."""

    id: str
    similarity: float
    identical: bool
    study: str | None
    series: str | None
    sop: str | None
    frame: int


class DuplicateGroup(Answer):
    """Two or more images that are the same picture, or nearly, of so many ``studies``."""

    studies: int
    images: list[DuplicateImage]


class Duplicates(Answer):
    """Groups of duplicates, the largest first."""

    groups: list[DuplicateGroup]
    compared: int
    more: bool


class ModelInfo(Answer):
    """The model that encodes uploads."""

    fingerprint: str
    tower: str
    bits: int
    dim: int
    input_side: int
    colour: bool
    precision: str
    index_precision: str | None
    size_bytes: int | None
    licence: str | None
    classes: list[str]
    judges: bool
    rendering: str | None


class IndexState(Answer):
    """The state of the index, which all tenants share."""

    profile: str
    quantised: bool
    cells: int | None


class Stats(Answer):
    """What the archive holds of the caller's."""

    points: int
    instances: dict[str, int]
    facets: dict[str, dict[str, int]]
    facets_at_least: list[str]
    model: str
    index: IndexState


class Source(Answer):
    """A source of images; its ``places`` are told to the scope `admin` alone."""

    name: str
    images: int
    kind: str | None
    places: list[str] | None


class Sources(Answer):
    """The sources of the caller's images."""

    sources: list[Source]
    images_at_least: bool


class Whoami(Answer):
    """Whose key it is, and what it allows."""

    id: str | None
    name: str | None
    scopes: list[str]
    tenant: str
    expires_at: datetime | None
    session: bool


class Job(Answer):
    """A job. ``state``: "running", "paused", "cancelled", "finished" or "failed"."""

    id: int
    kind: str
    source: str
    state: str
    status: str
    priority: int
    created_at: str | None
    started_at: str | None
    finished_at: str | None
    discovering: bool
    discovered: int
    total: int
    done: int
    unchanged: int
    indexed: int
    duplicates: int
    points: int
    refused: dict[str, int]
    tasks: dict[str, int]
    per_second: float | None
    seconds_left: float | None
    errors: dict[str, str] | None
    note: str | None


class Jobs(Answer):
    """Jobs, the newest first."""

    jobs: list[Job]
    next_page: str | None


class RetriedJob(Answer):
    """A job of which so many ``tasks`` are done again."""

    tasks: int
    job: Job


class CreatedJob(Answer):
    """``job``: the number of the job that was made."""

    job: int


class Instance(Answer):
    """An instance in the index. ``ids``: of its images. ``duplicate``: its picture was there
    before, from another file."""

    ids: list[str]
    study: str | None
    series: str | None
    sop: str | None
    duplicate: bool
    missing_frames: str | None


class Deleted(Answer):
    """What was removed, or would be (``dry_run``)."""

    dry_run: bool
    studies: int
    series: int
    instances: int
    points: int


class EmbedToken(Answer):
    """A token for another site's page, which ends at ``expires_at``."""

    token: str
    expires_at: str


class Health(Answer):
    """An index is open and answers."""

    status: str
    points: int | None
    model: str | None


class Ready(Answer):
    """Requests may be sent. ``checked``: what the service needs, and has."""

    status: str
    checked: list[str]


class Destination(Answer):
    """Where documents may be sent: "dicom" (C-STORE) or "stow" (STOW-RS)."""

    name: str
    kind: str


class Destinations(Answer):
    """Those of the caller's tenant."""

    destinations: list[Destination]


class SentInstance(Answer):
    """What became of one document: "stored", "refused" or "waiting". ``committed``: whether the
    destination answers for it; None: it did not say. ``failure``: the reason if it does not."""

    kind: str
    sop: str
    state: str
    status: str | None
    detail: str | None
    committed: bool | None
    failure: str | None


class Sending(Answer):
    """Documents on their way to a destination: "waiting" to be tried again, "sent", "failed" or
    "cancelled"."""

    id: str
    destination: str
    state: str
    attempts: int
    made_at: str
    next_at: str | None
    ended_at: str | None
    why: str | None
    commitment: str
    instances: list[SentInstance]


class Sendings(Answer):
    """The newest first."""

    sendings: list[Sending]
