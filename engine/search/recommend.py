"""Recommendations: images similar to liked examples and not to disliked ones.

The coarse filter (ladder.py) runs once for each liked example, and the most similar candidates of
each are collected. Every candidate is then compared with all examples. Its similarity is the
highest r to any liked example, and it is left out if its r to some disliked example is higher (the
"best score" rule). The examples are not averaged: the mean of a chest and a hand resembles neither.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from uuid import UUID

import numpy as np

from engine.errors import ImageNotFound, QueryError, StoreError
from engine.records import Hit, ImageRecord, Observations, OodVerdict
from engine.search.diversity import diverse
from engine.search.foresight import Outlook
from engine.search.ladder import Climb, Rung, climb, looked_into
from engine.search.placeholders import (
    joined,
    look_ahead as patients_ahead,
    nobodies,
    remark_on,
    remark_on_nothing,
)
from engine.search.pool import Example, Pool, Suggestion
from engine.search.query import Query, without_own
from engine.search.representative import place
from engine.search.shortlist import first_of_each
from engine.search.sizes import Size, size_of
from engine.search.spelling import as_spelled, look_ahead as spelling_ahead
from engine.search.stopwatch import Stopwatch
from engine.settings import SearchSettings
from engine.store.ahead import AheadStore
from engine.store.base import Filter, Ids, Match, Nearest, VectorStore

__all__ = [
    "MAX_EXAMPLES",
    "Basis",
    "Examples",
    "Recommendation",
    "Vote",
    "Wanted",
    "recommend",
]

MAX_EXAMPLES = 32
"""Most examples liked by id, most images of the liked study, and most disliked examples."""

_WIDER = 8
"""Factor by which more candidates are asked for when those found are of too few studies."""
_PER_HIT, _SHORTLIST = 5, 500
"""A diverse list is chosen from this many candidates for each hit, up to the second number."""


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """The examples of a recommendation; at least one image is liked.

    liked, disliked: ids of indexed images.
    study: a study whose images are liked; of more than 32, 32 evenly spaced ones.
    seen: observations of one uploaded image, which is liked; None = nothing was uploaded.
    record: record of the uploaded image's file, with its study and patient.
    seen_id: point id of the uploaded image, by which it is left out if it is indexed.

    Raises:
        QueryError: no image is liked, an image is both liked and disliked, or there are too many.
    """

    liked: tuple[str, ...] = ()
    disliked: tuple[str, ...] = ()
    study: str | None = None
    seen: Observations | None = None
    record: ImageRecord | None = None
    seen_id: str | None = None

    def __post_init__(self) -> None:
        for name in ("liked", "disliked"):
            ids = tuple(dict.fromkeys(_plain(one) for one in getattr(self, name)))
            object.__setattr__(self, name, ids)
            if len(ids) > MAX_EXAMPLES:
                raise QueryError(f"{len(ids)} images are {name}; give up to {MAX_EXAMPLES}")
        if not self.liked and self.study is None and self.seen is None:
            raise QueryError("no example is liked; give an image, ids of images or a study")
        both = [one for one in (*self.liked, self.seen_id) if one in self.disliked]
        if both:
            raise QueryError(
                f"image {both[0]} is liked and disliked; take it out of one of the two"
            )


def _plain(image_id: str) -> str:
    """The id in the form that the index uses; a text that is no UUID is returned as it is."""
    try:
        return str(UUID(image_id))
    except ValueError:
        return image_id


@dataclass(frozen=True, slots=True)
class Wanted:
    """The options of a recommendation.

    k, where, exact: as in :class:`Query`.
    group_by: "study" or "patient": only the best image of each; None = every image.
    exclude: "study" excludes the studies of the liked examples, "patient" also their patients.
    diversity: in [0, 1]; 0 = the most similar images, higher values avoid hits that resemble each
        other (diversity.py).

    Raises:
        QueryError: a value is out of range or unknown.
    """

    k: int = 10
    where: Filter = field(default_factory=Filter)
    exact: bool = False
    group_by: str | None = "study"
    exclude: str | None = "patient"
    diversity: float = 0.0

    def __post_init__(self) -> None:
        Query(self.k, self.where, exact=self.exact, group_by=self.group_by, exclude=self.exclude)
        if not 0 <= self.diversity <= 1:
            raise QueryError(f"diversity is {self.diversity}; use 0 (off) to 1")


@dataclass(frozen=True, slots=True)
class Vote:
    """The support that the hits give to a label.

    Not a probability: the hits are not a random sample of cases.

    share: summed similarity of the hits with this label, divided by that of all hits with labels,
        in [0, 1]. A similarity below 0 counts as 0. A hit with several labels counts for each.
    hits: number of hits with this label.
    """

    label: str
    share: float
    hits: int


@dataclass(frozen=True, slots=True)
class Basis:
    """The evidence of a recommendation: how it was found.

    liked, disliked: number of examples used.
    rungs: rung → number of liked examples searched for on it; empty when nothing was searched,
        because an example is foreign and the policy refuses foreign queries.
    candidates: number of candidates, summed over the liked examples.
    estimated: ``candidates`` is in part an estimate, and may be too high.
    approximate: a graph or quantised vectors preselected candidates, and may have missed some.
    ranked: number of different images that were compared with all examples.
    nearer_to_disliked: how many of them were left out as nearer to a disliked example.
    model: fingerprint of the model. bits: of a code.
    index_precision: number format in which the index was computed; None = not recorded.
    precision: number format in which the uploaded example was encoded; None = none was uploaded.
    note: a sentence on limits of the result for the reader, or None.
    rendering, rendered_otherwise: as in :class:`~engine.records.Evidence`.
    timings_ms: wall-clock milliseconds by stage.
    """

    liked: int
    disliked: int
    diversity: float
    model: str
    bits: int
    index_precision: str | None
    precision: str | None = None
    rungs: dict[str, int] = field(default_factory=dict)
    candidates: int = 0
    estimated: bool = False
    approximate: bool = False
    ranked: int = 0
    nearer_to_disliked: int = 0
    note: str | None = None
    rendering: str | None = None
    rendered_otherwise: int = 0
    timings_ms: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The recommended images, with evidence.

    hits: most similar first; with diversity, in the order in which they were chosen.
    votes: labels of the hits, the largest share first.
    ood: of the OOD verdicts on the uploaded and on the indexed liked examples (see
        ``SearchEngine.verdict``) the one with the smaller p; None = no verdict.
    """

    hits: tuple[Suggestion, ...]
    votes: tuple[Vote, ...]
    evidence: Basis
    ood: OodVerdict | None


