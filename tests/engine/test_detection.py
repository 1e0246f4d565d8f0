"""AUROC, AUPR and FPR@95TPR against torchmetrics and slow, obvious counts."""

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import (
    binary_auroc,
    binary_average_precision,
)

from engine.errors import QueryError
from engine.evaluation.ood import detection


def scores(seed: int, gap: float, levels: int | None = None):
    rng = np.random.default_rng(seed)
    known, foreign = rng.normal(0, 1, 180), rng.normal(gap, 1.3, 70)
    if levels:  # ties
        known, foreign = np.round(known * levels) / levels, np.round(foreign * levels) / levels
    return known, foreign


@pytest.mark.parametrize("gap", [-1.0, 0.0, 1.0, 4.0])
@pytest.mark.parametrize("levels", [None, 2])
def test_areas_are_torchmetrics_s(gap, levels):
    known, foreign = scores(0, gap, levels)
    found = detection(known, foreign)
    # torchmetrics squashes values outside [0, 1]: ranks keep their order and their ties.
    ranks = torch.from_numpy(np.unique(np.concatenate([known, foreign]), return_inverse=True)[1])
    target = torch.tensor([0] * len(known) + [1] * len(foreign))
    ranks = ranks.double() / ranks.max()
    assert found.auroc == pytest.approx(binary_auroc(ranks, target).item(), abs=1e-6)
    assert found.aupr == pytest.approx(binary_average_precision(ranks, target).item(), abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_fpr_is_counted_at_the_threshold_that_95_percent_reach(seed):
    known, foreign = scores(seed, 1.5, 3)
    thresholds = [t for t in np.sort(np.unique(foreign)) if (foreign >= t).mean() >= 0.95]
    assert detection(known, foreign).fpr_at_95_tpr == (known >= thresholds[-1]).mean()


def test_perfect_and_reversed_scores():
    assert detection(np.zeros(5), np.ones(5)) == detection(np.arange(5), np.arange(5, 9))
    perfect, reversed_ = detection(np.zeros(5), np.ones(5)), detection(np.ones(5), np.zeros(5))
    assert (perfect.auroc, perfect.aupr, perfect.fpr_at_95_tpr) == (1, 1, 0)
    assert (reversed_.auroc, reversed_.fpr_at_95_tpr) == (0, 1)


@pytest.mark.parametrize(
    ("known", "foreign"), [([], [1.0]), ([1.0], []), ([np.nan], [1.0]), ([0.0], [np.inf])]
)
def test_nothing_to_compare_is_refused(known, foreign):
    with pytest.raises(QueryError):
        detection(np.array(known), np.array(foreign))
