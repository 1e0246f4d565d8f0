"""The words of the pages: verdicts, how hits were found, what is known of an image."""

import base64
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from api.http.routes.jobs import JobDocument
from api.portal.catalogues import decimal, general, gettext, grouped, later, ngettext, pgettext
from api.portal.question import Question
from api.schemas import (
    BasisDocument,
    EvidenceDocument,
    HitDocument,
    ImageDocument,
    OodDocument,
)
from engine.search.sizes import Size
from indexer.imaging.region import Region
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
    "job_status",
    "job_words",
    "meanings",
    "picture_inside",
    "recent_label",
    "refined_sentence",
    "region_sentence",
    "size_text",
    "tile_size",
    "title_of",
    "verdict",
]

TITLES = {
    "modality": later("Modality"),
    "body_part": later("Body part"),
    "labels": later("Label"),
    "study_year": later("Study year"),
    "view": later("View"),
    "laterality": later("Side"),
    "sex": later("Sex"),
    "age_band": later("Age"),
    "manufacturer": later("Manufacturer"),
    "source": later("Source"),
}
"""What people call the fields of an image, in the order in which the pages have them; as marked for
the catalogues, see :func:`title_of`."""
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
        later("A kind of image that the model knows."),
        later(
            "How alike the hits are can be compared. It does not say that they show the same "
            "finding."
        ),
    ),
    "unfamiliar": (
        later("A known kind of image, made in an unfamiliar way."),
        later(
            "The model has not met this scanner, window or view of it. Hits may be alike by how "
            "they were made rather than by what they show: look at the pictures before you rely on "
            "their order."
        ),
    ),
    "foreign": (
        later("Outside what the model knows."),
        later(
            "It has learned from nothing like this image. Hits may look alike and mean nothing: "
            "check that this is the right file and that it shows what it should, and do not rely "
            "on the hits."
        ),
    ),
}
_NONE = (
    later("No verdict."),
    later(
        "The model is not calibrated for such a question, so nobody can say whether it knows "
        "images of this kind."
    ),
)


def verdict(ood: OodDocument | None) -> Verdict:
    """The verdict in words; None = there is none."""
    if ood is None:
        return _translated("none", _NONE)
    level = ood.alpha if ood.level is None else ood.level
    limit = general(ood.alpha if ood.foreign else level)
    if ood.verdict == "known":
        compared = gettext("p = %(p)s, above %(limit)s")
    else:
        compared = gettext("p = %(p)s, at or below %(limit)s")
    figures = compared % {"p": general(ood.p, 3), "limit": limit}
    if ood.p_values:
        detectors = (f"{name} {general(p, 3)}" for name, p in ood.p_values.items())
        figures += f"; {', '.join(detectors)}"
    if ood.p_elsewhere is not None:
        elsewhere = gettext("among images of other scanners p = %(p)s")
        figures += f"; {elsewhere % {'p': general(ood.p_elsewhere, 3)}}"
    return _translated(ood.verdict, _VERDICTS[ood.verdict], figures)


def _translated(state: str, told: tuple[str, str], figures: str | None = None) -> Verdict:
    title, meaning = told
    return Verdict(state, gettext(title), gettext(meaning), figures)


def meanings() -> list[Verdict]:
    """Every verdict that there is, with what it means."""
    every = {**_VERDICTS, "none": _NONE}
    return [_translated(state, told) for state, told in every.items()]


def title_of(field: str) -> str:
    """What people call a field of an image; of an unknown one its name."""
    return gettext(TITLES[field]) if field in TITLES else field


def tile_size(size: str) -> str:
    """A size of the tiles, of those of a question."""
    return {
        "small": pgettext("tiles", "Small"),
        "medium": pgettext("tiles", "Medium"),
        "large": pgettext("tiles", "Large"),
    }[size]


def size_text(size: Size) -> str:
    """A number of images, such as "about 1,200,000"."""
    number = grouped(size.count)
    return gettext("about %(count)s") % {"count": number} if size.estimated else number


def about(image: ImageDocument) -> str:
    """An image in a few words, as in "CT CHEST"."""
    kind = " ".join(one for one in (image.modality, image.body_part) if one)
    return kind or ", ".join(image.labels)[:_MOST_WORDS] or gettext("Image")


def facts(image: ImageDocument) -> list[str]:
    """The year of the study and other short facts, as far as they are known."""
    return [str(value) for name in _SHORT if (value := getattr(image, name)) is not None]


