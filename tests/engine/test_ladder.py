"""The pre-filter where codes have collapsed, and lists that go on: beside the naive answer."""

import uuid

import numpy as np
import pytest

from engine.errors import QueryError
from engine.model.checkpoint import save_checkpoint
from engine.model.encoder import Encoder
from engine.records import ImageRecord, Point
from engine.search.engine import SearchEngine
from engine.search.ladder import enough_for, rungs
from engine.search.query import Cursor, Query, parse_where
from engine.search.sizes import Size, sample_of, sampled_buckets, size_of
from engine.settings import SearchSettings
from engine.store.base import Collection, Filter, Profile
from engine.store.edge import EdgeStore
from engine.store.payload import BUCKETS

COUNT, DIM, BITS = 32_000, 16, 64
ALL = Filter()
LONE = COUNT - 1


def id_of(number: int) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, str(number)))


NUMBER = {id_of(i): i for i in range(COUNT)}


def unit(z: np.ndarray) -> np.ndarray:
    return (z / np.linalg.norm(z, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def z():
    return unit(np.random.default_rng(0).normal(size=(COUNT, DIM)))


def record(number: int) -> ImageRecord:
    """Thirty images a study, three studies a patient; every hundredth image names none."""
    if number % 100 == 99:
        return ImageRecord(modality="OT")
    return ImageRecord(
        modality=("CT", "MR")[number % 2],
        study=f"1.2.{number // 30}",
        patient=f"p{number // 90}",
    )


def code(number: int) -> np.ndarray:
    """Half of all images share one code, the rest another; one image has its own."""
    if number == LONE:
        return np.full(8, 0x5A, dtype=np.uint8)
    return np.full(8, 0xFF if number % 2 else 0, dtype=np.uint8)


@pytest.fixture(scope="module")
def encoder(build, tiny_config, preprocess, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    manifest = save_checkpoint(folder, build(), tiny_config, preprocess, ("a", "b", "c"), {})
    return Encoder(build(), manifest, precision="fp32", batch_size=4)


@pytest.fixture(scope="module")
def store(store_root, z, encoder):
    collection = Collection(encoder.manifest.fingerprint, DIM, BITS)
    with EdgeStore.create(store_root / "collapsed", collection) as made:
        made.upsert([Point(id_of(i), record(i), code(i), z[i]) for i in range(COUNT)])
        yield made


@pytest.fixture
def engine(encoder, store):
    def made(**settings):
        return SearchEngine(encoder, store, SearchSettings(**settings))

    return made


def naive(z: np.ndarray, number: int, taking_part: np.ndarray) -> list[int]:
    order = np.argsort(-(z @ z[number]), kind="stable")
    return [i for i in order.tolist() if taking_part[i] and i != number]


def numbers(answer) -> list[int]:
    return [NUMBER[hit.id] for hit in answer.hits]


def close(found: list[int], expected: list[int], z: np.ndarray, number: int) -> bool:
    """Equal but for neighbours that the stored float16 cannot tell apart."""
    r = z @ z[number]
    return np.allclose(r[found], r[expected], atol=2e-3)


# Sizes


def test_few_are_counted_and_many_estimated(store):
    assert size_of(store, ALL, COUNT) == Size(COUNT)
    estimate = size_of(store, ALL, 1000)
    assert estimate.estimated
    assert estimate.count == COUNT
    assert estimate.text.startswith("about ")
    lone = parse_where(["study=1.2.3"])
    assert size_of(store, lone, 29) == Size(29)
    assert size_of(store, lone, 28) == Size(29, estimated=True)


def test_an_estimate_of_near_codes_is_too_high_at_most_by_the_number_of_bands(store):
    rung = next(rungs(code(4)))
    near = Filter(bands=rung.bands)
    estimate = size_of(store, near, 1000)
    assert estimate.estimated
    assert COUNT // 2 <= estimate.count <= min(COUNT, 4 * COUNT // 2)


@pytest.mark.parametrize("most", [1000, 5000, COUNT])
def test_samples_are_fair(store, most):
    buckets = sampled_buckets(COUNT, most)
    sampled = store.count(sample_of(ALL, buckets))
    assert sampled == pytest.approx(most, rel=0.2)
    ct = store.count(sample_of(parse_where(["modality=CT"]), buckets))
    assert ct / sampled == pytest.approx(0.5, abs=0.08)


def test_buckets_cover_every_image_once(store):
    counts = store.facet("bucket", ALL, BUCKETS)
    assert len(counts) == BUCKETS
    assert sum(counts.values()) == COUNT
    assert max(counts.values()) < 2 * COUNT / BUCKETS


# Collapsed codes


def test_a_useless_pre_filter_is_left_out_and_that_is_said(engine, z):
    answer = engine(max_counted=COUNT).search_like(id_of(4), Query(10))
    evidence = answer.evidence
    assert (evidence.rung, evidence.radius, evidence.approximate) == ("dense", None, False)
    assert evidence.rungs_tried["s0"] == COUNT // 2 - 1
    assert evidence.candidates == evidence.compared == COUNT - 1
    assert "saves nothing" in evidence.note
    assert f"{COUNT // 2 - 1:,}" in evidence.note
    assert close(numbers(answer), naive(z, 4, np.ones(COUNT, bool))[:10], z, 4)


def test_a_code_that_nobody_has_goes_to_everything_without_a_note(engine):
    evidence = engine().search_like(id_of(LONE), Query(10)).evidence
    assert (evidence.rung, evidence.note) == ("dense", None)
    assert evidence.rungs_tried == {"s0": 0, "s1": 0, "s2": 0, "dense": COUNT - 1}


def test_a_filter_that_leaves_few_needs_no_pre_filter(engine, z):
    answer = engine().search_like(id_of(94), Query(5, parse_where(["patient=p1"])))
    assert answer.evidence.rungs_tried == {"dense": 88}
    mine = np.array([record(i).patient == "p1" for i in range(COUNT)])
    assert close(numbers(answer), naive(z, 94, mine)[:5], z, 94)


def test_the_work_is_bounded_and_that_is_said(engine, z):
    answer = engine(max_scanned=8000).search_like(id_of(4), Query(10))
    evidence = answer.evidence
    assert evidence.rung == "dense"
    assert evidence.compared == pytest.approx(8000, rel=0.02)
    assert (evidence.candidates, evidence.radius) == (COUNT - 1, None)
    assert "64 of 256 parts" in evidence.note
    assert "precedent profile precise" in evidence.note
    sampled = np.array([uuid.UUID(id_of(i)).int % BUCKETS < 64 for i in range(COUNT)])
    assert close(numbers(answer), naive(z, 4, sampled)[:10], z, 4)


def test_exact_is_never_bounded(engine, z):
    answer = engine(max_scanned=256).search_like(id_of(4), Query(10, exact=True))
    assert answer.evidence.compared == COUNT - 1
    assert answer.evidence.note is None
    assert close(numbers(answer), naive(z, 4, np.ones(COUNT, bool))[:10], z, 4)


def test_estimated_facets_are_marked_as_such(engine):
    answer = engine(max_faceted=2000).search_like(id_of(4), Query(10))
    assert answer.evidence.facets_estimated
    assert answer.facets["modality"]["CT"] == pytest.approx(COUNT / 2, rel=0.15)
    assert sum(answer.facets["modality"].values()) == pytest.approx(COUNT, rel=0.15)
    counted = engine(max_faceted=COUNT).search_like(id_of(4), Query(10))
    assert not counted.evidence.facets_estimated
    assert sum(counted.facets["modality"].values()) == COUNT - 1
    assert counted.hits == answer.hits


@pytest.mark.slow
def test_where_fewer_pass_than_estimated_the_search_goes_on(store_root, encoder):
    """CT has one code and MR another: the store takes modality and code for independent."""
    rng = np.random.default_rng(2)
    z = unit(rng.normal(size=(8000, DIM)))
    collection = Collection(encoder.manifest.fingerprint, DIM, BITS)
    with EdgeStore.create(store_root / "dependent", collection) as made:
        made.upsert(
            [
                Point(id_of(i), ImageRecord(modality=("CT", "MR")[i % 2]), code(i), z[i])
                for i in range(8000)
            ]
        )
        search = SearchEngine(encoder, made, SearchSettings(max_counted=1))
        answer = search.search_like(id_of(4), Query(10, parse_where(["modality=MR"])))
    assert answer.evidence.rung == "dense"
    assert len(answer.hits) == 10
    assert {hit.record.modality for hit in answer.hits} == {"MR"}


@pytest.mark.slow
def test_a_graph_takes_over_where_the_codes_collapsed(store_root, encoder, z):
    collection = Collection(encoder.manifest.fingerprint, DIM, BITS)
    place = store_root / "graph"
    with EdgeStore.create(place, collection, Profile("precise", quantised=True)) as made:
        made.upsert([Point(id_of(i), record(i), code(i), z[i]) for i in range(COUNT)])
        made.optimise()
        search = SearchEngine(
            encoder, made, SearchSettings(max_scanned=256, min_candidates=20, candidates_per_hit=1)
        )
        small = parse_where(["patient=p1"])
        answer = search.search_like(id_of(4), Query(10))
        assert answer.evidence.approximate
        assert answer.evidence.rung == "dense"
        assert answer.evidence.rungs_tried == {"dense": COUNT - 1}
        assert answer.evidence.note is None
        by_code = search.search_like(id_of(94), Query(10, where=small, order="hamming"))
        assert by_code.evidence.rung == "s0"
        expected = naive(z, 4, np.ones(COUNT, bool))[:10]
        assert len(set(numbers(answer)) & set(expected)) >= 9
        exact = search.search_like(id_of(4), Query(10, exact=True))
        assert not exact.evidence.approximate
        assert close(numbers(exact), expected, z, 4)


@pytest.mark.parametrize(
    ("k", "settings", "expected"),
    [
        (10, {}, 1000),
        (100, {}, 2000),
        (10, {"candidates_share": 0.1}, COUNT // 10),
        (40, {"candidates_share": 0.1}, COUNT // 5),
        (1, {"candidates_share": 0.1}, COUNT // 10),
        (3, {"min_candidates": 1, "candidates_per_hit": 7, "candidates_share": 0}, 21),
    ],
)
def test_how_many_are_enough(store, k, settings, expected):
    assert enough_for(store, ALL, k, SearchSettings(**settings)) == expected


# Pages


@pytest.mark.parametrize("order", ["content", "hamming"])
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("group_by", [None, "study"])
def test_pages_are_the_one_list_cut_up(engine, order, exact, group_by):
    search, k = engine(), 7

    def page(cursor, size):
        where = parse_where(["patient=p1", "patient=p2", "patient=p3"])
        return search.search_like(
            id_of(100), Query(size, where, order, exact, group_by=group_by, page=cursor)
        )

    whole = page(None, 300)
    first = page(None, k)
    assert whole.next_page is None
    hits, cursor, pages = list(first.hits), first.next_page, 1
    while cursor is not None:
        answer = page(Cursor.parse(cursor), k)
        assert answer.evidence.rung == first.evidence.rung
        hits.extend(answer.hits)
        cursor, pages = answer.next_page, pages + 1
    if exact or first.evidence.rung == whole.evidence.rung:
        assert hits == list(whole.hits)
    assert len({hit.id for hit in hits}) == len(hits)
    assert pages == -(-len(hits) // k)


@pytest.mark.parametrize("text", ["", "s1", "s1:", "s1:0", "s9:10", "s1:-3", "s1:1e3", "s1:٣", "x"])
def test_what_is_no_cursor_is_refused(text):
    with pytest.raises(QueryError, match="next_page"):
        Cursor.parse(text)


def test_lists_end_and_cursors_belong_to_their_search():
    with pytest.raises(QueryError, match="1000"):
        Query(10, page=Cursor("s0", 991))
    with pytest.raises(QueryError, match="ask as before"):
        Query(10, exact=True, page=Cursor("s0", 10))
    with pytest.raises(QueryError, match="ask as before"):
        Query(10, page=Cursor("exact", 10))
    for wrong in ({"group_by": "series"}, {"exclude": "me"}):
        with pytest.raises(QueryError, match="study, patient"):
            Query(**wrong)


# Groups, and one's own


@pytest.mark.parametrize("group_by", ["study", "patient"])
@pytest.mark.parametrize("k", [1, 12, 300])
def test_groups_are_led_by_their_most_similar_image(engine, z, group_by, k):
    answer = engine().search_like(id_of(7), Query(k, group_by=group_by, exact=True))
    firsts: dict[object, int] = {}
    for i in naive(z, 7, np.ones(COUNT, bool)):
        firsts.setdefault(getattr(record(i), group_by) or id_of(i), i)
    expected = list(firsts.values())[:k]
    assert close(numbers(answer), expected, z, 7)
    names = [getattr(hit.record, group_by) or hit.id for hit in answer.hits]
    assert len(set(names)) == len(names) == min(k, len(firsts))


@pytest.mark.slow
def test_one_large_study_does_not_hide_the_others(store_root, encoder):
    """5,000 images nearer than any other, all of one study."""
    rng = np.random.default_rng(1)
    query = unit(rng.normal(size=DIM))
    near = unit(query + rng.normal(size=(5000, DIM)) * 0.01)
    far = unit(query + rng.normal(size=(50, DIM)))
    collection = Collection(encoder.manifest.fingerprint, DIM, BITS)
    with EdgeStore.create(store_root / "large", collection) as made:
        big = [Point(id_of(i), ImageRecord(study="big"), code(0), near[i]) for i in range(5000)]
        small = [
            Point(id_of(5000 + i), ImageRecord(study=f"s{i}"), code(0), far[i]) for i in range(50)
        ]
        made.upsert(big + small)
        search = SearchEngine(encoder, made, SearchSettings())
        answer = search.search_like(id_of(0), Query(20, group_by="study", exclude=None))
    studies = [hit.record.study for hit in answer.hits]
    assert studies[0] == "big"
    assert len(set(studies)) == 20


@pytest.mark.parametrize("exclude", ["study", "patient"])
def test_one_s_own_study_and_patient_are_left_out(engine, exclude):
    whole = engine().search_like(id_of(95), Query(1000, exact=True))
    where = parse_where(["patient=p1"])
    answer = engine().search_like(id_of(95), Query(200, where, exclude=exclude))
    own = record(95)
    assert own.study == "1.2.3"
    for hit in answer.hits:
        assert getattr(hit.record, exclude) != getattr(own, exclude)
        assert hit.record.study != own.study
    expected = {"study": 60, "patient": 0}[exclude]
    assert len(answer.hits) == expected
    assert any(hit.record.patient == "p1" for hit in whole.hits)


def test_an_image_that_names_no_study_leaves_nothing_out(engine):
    assert record(99).study is None
    answer = engine().search_like(id_of(99), Query(1, exclude="patient", exact=True))
    assert answer.evidence.candidates == COUNT - 1


def test_facets_can_be_left_out(engine):
    answer = engine().search_like(id_of(4), Query(10, facets=False))
    assert answer.facets == {}
    assert "facets" not in answer.evidence.timings_ms
