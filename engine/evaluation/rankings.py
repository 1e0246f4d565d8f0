"""Ranks a database for many queries at once, in memory, without a store.

Has the orders of ``engine.search``, and two others to compare them with.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from engine.errors import QueryError
from engine.records import EncodedImages
from engine.search.ladder import radii

__all__ = ["ORDERS", "LeaveOut", "chunks", "hamming_distances", "rankings"]

ORDERS = ("hamming_random", "hamming", "content", "exact")

LeaveOut = Callable[[slice], NDArray[np.bool_]]
"""Rows of queries → bool (rows, N): True = ignore this item for this query."""

# The sort key of a pair of query and item is one integer of 64 bits with a field for each
# criterion, so that the first k items of a query are those with the k smallest keys.
_HAMMING, _SIMILARITY, _PLACE = np.uint64(13), np.uint64(25), np.uint64(26)
_ABSENT = np.uint64(2**64 - 1)
# Similarities are compared in steps of 2⁻²³, the resolution of float32 at 1. Products are summed
# in float64, whose rounding depends on the position in the matrix, but is far smaller than that.
_STEPS = 2.0**23
_PAIRS_AT_ONCE = 500_000
_AT_LEAST, _PER_HIT = 10, 5
"""Least items in a Hamming ball, in all and for each hit. A search asks for far more candidates, to
miss fewer hits; but then the codes would hardly matter, and all methods would be ranked alike."""


def rankings(
    queries: EncodedImages,
    database: EncodedImages,
    k: int,
    *,
    orders: Sequence[str] = ORDERS,
    places: NDArray[np.int64] | None = None,
    leave_out: LeaveOut | None = None,
    seed: int | Sequence[int] = 0,
) -> dict[str, NDArray[np.int64]]:
    """The first k items of the database for each query, by order: int64 (Q, k), −1 = no more.

    "hamming_random": Hamming ascending, ties at random.
    "hamming": Hamming ascending, similarity descending, place ascending.
    "content": the items inside a Hamming ball by similarity descending, Hamming, place. The ball
        is the smallest with the radius of a rung (engine/search/ladder.py) that holds
        max(10, 5 k) items; if none does, all items.
    "exact": similarity descending, place ascending.

    Source of "hamming" and "content": Nan et al., Medical Image Analysis 2025, 103553.

    Args:
        places: int64 (N,), a permutation of 0 … N − 1, each item's rank by id; None = the order of
            the database.
        leave_out: which items to ignore for which query.
        seed: of the random ties of "hamming_random".

    Raises:
        QueryError: k is not positive, an order is unknown, queries and database have other lengths
            of z or codes, or there are more items or bits than fit in a 64-bit sort key.
    """
    _check(queries, database, k, orders)
    count, bits = len(database), 8 * database.codes.shape[1]
    places = np.arange(count) if places is None else places
    item_at = np.argsort(places)
    place = places.astype(np.uint64)
    enough = max(_AT_LEAST, _PER_HIT * k)
    steps = radii(bits)
    transposed = database.z.T.astype(np.float64)
    generator = np.random.default_rng(seed)
    found = {order: np.full((len(queries), k), -1, dtype=np.int64) for order in orders}
    for rows in chunks(len(queries), count):
        distance = hamming_distances(queries.codes[rows], database.codes)
        out = np.zeros(distance.shape, np.bool_) if leave_out is None else leave_out(rows)
        distance[out] = bits + 1
        near = distance.astype(np.uint64)
        r = queries.z[rows].astype(np.float64) @ transposed
        unlike = np.rint((1 - r) * _STEPS).clip(0, 2 * _STEPS).astype(np.uint64)
        for order in orders:
            absent = out
            match order:
                case "hamming_random":
                    drawn = generator.integers(1 << int(_SIMILARITY), size=r.shape, dtype=np.uint64)
                    keys = near << _SIMILARITY | drawn
                case "hamming":
                    keys = near << _SIMILARITY | unlike
                case "content":
                    keys = unlike << _HAMMING | near
                    absent = distance > _ball(distance, steps, enough, bits)
                case _:
                    keys = unlike
            keys = keys << _PLACE | place
            keys[absent] = _ABSENT
            found[order][rows, : min(k, count)] = _first(keys, k, item_at)
    return found


def _check(queries: EncodedImages, database: EncodedImages, k: int, orders: Sequence[str]) -> None:
    if k < 1:
        raise QueryError(f"k is {k}; ask for at least one")
    if unknown := set(orders) - set(ORDERS):
        raise QueryError(f"order is {min(unknown)!r}; use one of {', '.join(ORDERS)}")
    for what, theirs, ours in (
        ("values in z", queries.z.shape[1], database.z.shape[1]),
        ("bits", 8 * queries.codes.shape[1], 8 * database.codes.shape[1]),
    ):
        if theirs != ours:
            raise QueryError(
                f"the queries have {theirs} {what}, the database {ours}; encode both with one model"
            )
    if len(database) >> int(_PLACE) or 8 * database.codes.shape[1] + 1 >> int(_HAMMING):
        raise QueryError(
            f"{len(database)} images of {8 * database.codes.shape[1]} bits are more than can be "
            f"ranked here: fewer than {1 << int(_PLACE)} images, {(1 << int(_HAMMING)) - 1} bits; "
            "take a sample"
        )


def chunks(queries: int, items: int) -> Iterator[slice]:
    """Slices of the queries that limit the memory for all pairs with ``items`` items."""
    step = max(1, _PAIRS_AT_ONCE // max(1, items))
    for start in range(0, queries, step):
        yield slice(start, min(start + step, queries))


def _ball(
    distance: NDArray[np.uint16], steps: Sequence[int], enough: int, bits: int
) -> NDArray[np.int64]:
    """For each row the smallest of ``steps`` with enough items inside, else ``bits``: (rows, 1)."""
    ball = np.full((len(distance), 1), bits)
    for radius in reversed(steps):
        inside = np.count_nonzero(distance <= radius, axis=1, keepdims=True)
        ball[inside >= enough] = radius
    return ball


def _first(keys: NDArray[np.uint64], k: int, item_at: NDArray[np.int64]) -> NDArray[np.int64]:
    """The items with the k smallest keys of each row, ascending; −1 where there are no more."""
    if k < keys.shape[1]:
        keys = np.partition(keys, k - 1, axis=1)[:, :k]
    keys = np.sort(keys, axis=1)
    place = (keys & ((np.uint64(1) << _PLACE) - np.uint64(1))).astype(np.int64)
    place[keys == _ABSENT] = 0
    return np.where(keys == _ABSENT, -1, item_at[place])


def hamming_distances(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """Differing bits of all pairs of packed codes: uint8 (A, B/8), (N, B/8) → uint16 (A, N).

    The same as ``engine.codes.hamming``, eight bytes at a time.
    """
    words_a, words_b = _words(a), _words(b)
    differing = np.zeros((len(a), len(b)), dtype=np.uint16)
    for word in range(words_a.shape[1]):
        differing += np.bitwise_count(words_a[:, None, word] ^ words_b[:, word])
    return differing


def _words(codes: NDArray[np.uint8]) -> NDArray[np.uint64]:
    padded = np.pad(codes, ((0, 0), (0, -codes.shape[1] % 8)))
    return np.ascontiguousarray(padded).view(np.uint64)
