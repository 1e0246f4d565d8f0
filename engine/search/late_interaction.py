"""Compares whole series or studies with examples: late interaction.

Each example finds its best match in a case, and the case is as similar as the mean of these
matches. One image that happens to look like another does not carry a case; a case does that has
something like each of the examples. (Khattab and Zaharia, "ColBERT: Efficient and Effective Passage
Search via Contextualized Late Interaction over BERT", SIGIR 2020, do this with the words of texts.)

The images nearest to each example name the cases to compare, in one round trip; then the images
of these cases are read and compared with every example.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from engine.codes import hamming
from engine.records import Hit, ImageRecord, Point
from engine.search.pool import Example, Suggestion
from engine.search.representative import evenly_spaced, place
from engine.search.shortlist import without_groups
from engine.search.similarity import cosines, unit
from engine.search.sizes import sample_of, sampled_parts
from engine.store.ahead import AheadStore
from engine.store.base import Filter, Ids, Match, Nearest, VectorStore

__all__ = ["NEAREST", "Cases", "best_matches", "look_ahead", "most_alike"]

NEAREST = 128
"""So many of the images nearest to each example name the cases to compare."""
_ROUNDS = 4
"""Most round trips for this. Each further one leaves out the cases that are known: one of very many
slices would otherwise take up all lists."""
_CASES = 64
"""At least so many cases are compared, where there are as many …"""
_FOR_EACH_HIT = 4
"""… and so many for each hit wanted, as several may be of one study or patient."""
_IMAGES = 64
"""Most images of a case that are compared; of more, these are evenly spaced over it …"""
_FEWEST_IMAGES = 8
_ALL_IMAGES = 16_384
"""… and fewer, but at least eight, where there would be more than these in all."""
_MOST_READ = 50_000
"""Of more images in the cases to be compared, those in some of the store's 256 parts are looked
at."""
_VALUES_AT_ONCE = 256
_AT_ONCE = 1000
"""Images read with one request."""


@dataclass(frozen=True, slots=True)
class Cases:
    """The cases that were compared.

    suggestions: one image of each case, the one most like an example, most similar case first;
        without cases that are nearer to a disliked image.
    compared: number of cases. sampled: how many of them have more images than were compared.
    images: number of images compared with all examples.
    nearer_to_disliked: number of cases left out.
    whole: no other case can be found.
    """

    suggestions: tuple[Suggestion, ...] = ()
    compared: int = 0
    sampled: int = 0
    images: int = 0
    nearer_to_disliked: int = 0
    whole: bool = True


def look_ahead(store: AheadStore, asked: Sequence[Nearest]) -> None:
    """Sends what :func:`most_alike` will ask first."""
    store.query_ahead([_first(one) for one in asked])


def most_alike(
    store: VectorStore,
    liked: Sequence[Example],
    disliked: Sequence[Example],
    asked: Sequence[Nearest],
    where: Filter,
    by: str,
    wanted: int,
) -> Cases:
    """The cases most similar to the liked examples.

    Args:
        asked: for each liked example the request that finds images near it.
        where: the images that take part, without a coarse filter.
        by: "series" or "study": what a case is. An image that names none is one by itself.
        wanted: cases wanted.
    """
    near = _Near([_first(one) for one in asked], by)
    enough = max(_CASES, _FOR_EACH_HIT * wanted)
    whole = False
    for _ in range(_ROUNDS):
        whole = near.ask(store)
        if whole or len(near.names) >= enough:
            break
    names = near.most_likely(enough)
    if not names:
        return Cases(whole=whole)
    images = _images_of(store, where, by, names)
    return replace(
        _compared(images, liked, disliked), whole=whole and len(names) == len(near.names)
    )


def best_matches(
    examples: NDArray[np.float64], z: NDArray[np.float64], starts: Sequence[int]
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """For each example and case the cosine of its best match in the case, and that image's row.

    Args:
        examples: float64 (E, D), unit rows.
        z: float64 (N, D), unit rows: the images of one case after those of another.
        starts: first row of each of the C cases.

    Returns:
        float64 (E, C), in [-1, 1]; int (E, C), rows of ``z``, the first of equals.
    """
    likeness = np.stack([cosines(z, one) for one in examples])
    found = np.maximum.reduceat(likeness, starts, axis=1)
    owner = np.repeat(np.arange(len(starts)), np.diff([*starts, len(z)]))
    places = np.where(likeness == found[:, owner], np.arange(len(z)), len(z))
    return found, np.minimum.reduceat(places, starts, axis=1)


class _Near:
    """The images found near each example, and the cases that they name."""

    def __init__(self, asked: Sequence[Nearest], by: str) -> None:
        self._asked = asked
        self._by = by
        self.names: dict[str, dict[int, float]] = {}
        # What no list reached is at most as similar as the last image of it.
        self._last = [-1.0] * len(asked)

    def ask(self, store: VectorStore) -> bool:
        """Asks for images of cases not known yet, for all examples in one round trip; returns
        whether no further one can be found."""
        answers = store.query([self._question(one) for one in self._asked])
        whole = True
        for at, (one, points) in enumerate(zip(self._asked, answers, strict=True)):
            for point in points:
                seen = self.names.setdefault(_case(point.id, point.record, self._by), {})
                score = -1.0 if point.score is None else point.score
                seen[at] = max(score, seen.get(at, -1.0))
            if len(points) >= one.limit:
                whole = False
                self._last[at] = max(self._last[at], points[-1].score or -1.0)
        return whole

    def _question(self, asked: Nearest) -> Nearest:
        named = [name for name in self.names if name[0] != _ALONE]
        where = without_groups(asked.where, self._by, named)
        alone = tuple(name[1:] for name in self.names if name[0] == _ALONE)
        if alone:
            where = replace(where, must_not=(*where.must_not, Ids(alone)))
        return replace(asked, where=where)

    def most_likely(self, count: int) -> list[str]:
        """The ``count`` cases that may be most similar: by the best matches found, and where an
        example's list has none of a case, by the last image of that list."""
        scores = {
            name: sum(seen.get(at, last) for at, last in enumerate(self._last))
            for name, seen in self.names.items()
        }
        return sorted(scores, key=lambda name: (-scores[name], name))[:count]


