"""The report of an evaluation: what is counted, what is left out, and what does not vary."""

import json
from dataclasses import replace

import numpy as np
import pytest

from engine.codes import hamming, pack_signs
from engine.errors import QueryError
from engine.evaluation.quality import EvaluationSet, QualityReport, evaluate
from engine.evaluation.rankings import ORDERS
from engine.records import ImageRecord, Point
from engine.search.ranking import ranked

TOTAL = ("hamming", "content", "exact")
BITS, DIM = 32, 24


def images(
    counts: dict[str, int], seed: int, *, name: str = "d", noise: float = 1.0
) -> EvaluationSet:
    """Images around a centre for each class, in random order; similar codes for similar z."""
    rng = np.random.default_rng(seed)
    labels = [label for label, count in counts.items() for _ in range(count)]
    rng.shuffle(labels)
    centres = {
        label: np.random.default_rng(list(label.encode())).normal(size=DIM) for label in counts
    }
    z = np.array([centres[label] for label in labels]) + rng.normal(0, noise, (len(labels), DIM))
    z -= z.mean(axis=1, keepdims=True)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    projection = np.random.default_rng(1).normal(size=(DIM, BITS))
    return EvaluationSet(
        z.astype(np.float32),
        pack_signs(z @ projection),
        tuple(labels),
        [f"{name}{i}" for i in rng.permutation(len(labels))],
    )


COUNTS = {"ct": 40, "mr": 30, "us": 8}
QUERIES = {"ct": 9, "mr": 12, "us": 5}


@pytest.fixture(scope="module")
def database() -> EvaluationSet:
    return images(COUNTS, 0)


@pytest.fixture(scope="module")
def queries() -> EvaluationSet:
    return images(QUERIES, 1, name="q")


@pytest.fixture(scope="module")
def report(database, queries) -> QualityReport:
    return evaluate(database, queries, k=20)


def slow_scores(query: int, queries, database, order: str, k: int) -> dict[str, float]:
    """By the search's own ranking of everything there is."""
    points = [
        Point(
            database.ids[i],
            ImageRecord(labels=(database.labels[i],)),
            database.codes[i],
            score=float(queries.z[query].astype(float) @ database.z[i].astype(float)),
        )
        for i in range(len(database))
    ]
    hits = ranked(points, queries.codes[query], order)
    right = [queries.labels[query] in hit.record.labels for hit in hits]
    gained = sum(sum(right[: i + 1]) / (i + 1) for i in range(k) if right[i])
    return {
        "found": gained / max(1, sum(right[:k])),
        "relevant": gained / min(k, sum(right)),
        "first": float(right[0]),
        "ten": sum(right[:10]) / 10,
    }


@pytest.mark.parametrize("order", ["content", "hamming"])
def test_scores_are_those_of_the_search(report, database, queries, order):
    """k = 20 asks for 100 candidates, more than there are: everything is ranked."""
    slow = [slow_scores(q, queries, database, order, 20) for q in range(len(queries))]
    for name in [None, *QUERIES]:
        scores = report.orders[order] if name is None else report.classes[name].orders[order]
        chosen = [
            one for one, label in zip(slow, queries.labels, strict=True) if name in (None, label)
        ]

        def mean(key, chosen=chosen):
            return pytest.approx(np.mean([one[key] for one in chosen]))

        assert scores.map_found.mean == mean("found")
        assert scores.map_relevant.mean == mean("relevant")
        assert scores.precision_at_1 == mean("first")
        assert scores.precision_at_10 == mean("ten")
        assert scores.map_relevant.low <= scores.map_relevant.mean <= scores.map_relevant.high
    assert report.average_precision[order] == pytest.approx([one["relevant"] for one in slow])


def test_what_is_counted(report, database, queries):
    assert (report.queries, report.database, report.k) == (26, 78, 20)
    assert (report.unanswerable, report.related, report.foreign) == (0, 0, None)
    assert {name: found.queries for name, found in report.classes.items()} == QUERIES
    assert {name: found.images for name, found in report.classes.items()} == COUNTS
    assert report.codes.images == 78
    assert report.codes.distinct == len({code.tobytes() for code in database.codes})
    within, between = np.zeros(BITS + 1, dtype=int), np.zeros(BITS + 1, dtype=int)
    for code, label in zip(queries.codes, queries.labels, strict=True):
        for other, theirs in zip(database.codes, database.labels, strict=True):
            (within if label == theirs else between)[hamming(code, other)] += 1
    assert report.within == tuple(within)
    assert report.between == tuple(between)


def test_the_curve_ends_with_everything(report):
    assert [point.radius for point in report.curve] == list(range(BITS + 1))
    recall = [point.recall for point in report.curve]
    assert (np.diff(recall) > -1e-12).all()
    assert recall[-1] == pytest.approx(1)
    # Mean over the classes, however many queries each has.
    assert report.curve[-1].precision == pytest.approx(np.mean([40, 30, 8]) / 78)


