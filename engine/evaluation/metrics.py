"""Retrieval metrics: precision and recall of rankings, statistics of codes, confidence intervals.

Labels are bool arrays (N, C) with one column for each class, so an image may have several classes.
Two images are relevant to each other when they have a class in common.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.errors import QueryError
from engine.evaluation.rankings import LeaveOut, chunks, hamming_distances

__all__ = [
    "CodeStatistics",
    "Difference",
    "Interval",
    "average_precision",
    "bootstrap_mean",
    "code_statistics",
    "distance_counts",
    "macro_mean",
    "mean_average_precision",
    "ndcg",
    "overlap",
    "paired_bootstrap",
    "precision_at",
    "relevance",
    "within_radius",
]


def relevance(
    ranking: NDArray[np.int64], query_labels: NDArray[np.bool_], labels: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Whether each ranked item has a class in common with its query: bool (Q, k); False for −1.

    Args:
        ranking: int64 (Q, k), indices into the database, −1 = no more.
        query_labels: bool (Q, C). labels: bool (N, C).
    """
    hits = np.zeros(ranking.shape, dtype=np.bool_)
    if len(labels):
        for label, asking in enumerate(query_labels.T):
            hits[asking] |= labels[ranking[asking], label]
    return hits & (ranking >= 0)


def average_precision(
    hits: NDArray[np.bool_], relevant: NDArray[np.int64] | None = None
) -> NDArray[np.float64]:
    """AP@k = Σ_i precision@i · hit_i / norm, float64 (Q,) in [0, 1]; 0 without any hit.

    With ``relevant`` the norm is min(k, relevant), the largest possible number of hits (Manning et
    al., "Introduction to Information Retrieval", 2008, 8.4, cut off at k). Without, it is the
    number of hits among the first k, as in the hashing literature and in Nan et al. 2025; then a
    single hit at the first place and none after it scores 1.

    Args:
        hits: bool (Q, k), in ranking order.
        relevant: int64 (Q,), relevant items in the whole database.
    """
    k = hits.shape[1]
    precision = np.cumsum(hits, axis=1) / np.arange(1, k + 1)
    norm = hits.sum(axis=1) if relevant is None else np.minimum(relevant, k)
    ap: NDArray[np.float64] = (precision * hits).sum(axis=1) / np.maximum(norm, 1)
    return ap


def mean_average_precision(
    hits: NDArray[np.bool_], relevant: NDArray[np.int64] | None = None
) -> float:
    """mAP@k: the mean of :func:`average_precision` over the queries."""
    return float(average_precision(hits, relevant).mean())


def precision_at(hits: NDArray[np.bool_], k: int) -> NDArray[np.float64]:
    """P@k: hits among the first k, divided by k even when fewer were found. float64 (Q,)."""
    precision: NDArray[np.float64] = hits[:, :k].sum(axis=1) / k
    return precision


def ndcg(gains: NDArray[np.floating], best: NDArray[np.floating]) -> NDArray[np.float64]:
    """nDCG@k = DCG / DCG of the best ranking, DCG = Σ_i gain_i / log2(i + 1). float64 (Q,).

    Source: Järvelin and Kekäläinen, ACM TOIS 20(4), 2002. Give 2^grade − 1 as gains for the
    form of Burges et al., ICML 2005. 0 for a query without any gain in the database.

    Args:
        gains: float (Q, k), ≥ 0, of the ranked items in order; 0 where there is no more.
        best: float (Q, k), the k greatest gains in the database, descending.
    """
    discount = 1 / np.log2(np.arange(2, gains.shape[1] + 2))
    ideal = best @ discount
    found: NDArray[np.float64] = np.where(ideal > 0, gains @ discount, 0.0)
    return found / np.where(ideal > 0, ideal, 1.0)


def overlap(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.float64]:
    """overlap@k: share of the first k items that two rankings have in common. float64 (Q,).

    Args:
        a, b: int64 (Q, k), each item at most once a row, −1 = no more. Two empty rows agree.
    """
    both = np.sort(np.concatenate([a, b], axis=1), axis=1)
    shared = ((both[:, 1:] == both[:, :-1]) & (both[:, 1:] >= 0)).sum(axis=1)
    longer = np.maximum((a >= 0).sum(axis=1), (b >= 0).sum(axis=1))
    return np.where(longer > 0, shared / np.maximum(longer, 1), 1.0)


