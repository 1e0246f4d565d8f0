"""Two models beside each other on the same queries."""

import json
from dataclasses import replace

import numpy as np
import pytest

from engine.errors import QueryError
from engine.evaluation.comparison import ModelComparison, compare
from engine.evaluation.quality import EvaluationSet, evaluate

CLASSES = ("brain", "hand", "knee")


def images(noise: dict[str, float], count: int = 20) -> EvaluationSet:
    """Images that lie about the direction of their class, the farther the more noise."""
    rng = np.random.default_rng(0)
    labels = [name for name in CLASSES for _ in range(count)]
    z = np.repeat(np.eye(16)[: len(CLASSES)], count, axis=0)
    z += np.array([[noise[name]] for name in labels]) * rng.normal(size=z.shape)
    z -= z.mean(axis=1, keepdims=True)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    ids = [str(number) for number in range(len(labels))]
    codes = np.packbits(z > 0, axis=1)
    return EvaluationSet(z.astype(np.float32), codes, labels, ids)


def compared(
    before: dict[str, float], after: dict[str, float], groups: list[str | None] | None = None
) -> ModelComparison:
    sides = [replace(images(noise), groups=groups) for noise in (before, after)]
    foreign = [np.zeros(60, bool), np.arange(60) < 3]
    reports = [
        evaluate(side, side, k=10, shuffles=0, foreign=mark)
        for side, mark in zip(sides, foreign, strict=True)
    ]
    return compare(*reports, sides[1], sides[1])


GOOD = dict.fromkeys(CLASSES, 0.1)
POOR = dict.fromkeys(CLASSES, 0.6)


def test_the_model_that_finds_more_is_better_and_the_other_way_round_worse() -> None:
    found, reverse = compared(POOR, GOOD), compared(GOOD, POOR)
    assert (found.outcome, reverse.outcome) == ("better", "worse")
    assert found.worse_classes == []
    assert set(reverse.worse_classes) == set(CLASSES)
    whole, back = found.mean_average_precision, reverse.mean_average_precision
    assert whole.after == back.before
    assert whole.difference.mean == pytest.approx(whole.after.mean - whole.before.mean)
    assert whole.difference.mean == pytest.approx(-back.difference.mean)
    assert found.precision_at_1.after.mean > found.precision_at_1.before.mean
    assert (found.foreign_before, found.foreign_after) == (0, 0.05)
    assert found.classes["brain"].foreign_after == 0.15
    assert (found.queries, found.database, found.k) == (60, 60, 10)


def test_the_same_twice_cannot_be_told_apart() -> None:
    found = compared(POOR, POOR)
    assert found.outcome == "alike"
    assert found.mean_average_precision.difference.mean == 0
    assert found.worse_classes == []


def test_classes_that_lose_are_named_also_where_the_whole_gains() -> None:
    found = compared({**POOR, "hand": 0.1}, {**GOOD, "hand": 0.4})
    assert found.outcome == "better"
    assert found.worse_classes == ["hand"]
    assert found.classes["hand"].after < found.classes["hand"].before
    assert json.loads(json.dumps(found.to_dict()))["worse_classes"] == ["hand"]


def test_queries_of_few_patients_tell_no_models_apart() -> None:
    enough = compared(POOR, GOOD, [str(number // 5) for number in range(60)])
    assert (enough.queries, enough.patients, enough.outcome) == (60, 12, "better")
    assert enough.classes["hand"].patients == 4
    few = compared(POOR, GOOD, [str(number % 5) for number in range(60)])
    assert few.mean_average_precision.difference.low > 0
    assert (few.queries, few.patients, few.outcome) == (60, 5, "alike")
    alone = compared(POOR, GOOD, [None, ""] * 30)
    assert alone.patients == 60


def test_p_at_1_is_that_of_the_report() -> None:
    side = images(POOR)
    report = evaluate(side, side, k=10, shuffles=0)
    found = compare(report, report, side, side)
    assert found.precision_at_1.after.mean == pytest.approx(report.orders["content"].precision_at_1)
    assert found.foreign_after is None


def test_reports_of_other_queries_are_not_compared() -> None:
    side, less = images(GOOD), images(GOOD, 10)
    reports = [evaluate(one, one, k=10, shuffles=0) for one in (side, less)]
    with pytest.raises(QueryError, match="60 and 30 queries"):
        compare(*reports, side, side)
