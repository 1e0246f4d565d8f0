"""Compares two models on the same queries, as a whole and class by class."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from engine.errors import QueryError
from engine.evaluation.metrics import Difference, Interval, bootstrap_mean, paired_bootstrap
from engine.evaluation.quality import EvaluationSet, QualityReport

__all__ = ["ClassCompared", "Compared", "ModelComparison", "Outcome", "compare"]

Outcome = Literal["better", "worse", "alike"]
_ORDER = "content"
_FEWEST = 6
"""Patients that say which of two models is better: of five, all may gain by chance (sign test, two-
sided: 2 · 0.5⁵ = .06, 2 · 0.5⁶ = .03), and bootstrap intervals of so few are too narrow."""


@dataclass(frozen=True, slots=True)
class Compared:
    """A measure of the model before and of the new one, each with its 95 % bootstrap interval over
    patients, and what the new one has more, paired by query."""

    before: Interval
    after: Interval
    difference: Difference


@dataclass(frozen=True, slots=True)
class ClassCompared:
    """The same for the queries of one class.

    queries: number of queries that have something relevant in the database. patients: of how many
        patients these are.
    before, after: mAP@k by min(k, relevant).
    difference: of these; an interval of few patients says little.
    foreign_before, foreign_after: share that the OOD gate calls foreign; None = no verdicts.
    """

    queries: int
    patients: int
    before: float
    after: float
    difference: Difference
    foreign_before: float | None
    foreign_after: float | None


@dataclass(frozen=True, slots=True)
class ModelComparison:
    """A new model beside the one before. Of rankings in order "content".

    k: hits that count. queries: number of queries that have something relevant in the database.
    patients: of how many patients these are; a query without a group counts as one.
    database: number of images there.
    mean_average_precision: mAP@k by min(k, relevant). precision_at_1: P@1.
    foreign_before, foreign_after: share of all queries that the OOD gate calls foreign; None = no
        verdicts.
    classes: class of the query → the same, as far as it has such queries.
    """

    k: int
    queries: int
    patients: int
    database: int
    mean_average_precision: Compared
    precision_at_1: Compared
    foreign_before: float | None
    foreign_after: float | None
    classes: dict[str, ClassCompared]

    @property
    def outcome(self) -> Outcome:
        """Which model finds more. "alike" = the difference may be chance: the 95 % interval of the
        difference of mAP@k has 0 in it, or the queries are of fewer than six patients."""
        found = self.mean_average_precision.difference
        if self.patients < _FEWEST:
            return "alike"
        if found.low > 0:
            return "better"
        return "worse" if found.high < 0 else "alike"

    @property
    def worse_classes(self) -> list[str]:
        """The classes of which the new model finds less, the worst first."""
        worse = [name for name, one in self.classes.items() if one.difference.mean < 0]
        return sorted(worse, key=lambda name: self.classes[name].difference.mean)

    def to_dict(self) -> dict[str, Any]:
        """The comparison as JSON values."""
        return {**asdict(self), "outcome": self.outcome, "worse_classes": self.worse_classes}


def compare(
    before: QualityReport,
    after: QualityReport,
    database: EvaluationSet,
    queries: EvaluationSet,
) -> ModelComparison:
    """Compares two reports of the same queries on the same database.

    Args:
        before, after: of the two models, for the same queries and database in the same order.
        database, queries: those of either model; only their labels and groups are looked at.

    Raises:
        QueryError: the reports are of other queries or another database, or count other hits.
    """
    sizes = {(one.k, one.queries, one.database) for one in (before, after)}
    if sizes != {(before.k, len(queries), len(database))}:
        raise QueryError(
            f"the reports are of {before.queries} and {after.queries} queries among "
            f"{before.database} and {after.database} images at k {before.k} and {after.k}; compare "
            "reports of the same"
        )
    precisions = [one.average_precision[_ORDER] for one in (before, after)]
    answerable = ~np.isnan(precisions[0])
    asked, held = queries.classes_of, database.classes_of
    firsts = [_first_is_right(one, asked, held) for one in (before, after)]
    seed, patients = before.seed, _numbered(queries)

    def compared(scores: Sequence[NDArray[np.float64]]) -> Compared:
        theirs, ours = (one[answerable] for one in scores)
        return Compared(
            bootstrap_mean(theirs, seed=seed, groups=patients[answerable]),
            bootstrap_mean(ours, seed=seed, groups=patients[answerable]),
            paired_bootstrap(ours, theirs, seed=seed, groups=patients[answerable]),
        )

    classes = {}
    for name, found in after.classes.items():
        chosen = answerable & np.array([name in labels for labels in asked])
        if not chosen.any():
            continue
        theirs, ours = (one[chosen] for one in precisions)
        classes[name] = ClassCompared(
            int(chosen.sum()),
            len(np.unique(patients[chosen])),
            float(theirs.mean()),
            float(ours.mean()),
            paired_bootstrap(ours, theirs, seed=seed, groups=patients[chosen]),
            before.classes[name].foreign,
            found.foreign,
        )
    return ModelComparison(
        before.k,
        int(answerable.sum()),
        len(np.unique(patients[answerable])),
        before.database,
        compared(precisions),
        compared(firsts),
        before.foreign,
        after.foreign,
        classes,
    )


def _numbered(queries: EvaluationSet) -> NDArray[np.int64]:
    """A number for each query's group, int64 (Q,); one without a group has its own."""
    groups = queries.groups if queries.groups is not None else [None] * len(queries)
    numbers: dict[tuple[str, str], int] = {}
    named = [
        ("group", group) if group else ("alone", name)
        for group, name in zip(groups, queries.ids, strict=True)
    ]
    return np.array([numbers.setdefault(one, len(numbers)) for one in named], dtype=np.int64)


def _first_is_right(
    report: QualityReport,
    asked: Sequence[tuple[str, ...]],
    held: Sequence[tuple[str, ...]],
) -> NDArray[np.float64]:
    """Whether the first hit of each query is of one of its classes, float64 (Q,), 0 or 1."""
    first = report.first_hits[:, 0]
    return np.array(
        [
            float(hit >= 0 and not set(labels).isdisjoint(held[hit]))
            for labels, hit in zip(asked, first, strict=True)
        ]
    )
