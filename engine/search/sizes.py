"""How many images pass a filter, and fixed samples of them where there are too many to compare."""

from dataclasses import dataclass, replace

from engine.store.base import PARTS, Filter, Part, VectorStore

__all__ = ["Size", "sample_of", "sampled_parts", "size_of"]


@dataclass(frozen=True, slots=True)
class Size:
    """A number of images, counted or estimated.

    count: the number of images.
    estimated: the store estimated it from the statistics of its payload indexes, as if the
        conditions of the filter were independent. The bands of a code are not: where many images
        share a code, each of its bands counts them again, so that the estimate is too high by a
        factor of up to the number of bands.
    """

    count: int
    estimated: bool = False

    @property
    def text(self) -> str:
        """The number as shown to people, such as "about 1,200,000"."""
        return f"about {self.count:,}" if self.estimated else f"{self.count:,}"


def size_of(store: VectorStore, where: Filter, max_counted: int) -> Size:
    """The number of points that pass the filter: counted, or estimated above ``max_counted`` where
    counting takes as long as searching."""
    if store.counts_at_once:
        return Size(store.count(where))
    about = store.count(where, exact=False)
    if about > max_counted:
        return Size(about, estimated=True)
    return Size(store.count(where))


def sampled_parts(count: int, most: int) -> int:
    """How many of the store's 256 parts together hold about ``most`` of ``count`` points, at least
    1."""
    return max(1, min(PARTS, most * PARTS // max(count, 1)))


def sample_of(where: Filter, parts: int) -> Filter:
    """The filter limited to the points of the first ``parts`` parts."""
    return replace(where, must=(*where.must, Part(parts)))