def described(image: ImageDocument) -> list[tuple[str, str]]:
    """All that is known of an image but its UIDs: names and values."""
    found: list[tuple[str, str]] = []
    for name in TITLES:
        value = getattr(image, name)
        if value not in (None, []):
            found.append(
                (title_of(name), ", ".join(value) if isinstance(value, list) else str(value))
            )
    if image.burned_in is not None:
        found.append(
            (gettext("Text in the picture"), gettext("yes") if image.burned_in else gettext("no"))
        )
    return found


def how_alike(hit: HitDocument) -> float:
    """How far the bar of a hit reaches, 0 … 1: its likeness, where the model has such a scale.

    Else one minus the share of a right angle that lies between the two images' features, whose
    cosine the similarity is: cosines near 1 would all look alike.
    """
    if hit.likeness is not None:
        return hit.likeness
    return 1 - math.acos(max(0.0, min(1.0, hit.similarity))) / (math.pi / 2)


def picture_inside(picture: NDArray[np.uint8] | None, side: int | None = None) -> str | None:
    """A picture, uint8 (H, W) or (H, W, 3), as a ``data:`` URL, because an upload is not stored;
    None = no picture. side: the longest one in pixels; None = as it is."""
    if picture is None:
        return None
    jpeg = thumbnail(picture, side or max(picture.shape[:2]))
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")


def evidence_sentence(evidence: EvidenceDocument, matching: Size, *, filtered: bool) -> str:
    """How the hits were found, as a sentence. matching: images that pass the facet filters."""
    remarks = _remarks(evidence.precision, evidence.index_precision, evidence.rendered_otherwise)
    said = [_how_found(evidence, matching, filtered), *remarks]
    return f"{'; '.join(said)}; {grouped(round(sum(evidence.timings_ms.values())))} ms."


def _how_found(evidence: EvidenceDocument, matching: Size, filtered: bool) -> str:
    whole = _whole(matching, filtered)
    if evidence.rung == "none":
        return gettext("Nothing was searched: this service refuses what is foreign")
    if evidence.note is not None:
        return evidence.note[:1].upper() + evidence.note[1:]
    if evidence.approximate:
        return gettext("The graph of %(images)s was searched, which may miss some") % whole
    if evidence.rung == "exact":
        return gettext("All %(images)s were compared, as asked") % whole
    if evidence.rung == "dense" and len(evidence.rungs_tried) == 1:
        return gettext("All %(images)s were compared") % whole
    if evidence.rung == "dense":
        said = gettext("Too few images passed the coarse filter, so all %(images)s were compared")
        return said % whole
    candidates = size_text(Size(evidence.candidates, evidence.estimated))
    said = gettext("%(candidates)s of %(images)s were compared") % {
        "candidates": candidates,
        **whole,
    }
    said = f"{said[:1].upper()}{said[1:]}"
    if evidence.radius is not None:
        within = gettext("every image within %(bits)s bits among them")
        return f"{said}, {within % {'bits': evidence.radius}}"
    if evidence.cells_in_all is None:
        cells = gettext("those in the %(cells)s nearest cells") % {"cells": evidence.cells}
    else:
        cells = gettext("those in the %(cells)s nearest of %(total)s cells") % {
            "cells": evidence.cells,
            "total": evidence.cells_in_all,
        }
    return f"{said}: {cells}"


def _whole(matching: Size, filtered: bool) -> dict[str, str]:
    if filtered:
        said = ngettext(
            "%(count)s image that match the filters",
            "%(count)s images that match the filters",
            matching.count,
        )
    else:
        said = ngettext("%(count)s image", "%(count)s images", matching.count)
    return {"images": said % {"count": size_text(matching)}}


def _remarks(
    precision: str | None, index_precision: str | None, rendered_otherwise: int
) -> list[str]:
    """Remarks on query and hits that were not made in the same way, as
    :func:`api.schemas.versions_remarks` has them for programs."""
    remarks = []
    if None not in (precision, index_precision) and precision != index_precision:
        said = gettext(
            "encoded in %(precision)s, the index in %(index)s: similarities may be off by %(most)s"
        )
        most = decimal(0.01, 2)
        remarks.append(said % {"precision": precision, "index": index_precision, "most": most})
    if rendered_otherwise:
        said = ngettext(
            "%(count)s hit was rendered by another version; `precedent index --again` renews the "
            "pictures",
            "%(count)s hits were rendered by another version; `precedent index --again` renews the "
            "pictures",
            rendered_otherwise,
        )
        remarks.append(said % {"count": grouped(rendered_otherwise)})
    return remarks


