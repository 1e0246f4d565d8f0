"""A search over a real store, beside the brute-force answer."""

import random
import uuid
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from engine.codes import hamming
from engine.errors import FingerprintMismatch, ImageNotFound, QueryError
from engine.model.encoder import Encoder
from engine.ood.calibration import OodGate
from engine.ood.detectors import KnnDetector, ReconstructionDetector
from engine.records import ImageRecord, Observations, Point
from engine.search.engine import SearchEngine
from engine.search.ladder import climb, radii
from engine.search.query import MAX_K, Query, parse_where
from engine.search.ranking import ranked
from engine.search.sizes import Size
from engine.settings import SearchSettings
from engine.store.base import Coarse, Collection, Filter, Match, Range
from engine.store.edge import EdgeStore

COUNT, DIM, BITS = 20_000, 16, 64
ALL = Filter()
QUERIES = (0, 777, 4_444, 19_999)
RADII = (3, 7, 11)
LABELS = ("codes-3", "codes-7", "codes-11")


def id_of(number: int) -> str:
    return str(uuid.UUID(int=number + 1))


def number_of(point_id: str) -> int:
    return uuid.UUID(point_id).int - 1


def unit(z: np.ndarray) -> np.ndarray:
    return (z / np.linalg.norm(z, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def archive():
    """Codes (N, 8) and vectors (N, 16) in clusters, with single images between them."""
    rng = np.random.default_rng(0)
    centres = rng.integers(0, 256, (150, BITS // 8), dtype=np.uint8)
    axes = rng.normal(size=(150, DIM))
    cluster = rng.integers(0, 150, COUNT)
    share = rng.choice([0.02, 0.08, 0.2, 0.5], COUNT, p=[0.3, 0.3, 0.2, 0.2])
    codes = centres[cluster] ^ np.packbits(rng.random((COUNT, BITS)) < share[:, None], axis=1)
    z = unit(axes[cluster] + rng.normal(size=(COUNT, DIM)) * 0.4)
    return codes, z


def record(number: int) -> ImageRecord:
    return ImageRecord(
        modality=("CT", "MR", "CR")[number % 3],
        study=f"1.2.{number // 10}",
        study_year=2000 + number % 20,
        labels=("odd",) if number % 2 else (),
    )


@pytest.fixture(scope="module")
def store(store_root, archive, encoder):
    codes, z = archive
    collection = Collection(encoder.manifest.fingerprint, DIM, BITS)
    with EdgeStore.create(store_root / "index", collection) as made:
        made.upsert([Point(id_of(i), record(i), codes[i], z[i]) for i in range(COUNT)])
        yield made


@pytest.fixture
def engine(encoder, store):
    def made(gate=None, **settings):
        exact = {"max_counted": COUNT, "max_faceted": COUNT, "candidates_share": 0}
        return SearchEngine(encoder, store, SearchSettings(**exact | settings), gate)

    return made


def naive_distances(codes: np.ndarray, code: np.ndarray) -> np.ndarray:
    return (np.unpackbits(codes, axis=1) != np.unpackbits(code)).sum(axis=1)


# The ladder


@pytest.mark.parametrize("number", QUERIES)
def test_every_image_within_a_rung_s_radius_is_a_candidate(store, archive, number):
    codes, _ = archive
    code = codes[number]
    distances = naive_distances(codes, code)
    assert np.array_equal(hamming(codes, code), distances)
    assert radii(BITS) == list(RADII)
    for radius in RADII:
        near = Filter(coarse=Coarse(code=code.tobytes(), radius=radius))
        found = {number_of(point.id) for point in store.scroll(near)}
        assert found == set(np.flatnonzero(distances <= radius).tolist())
    assert (distances <= RADII[-1]).sum() > 1  # there was something to find


@pytest.mark.parametrize("number", QUERIES)
@pytest.mark.parametrize("enough", [1, 40, 65, 200, 1000, COUNT, COUNT + 1])
def test_the_first_rung_with_enough_candidates_is_taken(store, archive, number, enough):
    codes, z = archive
    distances = naive_distances(codes, codes[number])
    counts = [int((distances <= radius).sum()) for radius in RADII] + [COUNT]
    expected = next((at for at in range(3) if counts[at] >= enough), 3)
    settings = SearchSettings(min_candidates=enough, candidates_per_hit=1, candidates_share=0)
    taken = climb(store, z[number], codes[number], ALL, 1, settings)
    labels = (*LABELS, "dense")
    assert taken.rung.label == labels[expected]
    assert (taken.size, taken.matching) == (Size(counts[expected]), Size(COUNT))
    # Where there is little to compare, the rungs are not even tried.
    tried = dict(zip(labels, counts, strict=True))
    assert taken.tried == (
        {label: tried[label] for label in labels[: expected + 1]}
        if 12 * enough < COUNT
        else {"dense": COUNT}
    )
    if expected < 3:
        assert taken.where == Filter(coarse=Coarse((), codes[number].tobytes(), RADII[expected]))
    else:
        assert taken.where == ALL


def test_radii_of_codes_with_a_narrow_band():
    assert radii(24) == [1, 3, 5]  # 8 + 16 bits


# Answers


def naive_order(archive, number: int, taking_part: np.ndarray, order: str) -> list[int]:
    codes, z = archive
    similarity = z.astype(np.float64) @ z[number].astype(np.float64)
    distances = naive_distances(codes, codes[number])
    chosen = [i for i in np.flatnonzero(taking_part).tolist() if i != number]
    if order == "content":
        return sorted(chosen, key=lambda i: (-similarity[i], distances[i], id_of(i)))
    return sorted(chosen, key=lambda i: (distances[i], -similarity[i], id_of(i)))


@pytest.mark.parametrize("number", QUERIES)
@pytest.mark.parametrize(
    ("order", "enough"), [("content", 1), ("content", COUNT + 1), ("hamming", 1)]
)
def test_hits_are_those_of_the_naive_ranking(engine, archive, number, enough, order):
    codes, z = archive
    search = engine(min_candidates=enough, candidates_per_hit=1, max_hamming_ranked=COUNT)
    answer = search.search_like(id_of(number), Query(12, order=order))
    similarity, distances = z @ z[number], naive_distances(codes, codes[number])
    evidence = answer.evidence
    assert evidence.rung == ("dense" if enough > COUNT else "codes")
    passing = distances <= (BITS if evidence.radius is None else evidence.radius)
    expected = naive_order(archive, number, passing, order)[:12]
    assert [number_of(hit.id) for hit in answer.hits] == expected
    for hit in answer.hits:
        i = number_of(hit.id)
        assert hit.hamming == distances[i]
        assert hit.similarity == pytest.approx(similarity[i], abs=1e-6)
        assert hit.record == record(i)


def test_evidence_is_the_truth(engine, archive, encoder):
    codes, _ = archive
    seen = set()
    for number in QUERIES:
        distances = naive_distances(codes, codes[number])
        counts = [int((distances <= radius).sum()) - 1 for radius in RADII]
        for enough in (*counts, COUNT + 1):
            search = engine(min_candidates=max(enough, 1), candidates_per_hit=1)
            answer = search.search_like(id_of(number), Query(5))
            evidence = answer.evidence
            seen.add((evidence.rung, evidence.radius))
            if evidence.rung == "dense":
                assert list(evidence.rungs_tried)[-1] == "dense"
            else:
                assert list(evidence.rungs_tried)[-1] == f"codes-{evidence.radius}"
                assert evidence.candidates >= max(enough, 5)
            passing = distances <= (BITS if evidence.radius is None else evidence.radius)
            assert evidence.candidates == passing.sum() - 1  # without the query itself
            assert evidence.matching == COUNT - 1
            assert (evidence.cells, evidence.cells_in_all) == (None, None)
            for label, count in evidence.rungs_tried.items():
                within = BITS if label == "dense" else int(label.removeprefix("codes-"))
                assert count == (distances <= within).sum() - 1
            assert len(answer.hits) == 5
            assert 5 <= evidence.ranked <= evidence.candidates
            assert (evidence.order, evidence.bits) == ("content", BITS)
            assert evidence.model == encoder.manifest.fingerprint
            assert set(evidence.timings_ms) == {"fetch", "ood", "prefilter", "rank", "facets"}
            assert all(value >= 0 for value in evidence.timings_ms.values())
            assert sum(answer.facets["modality"].values()) == evidence.matching
    assert seen == {("codes", 3), ("codes", 7), ("codes", 11), ("dense", None)}


def test_exact_means_everything(engine, archive):
    answer = engine(min_candidates=1).search_like(id_of(7), Query(10, exact=True))
    assert (answer.evidence.rung, answer.evidence.radius) == ("exact", None)
    assert answer.evidence.candidates == COUNT - 1
    assert answer.evidence.rungs_tried == {"exact": COUNT - 1}
    _, z = archive
    best = np.sort(np.delete(z @ z[7], 7))[::-1][:10]
    assert [hit.similarity for hit in answer.hits] == pytest.approx(best.tolist(), abs=1e-6)


def test_an_image_is_not_like_itself(engine):
    for query in (Query(100), Query(100, exact=True), Query(100, order="hamming")):
        answer = engine().search_like(id_of(5), query)
        assert id_of(5) not in {hit.id for hit in answer.hits}
        assert len(answer.hits) == 100


def test_facet_filters_hold_on_every_rung(engine, archive):
    codes, _ = archive
    where = parse_where(["modality=CT", "study_year=2005..2012", "labels!=odd"])
    numbers = np.arange(COUNT)
    years = 2000 + numbers % 20
    taking_part = (numbers % 3 == 0) & (years >= 2005) & (years <= 2012) & (numbers % 2 == 0)
    distances = naive_distances(codes, codes[0])
    for enough in (1, 20, COUNT):
        search = engine(min_candidates=enough, candidates_per_hit=1)
        answer = search.search_like(id_of(0), Query(5, where))
        assert answer.hits
        assert all(taking_part[number_of(hit.id)] for hit in answer.hits)
        for rung, count in answer.evidence.rungs_tried.items():
            within = BITS if rung == "dense" else int(rung.removeprefix("codes-"))
            # Image 0 is of 2000 anyway.
            assert count == (taking_part & (distances <= within)).sum()
        assert answer.evidence.matching == taking_part.sum()
        assert answer.facets["modality"] == {"CT": taking_part.sum()}
        assert "labels" not in answer.facets


def test_fewer_images_than_asked_for_are_all_given(engine):
    where = parse_where(["study=1.2.3"])
    for order in ("content", "hamming"):
        answer = engine().search_like(id_of(30), Query(50, where, order))
        assert {number_of(hit.id) for hit in answer.hits} == set(range(31, 40))
    nothing = engine().search_like(id_of(30), Query(50, parse_where(["study=none"])))
    assert nothing.hits == ()
    assert nothing.evidence.candidates == 0
    assert nothing.facets == {}


def test_an_unknown_image_is_named(engine):
    for image_id in (id_of(COUNT + 5), "no id at all"):
        with pytest.raises(ImageNotFound, match=image_id):
            engine().search_like(image_id, Query())


def test_pictures_are_answered_in_order_with_a_verdict(engine, encoder, archive):
    rng = np.random.default_rng(1)
    canvases = list(rng.integers(0, 256, (5, 48, 48), dtype=np.uint8))
    encoded = encoder.encode(canvases)
    codes, z = archive
    gate = gate_of(encoder.observe(canvases)[:2])
    answers = engine(gate).search(canvases, Query(4, exact=True))
    assert len(answers) == 5
    for answer, vector, code in zip(answers, encoded.z, encoded.codes, strict=True):
        best = np.sort(z @ vector)[::-1][:4]
        assert [hit.similarity for hit in answer.hits] == pytest.approx(best.tolist(), abs=1e-6)
        for hit in answer.hits:
            assert hit.hamming == naive_distances(codes[[number_of(hit.id)]], code)[0]
        assert answer.ood == gate.verdicts(Observations(vector[None], code[None]))[0]
        assert set(answer.ood.p_values) == {"knn"}
        assert "encode" in answer.evidence.timings_ms
    assert engine(gate).search([], Query()) == []
    assert engine().search(canvases[:1], Query())[0].ood is None


def gate_of(known: Observations, score: float = 1.9) -> OodGate:
    """What scores above ``score`` is foreign."""
    calibration = np.full(40, score, dtype=np.float32)
    return OodGate([KnnDetector(1).fit(known)], {"knn": calibration})


def test_an_indexed_image_is_judged_by_its_vector(engine, archive):
    codes, z = archive
    here = Observations(z[:1], codes[:1])
    for score, foreign in ((-1.0, True), (1.9, False)):
        gate = gate_of(here, score)
        verdict = engine(gate).search_like(id_of(0), Query()).ood
        assert verdict.foreign is foreign
        assert verdict.scores["knn"] == pytest.approx(0, abs=1e-3)
    seen = Observations(z[:50], codes[:50], reconstruction=np.zeros(50, np.float32))
    gate = OodGate.calibrated([ReconstructionDetector().fit(seen)], seen)
    assert engine(gate).search_like(id_of(0), Query()).ood is None


@pytest.mark.parametrize("score", [-1.0, 1.9])
def test_a_foreign_query_is_refused_only_when_the_policy_says_so(engine, archive, score):
    codes, z = archive
    gate = gate_of(Observations(z[:1], codes[:1]), score)
    warned = engine(gate).search_like(id_of(0), Query())
    refused = engine(gate, ood_policy="refuse").search_like(id_of(0), Query())
    assert warned.hits
    assert refused.ood == warned.ood
    if warned.ood.foreign:
        assert (refused.hits, refused.facets) == ((), {})
        assert (refused.evidence.rung, refused.evidence.candidates) == ("none", 0)
        assert set(refused.evidence.timings_ms) == {"fetch", "ood"}
    else:
        assert refused.hits == warned.hits


def test_another_model_s_index_is_refused(encoder, store):
    other = replace(encoder.manifest, fingerprint="fedcba9876543210")
    stranger = Encoder(encoder._network, other)
    with pytest.raises(FingerprintMismatch, match="fedcba9876543210"):
        SearchEngine(stranger, store, SearchSettings())


# Total order


def points_with_ties(count: int, seed: int) -> list[Point]:
    rng = random.Random(seed)
    return [
        Point(
            id_of(i),
            ImageRecord(),
            np.array([rng.choice([0, 1, 3])], dtype=np.uint8),
            score=rng.choice([0.5, 0.25, -0.5]),
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("order", ["content", "hamming"])
def test_ranking_is_total_whatever_the_order_of_arrival(order):
    points = points_with_ties(60, seed=0)
    code = np.zeros(1, dtype=np.uint8)
    found = ranked(points, code, order)
    keys = {
        "content": [(-hit.similarity, hit.hamming, hit.id) for hit in found],
        "hamming": [(hit.hamming, -hit.similarity, hit.id) for hit in found],
    }[order]
    assert all(one < next_ for one, next_ in pairwise(keys))
    for seed in range(5):
        random.Random(seed).shuffle(points)
        assert ranked(points, code, order) == found
    assert {hit.hamming for hit in found} == {0, 1, 2}


def test_ranking_nothing_gives_nothing_and_an_unknown_order_is_refused():
    code = np.zeros(1, dtype=np.uint8)
    assert ranked([], code, "content") == []
    with pytest.raises(QueryError, match="alphabet"):
        ranked([], code, "alphabet")


TWINS = 700


@pytest.fixture(scope="module")
def twin_stores(store_root, encoder):
    """The same archive written in two orders: 700 images with one vector, 100 others."""
    rng = np.random.default_rng(0)
    twin = unit(rng.normal(size=DIM))
    other = unit(-twin + rng.normal(size=(100, DIM)) * 0.2)
    numbers = rng.permutation(TWINS + 100)
    # The code of every twin is the same, but for a bit of one in seven; the others are far.
    points = [
        Point(
            id_of(i),
            ImageRecord(),
            np.array([0] * 7 + [i % 7 == 3 if i < TWINS else 255], dtype=np.uint8),
            twin if i < TWINS else other[i - TWINS],
        )
        for i in range(TWINS + 100)
    ]
    collection = Collection(encoder.manifest.fingerprint, DIM, BITS)
    stores = []
    for name, order in [("straight", range(TWINS + 100)), ("shuffled", numbers)]:
        stores.append(EdgeStore.create(store_root / name, collection))
        for start in range(0, len(order), 100):  # several writes, as an indexer does
            stores[-1].upsert([points[i] for i in order[start : start + 100]])
    yield stores
    for made in stores:
        made.close()


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("order", ["content", "hamming"])
@pytest.mark.parametrize("k", [1, 10, 250, 650])
def test_ties_at_the_cut_are_broken_by_id(twin_stores, encoder, k, order, exact):
    asked = 300
    expected = sorted(
        (i for i in range(TWINS) if i != asked), key=lambda i: (i % 7 == 3, id_of(i))
    )[:k]
    for store in twin_stores:
        engine = SearchEngine(encoder, store, SearchSettings())
        answer = engine.search_like(id_of(asked), Query(k, order=order, exact=exact))
        assert [number_of(hit.id) for hit in answer.hits] == expected


def test_ties_at_the_cut_of_what_is_ranked_are_broken_by_id(twin_stores, encoder):
    asked, settings = 300, SearchSettings(max_hamming_ranked=50)
    answers = [
        SearchEngine(encoder, store, settings).search_like(id_of(asked), Query(10, order="hamming"))
        for store in twin_stores
    ]
    assert answers[0].hits == answers[1].hits
    found = [number_of(hit.id) for hit in answers[0].hits]
    assert found == [i for i in range(20) if i % 7 != 3][:10]


# Queries as people write them


@pytest.mark.parametrize(
    ("terms", "expected"),
    [
        ([], Filter()),
        (["modality=CT"], Filter(must=(Match("modality", ("CT",)),))),
        ([" modality = CT "], Filter(must=(Match("modality", ("CT",)),))),
        (["modality=CT", "modality=MR"], Filter(must=(Match("modality", ("CT", "MR")),))),
        (["modality=CT,MR"], Filter(must=(Match("modality", ("CT,MR",)),))),
        (["modality!=CT"], Filter(must_not=(Match("modality", ("CT",)),))),
        (["modality != CT"], Filter(must_not=(Match("modality", ("CT",)),))),
        (["study_year=2015"], Filter(must=(Match("study_year", (2015,)),))),
        (["study_year=2015..2020"], Filter(must=(Range("study_year", 2015, 2020),))),
        (["study_year=2015.."], Filter(must=(Range("study_year", 2015, None),))),
        (["study_year=..2020"], Filter(must=(Range("study_year", None, 2020),))),
        (["study_year!=2015..2020"], Filter(must_not=(Range("study_year", 2015, 2020),))),
        (["burned_in=yes"], Filter(must=(Match("burned_in", (True,)),))),
        (["burned_in=False"], Filter(must=(Match("burned_in", (False,)),))),
        (["labels=a=b"], Filter(must=(Match("labels", ("a=b",)),))),
        (["labels=x..y"], Filter(must=(Match("labels", ("x..y",)),))),
        (
            ["modality=CT", "sex=F", "view!=AP", "modality=MR"],
            Filter(
                must=(Match("modality", ("CT", "MR")), Match("sex", ("F",))),
                must_not=(Match("view", ("AP",)),),
            ),
        ),
    ],
    ids=str,
)
def test_filter_terms_become_filters(terms, expected):
    assert parse_where(terms) == expected


@pytest.mark.parametrize(
    ("term", "named"),
    [
        ("modality", "modality"),
        ("", "field=value"),
        ("modality=", "modality="),
        ("=CT", "=CT"),
        ("modalty=CT", "'modalty'"),
        ("tenant=other", "'tenant'"),
        ("frame=1", "'frame'"),
        ("sch_0=1", "'sch_0'"),
        ("study_year=soon", "'soon'"),
        ("study_year=2015..soon", "'soon'"),
        ("study_year=2015,2016", "2015,2016"),
        ("burned_in=maybe", "maybe"),
    ],
)
def test_a_term_that_means_nothing_is_quoted(term, named):
    with pytest.raises(QueryError) as caught:
        parse_where(["sex=F", term])
    assert named in str(caught.value)


def test_too_many_values_are_refused():
    parse_where([f"study={i}" for i in range(256)])
    with pytest.raises(QueryError, match="257"):
        parse_where([f"study={i}" for i in range(257)])


@pytest.mark.parametrize("year", [10**30, -(10**30)])
def test_a_number_out_of_all_bounds_is_refused(year):
    with pytest.raises(QueryError, match=str(year)):
        parse_where([f"study_year={year}"])


@pytest.mark.parametrize("k", [0, -1, MAX_K + 1])
def test_k_out_of_range_is_refused(k):
    with pytest.raises(QueryError, match=f"k is {k}"):
        Query(k)
    assert (Query(1).k, Query(MAX_K).k) == (1, MAX_K)


def test_an_unknown_order_is_refused():
    with pytest.raises(QueryError, match="alphabet"):
        Query(order="alphabet")
