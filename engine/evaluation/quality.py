"""Evaluates the retrieval quality of a model: queries from one set of images, hits from another."""

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, fields, is_dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import QueryError
from engine.evaluation.metrics import (
    CodeStatistics,
    Difference,
    Interval,
    average_precision,
    bootstrap_mean,
    code_statistics,
    distance_counts,
    macro_mean,
    overlap,
    paired_bootstrap,
    precision_at,
    relevance,
    within_radius,
)
from engine.evaluation.rankings import ORDERS, LeaveOut, rankings
from engine.records import EncodedImages

__all__ = [
    "ClassQuality",
    "CurvePoint",
    "EvaluationSet",
    "QualityReport",
    "Scores",
    "evaluate",
]

_SHORT = 10  # P@10, overlap@10, and the first hits that a reader looks at
_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class EvaluationSet:
    """N encoded images with their classes.

    z: float32 (N, D), centred, rows of unit length. codes: uint8 (N, B/8), packed.
    labels: one class, or a tuple of classes, for each image.
    ids: a unique id for each image; decides the last ties of a ranking.
    groups: the patient or study of each image, None or "" = in no group; None = no groups.

    Raises:
        QueryError: the lengths differ, or an id occurs twice.
    """

    z: NDArray[np.float32]
    codes: NDArray[np.uint8]
    labels: Sequence[str | tuple[str, ...]] | NDArray[Any]
    ids: Sequence[str]
    groups: Sequence[str | None] | None = None

    def __post_init__(self) -> None:
        columns: dict[str, Sized] = {"codes": self.codes, "labels": self.labels, "ids": self.ids}
        if self.groups is not None:
            columns["groups"] = self.groups
        for name, values in columns.items():
            if len(values) != len(self.z):
                raise QueryError(
                    f"{len(self.z)} images have {len(values)} {name}; give one for each"
                )
        if len(set(self.ids)) < len(self.ids):
            seen: set[str] = set()
            twice = next(i for i in self.ids if i in seen or seen.add(i))  # type: ignore[func-returns-value]
            raise QueryError(f"image {twice!r} is there twice; give each image once")

    def __len__(self) -> int:
        return len(self.z)

    @property
    def encoded(self) -> EncodedImages:
        return EncodedImages(self.z, self.codes)

    @property
    def classes_of(self) -> list[tuple[str, ...]]:
        """The classes of each image."""
        return [
            tuple(label) if isinstance(label, tuple | list) else (str(label),)
            for label in self.labels
        ]


@dataclass(frozen=True, slots=True)
class Scores:
    """Means over some queries, of rankings in one order.

    map_found: mAP@k normalised by the number of hits among the first k, as in the paper.
    map_relevant: mAP@k normalised by min(k, relevant). Both with 95 % bootstrap intervals.
    """

    map_found: Interval
    map_relevant: Interval
    precision_at_1: float
    precision_at_10: float


@dataclass(frozen=True, slots=True)
class ClassQuality:
    """Results for the queries of one class.

    queries: number of queries. images: number of images of the class in the database.
    unanswerable: number of queries for which the database has nothing relevant; these are excluded
        from all means.
    foreign: share of the queries that the OOD gate calls foreign; None = no verdicts.
    orders: order → scores; empty if all queries are unanswerable.
    """

    queries: int
    unanswerable: int
    images: int
    foreign: float | None
    orders: dict[str, Scores]


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """Precision and recall of the items within a Hamming radius; macro average over classes."""

    radius: int
    precision: float
    recall: float