def recommend(
    store: VectorStore,
    settings: SearchSettings,
    verdict: Callable[[Observations], OodVerdict | None],
    examples: Examples,
    wanted: Wanted,
) -> Recommendation:
    """The images recommended for ``examples``.

    Args:
        verdict: returns the OOD verdict on observed images, or None.

    Raises:
        ImageNotFound: an example, or the example study, is not indexed.
        QueryError: all images of the example study are disliked.
        StoreError: an example is stored without its vector.
    """
    watch = Stopwatch()
    likely = None
    with watch("fetch"):
        if isinstance(store, AheadStore):
            likely = _look_at_examples(store, examples, wanted)
        liked, disliked = _fetched(store, examples)
    with watch("ood"):
        told = _strictest(verdict, liked, examples.seen)
    basis = Basis(
        liked=len(liked),
        disliked=len(disliked),
        diversity=wanted.diversity,
        model=store.collection.model,
        bits=store.collection.bits,
        index_precision=store.collection.precision,
    )
    if told is not None and told.foreign and settings.ood_policy == "refuse":
        return Recommendation((), (), replace(basis, timings_ms=watch.rounded()), told)
    others, remarks = as_spelled(store, wanted.where)
    ids = {example.id for example in (*liked, *disliked)} | {examples.seen_id}
    others = _without(others, ids)
    own = [example.record for example in liked]
    needed = wanted.k
    if wanted.diversity > 0:
        needed = max(needed, min(_PER_HIT * needed, _SHORTLIST))
    with watch("fetch"):
        if isinstance(store, AheadStore):
            _look_ahead(store, settings, liked, others, wanted, needed, likely)
        nobody = nobodies(store, settings, own, wanted.exclude, wanted.group_by)
    where = without_own(others, wanted.exclude, own, nobody)
    pool = Pool(store, liked, disliked, nobody)
    wider = 1
    while True:
        with watch("prefilter"):
            climbs = _climbs(store, settings, liked, where, wanted, wider)
        with watch("rank"):
            asked = _asked(liked, climbs, wanted)
            whole = pool.fill(asked, wanted.group_by, needed)
            found = pool.suggestions()
            hits = [one.hit for one in found]
            if wanted.group_by is not None:
                hits = list(first_of_each(hits, wanted.group_by, nobody))
        # A rung may have many candidates that are all of a few studies: try again with wider rungs.
        whole_index = all(taken.rung.name in ("dense", "exact") for taken in climbs)
        if len(hits) >= wanted.k or whole_index:
            break
        wider *= _WIDER
    with watch("rank"):
        hits = diverse(store, hits[:needed], wanted.k, wanted.diversity)
    because = {one.hit.id: one for one in found}
    remarks = (*remarks, *remark_on(nobody, own, wanted.exclude))
    if pool.compared == 0:
        remarks = (*remarks, *remark_on_nothing(store, others, wanted.exclude))
    basis = replace(
        basis,
        rungs=dict(Counter(taken.rung.name for taken in climbs)),
        candidates=sum(taken.size.count for taken in climbs),
        estimated=any(taken.size.estimated for taken in climbs),
        approximate=any(taken.approximate for taken in climbs),
        ranked=pool.compared,
        nearer_to_disliked=pool.nearer_to_disliked,
        note=joined(_note(climbs, whole=whole), remarks),
        timings_ms=watch.rounded(),
    )
    return Recommendation(tuple(because[hit.id] for hit in hits), _votes(hits), basis, told)


