"""How many images a filter lets pass, and samples of those that are too many to go through."""

from dataclasses import dataclass, replace

from engine.store.base import Filter, Match, VectorStore
from engine.store.payload import BUCKET_FIELD, BUCKETS

__all__ = ["Size", "sample_of", "sampled_buckets", "size_of"]


@dataclass(frozen=True, slots=True)
class Size:
    """count: how many. estimated: by the store, from statistics of its payload indexes, which
    take the filter's conditions for independent. Bands are not: where codes have collapsed
    an estimate is too high, by up to their number."""

    count: int
    estimated: bool = False

    @property
    def text(self) -> str:
        """For people, as in "about 1,200,000"."""
        return f"about {self.count:,}" if self.estimated else f"{self.count:,}"


def size_of(store: VectorStore, where: Filter, max_counted: int) -> Size:
    """How many points take part: counted where they seem to be ``max_counted`` at most.

    Counting takes as long as searching; an estimate is there at once.
    """
    about = store.count(where, exact=False)
    if about > max_counted:
        return Size(about, estimated=True)
    return Size(store.count(where))


def sampled_buckets(count: int, most: int) -> int:
    """How many of the buckets hold about ``most`` of ``count`` points: at least one."""
    return max(1, min(BUCKETS, most * BUCKETS // max(count, 1)))


def sample_of(where: Filter, buckets: int) -> Filter:
    """The same, in so many buckets only."""
    return replace(where, must=(*where.must, Match(BUCKET_FIELD, tuple(range(buckets)))))
