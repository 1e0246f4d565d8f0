"""Counts by field and value, with what they do not say."""

from collections.abc import Iterable, Mapping, Sequence

__all__ = ["Facets"]


class Facets(dict[str, dict[str, int]]):
    """Field → value → number of images or points, the most frequent values first.

    A dict, as which it is compared, shown and sent; what it says of itself comes beside it.

    Args:
        at_least: fields whose counts are lower bounds, and of whose frequent values some may be
            missing: they have so many values that a shard of a server need not have named all.
        estimated: all counts are scaled up from a sample; those of ``at_least`` may be too low
            besides.
    """

    def __init__(
        self,
        counts: Mapping[str, dict[str, int]] | None = None,
        *,
        at_least: Sequence[str] = (),
        estimated: bool = False,
    ) -> None:
        super().__init__(counts or {})
        self.at_least = tuple(at_least)
        self.estimated = estimated

    @classmethod
    def joined(cls, parts: Iterable["Facets"]) -> "Facets":
        """Those of several fields, in their order."""
        found = list(parts)
        return cls(
            {field: dict(counts) for part in found for field, counts in part.items()},
            at_least=[field for part in found for field in part.at_least],
            estimated=any(part.estimated for part in found),
        )