def _without(where: Filter, ids: Iterable[str | None]) -> Filter:
    """The filter without the images with these ids."""
    themselves = Ids(tuple(sorted(one for one in ids if one is not None)))
    return replace(where, must_not=(*where.must_not, themselves)) if themselves.values else where


def _look_at_examples(
    store: AheadStore, examples: Examples, wanted: Wanted
) -> Callable[[], int] | None:
    """Sends what does not depend on the examples' vectors.

    Returns:
        A function that returns about how many images pass the filters.
    """
    ids = [*examples.liked, *examples.disliked]
    if examples.study is None and ids:
        store.get_ahead(ids, with_z=True)
    spelling_ahead(store, wanted.where)
    where = _without(wanted.where, {*ids, examples.seen_id})
    store.count_ahead(where, exact=False)
    return lambda: store.count(where, exact=False)


def _look_ahead(
    store: AheadStore,
    settings: SearchSettings,
    liked: Sequence[Example],
    others: Filter,
    wanted: Wanted,
    needed: int,
    likely: Callable[[], int] | None,
) -> None:
    """Sends what the examples will most likely ask of a server."""
    own = [example.record for example in liked]
    patients_ahead(store, settings, own, wanted.exclude, wanted.group_by)
    where = without_own(others, wanted.exclude, own)
    store.count_ahead(where, exact=False)
    if not wanted.exact:
        for one in liked:
            for narrowed in looked_into(store, one.z, one.code, where, wanted.k, settings, 1):
                store.count_ahead(narrowed, exact=False)
    sizes = Outlook(store, settings, None if likely is None else likely())
    climbs = _climbs(store, settings, liked, where, wanted, 1, sizes.of)
    Pool.look_ahead(store, _asked(liked, climbs, wanted), wanted.group_by, needed)


def _asked(liked: Sequence[Example], climbs: Sequence[Climb], wanted: Wanted) -> list[Nearest]:
    """A request for each liked example."""
    return [
        Nearest(example.z, taken.where, wanted.k, not taken.approximate, with_z=True)
        for example, taken in zip(liked, climbs, strict=True)
    ]