_ALONE = "#"
"""Begins what an image is known by that is a case by itself; no UID does."""


def _case(image_id: str, record: ImageRecord, by: str) -> str:
    name: str | None = getattr(record, by)
    return name or f"{_ALONE}{image_id}"


def _first(asked: Nearest) -> Nearest:
    return replace(asked, limit=NEAREST, with_z=False)


@dataclass(frozen=True, slots=True)
class _Images:
    """The images of cases, one case after another. starts: place of the first of each."""

    points: list[Point]
    starts: list[int]
    sampled: int


def _images_of(store: VectorStore, where: Filter, by: str, names: Sequence[str]) -> _Images:
    """The images of these cases with their vectors, evenly spaced ones where there are many."""
    cases: dict[str, list[Point]] = {}
    sampled = False
    for chosen in _filters(where, by, names):
        count = store.count(chosen)
        if count > _MOST_READ:
            sampled, chosen = True, sample_of(chosen, sampled_parts(count, _MOST_READ))
        for point in store.scroll(chosen):
            cases.setdefault(_case(point.id, point.record, by), []).append(point)
    most = max(_FEWEST_IMAGES, min(_IMAGES, _ALL_IMAGES // max(len(cases), 1)))
    ids, larger = [], 0
    for points in cases.values():
        points.sort(key=lambda point: place(point.id, point.record))
        larger += len(points) > most or sampled
        ids.append([point.id for point in evenly_spaced(points, most)])
    every = [one for case in ids for one in case]
    found = {
        point.id: point
        for start in range(0, len(every), _AT_ONCE)
        for point in store.get(every[start : start + _AT_ONCE], with_z=True)
        if point.z is not None
    }
    points, starts = [], []
    for case in ids:
        # Some may have been deleted since.
        left = [found[one] for one in case if one in found]
        if left:
            starts.append(len(points))
            points.extend(left)
    return _Images(points, starts, larger)


def _filters(where: Filter, by: str, names: Sequence[str]) -> Iterable[Filter]:
    named = [name for name in names if name[0] != _ALONE]
    alone = tuple(name[1:] for name in names if name[0] == _ALONE)
    if alone:
        yield replace(where, must=(*where.must, Ids(alone)))
    values = iter(named)
    for chunk in iter(lambda: tuple(islice(values, _VALUES_AT_ONCE)), ()):
        yield replace(where, must=(*where.must, Match(by, chunk)))


def _compared(images: _Images, liked: Sequence[Example], disliked: Collection[Example]) -> Cases:
    if not images.points:
        return Cases()
    points, starts = images.points, images.starts
    z = unit(np.stack([point.z for point in points if point.z is not None]))
    best, rows = best_matches(unit(np.stack([one.z for one in liked])), z, starts)
    similarity = best.mean(axis=0)
    worst = np.full(len(starts), -np.inf)
    if disliked:
        worst = best_matches(unit(np.stack([one.z for one in disliked])), z, starts)[0].max(axis=0)
    suggestions = []
    for case, score in enumerate(similarity):
        if worst[case] > best[:, case].max():
            continue
        example = int(best[:, case].argmax())
        point = points[int(rows[example, case])]
        differing = int(hamming(point.code, liked[example].code))
        suggestions.append(Suggestion(Hit.of(point, float(score), differing), liked[example].id))
    suggestions.sort(key=lambda one: (-one.hit.similarity, one.hit.hamming or 0, one.hit.id))
    return Cases(
        tuple(suggestions),
        compared=len(starts),
        sampled=images.sampled,
        images=len(points),
        nearer_to_disliked=len(starts) - len(suggestions),
    )
