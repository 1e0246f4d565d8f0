"""The coarse filter where codes have collapsed, and lists that go on: beside the naive answer."""

import uuid
from typing import Any

import numpy as np
import pytest
import qdrant_edge as qdrant

from engine.codes import bands, radius
from engine.errors import QueryError
from engine.records import ImageRecord, Observations, Point
from engine.search.engine import SearchEngine
from engine.search.ladder import Rung, enough_for
from engine.search.query import Cursor, Query, parse_where
from engine.search.sizes import Size, sample_of, sampled_parts, size_of
from engine.settings import SearchSettings
from engine.store.base import PARTS, Coarse, Collection, Filter, Part, Profile
from engine.store.edge import EdgeStore
from engine.store.payload import BAND_PREFIX
from engine.store.server_filter import translated

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
def store(store_root, z, encoder):
    collection = Collection(encoder.manifest.fingerprint, DIM, BITS)
    with EdgeStore.create(store_root / "collapsed", collection) as made:
        made.upsert([Point(id_of(i), record(i), code(i), z[i]) for i in range(COUNT)])
        yield made


class Served:
    """A store as a server answers: there are no cells, and counts take time or are estimates, as if
    the conditions of a filter, and the bands of a code, were independent."""

    cells = None
    counts_at_once = False

    def __init__(self, store: EdgeStore) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def count(self, where: Filter, *, exact: bool = True) -> int:
        if exact:
            return self._store.count(where)
        whole = self._store.count(ALL)
        near = self._store.count(Filter(coarse=where.coarse))
        about = float(whole if where.coarse is None else min(whole, near * BITS // 16))
        for one in where.must:
            about *= self._store.count(Filter((one,))) / whole
        for one in where.must_not:
            about *= 1 - self._store.count(Filter((one,))) / whole
        return round(about)


@pytest.fixture
def engine(encoder, store):
    def made(of=store, **settings):
        return SearchEngine(encoder, of, SearchSettings(**settings))

    return made


def naive(z: np.ndarray, number: int, taking_part: np.ndarray) -> list[int]:
    order = np.argsort(-(z @ z[number]), kind="stable")
    return [i for i in order.tolist() if taking_part[i] and i != number]


def numbers(answer) -> list[int]:
    return [NUMBER[hit.id] for hit in answer.hits]


def close(found: list[int], expected: list[int], z: np.ndarray, number: int) -> bool:
    """Equal but for neighbours that float32 cannot tell apart."""
    r = z @ z[number]
    return len(found) == len(expected) and np.allclose(r[found], r[expected], atol=1e-6)


# Sizes


@pytest.mark.slow
def test_where_counting_takes_time_few_are_counted_and_many_estimated(store):
    served = Served(store)
    assert size_of(served, ALL, COUNT) == Size(COUNT)
    estimate = size_of(served, ALL, 1000)
    assert estimate.estimated
    assert estimate.count == COUNT
    assert estimate.text.startswith("about ")
    lone = parse_where(["study=1.2.3"])
    assert size_of(served, lone, 29) == Size(29)
    assert size_of(served, lone, 28) == Size(29, estimated=True)


def test_an_embedded_index_counts_however_many_there_are(store):
    assert size_of(store, ALL, 1) == Size(COUNT)
    both = parse_where(["modality=CT", "patient=p1", "patient=p2"])
    expected = sum(
        record(i).modality == "CT" and record(i).patient in ("p1", "p2") for i in range(COUNT)
    )
    assert size_of(store, both, 1) == Size(expected)
    assert Size(expected).text == f"{expected}"


def test_an_estimate_of_near_codes_is_too_high_at_most_by_the_number_of_bands(tmp_path):
    """By the statistics of Qdrant, of which an embedded shard keeps the same as a server."""
    config = qdrant.EdgeConfig(
        vectors={"z": qdrant.EdgeVectorParams(size=1, distance=qdrant.Distance.Dot)}
    )
    shard = qdrant.EdgeShard.create(str(tmp_path), config)
    for j in range(BITS // 16):
        kind = qdrant.IntegerIndexParams(lookup=True, range=False)
        shard.update(qdrant.UpdateOperation.create_field_index(f"{BAND_PREFIX}{j}", kind))
    made = [
        qdrant.Point(
            uuid.UUID(id_of(i)),
            {"z": [1.0]},
            {f"{BAND_PREFIX}{j}": int(band) for j, band in enumerate(bands(code(i)))},
        )
        for i in range(4000)
    ]
    shard.update(qdrant.UpdateOperation.upsert_points(made))
    near = translated(Filter(coarse=Coarse(code=code(4).tobytes(), radius=radius(4, 0))))
    either = [
        qdrant.FieldCondition(one.key, match=qdrant.MatchAny(list(one.match.any)))
        for one in near.should
    ]
    where = qdrant.Filter(should=either)
    assert len(either) == 4
    assert shard.count(qdrant.CountRequest(exact=True, filter=where)) == 2000
    estimate = shard.count(qdrant.CountRequest(exact=False, filter=where))
    shard.close()
    assert 2000 <= estimate <= 4 * 2000


@pytest.mark.parametrize("most", [1000, 5000, COUNT])
def test_samples_are_fair(store, most):
    parts = sampled_parts(COUNT, most)
    sampled = store.count(sample_of(ALL, parts))
    assert sampled == pytest.approx(most, rel=0.2)
    ct = store.count(sample_of(parse_where(["modality=CT"]), parts))
    assert ct / sampled == pytest.approx(0.5, abs=0.08)


def test_parts_cover_every_image_once(store):
    counts = [store.count(Filter((Part(count),))) for count in range(PARTS + 1)]
    assert (counts[0], counts[-1]) == (0, COUNT)
    sizes = np.diff(counts)
    assert 0 < sizes.min() <= sizes.max() < 2 * COUNT / PARTS
    first = {point.id for point in store.scroll(Filter((Part(7),)))}
    assert first == {id_of(i) for i in range(COUNT) if uuid.UUID(id_of(i)).int % PARTS < 7}


# Collapsed codes


def test_a_useless_pre_filter_is_left_out_and_that_is_said(engine, z):
    answer = engine(max_counted=COUNT).search_like(id_of(4), Query(10))
    evidence = answer.evidence
    assert (evidence.rung, evidence.radius, evidence.approximate) == ("dense", None, False)
    assert evidence.rungs_tried["codes-3"] == COUNT // 2 - 1
    assert evidence.candidates == evidence.compared == COUNT - 1
    assert "would save nothing" in evidence.note
    assert f"{COUNT // 2 - 1:,}" in evidence.note
    assert close(numbers(answer), naive(z, 4, np.ones(COUNT, bool))[:10], z, 4)


def test_a_code_that_nobody_has_goes_to_everything_without_a_note(engine):
    evidence = engine().search_like(id_of(LONE), Query(10)).evidence
    assert (evidence.rung, evidence.note) == ("dense", None)
    assert evidence.rungs_tried == {
        "codes-3": 0,
        "codes-7": 0,
        "codes-11": 0,
        "dense": COUNT - 1,
    }


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
    sampled = np.array([uuid.UUID(id_of(i)).int % PARTS < 64 for i in range(COUNT)])
    assert close(numbers(answer), naive(z, 4, sampled)[:10], z, 4)


def test_exact_is_never_bounded(engine, z):
    answer = engine(max_scanned=256).search_like(id_of(4), Query(10, exact=True))
    assert answer.evidence.compared == COUNT - 1
    assert answer.evidence.note is None
    assert close(numbers(answer), naive(z, 4, np.ones(COUNT, bool))[:10], z, 4)


def test_estimated_facets_are_marked_as_such(engine, store):
    served = Served(store)
    answer = engine(served, max_faceted=2000).search_like(id_of(4), Query(10))
    assert answer.evidence.facets_estimated
    assert answer.facets["modality"]["CT"] == pytest.approx(COUNT / 2, rel=0.15)
    assert sum(answer.facets["modality"].values()) == pytest.approx(COUNT, rel=0.15)
    for search in (engine(served, max_faceted=COUNT), engine(max_faceted=2000)):
        counted = search.search_like(id_of(4), Query(10))
        assert not counted.evidence.facets_estimated
        assert sum(counted.facets["modality"].values()) == COUNT - 1
        assert counted.hits == answer.hits


def test_where_fewer_pass_than_estimated_the_search_goes_on(store_root, encoder):
    """CT has other codes than MR: the estimate takes modality and code for independent."""
    rng = np.random.default_rng(2)
    count, settings = 4000, {"min_candidates": 20, "candidates_per_hit": 1, "candidates_share": 0}
    z = unit(rng.normal(size=(count, DIM)))
    codes = rng.integers(0, 256, (20, BITS // 8), dtype=np.uint8)  # twenty, each of one modality
    collection = Collection(encoder.manifest.fingerprint, DIM, BITS)
    with EdgeStore.create(store_root / "dependent", collection) as made:
        made.upsert(
            [
                Point(id_of(i), ImageRecord(modality=("CT", "MR")[i % 2]), codes[i % 20], z[i])
                for i in range(count)
            ]
        )
        search = SearchEngine(encoder, Served(made), SearchSettings(max_counted=1, **settings))
        answer = search.search_like(id_of(4), Query(10, parse_where(["modality=MR"])))
        assert answer.evidence.rungs_tried == {
            "codes-3": pytest.approx(4 * count / 20 / 2, rel=0.02),
            "codes-7": pytest.approx(4 * count / 20 / 2, rel=0.02),
            "codes-11": pytest.approx(4 * count / 20 / 2, rel=0.02),
            "dense": pytest.approx(count / 2, rel=0.01),
        }
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
        seen = Observations(z[[4]], code(4)[None])
        answer = search.answer(seen, Query(10))
        assert answer.evidence.approximate
        assert answer.evidence.rung == "dense"
        assert answer.evidence.rungs_tried == {"dense": COUNT}
        assert answer.evidence.note is None
        by_code = search.search_like(id_of(94), Query(10, where=small, order="hamming"))
        assert (by_code.evidence.rung, by_code.evidence.radius) == ("codes", 3)
        expected = [4, *naive(z, 4, np.ones(COUNT, bool))[:9]]
        assert len(set(numbers(answer)) & set(expected)) >= 9
        exact = search.answer(seen, Query(10, exact=True))
        assert not exact.evidence.approximate
        assert close(numbers(exact), expected, z, 4)
        # The graph knows of no filters: few images are compared without it, and that is said.
        filtered = search.search_like(id_of(94), Query(10, small))
        assert (filtered.evidence.rung, filtered.evidence.approximate) == ("dense", False)
        mine = np.array([record(i).patient == "p1" for i in range(COUNT)])
        assert close(numbers(filtered), naive(z, 94, mine)[:10], z, 94)


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
def test_how_many_are_enough(k, settings, expected):
    assert enough_for(COUNT, k, SearchSettings(**settings)) == expected


# Pages


def rung_of(answer) -> tuple[str, int | None, int | None]:
    evidence = answer.evidence
    return evidence.rung, evidence.radius, evidence.cells


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
    rung = rung_of(first)
    hits, cursor, pages = list(first.hits), first.next_page, 1
    while cursor is not None:
        answer = page(Cursor.parse(cursor), k)
        assert rung_of(answer) == rung
        hits.extend(answer.hits)
        cursor, pages = answer.next_page, pages + 1
    if exact or rung == rung_of(whole):
        assert hits == list(whole.hits)
    assert len({hit.id for hit in hits}) == len(hits)
    assert pages == -(-len(hits) // k)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "codes-7",
        "codes-7:",
        "codes-7:0",
        "codes-7:-3",
        "codes-7:1e3",
        "codes-7:٣",
        "codes:10",
        "codes--7:10",
        "codes-7-16-2:10",
        "codes-123456:10",
        "cells:10",
        "cells-0:10",
        "cells-7-16:10",
        "dense-7:10",
        "none:10",
        "s1:10",
    ],
)
def test_what_is_no_cursor_is_refused(text):
    with pytest.raises(QueryError, match="next_page"):
        Cursor.parse(text)


@pytest.mark.parametrize(
    "rung",
    [
        Rung("codes", 7),
        Rung("codes", 0),
        Rung("codes", 9, 16),
        Rung("cells", cells=16),
        Rung("dense"),
        Rung("exact"),
    ],
    ids=lambda rung: rung.label,
)
def test_a_cursor_is_read_as_it_was_written(rung):
    cursor = Cursor(rung.label, 20)
    assert Cursor.parse(str(cursor)) == cursor
    assert Rung.labelled(rung.label) == rung


def test_lists_end_and_cursors_belong_to_their_search():
    with pytest.raises(QueryError, match="1000"):
        Query(10, page=Cursor("codes-3", 991))
    with pytest.raises(QueryError, match="ask as before"):
        Query(10, exact=True, page=Cursor("codes-3", 10))
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
