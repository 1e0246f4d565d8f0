"""The texts, links and choices of the search page, made from requests and answers."""

import base64
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlencode

import numpy as np
from numpy.typing import NDArray

from api.http.deps import Asked
from api.schemas import (
    EvidenceDocument,
    ImageDocument,
    OodDocument,
    by_detector,
    versions_remarks,
)
from engine.search.sizes import Size
from engine.store.counts import Facets
from indexer.imaging.thumbnails import thumbnail

__all__ = [
    "Choice",
    "FacetList",
    "FacetValue",
    "Select",
    "evidence_sentence",
    "facet_lists",
    "facts",
    "link",
    "ood_sentence",
    "preview",
    "selects",
    "terms_beside",
]

_TITLES = {
    "modality": "Modality",
    "body_part": "Body part",
    "view": "View",
    "laterality": "Side",
    "labels": "Label",
    "sex": "Sex",
    "age_band": "Age",
    "study_year": "Study year",
    "manufacturer": "Manufacturer",
    "source": "Source",
}
_SECONDARY_FIELDS = ("view", "laterality", "sex", "age_band", "study_year", "manufacturer")


@dataclass(frozen=True, slots=True)
class Choice:
    """One option of a :class:`Select`. term: its filter, as in ``modality=CT``. count: images."""

    term: str
    value: str
    count: int
    selected: bool


@dataclass(frozen=True, slots=True)
class Select:
    """A drop-down list of the form that filters by one field. at_least: the counts are lower
    bounds."""

    field: str
    title: str
    choices: tuple[Choice, ...]
    at_least: bool = False


@dataclass(frozen=True, slots=True)
class FacetValue:
    """A value in the side bar.

    count: images. active: whether it is filtered by already. link: address of the page with this
    filter added, or removed if it is active; None = the query was an upload, which no link repeats.
    """

    value: str
    count: int
    link: str | None
    active: bool


@dataclass(frozen=True, slots=True)
class FacetList:
    """The values of one field and their counts, for the side bar. at_least: the counts are lower
    bounds."""

    title: str
    values: tuple[FacetValue, ...]
    at_least: bool = False


def link(
    asked: Asked,
    *,
    like: str | None = None,
    where: Iterable[str] | None = None,
    page: str | None = None,
) -> str:
    """The address, relative to the page, of the same request with some of it replaced.

    Args:
        like: id of another image. where: other filter terms. page: cursor of the hits that follow.
            None = for ``like`` and ``where`` those of the request, for ``page`` the first page.
    """
    image = asked.image_id if like is None else like
    terms = asked.where if where is None else tuple(where)
    query: list[tuple[str, str]] = [("like", image)] if image else []
    query += [("where", term) for term in terms]
    if asked.k is not None:
        query.append(("k", str(asked.k)))
    if asked.order != "content":
        query.append(("order", asked.order))
    if asked.exact:
        query.append(("exact", "true"))
    if asked.group_by is not None:
        query.append(("group_by", asked.group_by))
    if page is not None:
        query.append(("page", page))
    return "./?" + urlencode(query) if query else "./"


def selects(facets: Facets, where: Iterable[str]) -> list[Select]:
    """The drop-down lists of the form, with the filter terms of the request selected.

    A field with a single value is left out, unless it is filtered by.
    """
    asked = tuple(where)
    made = []
    for field, counts in facets.items():
        terms = {value: f"{field}={value}" for value in counts}
        chosen = next((term for term in asked if term in terms.values()), None)
        # A field with a single value narrows nothing.
        if len(counts) > 1 or chosen is not None:
            choices = (
                Choice(term, value, counts[value], term == chosen) for value, term in terms.items()
            )
            title, at_least = _TITLES.get(field, field), field in facets.at_least
            made.append(Select(field, title, tuple(choices), at_least))
    return made


def terms_beside(made: Iterable[Select], where: Iterable[str]) -> list[str]:
    """The filter terms of the request that no drop-down list shows, such as ranges."""
    shown = {choice.term for select in made for choice in select.choices if choice.selected}
    return [term for term in where if term not in shown]


def facet_lists(facets: Facets, asked: Asked) -> list[FacetList]:
    """The side bar: for each field its values, with links that add or remove a filter."""
    return [
        FacetList(
            _TITLES.get(field, field),
            tuple(_facet_value(f"{field}={value}", value, n, asked) for value, n in counts.items()),
            field in facets.at_least,
        )
        for field, counts in facets.items()
    ]


def _facet_value(term: str, value: str, count: int, asked: Asked) -> FacetValue:
    active = term in asked.where
    if asked.upload is not None:
        return FacetValue(value, count, None, active)
    kept = [other for other in asked.where if other != term]
    return FacetValue(value, count, link(asked, where=kept if active else [*kept, term]), active)


def facts(image: ImageDocument) -> list[str]:
    """The known secondary fields of an image (view, sex, age, …), as text."""
    return [str(value) for name in _SECONDARY_FIELDS if (value := getattr(image, name)) is not None]


def preview(canvas: NDArray[np.uint8] | None) -> str | None:
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


def ood_sentence(ood: OodDocument | None) -> str:
    """The OOD verdict as a sentence."""
    if ood is None:
        return "No verdict on whether the model knows this: it is not calibrated for such a query."
    by = by_detector(ood.p_values)
    if ood.foreign:
        return (
            f"This image looks foreign to the model (p = {ood.p:.3g}, at or below "
            f"{ood.alpha:g}; {by}). Hits may look alike and mean nothing."
        )
    return f"The model knows images of this kind (p = {ood.p:.3g}, above {ood.alpha:g}; {by})."
