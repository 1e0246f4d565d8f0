"""Ways in which a Qdrant server differs from qdrant-client's local mode, each switched on by name.

All were seen of version 1.18.3, on one node or on three; each class says what was seen. A stand-in
(``Loopback``) has those that it was made with, and no others.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import UUID

from qdrant_client import models
from troubles import NO_CONSENSUS, Trouble, refused

if TYPE_CHECKING:
    from loopback import Loopback

__all__ = [
    "BEHAVIOURS",
    "AgreesLater",
    "Behaviour",
    "DropsEqualMustNot",
    "FacetsByShard",
    "GreyAfterRestart",
    "StrictMode",
]


class Behaviour:
    """Does nothing of its own; a subclass overrides what is different."""

    name: ClassVar[str]

    def understood(self, where: models.Filter) -> models.Filter:
        """The filter that the server goes by instead of this one, at one level."""
        return where

    def check(self, engine: "Loopback", name: str, operation: str, request: Any) -> None:
        """Raises Trouble if the server does not allow this request."""

    def facet(
        self, engine: "Loopback", name: str, wanted: models.FacetRequest
    ) -> models.FacetResponse | None:
        """The answer; None = as local mode gives it."""
        return None

    def describe(self, name: str, info: models.CollectionInfo) -> None:
        """Changes what is told of a collection."""

    def written(self, name: str) -> None:
        """Told that a collection was written to, or its settings were changed."""

    def agree(self, work: Callable[[], Any]) -> None:
        """Raises Trouble if nodes do not agree on this now."""


class DropsEqualMustNot(Behaviour):
    """1.18.3: of a condition that stands in ``must``, ``should`` or ``min_should`` as well, it is
    forgotten that it excludes: *A and not A* is A, also when it deletes.

    Seen of indexed fields and of ids, where the clause is one condition or the only one; here of
    all. One level deeper it is right.
    """

    name = "drops-equal-must-not"

    def understood(self, where: models.Filter) -> models.Filter:
        including = [*(where.must or []), *(where.should or [])]
        if where.min_should is not None:
            including += where.min_should.conditions
        left = [one for one in where.must_not or [] if one not in including]
        return where.model_copy(update={"must_not": left or None})


class FacetsByShard(Behaviour):
    """1.18.3: of a collection in several shards, each names its own most frequent values, and their
    counts are added up. With ``exact=True`` as many as were asked for, so that values are missing
    and counts too low; with ``exact=False`` four times as many, and at least 128, beyond which
    values are missing and counts too low as well.

    Seen on three shards: of the ten most frequent of 40 values 3, 6 or 7 were named; with
    ``exact=False`` all, and 5 of the ten of 5,000 equally frequent ones.
    """

    name = "facets-by-shard"
    of_each, least = 4, 128

    def __init__(self, shards: int = 3) -> None:
        self.shards = shards

    def facet(
        self, engine: "Loopback", name: str, wanted: models.FacetRequest
    ) -> models.FacetResponse:
        limit = 10 if wanted.limit is None else wanted.limit
        named = limit if wanted.exact else max(self.of_each * limit, self.least)
        inside: list[Counter[Any]] = [Counter() for _ in range(self.shards)]
        for record in engine.passing(name, wanted.filter):
            value = (record.payload or {}).get(wanted.key)
            values = value if isinstance(value, list) else [] if value is None else [value]
            inside[self.shard_of(record.id)].update(values)
        merged: Counter[Any] = Counter()
        for counts in inside:
            merged.update(dict(counts.most_common(named)))
        hits = [
            models.FacetValueHit(value=value, count=count)
            for value, count in merged.most_common(limit)
        ]
        return models.FacetResponse(hits=hits)

    def shard_of(self, point: models.ExtendedPointId) -> int:
        number = point if isinstance(point, int) else UUID(str(point)).int
        return number % self.shards


class GreyAfterRestart(Behaviour):
    """1.18.3: after kill -9 or SIGTERM while it optimised, a collection is grey, and is so for ever
    though searches come; a write, or a change of its settings that changes nothing, wakes it.

    Seen for 60 s; green 24 s after an empty change.
    """

    name = "grey-after-restart"

    def __init__(self) -> None:
        self._awake: set[str] | None = None

    def restart(self) -> None:
        self._awake = set()

    def describe(self, name: str, info: models.CollectionInfo) -> None:
        if self._awake is not None and name not in self._awake:
            info.status = models.CollectionStatus.GREY

    def written(self, name: str) -> None:
        if self._awake is not None:
            self._awake.add(name)


class StrictMode(Behaviour):
    """1.18.3: a collection in strict mode refuses requests beyond its limits, with status 400
    (INVALID_ARGUMENT) and a text that names the limit. ``max_query_limit`` bounds searches, pages
    of scroll and facets; ``condition_max_size`` the values of a condition, ids among them;
    ``search_allow_exact`` exact counts too, and every search where there is no graph.

    Args:
        limits: of ``models.StrictModeConfig``.
    """

    name = "strict-mode"

    def __init__(self, **limits: Any) -> None:
        self._limits = models.StrictModeConfigOutput(enabled=True, **limits)

    def describe(self, name: str, info: models.CollectionInfo) -> None:
        info.config.strict_mode_config = self._limits

    def check(self, engine: "Loopback", name: str, operation: str, request: Any) -> None:
        limits = self._limits
        if operation == "upsert":
            _at_most(len(request), limits.upsert_max_batchsize, "upsert limit")
            return
        if operation == "query":
            _at_most(len(request), limits.search_max_batchsize, "search batch size")
        for one in request if isinstance(request, list) else [request]:
            _at_most(getattr(one, "limit", None), limits.max_query_limit, "limit")
            self._check_filter(getattr(one, "filter", None))
            params = getattr(one, "params", None) or models.SearchParams()
            if getattr(one, "exact", False) or params.exact:
                self._check_exact("Exact search disabled!", "Set exact=false.")
            if params.quantization is not None:
                oversampling = params.quantization.oversampling
                _at_most(oversampling, limits.search_max_oversampling, "oversampling")
            _at_most(params.hnsw_ef, limits.search_max_hnsw_ef, "hnsw_ef")
            if operation == "query" and not engine.has_graph(name):
                self._check_exact(
                    "Request is forbidden on 'blended' because global vector indexing is disabled "
                    "(hnsw_config.m = 0)",
                    "Use tenant-specific filter, enable global vector indexing or enable strict "
                    "mode `search_allow_exact` option",
                )

    def _check_exact(self, error: str, way_out: str) -> None:
        if self._limits.search_allow_exact is False:
            raise refused(f"{error}. Help: {way_out}")

    def _check_filter(self, where: models.Filter | None) -> None:
        conditions = list(_conditions(where))
        most = self._limits.filter_max_conditions
        if most is not None and len(conditions) > most:
            raise refused(
                f"Filter condition limit reached ({len(conditions)} > {most}). Help: Reduce the "
                "amount of conditions of your filter."
            )
        most = self._limits.condition_max_size
        size = max(map(_size, conditions), default=0)
        if most is not None and size > most:
            raise refused(
                f"Condition size limit reached ({size} > {most}). Help: Reduce the size of your "
                "condition."
            )


class AgreesLater(Behaviour):
    """1.18.3: with one of two nodes away (or the leader lost), nothing that the nodes have to agree
    on can be done: collections made and dropped, aliases switched, metadata noted, indexes made.
    It fails after 10 s, **and happens when the node is back, however late**, in the order in which
    it was asked for.

    Args:
        lost: it does not happen later either, as was seen once when the leader was killed.
    """

    name = "agrees-later"

    def __init__(self, *, lost: bool = False) -> None:
        self.parted = False
        self.refusals = 0
        self.lost = lost
        self._later: list[Callable[[], Any]] = []

    def agree(self, work: Callable[[], Any]) -> None:
        if not self.parted:
            return
        self.refusals += 1
        if not self.lost:
            self._later.append(work)
        raise NO_CONSENSUS

    def come_together(self) -> None:
        """The node is back: what failed before happens now."""
        self.parted = False
        for work in self._later:
            with suppress(ValueError, Trouble):  # as of a collection that was made twice
                work()
        self._later.clear()


BEHAVIOURS: dict[str, type[Behaviour]] = {
    one.name: one
    for one in (DropsEqualMustNot, FacetsByShard, GreyAfterRestart, StrictMode, AgreesLater)
}


def _at_most(value: float | None, most: float | None, name: str) -> None:
    if value is not None and most is not None and value > most:
        raise refused(
            f'Limit exceeded {value} > {most} for "{name}". Help: Reduce the "{name}" parameter '
            f"to or below {most}."
        )


def _conditions(where: models.Filter | None) -> Iterator[Any]:
    """All conditions, also those within others."""
    if where is None:
        return
    least = [] if where.min_should is None else where.min_should.conditions
    for one in (*(where.must or []), *(where.should or []), *(where.must_not or []), *least):
        if isinstance(one, models.Filter):
            yield from _conditions(one)
        else:
            yield one


def _size(condition: Any) -> int:
    if isinstance(condition, models.HasIdCondition):
        return len(condition.has_id)
    match = getattr(condition, "match", None)
    return len(match.any) if isinstance(match, models.MatchAny) else 1
