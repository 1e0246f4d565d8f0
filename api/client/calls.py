"""What can be asked: each operation of the service as a :class:`Call`, without sending it.

``blocking`` and ``asynchronous`` send them; signatures and documentation are written once, here.
Fields and options have the names of the HTTP API, but for ``image``, its upload, and ``image_id``,
which is ``id`` there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from typing import Any

from .answers import (
    BatchAnswer,
    CreatedJob,
    Deleted,
    Destinations,
    Duplicates,
    EmbedToken,
    Facets,
    Health,
    Image,
    Instance,
    Job,
    Jobs,
    ModelInfo,
    Ready,
    RecommendationAnswer,
    RetriedJob,
    SearchAnswer,
    Sending,
    Sendings,
    Sources,
    Stats,
    Whoami,
)
from .call import Call, content, download, get, nothing, pairs, part, post, upload
from .overviews import ArchiveMap, Calibration, Drift, Growth, Refusals
from .uploads import Upload

__all__ = ["Texts"]

Texts = str | Sequence[str]
"""One text, or several."""


def search(
    image: Upload | None = None,
    *,
    image_id: str | None = None,
    sop: str | None = None,
    frame: int | None = None,
    series: str | None = None,
    study: str | None = None,
    text: str | None = None,
    region: str | None = None,
    k: int | None = None,
    where: Texts = (),
    order: str | None = None,
    exact: bool | None = None,
    radius: int | None = None,
    group_by: str | None = None,
    exclude_own: str | None = None,
    facets: bool | None = None,
    page: str | None = None,
) -> Call[SearchAnswer]:
    """The images most like one: an ``image`` that is sent and not kept, or an indexed one by its
    ``image_id``, ``sop`` (and ``frame``), ``series`` or ``study``; or that fit a ``text``.

    Args:
        region: the part of the picture to search by, "x,y,width,height" as shares of it.
        k: hits wanted. where: filters, as in "modality=CT". order: "content" or "hamming".
        exact: compare with every image. radius: with every image whose code is within so many bits.
        group_by: one hit of each "study" or "patient". exclude_own: leave out the image's own
            "study" or "patient".
        facets: count the values of the images that match. page: ``next_page`` of the answer before.
    """
    options = {
        "k": k,
        "where": _texts(where),
        "order": order,
        "exact": exact,
        "radius": radius,
        "group_by": group_by,
        "exclude_own": exclude_own,
        "facets": facets,
        "page": page,
    }
    named = {
        "id": image_id,
        "sop": sop,
        "frame": frame,
        "series": series,
        "study": study,
        "text": text,
        "region": region,
    }
    if image is None:
        return post("search", "/v1/search", SearchAnswer, {**named, **options})
    options = {**named, **options}
    return upload("search", "/v1/search", SearchAnswer, "file", (image,), options)


def search_batch(
    images: Sequence[Upload],
    *,
    k: int | None = None,
    where: Texts = (),
    order: str | None = None,
    exact: bool | None = None,
    radius: int | None = None,
    group_by: str | None = None,
    exclude_own: str | None = None,
    facets: bool | None = None,
) -> Call[BatchAnswer]:
    """The same for up to 64 images, which are encoded together: for each, in the order given, an
    answer or a problem. Options as of ``search``."""
    options = {
        "k": k,
        "where": _texts(where),
        "order": order,
        "exact": exact,
        "radius": radius,
        "group_by": group_by,
        "exclude_own": exclude_own,
        "facets": facets,
    }
    sent = tuple(images)
    return upload("searchBatch", "/v1/search/batch", BatchAnswer, "files", sent, options)


def recommend(
    image: Upload | None = None,
    *,
    like: Texts = (),
    dislike: Texts = (),
    study: str | None = None,
    series: str | None = None,
    rule: str | None = None,
    k: int | None = None,
    where: Texts = (),
    exact: bool | None = None,
    group_by: str | None = None,
    exclude_own: str | None = None,
    diversity: float | None = None,
) -> Call[RecommendationAnswer]:
    """The cases most like examples: an ``image`` that is sent, ids of indexed images to ``like``
    and ``dislike``, all images of a ``study`` or ``series``.

    Args:
        k, where, exact: as of ``search``. group_by: the best image of each "study" or "patient", or
            "none". exclude_own: leave out the examples' "study", "patient" or "none".
        diversity: 0 for the most similar ones, up to 1 for ones that differ from each other.
        rule: "image" for cases by their one image that is most like an example; "series" or "study"
            for whole ones, by the mean of each example's best match.
    """
    options = {
        "like": _texts(like),
        "dislike": _texts(dislike),
        "study": study,
        "series": series,
        "rule": rule,
        "k": k,
        "where": _texts(where),
        "exact": exact,
        "group_by": group_by,
        "exclude_own": exclude_own,
        "diversity": diversity,
    }
    if image is None:
        return post("recommend", "/v1/recommend", RecommendationAnswer, options)
    return upload("recommend", "/v1/recommend", RecommendationAnswer, "file", (image,), options)


def recommend_series(
    images: Sequence[Upload],
    *,
    rule: str | None = None,
    k: int | None = None,
    where: Texts = (),
    exact: bool | None = None,
    group_by: str | None = None,
    exclude_own: str | None = None,
    diversity: float | None = None,
) -> Call[RecommendationAnswer]:
    """The cases most like a series, of which up to 64 slices are sent. Options as of
    ``recommend``; whole series are compared unless ``rule`` says otherwise."""
    options = {
        "rule": rule,
        "k": k,
        "where": _texts(where),
        "exact": exact,
        "group_by": group_by,
        "exclude_own": exclude_own,
        "diversity": diversity,
    }
    sent = tuple(images)
    path = "/v1/recommend/series"
    return upload("recommendSeries", path, RecommendationAnswer, "files", sent, options)


def related(
    uid: str,
    *,
    rule: str | None = None,
    k: int | None = None,
    where: Texts = (),
    group_by: str | None = None,
    exclude_own: str | None = None,
    exact: bool | None = None,
    diversity: float | None = None,
) -> Call[RecommendationAnswer]:
    """The cases most like a study, by its Study Instance UID; options as of ``recommend``."""
    options = {
        "rule": rule,
        "k": k,
        "where": _texts(where),
        "group_by": group_by,
        "exclude_own": exclude_own,
        "exact": exact,
        "diversity": diversity,
    }
    path = f"/v1/studies/{part(uid)}/related"
    return get("getRelatedStudies", path, RecommendationAnswer, options)


def image(image_id: str) -> Call[Image]:
    """What the index knows of an image."""
    return get("getImage", f"/v1/images/{part(image_id)}", Image)


def thumbnail(image_id: str) -> Call[bytes]:
    """A small JPEG, made when the image was indexed."""
    return Call("getThumbnail", "GET", f"/v1/images/{part(image_id)}/thumbnail", content)


def preview(
    image_id: str,
    *,
    window: float | None = None,
    level: float | None = None,
    frame: int | None = None,
    size: int | None = None,
) -> Call[bytes]:
    """A JPEG of up to ``size`` pixels, made of the original now; ``window`` and ``level`` are given
    together."""
    options = {"window": window, "level": level, "frame": frame, "size": size}
    path = f"/v1/images/{part(image_id)}/preview"
    return Call("getPreview", "GET", path, content, pairs(options))


def facets(*, where: Texts = ()) -> Call[Facets]:
    """Counts by modality, body part and so on, of what matches."""
    return get("getFacets", "/v1/facets", Facets, {"where": _texts(where)})


def duplicates(
    *,
    where: Texts = (),
    similarity: float | None = None,
    max_bits: int | None = None,
    across_studies: bool | None = None,
    limit: int | None = None,
) -> Call[Duplicates]:
    """Groups of images that are the same picture, or nearly."""
    options = {
        "where": _texts(where),
        "similarity": similarity,
        "max_bits": max_bits,
        "across_studies": across_studies,
        "limit": limit,
    }
    return get("getDuplicates", "/v1/duplicates", Duplicates, options)


def model() -> Call[ModelInfo]:
    """The model that encodes uploads."""
    return get("getModel", "/v1/model", ModelInfo)


def stats() -> Call[Stats]:
    """What the archive holds, and the state of its index."""
    return get("getStats", "/v1/stats", Stats)


def archive_map(*, limit: int | None = None) -> Call[ArchiveMap]:
    """A sample of the images in the plane in which they differ most."""
    return get("getArchiveMap", "/v1/archive/map", ArchiveMap, {"limit": limit})


def archive_growth(*, by: str | None = None) -> Call[Growth]:
    """When images were indexed, by "day" or "month"."""
    return get("getArchiveGrowth", "/v1/archive/growth", Growth, {"by": by})


def archive_refusals(*, examples: int | None = None) -> Call[Refusals]:
    """What is refused, and why."""
    return get("getArchiveRefusals", "/v1/archive/refusals", Refusals, {"examples": examples})


def calibration() -> Call[Calibration]:
    """The gate that judges whether the model knows an image."""
    return get("getCalibration", "/v1/model/calibration", Calibration)


def drift(*, days: int | None = None, latest: int | None = None) -> Call[Drift]:
    """Which share of the questions was foreign to the model."""
    return get("getDrift", "/v1/model/drift", Drift, {"days": days, "latest": latest})


def sources() -> Call[Sources]:
    """Where images come from."""
    return get("getSources", "/v1/sources", Sources)


def whoami() -> Call[Whoami]:
    """Whose key it is, and what it allows."""
    return get("whoAmI", "/v1/whoami", Whoami)


def jobs(*, limit: int | None = None, page: str | None = None) -> Call[Jobs]:
    """The latest jobs, the newest first."""
    return get("listJobs", "/v1/jobs", Jobs, {"limit": limit, "page": page})


def job(number: int) -> Call[Job]:
    """How far a job is."""
    return get("getJob", f"/v1/jobs/{number:d}", Job)


def job_report(number: int) -> Call[None]:
    """Every instance of a job and its fate, as CSV."""
    return Call("getJobReport", "GET", f"/v1/jobs/{number:d}/report", nothing)


def job_events(number: int) -> Call[None]:
    """The progress of a job, as a stream."""
    return Call("getJobEvents", "GET", f"/v1/jobs/{number:d}/events", nothing)


def create_job(
    source: str,
    *,
    since: date | str | None = None,
    until: date | str | None = None,
    modality: str | None = None,
    study: str | None = None,
    again: bool | None = None,
    retry_refused: bool | None = None,
    delete_vanished: bool | None = None,
    at_most: float | None = None,
    priority: str | None = None,
) -> Call[CreatedJob]:
    """Index a source that the service's settings name.

    Args:
        since, until: study dates, both inclusive; with ``modality`` and ``study`` of DICOMweb
            sources alone.
        again: read what did not change as well. retry_refused: what was refused.
        delete_vanished: remove what the source no longer has, if that is no more than the share
            ``at_most`` of it.
        priority: "interactive" or "bulk".
    """
    fields = {
        "source": source,
        "since": None if since is None else str(since),
        "until": None if until is None else str(until),
        "modality": modality,
        "study": study,
        "again": again,
        "retry_refused": retry_refused,
        "delete_vanished": delete_vanished,
        "at_most": at_most,
        "priority": priority,
    }
    return post("createJob", "/v1/jobs", CreatedJob, fields, repeatable=False)


def pause_job(number: int) -> Call[Job]:
    """Let its workers stop after the instances that they have begun."""
    return post("pauseJob", f"/v1/jobs/{number:d}/pause", Job, repeatable=False)


def resume_job(number: int) -> Call[Job]:
    """Go on with a paused job."""
    return post("resumeJob", f"/v1/jobs/{number:d}/resume", Job, repeatable=False)


def cancel_job(number: int) -> Call[Job]:
    """End a job for good; what it has indexed stays."""
    return post("cancelJob", f"/v1/jobs/{number:d}/cancel", Job, repeatable=False)


def retry_job(number: int, *, refused: bool | None = None) -> Call[RetriedJob]:
    """Give its failed tasks, and with ``refused`` its refused instances, another chance."""
    path = f"/v1/jobs/{number:d}/retry"
    return post("retryJob", path, RetriedJob, {"refused": refused}, repeatable=False)


def add_instance(image: Upload) -> Call[Instance]:
    """Bring one image into the index; it is on disk before this returns. Sent again, it is found
    to be there."""
    return upload("addInstance", "/v1/instances", Instance, "file", (image,))


def delete_instances(
    *,
    sop: str | None = None,
    series: str | None = None,
    study: str | None = None,
    patient: str | None = None,
    issuer: str | None = None,
    dry_run: bool | None = None,
) -> Call[Deleted]:
    """Remove what has all of these from the index; with ``dry_run`` only say what that is.

    ``patient`` stands in the address of the request, which httpx logs at the level INFO, and
    proxies may.
    """
    options = {
        "sop": sop,
        "series": series,
        "study": study,
        "patient": patient,
        "issuer": issuer,
        "dry_run": dry_run,
    }
    call = get("deleteInstances", "/v1/instances", Deleted, options)
    return replace(call, method="DELETE", repeatable=bool(dry_run))


def create_embed_token(
    study: str, *, origin: str, acting_user: str, minutes: int | None = None
) -> Call[EmbedToken]:
    """A token with which the site of ``origin`` shows the cases related to a study."""
    fields = {"study": study, "origin": origin, "acting_user": acting_user, "minutes": minutes}
    return post("createEmbedToken", "/v1/embed-tokens", EmbedToken, fields, repeatable=False)


def make_report(
    uid: str,
    *,
    format: str | None = None,  # noqa: A002 - as the HTTP API has it
    image_id: str | None = None,
    sop: str | None = None,
    frame: int | None = None,
    series: str | None = None,
    k: int | None = None,
    where: Texts = (),
    exact: bool | None = None,
    group_by: str | None = None,
    exclude_own: str | None = None,
) -> Call[bytes]:
    """A DICOM instance, in the study with this Study Instance UID, of the cases most like it.

    Args:
        format: "sr", a structured report, or "pdf". image_id, sop (and frame), series: the image of
            the study that is the query; without any the whole study is. The rest as of ``related``.
    """
    fields = {
        "format": format,
        "id": image_id,
        "sop": sop,
        "frame": frame,
        "series": series,
        "k": k,
        "where": _texts(where),
        "exact": exact,
        "group_by": group_by,
        "exclude_own": exclude_own,
    }
    return download("makeReport", f"/v1/studies/{part(uid)}/report", fields)


def select_earlier_images(uid: str, *, k: int | None = None) -> Call[bytes]:
    """A zip of Key Object Selections: similar earlier images of the patient of a study, one for
    each of the studies that have them."""
    return download("selectEarlierImages", f"/v1/studies/{part(uid)}/key-objects", {"k": k})


def select_for_teaching(images: Sequence[str]) -> Call[bytes]:
    """A zip of Key Object Selections for a teaching collection, one for each image by its id."""
    return download("selectForTeaching", "/v1/key-objects", {"images": list(images)})


def destinations() -> Call[Destinations]:
    """Where documents may be sent."""
    return get("listDestinations", "/v1/destinations", Destinations)


def send_documents(
    destination: str,
    *,
    report: Mapping[str, Any] | None = None,
    earlier: Mapping[str, Any] | None = None,
    teaching: Mapping[str, Any] | None = None,
) -> Call[Sending]:
    """Send documents to a destination that the service's settings name: one of a ``report`` and
    ``earlier`` images, each with the ``study`` and the fields of ``make_report`` and
    ``select_earlier_images`` by their names in the HTTP API, and ``teaching``, with ``images``."""
    fields = {
        "destination": destination,
        "report": None if report is None else dict(report),
        "earlier": None if earlier is None else dict(earlier),
        "teaching": None if teaching is None else dict(teaching),
    }
    return post("sendDocuments", "/v1/sendings", Sending, fields, repeatable=False)


def sendings(*, limit: int | None = None) -> Call[Sendings]:
    """What was sent, and what became of it."""
    return get("listSendings", "/v1/sendings", Sendings, {"limit": limit})


def sending(sending_id: str) -> Call[Sending]:
    """What became of a sending."""
    return get("getSending", f"/v1/sendings/{part(sending_id)}", Sending)


def retry_sending(sending_id: str) -> Call[Sending]:
    """Try again what is not stored at the destination."""
    path = f"/v1/sendings/{part(sending_id)}/retry"
    return post("retrySending", path, Sending, repeatable=False)


def cancel_sending(sending_id: str) -> Call[Sending]:
    """End a sending; what is stored at the destination stays there."""
    path = f"/v1/sendings/{part(sending_id)}/cancel"
    return post("cancelSending", path, Sending, repeatable=False)


def health() -> Call[Health]:
    """An index is open and answers."""
    return get("getHealth", "/healthz", Health)


def ready() -> Call[Ready]:
    """The service has all that it needs."""
    return get("getReadiness", "/readyz", Ready)


def _texts(given: Texts) -> list[str]:
    return [given] if isinstance(given, str) else list(given)
