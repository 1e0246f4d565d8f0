"""The examples of a recommendation: which images are liked and disliked, and their vectors."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import numpy as np

from engine.errors import ImageNotFound, QueryError, StoreError
from engine.records import ImageRecord, Observations
from engine.search.pool import Example
from engine.search.representative import evenly_spaced, place
from engine.store.base import Filter, Match, VectorStore

__all__ = ["MAX_EXAMPLES", "Examples", "Fetched", "fetched", "taken_of"]

_SEVERAL = {"study": "studies", "series": "series"}

MAX_EXAMPLES = 32
"""Most examples liked by id, most images of the liked study or series, most uploaded images, and
most disliked examples."""


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """The examples of a recommendation; at least one image is liked.

    liked, disliked: ids of indexed images.
    study, series: a study or a series whose images are liked; of more than 32, 32 evenly spaced
        ones.
    seen: observations of the uploaded images, which are liked; None = nothing was uploaded.
    seen_of: of so many uploaded images those in ``seen`` were taken; None = of as many.
    records: records of the uploaded images' files, with their study and patient; () = unknown.
    seen_ids: point ids of the uploaded images, by which they are left out if they are indexed.

    Raises:
        QueryError: no image is liked, an image is both liked and disliked, or there are too many.
    """

    liked: tuple[str, ...] = ()
    disliked: tuple[str, ...] = ()
    study: str | None = None
    series: str | None = None
    seen: Observations | None = None
    seen_of: int | None = None
    records: tuple[ImageRecord, ...] = ()
    seen_ids: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("liked", "disliked"):
            ids = tuple(dict.fromkeys(_plain(one) for one in getattr(self, name)))
            object.__setattr__(self, name, ids)
            if len(ids) > MAX_EXAMPLES:
                raise QueryError(f"{len(ids)} images are {name}; give up to {MAX_EXAMPLES}")
        sent = 0 if self.seen is None else len(self.seen)
        if sent > MAX_EXAMPLES:
            raise QueryError(f"{sent} images were sent; give up to {MAX_EXAMPLES}")
        if not self.liked and not sent and self.study is None and self.series is None:
            raise QueryError(
                "no example is liked; give an image, ids of images, a study or a series"
            )
        if self.study is not None and self.series is not None:
            raise QueryError("a study and a series are liked; name one of the two")
        both = [one for one in (*self.liked, *self.seen_ids) if one in self.disliked]
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
class Fetched:
    """The examples with their vectors. liked: uploaded images first. liked_of: how many images
    there are of what is liked, of which ``liked`` are some."""

    liked: list[Example]
    disliked: list[Example]
    liked_of: int


def fetched(store: VectorStore, examples: Examples) -> Fetched:
    """The examples as the store has them.

    Raises:
        ImageNotFound: an example, or the liked study or series, is not indexed.
        QueryError: all images of the liked study or series are disliked.
        StoreError: an example is stored without its vector.
    """
    ids = [*examples.liked, *examples.disliked]
    left_out = 0
    for field in ("study", "series"):
        uid = getattr(examples, field)
        if uid is not None:
            mine, count = _of(store, field, uid, examples.disliked)
            left_out += count - len(mine)
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
        seen = examples.seen
        records = examples.records or (ImageRecord(),) * len(seen)
        uploaded = zip(records, seen.z, seen.codes, strict=True)
        liked = [*(Example(None, record, z, code) for record, z, code in uploaded), *liked]
        if examples.seen_of is not None:
            left_out += examples.seen_of - len(seen)
    return Fetched(liked, [made[one] for one in examples.disliked], len(liked) + left_out)


def _of(store: VectorStore, field: str, uid: str, disliked: Sequence[str]) -> tuple[list[str], int]:
    """Ids of up to 32 evenly spaced images of the study or series, including the first and the
    last; and how many it has that are not disliked."""
    records = {
        point.id: point.record for point in store.scroll(Filter(must=(Match(field, (uid,)),)))
    }
    if not records:
        raise ImageNotFound(
            f"no indexed image is of {field} {uid[:64]!r}; {_SEVERAL[field]} are in the "
            "answers of a search"
        )
    ids = sorted(records.keys() - set(disliked), key=lambda one: place(one, records[one]))
    if not ids:
        raise QueryError(f"all images of {field} {uid!r} are disliked; nothing is left to like")
    return evenly_spaced(ids, MAX_EXAMPLES), len(ids)


def taken_of(records: Sequence[ImageRecord], rule: str) -> list[int]:
    """Which of uploaded images are the examples: up to 32, evenly spaced over their series.

    Args:
        records: of the images, as their files' headers name them.
        rule: what is to be compared with them, "image", "series" or "study".

    Returns:
        Their numbers, in the order of the slices; images of no series as they were sent.

    Raises:
        QueryError: a series, or a study, is to be compared, and the images are of several.
    """
    if rule != "image":
        named = sorted({getattr(one, rule) for one in records} - {None})
        if len(named) > 1:
            some = ", ".join(one[:64] for one in named[:4])
            other = ", or let whole studies be compared" if rule == "series" else ""
            raise QueryError(
                f"the images are of {len(named)} {_SEVERAL[rule]}: {some}"
                f"{' …' if len(named) > 4 else ''}; give those of one{other}"
            )
    order = sorted(range(len(records)), key=lambda at: place("", records[at]))
    return evenly_spaced(order, MAX_EXAMPLES)
