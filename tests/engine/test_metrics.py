"""Each measure against the slow obvious way, and against torchmetrics where that has it."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torchmetrics.functional.retrieval import (
    retrieval_average_precision,
    retrieval_normalized_dcg,
    retrieval_precision,
)

from engine.codes import hamming
from engine.errors import QueryError
from engine.evaluation import rankings as module
from engine.evaluation.metrics import (
    average_precision,
    bootstrap_mean,
    code_statistics,
    distance_counts,
    macro_mean,
    mean_average_precision,
    ndcg,
    overlap,
    paired_bootstrap,
    precision_at,
    relevance,
    within_radius,
)
from engine.evaluation.rankings import ORDERS, hamming_distances, rankings
from engine.records import EncodedImages

TOTAL = tuple(order for order in ORDERS if order != "hamming_random")
BITS = 32  # two bands: radii 1, 3 and 5


def encoded(count: int, seed: int, bits: int = BITS, dim: int = 12) -> EncodedImages:
    """Images in few clusters of codes, some of them twice, so that there are ties of all kinds."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(count, dim))
    z -= z.mean(axis=1, keepdims=True)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    centres = np.random.default_rng(99).integers(0, 256, (4, bits // 8), dtype=np.uint8)
    flips = np.packbits(rng.random((count, bits)) < 0.04, axis=1)
    codes = centres[rng.integers(0, 4, count)] ^ flips
    z[1 : count // 4 : 2] = z[0 : count // 4 - 1 : 2][: len(z[1 : count // 4 : 2])]
    codes[1 : count // 8 : 2] = codes[0 : count // 8 - 1 : 2][: len(codes[1 : count // 8 : 2])]
    return EncodedImages(z.astype(np.float32), codes)


def sorted_slowly(z, code, database, k, order, places, taking_part) -> list[int]:
    """The first k items, by Python's sort."""
    items = [i for i in range(len(database)) if taking_part[i]]
    r = {i: round(float(z.astype(float) @ database.z[i].astype(float)), 6) for i in items}
    d = {i: int(hamming(code, database.codes[i])) for i in items}
    if order == "content":
        balls = [[i for i in items if d[i] <= radius] for radius in (1, 3, 5)]
        items = next((ball for ball in balls if len(ball) >= max(10, 5 * k)), items)
    key = {
        "hamming": lambda i: (d[i], -r[i], places[i]),
        "content": lambda i: (-r[i], d[i], places[i]),
        "exact": lambda i: (-r[i], places[i]),
    }[order]
    return sorted(items, key=key)[:k]


# Rankings


@pytest.mark.parametrize("k", [1, 3, 10, 60, 200])
@pytest.mark.parametrize("leaves_out", [False, True])
def test_rankings_are_what_sorting_gives(k, leaves_out):
    queries, database = encoded(12, 1), encoded(120, 2)
    rng = np.random.default_rng(3)
    places = rng.permutation(len(database))
    absent = rng.random((len(queries), len(database))) < (0.3 if leaves_out else 0)
    absent[5] |= leaves_out
    found = rankings(
        queries,
        database,
        k,
        places=places,
        leave_out=(lambda rows: absent[rows]) if leaves_out else None,
    )
    for order in TOTAL:
        for row in range(len(queries)):
            expected = sorted_slowly(
                queries.z[row], queries.codes[row], database, k, order, places, ~absent[row]
            )
            assert found[order][row, : len(expected)].tolist() == expected
            assert (found[order][row, len(expected) :] == -1).all()


def test_a_larger_database_uses_every_ball():
    queries, database = encoded(10, 1), encoded(600, 2)
    found = rankings(queries, database, 10, orders=["content"])["content"]
    balls = set()
    for row in range(len(queries)):
        z, code = queries.z[row], queries.codes[row]
        distance = hamming(code, database.codes)
        inside = [r for r in (1, 3, 5) if (distance <= r).sum() >= 50]
        balls.add(min(inside, default=BITS))
        expected = sorted_slowly(z, code, database, 10, "content", range(600), [True] * 600)
        assert found[row].tolist() == expected
    assert len(balls) >= 3


def test_random_ties_are_hamming_order_and_every_tie_is_drawn():
    queries, database = encoded(5, 1), encoded(60, 2)
    distance = hamming_distances(queries.codes, database.codes)
    firsts = set()
    for seed in range(40):
        found = rankings(queries, database, 60, orders=["hamming_random"], seed=seed)
        ranked = found["hamming_random"]
        assert (np.sort(ranked, axis=1) == np.arange(60)).all()
        along = np.take_along_axis(distance, ranked, axis=1)
        assert (np.diff(along.astype(int), axis=1) >= 0).all()
        firsts.add(int(ranked[0, 0]))
    assert firsts == set(np.flatnonzero(distance[0] == distance[0].min()).tolist())
    again = rankings(queries, database, 60, orders=["hamming_random"], seed=39)
    assert (again["hamming_random"] == ranked).all()


def test_random_ties_are_even():
    same = EncodedImages(encoded(1, 0).z[[0] * 4], encoded(1, 0).codes[[0] * 4])
    one = EncodedImages(same.z[[0] * 4000], same.codes[[0] * 4000])
    first = rankings(one, same, 1, orders=["hamming_random"])["hamming_random"][:, 0]
    assert np.bincount(first, minlength=4) == pytest.approx([1000] * 4, abs=120)


def test_a_shuffled_database_gives_the_same_list():
    """Also where items are equal in all but their id."""
    queries, database = encoded(30, 1, dim=64), encoded(300, 2, dim=64)
    expected = rankings(queries, database, 20, orders=TOTAL)
    for seed in range(3):
        at = np.random.default_rng(seed).permutation(300)
        shuffled = EncodedImages(database.z[at], database.codes[at])
        found = rankings(queries, shuffled, 20, orders=TOTAL, places=at, seed=seed)
        for order in TOTAL:
            assert (at[found[order]] == expected[order]).all()


def test_memory_is_bounded_and_changes_nothing(monkeypatch):
    queries, database = encoded(20, 1), encoded(90, 2)
    labels = np.eye(3, dtype=bool)
    asked, held = labels[np.arange(20) % 3], labels[np.arange(90) % 3]
    whole = rankings(queries, database, 10)
    counts = distance_counts(queries.codes, database.codes, asked, held)
    monkeypatch.setattr(module, "_PAIRS_AT_ONCE", 200)
    assert list(module.chunks(20, 90))[-1] == slice(18, 20)
    parts = rankings(queries, database, 10)
    for order in ORDERS:
        assert (whole[order] == parts[order]).all()
    for one, other in zip(
        counts, distance_counts(queries.codes, database.codes, asked, held), strict=True
    ):
        assert (one == other).all()


def test_an_empty_database_has_no_hits():
    nothing = EncodedImages(np.empty((0, 12), np.float32), np.empty((0, BITS // 8), np.uint8))
    for found in rankings(encoded(3, 1), nothing, 5).values():
        assert (found == -1).all()
        assert not relevance(found, np.ones((3, 2), bool), np.ones((0, 2), bool)).any()


@pytest.mark.parametrize(
    ("queries", "k", "orders", "says"),
    [
        (encoded(2, 1), 0, ORDERS, "k is 0"),
        (encoded(2, 1), 3, ["size"], "'size'"),
        (encoded(2, 1, bits=64), 3, ORDERS, "64 bits, the database 32"),
        (encoded(2, 1, dim=9), 3, ORDERS, "9 values in z, the database 12"),
    ],
)
def test_what_cannot_be_ranked_says_why(queries, k, orders, says):
    with pytest.raises(QueryError, match=says):
        rankings(queries, encoded(9, 2), k, orders=orders)


@pytest.mark.parametrize("bits", [8, 16, 24, 64, 72, 128, 512])
def test_distances_are_those_of_the_codes(bits):
    a, b = encoded(7, 1, bits).codes, encoded(11, 2, bits).codes
    assert (hamming_distances(a, b) == hamming(a[:, None], b[None])).all()
    assert (hamming_distances(a, ~a).diagonal() == bits).all()


# What is right in a ranking


hits_and_relevant = st.integers(1, 12).flatmap(
    lambda k: st.lists(
        st.tuples(st.lists(st.booleans(), min_size=k, max_size=k), st.integers(0, 30)),
        min_size=1,
        max_size=6,
    )
)


@given(drawn=hits_and_relevant)
def test_average_precision_as_written_down(drawn):
    hits = np.array([row for row, _ in drawn])
    relevant = np.array([sum(row) + more for row, more in drawn])
    found, possible = average_precision(hits), average_precision(hits, relevant)
    for row, total, by_found, by_possible in zip(hits, relevant, found, possible, strict=True):
        gained, right = 0.0, 0
        for place, hit in enumerate(row, start=1):
            if hit:
                right += 1
                gained += right / place
        assert by_found == pytest.approx(gained / right if right else 0.0)
        best = min(len(row), total)
        assert by_possible == pytest.approx(gained / best if best else 0.0)
    assert mean_average_precision(hits) == pytest.approx(found.mean())
    assert mean_average_precision(hits, relevant) == pytest.approx(possible.mean())


def falling(count: int) -> torch.Tensor:
    """Scores of a ranking in order; to torchmetrics, what has none above 0 was not found."""
    return torch.arange(float(count), 0, -1)


@settings(max_examples=40)
@given(drawn=hits_and_relevant, k=st.integers(1, 12))
def test_measures_are_torchmetrics(drawn, k):
    hits = np.array([row for row, _ in drawn])
    scores = falling(hits.shape[1])
    by_found = average_precision(hits[:, :k])
    whole = average_precision(hits, hits.sum(axis=1))
    precision = precision_at(hits, k)
    for row, one, all_of_it, p in zip(hits, by_found, whole, precision, strict=True):
        target = torch.from_numpy(row)
        theirs = retrieval_average_precision(scores, target, top_k=min(k, len(row)))
        assert one == pytest.approx(float(theirs))
        assert all_of_it == pytest.approx(float(retrieval_average_precision(scores, target)))
        assert p == pytest.approx(float(retrieval_precision(scores, target, top_k=k)))


@settings(max_examples=40)
@given(
    grades=st.lists(st.integers(0, 4), min_size=1, max_size=15),
    k=st.integers(1, 15),
)
def test_ndcg_is_torchmetrics(grades, k):
    """The grades are those of a whole database in ranking order."""
    k = min(k, len(grades))
    gains = np.array(grades, dtype=float)
    best = np.sort(gains)[::-1]
    (found,) = ndcg(gains[None, :k], best[None, :k])
    theirs = retrieval_normalized_dcg(falling(len(grades)), torch.tensor(grades), top_k=k)
    assert found == pytest.approx(float(theirs), abs=1e-6)
    slow = sum(gain / math.log2(place + 1) for place, gain in enumerate(gains[:k], start=1))
    ideal = sum(gain / math.log2(place + 1) for place, gain in enumerate(best[:k], start=1))
    assert found == pytest.approx(slow / ideal if ideal else 0.0)


def test_a_database_smaller_than_k():
    hits = np.array([[True, False, True, False, False]])  # two places that nobody took
    assert average_precision(hits, np.array([2])) == pytest.approx((1 + 2 / 3) / 2)
    assert precision_at(hits, 5) == pytest.approx(0.4)


def test_relevance_is_a_label_in_common():
    rng = np.random.default_rng(0)
    asked, held = rng.random((6, 4)) < 0.4, rng.random((20, 4)) < 0.4
    ranking = np.argsort(rng.random((6, 20)), axis=1)[:, :9]
    ranking[2, 4:] = -1
    found = relevance(ranking, asked, held)
    for row, place in itertools.product(range(6), range(9)):
        item = ranking[row, place]
        assert found[row, place] == (item >= 0 and bool((asked[row] & held[item]).any()))


def test_overlap_is_the_share_in_common():
    rng = np.random.default_rng(0)
    a = np.array([rng.permutation(9)[:6] for _ in range(50)])
    b = np.array([rng.permutation(9)[:6] for _ in range(50)])
    a[7, 2:], b[7, 4:], a[8], b[8], a[9] = -1, -1, -1, -1, -1
    for row, found in enumerate(overlap(a, b)):
        one, other = set(a[row]) - {-1}, set(b[row]) - {-1}
        longer = max(len(one), len(other))
        assert found == pytest.approx(len(one & other) / longer if longer else 1.0)


# What codes are like


def test_distances_are_counted_within_and_between_classes():
    queries, database = encoded(9, 1), encoded(40, 2)
    rng = np.random.default_rng(4)
    asked, held = rng.random((9, 3)) < 0.5, rng.random((40, 3)) < 0.5
    absent = rng.random((9, 40)) < 0.2
    relevant, others = distance_counts(
        queries.codes, database.codes, asked, held, lambda rows: absent[rows]
    )
    expected = np.zeros((2, 9, BITS + 1), dtype=int)
    for row, item in itertools.product(range(9), range(40)):
        if not absent[row, item]:
            alike = bool((asked[row] & held[item]).any())
            expected[0 if alike else 1, row, hamming(queries.codes[row], database.codes[item])] += 1
    assert (relevant == expected[0]).all()
    assert (others == expected[1]).all()


def test_precision_and_recall_within_a_radius():
    relevant = np.array([[2, 0, 1], [0, 0, 0], [0, 1, 3]])
    others = np.array([[1, 1, 0], [0, 2, 5], [0, 0, 4]])
    precision, recall = within_radius(relevant, others)
    for row, radius in itertools.product(range(3), range(3)):
        right, wrong = relevant[row, : radius + 1].sum(), others[row, : radius + 1].sum()
        all_right = relevant[row].sum()
        inside = right + wrong
        assert precision[row, radius] == pytest.approx(right / inside if inside else 0.0)
        assert recall[row, radius] == pytest.approx(right / all_right if all_right else 0.0)


def test_a_macro_mean_counts_each_class_once():
    values = np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    members = np.array([[True, False, False], [True, False, False], [True, True, False]])
    # Class 0 has all three, class 1 the last, class 2 nobody.
    assert macro_mean(values, members) == pytest.approx([(1 / 3 + 0) / 2, (1 / 3 + 1) / 2])


def test_code_statistics():
    codes = np.array([[0b11110000, 1], [0b11110000, 1], [0b11000000, 0]], dtype=np.uint8)
    found = code_statistics(codes)
    assert (found.images, found.bits, found.distinct) == (3, 16, 2)
    assert found.balance[:5] == pytest.approx([1, 1, 2 / 3, 2 / 3, 0])
    assert found.balance[15] == pytest.approx(2 / 3)


# How sure a mean is


def test_the_bootstrap_is_resampling_with_replacement():
    values = np.random.default_rng(1).random(30)
    found = bootstrap_mean(values, resamples=500, seed=7)
    drawn = np.random.default_rng(7).integers(30, size=(500, 30))
    means = sorted(sum(values[i] for i in row) / 30 for row in drawn)
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))


def test_with_groups_the_bootstrap_draws_whole_groups():
    rng = np.random.default_rng(2)
    groups = np.sort(rng.integers(9, size=40))
    a, b = rng.random(40), rng.random(40)
    found = bootstrap_mean(a, resamples=300, seed=7, groups=groups)
    there = np.unique(groups)
    drawn = np.random.default_rng(7).integers(len(there), size=(300, len(there)))
    means = [np.concatenate([a[groups == there[i]] for i in row]).mean() for row in drawn]
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))
    # Each alone is no group at all, and the same a hundred times over is no more than once.
    assert bootstrap_mean(a, groups=np.arange(40)) == bootstrap_mean(a)
    once, often = paired_bootstrap(a, b), paired_bootstrap(np.repeat(a, 100), np.repeat(b, 100))
    grouped = paired_bootstrap(
        np.repeat(a, 100), np.repeat(b, 100), groups=np.repeat(np.arange(40), 100)
    )
    assert grouped.low == pytest.approx(once.low)
    assert often.high - often.low < 0.2 * (grouped.high - grouped.low)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    inside = [
        found.low <= 0.3 <= found.high
        for found in (bootstrap_mean(rng.random(60) < 0.3, resamples=400) for _ in range(300))
    ]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.04)


def test_without_a_difference_p_is_small_no_more_often_than_it_should():
    rng = np.random.default_rng(0)
    p = np.array(
        [
            paired_bootstrap(rng.random(50), rng.random(50), resamples=300, seed=seed).p
            for seed in range(300)
        ]
    )
    assert np.mean(p <= 0.05) == pytest.approx(0.05, abs=0.035)
    assert np.mean(p <= 0.5) == pytest.approx(0.5, abs=0.1)


def test_a_paired_difference_is_found_under_a_greater_spread():
    rng = np.random.default_rng(0)
    b = rng.random(200)
    a = b + rng.normal(0.02, 0.05, 200)
    found = paired_bootstrap(a, b, seed=1)
    assert found.mean == pytest.approx(a.mean() - b.mean())
    assert 0 < found.low < found.mean < found.high
    assert found.p < 0.01
    mirrored = paired_bootstrap(b, a, seed=1)
    assert (mirrored.mean, mirrored.low, mirrored.high, mirrored.p) == pytest.approx(
        (-found.mean, -found.high, -found.low, found.p)
    )
    assert paired_bootstrap(a, b, seed=1) == found


def test_equal_scores_differ_by_nothing():
    found = paired_bootstrap(np.full(9, 0.7), np.full(9, 0.7), resamples=50)
    assert (found.mean, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_means_of_nothing_are_refused():
    with pytest.raises(QueryError, match="no scores"):
        bootstrap_mean(np.empty(0))
    with pytest.raises(QueryError, match="3 scores against 2"):
        paired_bootstrap(np.ones(3), np.ones(2))