def _fetched(store: VectorStore, examples: Examples) -> tuple[list[Example], list[Example]]:
    """The liked examples, the uploaded image first, and the disliked ones."""
    ids = [*examples.liked, *examples.disliked]
    if examples.study is not None:
        mine = _of_study(store, examples.study, examples.disliked)
        ids.extend(one for one in mine if one not in ids)
    found = {point.id: point for point in store.get(ids, with_z=True)}
    missing = [one for one in ids if one not in found]
    if missing:
        named = ", ".join(repr(one[:64]) for one in missing[:5])
        raise ImageNotFound(f"no indexed image has id {named}; ids are in the answers of a search")
    made: dict[str, Example] = {}
    for one, point in found.items():
        if point.z is None:
            raise StoreError(f"image {one} is stored without its vector; index it again")
        # A server rounds to float16, which changes the length slightly.
        z = point.z / np.linalg.norm(point.z)
        made[one] = Example(one, point.record, z, point.code)
    liked = [made[one] for one in ids if one not in examples.disliked]
    if examples.seen is not None:
        record = examples.record or ImageRecord()
        uploaded = Example(None, record, examples.seen.z[0], examples.seen.codes[0])
        liked.insert(0, uploaded)
    return liked, [made[one] for one in examples.disliked]


def _of_study(store: VectorStore, study: str, disliked: Sequence[str]) -> list[str]:
    """Ids of up to 32 evenly spaced images of the study, including the first and the last."""
    records = {
        point.id: point.record for point in store.scroll(Filter(must=(Match("study", (study,)),)))
    }
    if not records:
        raise ImageNotFound(
            f"no indexed image is of study {study[:64]!r}; studies are in the answers of a search"
        )
    ids = sorted(records.keys() - set(disliked), key=lambda one: place(one, records[one]))
    if not ids:
        raise QueryError(f"all images of study {study!r} are disliked; nothing is left to like")
    count = min(len(ids), MAX_EXAMPLES)
    steps = np.linspace(0, len(ids) - 1, count).round().astype(int)
    return [ids[step] for step in steps]


def _strictest(
    verdict: Callable[[Observations], OodVerdict | None],
    liked: Sequence[Example],
    seen: Observations | None,
) -> OodVerdict | None:
    """The verdict with the smallest p, which is multiplied by the number of verdicts (Bonferroni).

    Uploaded and indexed examples are judged apart: of an upload, more detectors have what they
    need.
    """
    indexed = [example for example in liked if example.id is not None]
    observed = [] if seen is None else [seen]
    if indexed:
        z, codes = ([getattr(one, name) for one in indexed] for name in ("z", "code"))
        observed.append(Observations(np.stack(z), np.stack(codes)))
    told = [one for one in map(verdict, observed) if one is not None]
    if not told:
        return None
    strictest = min(told, key=lambda one: one.p)
    p = min(1.0, len(told) * strictest.p)
    return replace(strictest, p=p, foreign=p <= strictest.alpha)


def _climbs(
    store: VectorStore,
    settings: SearchSettings,
    liked: Sequence[Example],
    where: Filter,
    wanted: Wanted,
    wider: int,
    sized: Callable[[Filter], Size | None] | None = None,
) -> list[Climb]:
    """The result of the coarse filter for each liked example; sized: see :func:`climb`."""
    if wanted.exact:
        size = sized(where) if sized else size_of(store, where, settings.max_counted)
        size = size or Size(0)
        return [Climb(Rung("exact"), where, size, size, {})] * len(liked)
    return [
        climb(store, example.z, example.code, where, wanted.k, settings, wider=wider, sized=sized)
        for example in liked
    ]


def _note(climbs: Sequence[Climb], *, whole: bool) -> str | None:
    notes = [taken.note for taken in climbs if taken.note is not None]
    told = []
    if notes:
        several = f"for {len(notes)} of {len(climbs)} examples: " if len(climbs) > 1 else ""
        told.append(several + notes[0])
    if not whole:
        told.append(
            "the list may end too soon: so much of what is near is of the same few studies, or "
            "nearer to what is disliked"
        )
    return "; ".join(told) or None


def _votes(hits: Sequence[Hit]) -> tuple[Vote, ...]:
    """The votes of the hits' labels, the largest share first."""
    weights: dict[str, float] = {}
    counts: Counter[str] = Counter()
    total = 0.0
    for hit in hits:
        labels = set(hit.record.labels)
        weight = max(hit.similarity, 0.0)
        total += weight if labels else 0.0
        for label in labels:
            weights[label] = weights.get(label, 0.0) + weight
            counts[label] += 1
    made = [Vote(name, w / total if total else 0.0, counts[name]) for name, w in weights.items()]
    return tuple(sorted(made, key=lambda vote: (-vote.share, vote.label)))