def test_guided_orders_are_stable_and_random_ties_are_not():
    """As in a collapsed code: hundreds of images, few codes."""
    database, queries = images({"ct": 150, "mr": 150}, 0), images({"ct": 5, "mr": 5}, 1, name="q")
    database = replace(database, codes=database.codes & 0x80)
    queries = replace(queries, codes=queries.codes & 0x80)
    report = evaluate(database, queries, k=10, shuffles=3)
    assert set(report.stability) == set(ORDERS)
    assert {order: report.stability[order] for order in TOTAL} == dict.fromkeys(TOTAL, 1.0)
    assert report.stability["hamming_random"] < 0.7
    assert evaluate(database, queries, k=10, shuffles=0).stability == {}


def test_the_same_seed_gives_the_same_report_whatever_the_order_of_the_database(
    report, database, queries
):
    again = evaluate(database, queries, k=20)
    assert again.to_dict() == report.to_dict()
    at = np.random.default_rng(5).permutation(len(database))
    shuffled = EvaluationSet(
        database.z[at],
        database.codes[at],
        [database.labels[i] for i in at],
        [database.ids[i] for i in at],
    )
    other = evaluate(shuffled, queries, k=20)
    for order in TOTAL:
        assert other.orders[order] == report.orders[order]
    found = [[shuffled.ids[i] for i in row] for row in other.first_hits]
    assert found == [[database.ids[i] for i in row] for row in report.first_hits]


def test_perfect_codes_are_perfect(database):
    queries = images(QUERIES, 1, name="q", noise=0.0)
    report = evaluate(images(COUNTS, 0, noise=0.0), queries, k=8)
    for order in ORDERS:
        scores = report.orders[order]
        assert (scores.map_found.mean, scores.map_relevant.mean) == (1, 1)
        assert (scores.map_found.low, scores.map_found.high) == (1, 1)
        assert scores.precision_at_1 == 1
    assert report.curve[0] == replace(report.curve[0], precision=1.0, recall=1.0)
    # The ten first of a class of eight.
    assert report.classes["us"].orders["content"].precision_at_10 == pytest.approx(0.8)
    assert report.against_random["content"].p == 1


def test_guided_ranking_gains_over_random_ties():
    database, queries = images({"ct": 90, "mr": 90}, 0), images({"ct": 40, "mr": 40}, 1, name="q")
    nothing = np.zeros_like(database.codes), np.zeros_like(queries.codes)
    report = evaluate(replace(database, codes=nothing[0]), replace(queries, codes=nothing[1]), k=20)
    gain = report.against_random["content"]
    means = {order: scores.map_relevant.mean for order, scores in report.orders.items()}
    assert gain.mean == pytest.approx(means["content"] - means["hamming_random"])
    assert 0 < gain.low < gain.mean < gain.high
    assert gain.p < 0.001