@dataclass(frozen=True, slots=True)
class QualityReport:
    """The results of an evaluation. Means are over the queries unless said otherwise.

    k: hits that count. seed: see :func:`evaluate`.
    queries, database: numbers of images.
    unanswerable: number of queries for which the database has nothing relevant; these are excluded
        from all means.
    related: number of queries for which the database holds the image itself or others of its group;
        those items were ignored for that query.
    orders: order → scores of all queries. classes: class of the query → results.
    against_random: order → difference of map_relevant from that of order "hamming_random".
    stability: order → overlap@10 between shuffled databases, mean over the pairs of shuffles.
    curve: precision and recall by Hamming radius, 0 … B.
    codes: statistics of the database's codes. within, between: number of pairs of a query and an
        item at each Hamming distance 0 … B, of one class and of different classes.
    foreign: share of queries that the OOD gate calls foreign; None = no verdicts.
    average_precision: order → float64 (Q,), AP@k normalised by min(k, relevant); NaN for
        unanswerable queries. For paired comparisons of models.
    first_hits: int64 (Q, 10), the first hits in order "content" as indices into the database;
        −1 = no more.
    """

    k: int
    seed: int
    queries: int
    database: int
    unanswerable: int
    related: int
    foreign: float | None
    orders: dict[str, Scores]
    against_random: dict[str, Difference]
    stability: dict[str, float]
    classes: dict[str, ClassQuality]
    codes: CodeStatistics
    curve: tuple[CurvePoint, ...]
    within: tuple[int, ...]
    between: tuple[int, ...]
    average_precision: dict[str, NDArray[np.float64]]
    first_hits: NDArray[np.int64]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values, without the fields that have a value for each query."""
        document: dict[str, Any] = _plain(self)
        del document["average_precision"], document["first_hits"]
        return document


def evaluate(
    database: EvaluationSet,
    queries: EvaluationSet,
    *,
    k: int = 100,
    seed: int = 0,
    shuffles: int = 3,
    foreign: NDArray[np.bool_] | None = None,
) -> QualityReport:
    """Evaluates how well queries find images of their own classes in the database.

    Items with the query's own id or of its own group are ignored for that query.

    Args:
        k: hits that count.
        seed: of random ties, shuffles and bootstraps.
        shuffles: number of shuffled databases to measure the stability with; 0 = do not measure it.
        foreign: bool (Q,), the OOD verdicts on the queries; None = there are none.

    Raises:
        QueryError: no query has relevant images in the database, or an argument is invalid.
    """
    if k < 1:
        raise QueryError(f"k is {k}; ask for at least one")
    if shuffles < 0 or shuffles == 1:
        raise QueryError(f"shuffles is {shuffles}; compare at least 2, or give 0 for none")
    if foreign is not None and len(foreign) != len(queries):
        raise QueryError(f"{len(foreign)} verdicts for {len(queries)} queries; give one for each")
    classes, asked, held = _memberships(queries, database)
    leave_out, related = _left_out(queries, database)
    relevant_at, others_at = distance_counts(queries.codes, database.codes, asked, held, leave_out)
    relevant = relevant_at.sum(axis=1)
    answerable = relevant > 0
    if not answerable.any():
        raise QueryError(
            f"the queries show {_listed(classes, asked)}, the database {_listed(classes, held)}, "
            "and no query has anything relevant there; name the classes alike on both sides, "
            "and let the database have images of other patients"
        )
    ranked = rankings(
        queries.encoded,
        database.encoded,
        max(k, _SHORT),
        places=_places(database),
        leave_out=leave_out,
        seed=seed,
    )
    hits = {order: relevance(found, asked, held) for order, found in ranked.items()}
    ap = {order: average_precision(found[:, :k], relevant) for order, found in hits.items()}

    def scores(chosen: NDArray[np.bool_]) -> dict[str, Scores]:
        return {
            order: Scores(
                map_found=_mean(average_precision(found[chosen, :k]), seed),
                map_relevant=_mean(ap[order][chosen], seed),
                precision_at_1=float(precision_at(found[chosen], 1).mean()),
                precision_at_10=float(precision_at(found[chosen], _SHORT).mean()),
            )
            for order, found in hits.items()
            if chosen.any()
        }

    precision, recall = within_radius(relevant_at[answerable], others_at[answerable])
    curve = zip(
        macro_mean(precision, asked[answerable]), macro_mean(recall, asked[answerable]), strict=True
    )
    return QualityReport(
        k=k,
        seed=seed,
        queries=len(queries),
        database=len(database),
        unanswerable=int(np.count_nonzero(~answerable)),
        related=related,
        foreign=None if foreign is None else float(foreign.mean()),
        orders=scores(answerable),
        against_random={
            order: paired_bootstrap(
                ap[order][answerable], ap["hamming_random"][answerable], seed=seed
            )
            for order in ORDERS
            if order != "hamming_random"
        },
        stability=_stability(queries, database, shuffles, seed),
        classes={
            name: ClassQuality(
                queries=int(np.count_nonzero(of_class)),
                unanswerable=int(np.count_nonzero(of_class & ~answerable)),
                images=int(np.count_nonzero(held[:, column])),
                foreign=None if foreign is None else float(foreign[of_class].mean()),
                orders=scores(of_class & answerable),
            )
            for column, (name, of_class) in enumerate(zip(classes, asked.T, strict=True))
            if of_class.any()
        },
        codes=code_statistics(database.codes),
        curve=tuple(CurvePoint(r, float(p), float(c)) for r, (p, c) in enumerate(curve)),
        within=tuple(relevant_at.sum(axis=0).tolist()),
        between=tuple(others_at.sum(axis=0).tolist()),
        average_precision={
            order: np.where(answerable, values, np.nan) for order, values in ap.items()
        },
        first_hits=ranked["content"][:, :_SHORT],
    )


def _mean(values: NDArray[np.float64], seed: int) -> Interval:
    return bootstrap_mean(values, resamples=_RESAMPLES, seed=seed)


def _memberships(
    queries: EvaluationSet, database: EvaluationSet
) -> tuple[list[str], NDArray[np.bool_], NDArray[np.bool_]]:
    """All C classes, sorted, and the labels of queries, bool (Q, C), and database, bool (N, C)."""
    sides = (queries.classes_of, database.classes_of)
    classes = sorted({name for side in sides for names in side for name in names})
    column = {name: number for number, name in enumerate(classes)}
    members = []
    for side in sides:
        member = np.zeros((len(side), len(classes)), dtype=np.bool_)
        for row, names in enumerate(side):
            member[row, [column[name] for name in names]] = True
        members.append(member)
    return classes, members[0], members[1]


def _listed(classes: list[str], members: NDArray[np.bool_]) -> str:
    names = [name for column, name in enumerate(classes) if members[:, column].any()]
    shown = ", ".join(repr(name) for name in names[:_SHORT]) or "no class"
    return shown + (f" and {len(names) - _SHORT} more" if len(names) > _SHORT else "")


def _left_out(queries: EvaluationSet, database: EvaluationSet) -> tuple[LeaveOut, int]:
    """Which items to ignore, by id and by group, and for how many queries there are such items."""
    at = {name: place for place, name in enumerate(database.ids)}
    own = np.array([at.get(name, -1) for name in queries.ids])
    numbers: dict[str, int] = {}

    def numbered(groups: Sequence[str | None] | None, count: int, nobody: int) -> NDArray[np.int64]:
        named = [None] * count if groups is None else groups
        return np.array([numbers.setdefault(g, len(numbers)) if g else nobody for g in named])

    asking = numbered(queries.groups, len(queries), -1)
    held = numbered(database.groups, len(database), -2)

    def leave_out(rows: slice) -> NDArray[np.bool_]:
        out: NDArray[np.bool_] = asking[rows, None] == held
        mine = own[rows]
        out[np.flatnonzero(mine >= 0), mine[mine >= 0]] = True
        return out

    return leave_out, int(np.count_nonzero((own >= 0) | np.isin(asking, held)))


def _places(database: EvaluationSet) -> NDArray[np.int64]:
    """Each item's rank when the items are sorted by id, int64 (N,)."""
    return np.argsort(np.argsort(np.array(database.ids)))


def _stability(
    queries: EvaluationSet, database: EvaluationSet, shuffles: int, seed: int
) -> dict[str, float]:
    """Mean overlap@10 of the same queries over databases in another order, by order."""
    found: list[dict[str, NDArray[np.int64]]] = []
    for shuffle in range(shuffles):
        at = np.random.default_rng([seed, shuffle]).permutation(len(database))
        shuffled = EvaluationSet(
            database.z[at],
            database.codes[at],
            [database.labels[i] for i in at],
            [database.ids[i] for i in at],
            None if database.groups is None else [database.groups[i] for i in at],
        )
        ranked = rankings(
            queries.encoded,
            shuffled.encoded,
            _SHORT,
            places=_places(shuffled),
            leave_out=_left_out(queries, shuffled)[0],
            seed=[seed, shuffle],
        )
        found.append({order: np.where(rows < 0, -1, at[rows]) for order, rows in ranked.items()})
    return {
        order: float(np.mean([overlap(a[order], b[order]) for a, b in combinations(found, 2)]))
        for order in ORDERS
        if found
    }


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, tuple) else value
