"""The words of the pages: verdicts, how hits were found, what is known of an image."""

import base64
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from api.http.routes.jobs import JobDocument
from api.portal.question import Question
from api.schemas import (
    BasisDocument,
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
    "meanings",
    "picture_inside",
    "recent_label",
    "refined_sentence",
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


def meanings() -> list[Verdict]:
    """Every verdict that there is, with what it means."""
    return [*(Verdict(state, *told) for state, told in _VERDICTS.items()), _NONE]


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


def refined_sentence(basis: BasisDocument, *, by_bits: bool) -> str:
    """How hits like several examples were found, as a sentence. by_bits: the fewest differing bits
    were asked for to come first."""
    if not basis.rungs:
        return "Nothing was searched: this service refuses what is foreign."
    liked = f"{basis.liked} example{'' if basis.liked == 1 else 's'}"
    disliked = f" and {basis.disliked} disliked" if basis.disliked else ""
    said = [
        f"{basis.ranked:,} image{'' if basis.ranked == 1 else 's'} near the examples were compared "
        f"with {liked}{disliked}; each is as similar as to the example that it is most like"
    ]
    if basis.nearer_to_disliked:
        said.append(f"{basis.nearer_to_disliked:,} left out as nearer to what is disliked")
    if basis.note is not None:
        said.append(basis.note)
    if basis.approximate:
        said.append("a graph was searched, which may miss some")
    if by_bits:
        said.append("most similar first, since bits are counted to one image alone")
    said += versions_remarks(basis.precision, basis.index_precision, basis.rendered_otherwise)
    return f"{'; '.join(said)}; {sum(basis.timings_ms.values()):.0f} ms."


def recent_label(query: ImageDocument | None, asked: Question) -> str:
    """A search in a few words, for the list of recent ones: kinds of images and numbers alone."""
    if query is not None:
        said = [" ".join((about(query), *facts(query)[:1]))]
    else:
        counts = (
            (len(asked.kept), "of yours"),
            (len(asked.likes), "liked"),
            (len(asked.dislikes), "disliked"),
        )
        said = [", ".join(f"{count} {name}" for count, name in counts if count)]
    if asked.where:
        said.append(f"{len(asked.where)} filter{'' if len(asked.where) == 1 else 's'}")
    return ", ".join(said)


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
