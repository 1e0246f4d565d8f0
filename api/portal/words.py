"""The words of the pages: verdicts, how hits were found, what is known of an image."""

import base64
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from api.http.routes.jobs import JobDocument
from api.schemas import (
    EvidenceDocument,
    HitDocument,
    ImageDocument,
    OodDocument,
    by_detector,
    versions_remarks,
)
from engine.search.sizes import Size
from indexer.imaging.thumbnails import thumbnail

__all__ = [
    "TITLES",
    "Verdict",
    "about",
    "described",
    "evidence_sentence",
    "facts",
    "how_alike",
    "job_actions",
    "job_sentence",
    "picture_inside",
    "verdict",
]

TITLES = {
    "modality": "Modality",
    "body_part": "Body part",
    "labels": "Label",
    "study_year": "Study year",
    "view": "View",
    "laterality": "Side",
    "sex": "Sex",
    "age_band": "Age",
    "manufacturer": "Manufacturer",
    "source": "Source",
}
"""What people call the fields of an image, in the order in which the pages have them."""
_SHORT = ("study_year", "view", "laterality", "age_band", "sex")
_MOST_WORDS = 80


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the model knows what it was asked about, for a reader.

    state: "known", "unfamiliar", "foreign" or "none". title: in a few words. meaning: what it says,
    what it does not, and what to do. figures: the numbers behind it; None = there are none.
    """

    state: str
    title: str
    meaning: str
    figures: str | None = None


_VERDICTS = {
    "known": (
        "A kind of image that the model knows.",
        "How alike the hits are can be compared. It does not say that they show the same finding.",
    ),
    "unfamiliar": (
        "A known kind of image, made in an unfamiliar way.",
        "The model has not met this scanner, window or view of it. Hits may be alike by how they "
        "were made rather than by what they show: look at the pictures before you rely on their "
        "order.",
    ),
    "foreign": (
        "Outside what the model knows.",
        "It has learned from nothing like this image. Hits may look alike and mean nothing: check "
        "that this is the right file and that it shows what it should, and do not rely on the "
        "hits.",
    ),
}
_NONE = Verdict(
    "none",
    "No verdict.",
    "The model is not calibrated for such a question, so nobody can say whether it knows images of "
    "this kind.",
)


def verdict(ood: OodDocument | None) -> Verdict:
    """The verdict in words; None = there is none."""
    if ood is None:
        return _NONE
    title, meaning = _VERDICTS[ood.verdict]
    level = ood.alpha if ood.level is None else ood.level
    compared = "above" if ood.verdict == "known" else "at or below"
    limit = ood.alpha if ood.foreign else level
    figures = f"p = {ood.p:.3g}, {compared} {limit:g}; {by_detector(ood.p_values)}"
    if ood.p_elsewhere is not None:
        figures += f"; among images of other scanners p = {ood.p_elsewhere:.3g}"
    return Verdict(ood.verdict, title, meaning, figures)


def about(image: ImageDocument) -> str:
    """An image in a few words, as in "CT CHEST"."""
    kind = " ".join(one for one in (image.modality, image.body_part) if one)
    return kind or ", ".join(image.labels)[:_MOST_WORDS] or "Image"


def facts(image: ImageDocument) -> list[str]:
    """The year of the study and other short facts, as far as they are known."""
    return [str(value) for name in _SHORT if (value := getattr(image, name)) is not None]


def described(image: ImageDocument) -> list[tuple[str, str]]:
    """All that is known of an image but its UIDs: names and values."""
    found: list[tuple[str, str]] = []
    for name, title in TITLES.items():
        value = getattr(image, name)
        if value not in (None, []):
            found.append((title, ", ".join(value) if isinstance(value, list) else str(value)))
    if image.burned_in is not None:
        found.append(("Text in the picture", "yes" if image.burned_in else "no"))
    return found


def how_alike(hit: HitDocument) -> float:
    """How far the bar of a hit reaches, 0 … 1: its likeness, where the model has such a scale.

    Else one minus the share of a right angle that lies between the two images' features, whose
    cosine the similarity is: cosines near 1 would all look alike.
    """
    if hit.likeness is not None:
        return hit.likeness
    return 1 - math.acos(max(0.0, min(1.0, hit.similarity))) / (math.pi / 2)


def picture_inside(canvas: NDArray[np.uint8] | None) -> str | None:
    """A canvas as a ``data:`` URL, because an upload is not stored; None = no canvas."""
    if canvas is None:
        return None
    jpeg = thumbnail(canvas, max(canvas.shape[:2]))
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")


def evidence_sentence(evidence: EvidenceDocument, matching: Size, *, filtered: bool) -> str:
    """How the hits were found, as a sentence. matching: images that pass the facet filters."""
    remarks = versions_remarks(
        evidence.precision, evidence.index_precision, evidence.rendered_otherwise
    )
    said = [_how_found(evidence, matching, filtered), *remarks]
    return f"{'; '.join(said)}; {sum(evidence.timings_ms.values()):.0f} ms."


def _how_found(evidence: EvidenceDocument, matching: Size, filtered: bool) -> str:
    images = "image" if matching.count == 1 else "images"
    whole = f"{matching.text} {images}" + (" that match the filters" if filtered else "")
    if evidence.rung == "none":
        return "Nothing was searched: this service refuses what is foreign"
    if evidence.note is not None:
        return evidence.note[:1].upper() + evidence.note[1:]
    if evidence.approximate:
        return f"The graph of {whole} was searched, which may miss some"
    if evidence.rung == "exact":
        return f"All {whole} were compared, as asked"
    if evidence.rung == "dense" and len(evidence.rungs_tried) == 1:
        return f"All {whole} were compared"
    if evidence.rung == "dense":
        return f"Too few images passed the coarse filter, so all {whole} were compared"
    candidates = Size(evidence.candidates, evidence.estimated).text
    compared = f"{candidates[:1].upper()}{candidates[1:]} of {whole} were compared"
    if evidence.radius is None:
        told = "" if evidence.cells_in_all is None else f" of {evidence.cells_in_all}"
        return f"{compared}: those in the {evidence.cells} nearest{told} cells"
    return f"{compared}, every image within {evidence.radius} bits among them"


def job_sentence(job: JobDocument) -> str:
    """How far a job is, as a sentence. ``portal.js`` has the same words for what comes later."""
    refused = sum(job.refused.values())
    said = f"{job.done:,} of {job.total:,} read, {job.indexed:,} indexed, {refused:,} refused"
    if job.unchanged:
        said += f", {job.unchanged:,} unchanged"
    if job.per_second:
        said += f"; {job.per_second:,.1f} a second"
    if job.seconds_left is not None and job.state == "running":
        said += f", about {math.ceil(job.seconds_left / 60):,} min left"
    return said + "."


def job_actions(job: JobDocument) -> list[tuple[str, str]]:
    """What can be done with a job in its state: names and titles."""
    if job.state == "running":
        return [("pause", "Pause"), ("cancel", "Cancel")]
    if job.state == "paused":
        return [("resume", "Resume"), ("cancel", "Cancel")]
    return [("retry", "Try failed tasks again")] if job.tasks.get("failed") else []