def distance_counts(
    query_codes: NDArray[np.uint8],
    codes: NDArray[np.uint8],
    query_labels: NDArray[np.bool_],
    labels: NDArray[np.bool_],
    leave_out: LeaveOut | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The numbers of relevant and of other items at each Hamming distance from each query.

    Summed over the queries, they are the histograms of distances within and between classes.

    Args:
        query_codes: uint8 (Q, B/8). codes: uint8 (N, B/8). Packed.
        query_labels: bool (Q, C). labels: bool (N, C).
        leave_out: which items to ignore for which query.

    Returns:
        Two arrays int64 (Q, B + 1): relevant items, other items.
    """
    bins = 8 * codes.shape[1] + 1
    counts = np.zeros((len(query_codes), 2, bins), dtype=np.int64)
    members = labels.T.astype(np.float32)
    for rows in chunks(len(query_codes), len(codes)):
        distance = hamming_distances(query_codes[rows], codes)
        relevant = query_labels[rows].astype(np.float32) @ members > 0
        row = np.arange(len(distance))[:, None]
        cell = (2 * row + ~relevant) * bins + distance
        if leave_out is not None:
            cell = cell[~leave_out(rows)]
        found = np.bincount(cell.ravel(), minlength=2 * len(distance) * bins)
        counts[rows] = found.reshape(-1, 2, bins)
    return counts[:, 0], counts[:, 1]


def within_radius(
    relevant: NDArray[np.int64], others: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Precision and recall of the items within each Hamming radius 0 … B: float64 (Q, B + 1) each.

    A query without items inside the radius has precision 0 (Liu et al., "Supervised hashing with
    kernels", CVPR 2012); one without relevant items has recall 0.

    Args:
        relevant, others: int64 (Q, B + 1), of :func:`distance_counts`.
    """
    right = np.cumsum(relevant, axis=1)
    inside = right + np.cumsum(others, axis=1)
    return right / np.maximum(inside, 1), right / np.maximum(right[:, -1:], 1)


def macro_mean(values: NDArray[np.float64], query_labels: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The macro average: the mean over classes of the mean over each class's queries.

    Args:
        values: float64 (Q, …), one for each query.
        query_labels: bool (Q, C); classes without a query are ignored.

    Returns:
        float64 (…).
    """
    classes = query_labels[:, query_labels.any(axis=0)].T
    means = [values[of_class].mean(axis=0) for of_class in classes]
    macro: NDArray[np.float64] = np.mean(means, axis=0)
    return macro


@dataclass(frozen=True, slots=True)
class CodeStatistics:
    """Statistics of a set of codes.

    distinct: number of different codes. balance: for each bit the share of images in which it is 1;
        a bit carries most information at 0.5, and none at 0 or 1.
    """

    images: int
    bits: int
    distinct: int
    balance: tuple[float, ...]


def code_statistics(codes: NDArray[np.uint8]) -> CodeStatistics:
    """The statistics of packed codes, uint8 (N, B/8), N > 0."""
    return CodeStatistics(
        images=len(codes),
        bits=8 * codes.shape[1],
        distinct=len(np.unique(codes, axis=0)),
        balance=tuple(np.unpackbits(codes, axis=1).mean(axis=0).tolist()),
    )


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its confidence interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """A difference of means with its confidence interval and two-sided p-value."""

    mean: float
    low: float
    high: float
    p: float


def bootstrap_mean(
    values: NDArray[np.floating],
    *,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    groups: NDArray[np.int64] | None = None,
) -> Interval:
    """The mean of per-query scores, float (Q,), with its percentile bootstrap interval.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.

    Args:
        resamples: number of bootstrap samples. level: of confidence, in (0, 1).
        groups: int64 (Q,), from 0, equal for queries of one patient. Patients are then drawn, with
            all of their queries (the cluster bootstrap of Davison and Hinkley 1997, 3.8), for two
            slices of one patient are not two findings. None = queries are drawn.

    Raises:
        QueryError: there are no scores.
    """
    means = _resampled(values, resamples, seed, groups)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values.mean()), float(low), float(high))


def paired_bootstrap(
    a: NDArray[np.floating],
    b: NDArray[np.floating],
    *,
    resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
    groups: NDArray[np.int64] | None = None,
) -> Difference:
    """mean(a) − mean(b) of scores of the same queries, with interval and two-sided p-value.

    d_i = a_i − b_i; m*_1 … m*_R are the means of R bootstrap samples of d. The interval is as in
    :func:`bootstrap_mean`. p = (1 + #{r : |m*_r − mean d| ≥ |mean d|}) / (R + 1): how often the
    mean of a sample is as far from the mean of d as that is from 0 (the shift method of Noreen
    1989, for retrieval in Smucker et al., CIKM 2007; the added ones as in Davison and Hinkley 1997,
    4.2).

    Args:
        a, b: float (Q,), the same queries in the same order.
        groups: see :func:`bootstrap_mean`.

    Raises:
        QueryError: there are no scores, or a and b have different lengths.
    """
    if len(a) != len(b):
        raise QueryError(f"{len(a)} scores against {len(b)}; give both of the same queries")
    values = np.asarray(a, dtype=np.float64) - b
    means, mean = _resampled(values, resamples, seed, groups), float(values.mean())
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    # A tolerance, so that rounding in the last digit of a sum does not matter.
    as_far = np.count_nonzero(np.abs(means - mean) >= abs(mean) - 1e-12)
    return Difference(mean, float(low), float(high), float((1 + as_far) / (resamples + 1)))


def _resampled(
    values: NDArray[np.floating],
    resamples: int,
    seed: int,
    groups: NDArray[np.int64] | None = None,
) -> NDArray[np.float64]:
    """Means of resamples with replacement, float64 (R,); of whole groups, where there are any."""
    if not len(values):
        raise QueryError("there are no scores to take a mean of; give at least one query")
    generator, means = np.random.default_rng(seed), np.empty(resamples)
    if groups is not None:
        sums, sizes = np.bincount(groups, values), np.bincount(groups)
        sums, sizes = sums[sizes > 0], sizes[sizes > 0]
        for rows in chunks(resamples, len(sums)):
            drawn = generator.integers(len(sums), size=(rows.stop - rows.start, len(sums)))
            means[rows] = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
        return means
    for rows in chunks(resamples, len(values)):
        drawn = generator.integers(len(values), size=(rows.stop - rows.start, len(values)))
        means[rows] = values[drawn].mean(axis=1)
    return means
