"""Recommendations: images similar to liked examples and not to disliked ones.

The coarse filter (ladder.py) runs once for each liked example, and the most similar candidates of
each are collected. Every candidate is then compared with all examples. Its similarity is the
highest r to any liked example, and it is left out if its r to some disliked example is higher (the
"best score" rule). The examples are not averaged: the mean of a chest and a hand resembles neither.
By another rule whole series or studies are compared instead (late_interaction.py).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from engine.errors import QueryError
from engine.records import Hit, Observations, OodVerdict
from engine.search import late_interaction
from engine.search.diversity import diverse
from engine.search.examples import MAX_EXAMPLES, Examples, fetched
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
from engine.search.shortlist import first_of_each, without_groups
from engine.search.sizes import Size, size_of
from engine.search.spelling import as_spelled, look_ahead as spelling_ahead
from engine.search.stopwatch import Stopwatch
from engine.settings import SearchSettings
from engine.store.ahead import AheadStore
from engine.store.base import Filter, Ids, Nearest, VectorStore

__all__ = [
    "MAX_EXAMPLES",
    "RULES",
    "Basis",
    "Examples",
    "Recommendation",
    "Vote",
    "Wanted",
    "recommend",
]

RULES = ("image", "series", "study")
"""What is compared with the examples: each image, or all images of a series or a study."""
_WIDER = 8
"""Factor by which more candidates are asked for when those found are of too few studies."""
_MOST_CASES = 500
"""No more series or studies are asked for than these, or than are wanted."""
_PER_HIT, _SHORTLIST = 5, 500
"""A diverse list is chosen from this many candidates for each hit, up to the second number."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The options of a recommendation.

    k, where, exact: as in :class:`Query`.
    rule: one of ``RULES``. "image": a case is as similar as its image that is most like an example.
        "series", "study": as the mean, over the examples, of the best match of each in a series, or
        in a study; ``exact`` is then of the images that name the cases to compare.
    group_by: "study" or "patient": only the best image, or series, of each; None = all.
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
    rule: str = "image"

    def __post_init__(self) -> None:
        Query(self.k, self.where, exact=self.exact, group_by=self.group_by, exclude=self.exclude)
        if not 0 <= self.diversity <= 1:
            raise QueryError(f"diversity is {self.diversity}; use 0 (off) to 1")
        if self.rule not in RULES:
            raise QueryError(f"rule is {self.rule!r}; use one of {', '.join(RULES)}")


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

    rule: what was compared with the examples, see :class:`Wanted`.
    liked, disliked: number of examples used. liked_of: how many images there are of what is liked;
        more than ``liked`` if evenly spaced ones were taken.
    rungs: rung → number of liked examples searched for on it; empty when nothing was searched,
        because an example is foreign and the policy refuses foreign queries.
    candidates: number of candidates, summed over the liked examples.
    estimated: ``candidates`` is in part an estimate, and may be too high.
    approximate: a graph or quantised vectors preselected candidates, and may have missed some.
    ranked: number of different images that were compared with all examples.
    cases: number of series or studies that were compared; None = images were.
    cases_sampled: of how many of them some images were compared, evenly spaced ones, not all.
    nearer_to_disliked: how many images, or cases, were left out as nearer to a disliked example.
    model: fingerprint of the model. bits: of a code.
    index_precision: number format in which the index was computed; None = not recorded.
    precision: number format in which uploaded examples were encoded; None = none was uploaded.
    note: a sentence on limits of the result for the reader, or None.
    rendering, rendered_otherwise: as in :class:`~engine.records.Evidence`.
    timings_ms: wall-clock milliseconds by stage.
    """

    rule: str
    liked: int
    liked_of: int
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
    cases: int | None = None
    cases_sampled: int = 0
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
    scaled: Callable[[NDArray[np.float32], Sequence[Hit]], list[Hit]] | None = None,
) -> Recommendation:
    """The images recommended for ``examples``; of whole series or studies, the image of each that
    is most like an example.

    Args:
        verdict: returns the OOD verdict on observed images, or None.
        scaled: returns the hits of a query of images with these z, float32 (N, D), with their
            likeness; None = they have none.

    Raises:
        ImageNotFound: an example, or the example study or series, is not indexed.
        QueryError: all images of the example study or series are disliked.
        StoreError: an example is stored without its vector.
    """
    watch = Stopwatch()
    likely = None
    with watch("fetch"):
        if isinstance(store, AheadStore):
            likely = _look_at_examples(store, examples, wanted)
        given = fetched(store, examples)
    liked, disliked = given.liked, given.disliked
    with watch("ood"):
        told = _strictest(verdict, liked, examples.seen)
    basis = Basis(
        rule=wanted.rule,
        liked=len(liked),
        liked_of=given.liked_of,
        disliked=len(disliked),
        diversity=wanted.diversity,
        model=store.collection.model,
        bits=store.collection.bits,
        index_precision=store.collection.precision,
    )
    if told is not None and told.foreign and settings.ood_policy == "refuse":
        return Recommendation((), (), replace(basis, timings_ms=watch.rounded()), told)
    others, remarks = as_spelled(store, wanted.where)
    others = _without(others, {*(one.id for one in (*liked, *disliked)), *examples.seen_ids})
    own = [example.record for example in liked]
    by_image, wider = wanted.rule == "image", 1
    if not by_image:
        # Of a long one not all images are examples, and the others would be a hit.
        named = {getattr(record, wanted.rule) for record in own} - {None}
        others = without_groups(others, wanted.rule, sorted(named))
    needed = wanted.k
    if wanted.diversity > 0:
        needed = max(needed, min(_PER_HIT * needed, _SHORTLIST))
    with watch("fetch"):
        if isinstance(store, AheadStore):
            _look_ahead(store, settings, liked, others, wanted, needed, likely)
        nobody = nobodies(store, settings, own, wanted.exclude, wanted.group_by)
    where = without_own(others, wanted.exclude, own, nobody)
    pool = Pool(store, liked, disliked, nobody)
    cases = late_interaction.Cases()
    while True:
        with watch("prefilter"):
            climbs = _climbs(store, settings, liked, where, wanted, wider)
        with watch("rank"):
            asked = _asked(liked, climbs, wanted)
            if by_image:
                whole = pool.fill(asked, wanted.group_by, needed)
                found = pool.suggestions()
            else:
                cases = late_interaction.most_alike(
                    store, liked, disliked, asked, where, wanted.rule, wider * needed
                )
                whole, found = True, list(cases.suggestions)
            hits = [one.hit for one in found]
            if wanted.group_by is not None:
                hits = list(first_of_each(hits, wanted.group_by, nobody))
        # A rung may have many candidates that are all of a few studies: try again with wider rungs.
        whole_index = all(taken.rung.name in ("dense", "exact") for taken in climbs)
        if len(hits) >= wanted.k or (whole_index and cases.whole):
            break
        if not by_image and wider * needed >= _MOST_CASES:
            whole = False
            break
        wider *= _WIDER
    with watch("rank"):
        hits = diverse(store, hits[:needed], wanted.k, wanted.diversity)
        if scaled is not None:
            hits = scaled(np.stack([example.z for example in liked]), hits)
    because = {one.hit.id: one for one in found}
    remarks = (*remarks, *remark_on(nobody, own, wanted.exclude))
    ranked = pool.compared if by_image else cases.images
    if ranked == 0:
        remarks = (*remarks, *remark_on_nothing(store, others, wanted.exclude))
    basis = replace(
        basis,
        rungs=dict(Counter(taken.rung.name for taken in climbs)),
        candidates=sum(taken.size.count for taken in climbs),
        estimated=any(taken.size.estimated for taken in climbs),
        approximate=any(taken.approximate for taken in climbs),
        ranked=ranked,
        cases=None if by_image else cases.compared,
        cases_sampled=cases.sampled,
        nearer_to_disliked=pool.nearer_to_disliked + cases.nearer_to_disliked,
        note=joined(_note(climbs, whole=whole), remarks),
        timings_ms=watch.rounded(),
    )
    shown = tuple(replace(because[hit.id], hit=hit) for hit in hits)
    return Recommendation(shown, _votes(hits), basis, told)


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
    if examples.study is None and examples.series is None and ids:
        store.get_ahead(ids, with_z=True)
    spelling_ahead(store, wanted.where)
    where = _without(wanted.where, {*ids, *examples.seen_ids})
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
            depth = _depth(wanted)
            for narrowed in looked_into(store, one.z, one.code, where, depth, settings, 1):
                store.count_ahead(narrowed, exact=False)
    sizes = Outlook(store, settings, None if likely is None else likely())
    climbs = _climbs(store, settings, liked, where, wanted, 1, sizes.of)
    asked = _asked(liked, climbs, wanted)
    if wanted.rule == "image":
        Pool.look_ahead(store, asked, wanted.group_by, needed)
    else:
        late_interaction.look_ahead(store, asked)


def _asked(liked: Sequence[Example], climbs: Sequence[Climb], wanted: Wanted) -> list[Nearest]:
    """A request for each liked example."""
    return [
        Nearest(example.z, taken.where, wanted.k, not taken.approximate, with_z=True)
        for example, taken in zip(liked, climbs, strict=True)
    ]


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
    return min(told, key=lambda one: one.p).of_several(len(told))


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
        climb(
            store,
            example.z,
            example.code,
            where,
            _depth(wanted),
            settings,
            wider=wider,
            sized=sized,
        )
        for example in liked
    ]


def _depth(wanted: Wanted) -> int:
    """How many images near each example are to be found: to rank them, or to name cases."""
    return wanted.k if wanted.rule == "image" else late_interaction.NEAREST


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