def test_images_of_the_querys_patient_take_no_part(database, queries):
    """The database has a copy of each query, under another id: of the same patient or not."""
    both = EvaluationSet(
        np.concatenate([database.z, queries.z]),
        np.concatenate([database.codes, queries.codes]),
        [*database.labels, *queries.labels],
        [*database.ids, *(f"copy of {i}" for i in queries.ids)],
        [*[None] * 77, "", *(f"patient {i // 2}" for i in range(26))],
    )
    asking = replace(queries, groups=[f"patient {i // 2}" for i in range(26)])
    kept = evaluate(replace(both, groups=None), queries, k=5)
    assert kept.related == 0
    assert (kept.first_hits[:, 0] == np.arange(78, 104)).all()
    left_out = evaluate(both, asking, k=5)
    assert left_out.related == 26
    assert sum(left_out.within) + sum(left_out.between) == 26 * (104 - 2)
    partners = 78 + (np.arange(26) // 2 * 2)[:, None] + [[0, 1]]
    for hits, gone in zip(left_out.first_hits, partners, strict=True):
        assert not set(hits) & set(gone)
    assert {left_out.stability[order] for order in TOTAL} == {1.0}
    nobody = evaluate(replace(both, groups=None), asking, k=5)
    assert nobody.to_dict() == kept.to_dict()


def test_a_query_that_is_in_the_database_is_left_out_for_itself(database):
    report = evaluate(database, database, k=5)
    assert report.related == 78
    assert not (report.first_hits == np.arange(78)[:, None]).any()
    assert report.within[0] + report.between[0] == sum(
        (database.codes[i] == database.codes[j]).all()
        for i in range(78)
        for j in range(78)
        if i != j
    )


def test_queries_of_a_class_that_the_database_lacks(database):
    queries = images({**QUERIES, "xa": 4}, 1, name="q")
    alone = [i for i, label in enumerate(queries.labels) if label != "xa"]
    known = EvaluationSet(
        queries.z[alone],
        queries.codes[alone],
        [queries.labels[i] for i in alone],
        [queries.ids[i] for i in alone],
    )
    report, without = evaluate(database, queries, k=20), evaluate(database, known, k=20)
    assert (report.queries, report.unanswerable) == (30, 4)
    assert (report.classes["xa"].queries, report.classes["xa"].unanswerable) == (4, 4)
    assert (report.classes["xa"].images, report.classes["xa"].orders) == (0, {})
    for order in TOTAL:
        assert report.orders[order] == without.orders[order]
    assert report.curve == without.curve
    lacking = np.array(queries.labels) == "xa"
    assert (np.isnan(report.average_precision["content"]) == lacking).all()


def test_a_query_whose_class_is_all_of_its_own_patient_is_not_answerable(database):
    queries = images({"ct": 3}, 1, name="q")
    lonely = images({"ct": 2, "mr": 20}, 0)
    groups = ["p" if label == "ct" else None for label in lonely.labels]
    report = evaluate(
        replace(lonely, groups=groups), replace(queries, groups=["p", None, "other"]), k=3
    )
    assert report.unanswerable == 1
    assert report.classes["ct"].orders["exact"].precision_at_1 == 1


def test_an_image_may_have_several_labels():
    z, codes = images({"ct": 4}, 0).z, images({"ct": 4}, 0).codes
    database = EvaluationSet(z, codes, [("ct", "chest"), "mr", ("ct",), ("chest",)], list("abcd"))
    queries = EvaluationSet(z[:2], codes[:2], [("chest",), ("ct", "mr")], ["q", "r"])
    report = evaluate(database, queries, k=2)
    assert {name: found.images for name, found in report.classes.items()} == {
        "chest": 2,
        "ct": 2,
        "mr": 1,
    }
    assert sum(report.within) == 2 + 3
    assert report.orders["exact"].precision_at_1 == 1
    assert report.classes["ct"].queries == report.classes["mr"].queries == 1


def test_labels_may_be_an_array(database, queries, report):
    numbers = {"ct": 2, "mr": 0, "us": 1}
    as_arrays = [
        replace(side, labels=np.array([numbers[label] for label in side.labels]))
        for side in (database, queries)
    ]
    found = evaluate(*as_arrays, k=20)
    assert set(found.classes) == {"0", "1", "2"}
    assert found.classes["2"] == report.classes["ct"]
    assert found.orders == report.orders


def test_shares_of_foreign_queries(database, queries):
    foreign = np.array([label == "us" for label in queries.labels])
    foreign[list(queries.labels).index("ct")] = True
    report = evaluate(database, queries, foreign=foreign)
    assert report.foreign == pytest.approx(6 / 26)
    assert {name: found.foreign for name, found in report.classes.items()} == pytest.approx(
        {"ct": 1 / 9, "mr": 0, "us": 1}
    )


def test_k_may_be_larger_than_the_database_and_smaller_than_ten(database, queries):
    large = evaluate(database, queries, k=500)
    assert large.orders["exact"].map_found == large.orders["exact"].map_relevant
    one = evaluate(database, queries, k=1)
    assert one.orders["exact"].map_relevant.mean == one.orders["exact"].precision_at_1
    few = EvaluationSet(database.z[:3], database.codes[:3], ("ct",) * 3, ["a", "b", "c"])
    report = evaluate(few, queries, k=2)
    assert report.first_hits.shape == (26, 10)
    assert (report.first_hits[:, 3:] == -1).all()
    assert {report.stability[order] for order in TOTAL} == {1.0}


def test_the_document_is_plain_json(report):
    document = report.to_dict()
    assert json.loads(json.dumps(document)) == document
    assert set(document["orders"]) == set(document["classes"]["ct"]["orders"]) == set(ORDERS)
    assert set(document["orders"]["content"]) == {
        *("map_found", "map_relevant", "precision_at_1", "precision_at_10")
    }
    assert {"average_precision", "first_hits"}.isdisjoint(document)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"labels": ("ct",)}, "78 images have 1 labels"),
        ({"ids": ["a"] * 77}, "78 images have 77 ids"),
        ({"groups": ["a"]}, "78 images have 1 groups"),
        ({"codes": np.zeros((3, 4), np.uint8)}, "78 images have 3 codes"),
        ({"ids": ["same", *map(str, range(76)), "same"]}, "'same' is there twice"),
    ],
)
def test_sets_that_do_not_fit_are_refused(database, change, says):
    with pytest.raises(QueryError, match=says):
        replace(database, **change)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"k": 0}, "k is 0"),
        ({"shuffles": 1}, "shuffles is 1"),
        ({"foreign": np.zeros(3, bool)}, "3 verdicts for 26 queries"),
    ],
)
def test_what_cannot_be_measured_is_refused(database, queries, options, says):
    with pytest.raises(QueryError, match=says):
        evaluate(database, queries, **options)


def test_classes_that_do_not_meet_are_named_on_both_sides(database):
    queries = images({f"class {i}": 2 for i in range(12)}, 1, name="q")
    with pytest.raises(QueryError) as caught:
        evaluate(database, queries)
    says = str(caught.value)
    assert "'class 0'" in says
    assert "and 2 more" in says
    assert "'ct', 'mr', 'us'" in says


def test_nothing_is_refused_in_words(database, queries):
    nothing = EvaluationSet(
        np.empty((0, DIM), np.float32), np.empty((0, BITS // 8), np.uint8), (), ()
    )
    for sides in ((nothing, queries), (database, nothing), (nothing, nothing)):
        with pytest.raises(QueryError, match="no class"):
            evaluate(*sides)