def refined_sentence(basis: BasisDocument, *, by_bits: bool) -> str:
    """How hits like several examples were found, as a sentence. by_bits: the fewest differing bits
    were asked for to come first."""
    if not basis.rungs:
        return gettext("Nothing was searched: this service refuses what is foreign.")
    examples = ngettext("%(count)s example", "%(count)s examples", basis.liked)
    examples %= {"count": grouped(basis.liked)}
    if basis.disliked:
        disliked = gettext("and %(count)s disliked") % {"count": grouped(basis.disliked)}
        examples = f"{examples} {disliked}"
    compared = ngettext(
        "%(count)s image near the examples were compared with %(examples)s; each is as similar as "
        "to the example that it is most like",
        "%(count)s images near the examples were compared with %(examples)s; each is as similar as "
        "to the example that it is most like",
        basis.ranked,
    )
    said = [compared % {"count": grouped(basis.ranked), "examples": examples}]
    if basis.nearer_to_disliked:
        left_out = gettext("%(count)s left out as nearer to what is disliked")
        said.append(left_out % {"count": grouped(basis.nearer_to_disliked)})
    if basis.note is not None:
        said.append(basis.note)
    if basis.approximate:
        said.append(gettext("a graph was searched, which may miss some"))
    if by_bits:
        said.append(gettext("most similar first, since bits are counted to one image alone"))
    said += _remarks(basis.precision, basis.index_precision, basis.rendered_otherwise)
    return f"{'; '.join(said)}; {grouped(round(sum(basis.timings_ms.values())))} ms."


def region_sentence(region: Region) -> str:
    """Where in its picture a region lies, as a sentence."""
    across = (region.x, region.x + region.width)
    down = (region.y, region.y + region.height)
    told = gettext(
        "From left to right %(left)s to %(right)s %%, from top to bottom %(top)s to %(bottom)s %% "
        "of the picture."
    )
    edges = ("left", "right", "top", "bottom")
    return told % {
        name: grouped(round(100 * one)) for name, one in zip(edges, (*across, *down), strict=True)
    }


def recent_label(query: ImageDocument | None, asked: Question) -> str:
    """A search in a few words, for the list of recent ones: kinds of images and numbers alone."""
    if query is not None:
        said = [" ".join((about(query), *facts(query)[:1]))]
    else:
        counts = (
            (len(asked.kept), gettext("%(count)s of yours")),
            (len(asked.likes), gettext("%(count)s liked")),
            (len(asked.dislikes), gettext("%(count)s disliked")),
        )
        said = [", ".join(told % {"count": count} for count, told in counts if count)]
    if asked.region is not None:
        said.append(gettext("a region"))
    if asked.where:
        filters = ngettext("%(count)s filter", "%(count)s filters", len(asked.where))
        said.append(filters % {"count": len(asked.where)})
    return ", ".join(said)


_STATUSES = {
    "waiting": later("waiting"),
    "running": later("running"),
    "paused": later("paused"),
    "cancelled": later("cancelled"),
    "finished": later("finished"),
    "failed": later("failed"),
}
"""Those of jobs."""


def job_status(status: str) -> str:
    """The status of a job in a word."""
    return gettext(_STATUSES[status]) if status in _STATUSES else status


def job_words() -> dict[str, str]:
    """What is said of a job, with the names of its numbers in braces, and the words for its status;
    ``portal.js`` says the same of what comes later."""
    parts = {
        "read": gettext("{done} of {total} read, {indexed} indexed, {refused} refused"),
        "unchanged": gettext(", {unchanged} unchanged"),
        "speed": gettext("; {speed} a second"),
        "left": gettext(", about {minutes} min left"),
    }
    return {**parts, **{status: gettext(word) for status, word in _STATUSES.items()}}


def job_sentence(job: JobDocument) -> str:
    """How far a job is, as a sentence."""
    words = job_words()
    said = words["read"].format(
        done=grouped(job.done),
        total=grouped(job.total),
        indexed=grouped(job.indexed),
        refused=grouped(sum(job.refused.values())),
    )
    if job.unchanged:
        said += words["unchanged"].format(unchanged=grouped(job.unchanged))
    if job.per_second:
        said += words["speed"].format(speed=decimal(job.per_second, 1))
    if job.seconds_left is not None and job.state == "running":
        said += words["left"].format(minutes=grouped(math.ceil(job.seconds_left / 60)))
    return said + "."


def job_actions(job: JobDocument) -> list[tuple[str, str]]:
    """What can be done with a job in its state: names and titles."""
    cancel = ("cancel", pgettext("verb", "Cancel"))
    if job.state == "running":
        return [("pause", pgettext("verb", "Pause")), cancel]
    if job.state == "paused":
        return [("resume", pgettext("verb", "Resume")), cancel]
    return [("retry", gettext("Try failed tasks again"))] if job.tasks.get("failed") else []
