"""One suite over every vector store: what engine/store/base.py promises."""

import contextlib
import uuid
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from backends import BACKENDS, STAND_IN
from hypothesis import HealthCheck, given, settings, strategies as st

from engine.codes import radius
from engine.errors import FingerprintMismatch, StoreError, StoreNotFound
from engine.records import ImageRecord
from engine.store.base import Coarse, Collection, Filter, Ids, Match, Nearest, Profile, Range

COUNT = 400
ALL = Filter()


# Memory and Server are the same store; the client's local mode is exact whatever it is asked.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Local mode performs exact .brute-force. search:UserWarning"
)


@pytest.fixture(
    scope="module",
    params=[*BACKENDS, pytest.param(STAND_IN, marks=pytest.mark.slow)],
    ids=lambda backend: backend.name,
)
def backend(request):
    return request.param


@pytest.fixture(scope="module")
def points(make_points):
    return make_points(COUNT)


@pytest.fixture(scope="module")
def filled(backend, store_root, collection, points):
    """A store with points in it, for tests that only read."""
    store = backend.create(store_root / f"{backend.name}-filled", collection)
    store.upsert(points)
    yield store
    store.close()


@pytest.fixture(scope="module")
def _scratch(backend, store_root, collection):
    store = backend.create(store_root / f"{backend.name}-scratch", collection)
    yield store
    store.close()


@pytest.fixture
def empty(_scratch):
    """A store without points, for tests that write."""
    _scratch.delete(ALL)
    assert _scratch.count(ALL) == 0
    return _scratch


def ids(points) -> list[str]:
    return [point.id for point in points]


def id_of(number: int) -> str:
    return str(uuid.UUID(int=number))


def same(found, expected) -> None:
    """Equal in all but the vector, which is stored with fewer digits."""
    assert (found.id, found.record, found.indexed_at) == (
        expected.id,
        expected.record,
        expected.indexed_at,
    )
    assert found.code.tolist() == expected.code.tolist()


# Filters

FIELDS = {
    "modality": ("CT", "MR", "Röntgen", "日本", "none"),
    "labels": ("a", "b", "c", "none"),
    "study_year": (2010, 2015, 2016, 1999),
    "tenant": ("default", "other"),
    "study": ("1.2.0", "1.2.3", "1.2.33"),
    "burned_in": (True, False),
}
years = st.none() | st.integers(2009, 2021)
matches = st.sampled_from(sorted(FIELDS)).flatmap(
    lambda field: st.lists(st.sampled_from(FIELDS[field]), min_size=1, max_size=3, unique=True).map(
        lambda values: Match(field, tuple(values))
    )
)
conditions = (
    matches
    | st.builds(Range, st.just("study_year"), years, years)
    | st.lists(st.integers(1, COUNT + 9).map(id_of), max_size=200).map(lambda v: Ids(tuple(v)))
)


@st.composite
def filters(draw):
    near = draw(st.none() | st.tuples(st.integers(0, COUNT - 1), st.integers(0, 15)))
    return (
        Filter(
            tuple(draw(st.lists(conditions, max_size=3))),
            tuple(draw(st.lists(conditions, max_size=2))),
        ),
        near,
    )


def with_near(where, near, points):
    """The filter with the coarse filter around one point's code."""
    if near is None:
        return where
    number, r = near
    return replace(where, coarse=Coarse(code=points[number].code.tobytes(), radius=r))


def holds(backend, found, where, points, passes) -> None:
    """That these are the ids of the points which pass, in order. A server looks codes up by their
    bands, and lets some pass that are farther away."""
    expected = [point.id for point in points if passes(point, where)]
    if where.coarse is None or backend.name == "edge":
        assert found == expected
        return
    otherwise = replace(where, coarse=None)
    able = [point.id for point in points if passes(point, otherwise)]
    assert set(expected) <= set(found) <= set(able)
    assert found == sorted(found)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(drawn=filters())
def test_filters_mean_what_they_say(backend, filled, points, passes, drawn):
    where = with_near(*drawn, points)
    found = ids(filled.scroll(where))
    holds(backend, found, where, points, passes)
    assert filled.count(where) == len(found)


@pytest.mark.parametrize(
    "condition",
    [
        Match("modality", ("CT",)),
        Match("modality", ("MR", "日本")),
        Match("labels", ("a", "c")),
        Match("study_year", (2015, 2020)),
        Match("burned_in", (True,)),
        Match("burned_in", (False,)),
        Match("burned_in", (True, False)),
        Range("study_year", 2015, 2016),
        Range("study_year", None, 2015),
        Range("study_year", 2016, None),
        Ids((id_of(3), id_of(5), id_of(10**6))),
    ],
    ids=str,
)
def test_every_kind_of_condition_includes_and_excludes(filled, points, passes, condition):
    must, must_not = Filter(must=(condition,)), Filter(must_not=(condition,))
    expected = {point.id for point in points if passes(point, must)}
    assert 0 < len(expected) < COUNT
    assert set(ids(filled.scroll(must))) == expected
    assert set(ids(filled.scroll(must_not))) == set(ids(points)) - expected


@pytest.mark.parametrize("r", [radius(4, 0), radius(4, 1), 9, radius(4, 2), 20, 64])
def test_no_code_within_the_radius_is_missed(backend, filled, points, passes, r):
    sizes = set()
    for number in (0, 57, 311):
        where = with_near(Filter(must_not=(Ids((points[number].id,)),)), (number, r), points)
        found = ids(filled.scroll(where))
        holds(backend, found, where, points, passes)
        sizes.add(len(found))
    assert max(sizes) > 0


@pytest.mark.parametrize(
    "condition",
    [
        Ids(()),
        Match("modality", ()),
    ],
)
def test_any_of_nothing_is_nothing(filled, condition):
    assert filled.count(Filter(must=(condition,))) == 0
    assert filled.count(Filter(must_not=(condition,))) == COUNT


def test_long_lists_of_values_are_any_of(filled, points):
    wanted = tuple(ids(points[50:])) + tuple(id_of(10**6 + i) for i in range(300))
    assert ids(filled.scroll(Filter((Ids(wanted),)))) == ids(points[50:])
    assert ids(filled.scroll(Filter(must_not=(Ids(wanted),)))) == ids(points[:50])
    texts = tuple(f"1.2.3.{number}" for number in range(350, 2000))
    assert ids(filled.scroll(Filter((Match("sop", texts),)))) == ids(points[350:])
    assert ids(filled.scroll(Filter(must_not=(Match("sop", texts),)))) == ids(points[:350])
    years = tuple(range(1000, 2016))
    expected = [p.id for p in points if p.record.study_year in (2010, 2015)]
    assert ids(filled.scroll(Filter((Match("study_year", years),)))) == expected


def test_an_estimate_lies_between_nothing_and_everything(filled, points, passes):
    for where in (
        ALL,
        Filter((Match("modality", ("CT", "MR")),)),
        Filter((Ids(()),)),
        Filter((Match("modality", ("CT",)), Match("labels", ("a",)))),
    ):
        expected = sum(passes(point, where) for point in points)
        assert filled.count(where) == filled.count(where, exact=True) == expected
        assert 0 <= filled.count(where, exact=False) <= COUNT


# Counts by value


@pytest.mark.parametrize("field", ["modality", "body_part", "study_year", "labels", "tenant"])
def test_facets_count_values_most_frequent_first(filled, points, passes, field):
    for where in (ALL, Filter(must=(Match("labels", ("a",)),))):
        counter: Counter[str] = Counter()
        for point in points:
            if passes(point, where):
                value = getattr(point.record, field)
                values = value if isinstance(value, tuple) else (value,)
                counter.update(str(v) for v in values if v is not None)
        found = filled.facets([field], where, 10)[field]
        assert found == dict(counter)
        assert list(found) == sorted(counter, key=lambda value: (-counter[value], value))
        most = filled.facets([field], where, 1)[field]
        assert list(most.values()) == [max(counter.values())]


# Vectors


def test_the_nearest_come_first_with_their_similarity(filled, points, passes):
    z = np.stack([point.z for point in points])
    for number in (0, 123):
        where = Filter(must=(Match("labels", ("a", "b")),))
        found = filled.query([Nearest(points[number].z, where, 25)])[0]
        taking_part = np.array([passes(point, where) for point in points])
        similarity = np.where(taking_part, z @ points[number].z, -9.0)
        best = np.sort(similarity)[::-1][:25]
        assert [point.score for point in found] == pytest.approx(best.tolist(), abs=2e-3)
        for point in found:
            index = uuid.UUID(point.id).int - 1
            assert taking_part[index]
            assert point.score == pytest.approx(similarity[index], abs=2e-3)
            same(point, points[index])
        scores = [point.score for point in found]
        assert scores == sorted(scores, reverse=True)


def test_a_query_gives_at_most_what_takes_part(filled, points):
    where = Filter(must=(Ids((points[3].id, points[9].id)),))
    assert set(ids(filled.query([Nearest(points[0].z, where, 50)])[0])) == {
        points[3].id,
        points[9].id,
    }
    assert filled.query([Nearest(points[0].z, Filter(must=(Ids(()),)), 5)])[0] == []
    assert len(filled.query([Nearest(points[0].z, ALL, 7)])[0]) == 7


def test_questions_asked_together_are_answered_as_alone(filled, points):
    asked = [
        Nearest(points[0].z, ALL, 5),
        Nearest(points[1].z, Filter((Match("labels", ("a",)),)), 9, exact=True),
        Nearest(points[2].z, Filter((Ids(()),)), 9),
        Nearest(points[0].z, with_near(ALL, (0, 7), points), 3),
        Nearest(-points[3].z, Filter(must_not=(Ids((points[3].id,)),)), 1, exact=True),
    ]
    together = filled.query(asked)
    alone = [filled.query([one])[0] for one in asked]
    for found, expected in zip(together, alone, strict=True):
        assert [(point.id, point.score) for point in found] == [
            (point.id, point.score) for point in expected
        ]
        for point, other in zip(found, expected, strict=True):
            same(point, other)
            assert point.z is None
    assert list(map(len, together))[:3] == [5, 9, 0]
    assert filled.query([]) == []


def test_a_query_of_another_length_is_refused(filled):
    with pytest.raises(StoreError):
        filled.query([Nearest(np.ones(3, dtype=np.float32), ALL, 5)])[0]


def test_the_profile_changes_how_points_are_found_and_not_which(
    backend, store_root, collection, make_points, passes
):
    place, points = store_root / f"{backend.name}-arranged", make_points(300)
    where = Filter(must=(Match("labels", ("a", "b")),))
    asked = [Nearest(point.z, where, 7, exact=True) for point in points[:20]]

    def answers(store):
        return [[(p.id, round(p.score, 5)) for p in found] for found in store.query(asked)]

    store = backend.create(place, collection, Profile(quantised=True))
    store.upsert(points)
    first = answers(store)
    assert all(passes(p, where) for found in store.query(asked) for p in found)
    for profile in (Profile("precise", quantised=True), Profile("precise"), Profile()):
        store.arrange(profile)
        assert store.profile == profile
        assert answers(store) == first
        near = store.query([replace(one, exact=False) for one in asked])
        assert [found[0].id for found in near] == [found[0][0] for found in first]
        store.upsert(points[:30])
        store.close()
        # One that exists keeps its own profile.
        store = backend.create(place, collection, Profile("precise", quantised=True))
        assert store.profile == profile
    assert ids(store.scroll(ALL)) == ids(points)
    store.close()


# By id


def test_get_keeps_the_order_and_leaves_out_what_is_unknown(filled, points):
    wanted = [points[9].id, id_of(10**6), points[2].id, "no id at all", "", points[5].id]
    found = filled.get(wanted)
    assert ids(found) == [points[9].id, points[2].id, points[5].id]
    for point, number in zip(found, (9, 2, 5), strict=True):
        same(point, points[number])
        assert point.z is None
    assert filled.get([]) == []


def test_get_gives_the_vector_when_asked(filled, points):
    (found,) = filled.get([points[4].id], with_z=True)
    assert found.z.dtype == np.float32
    assert np.allclose(found.z, points[4].z, atol=1e-3)


@pytest.mark.parametrize("page", [1, 7, COUNT - 1, COUNT, COUNT + 1])
def test_scrolling_gives_each_point_once_whatever_the_page(filled, points, page):
    if page == 1:
        few = Filter(must=(Ids(tuple(ids(points[:30]))),))
        assert ids(filled.scroll(few, page=page)) == ids(points[:30])
    else:
        found = list(filled.scroll(ALL, page=page))
        assert ids(found) == ids(points)
        assert all(point.z is None for point in found)


def test_scrolling_gives_the_vectors_when_asked(filled, points):
    found = list(filled.scroll(ALL, page=150, with_z=True))
    assert ids(found) == ids(points)
    for point, expected in zip(found, points, strict=True):
        same(point, expected)
        assert np.allclose(point.z, expected.z, atol=1e-3)


# Writing


def test_writing_twice_changes_nothing_and_writing_anew_replaces(empty, make_points):
    points = make_points(20)
    empty.upsert(points)
    empty.upsert(points)
    assert empty.count(ALL) == 20
    changed = replace(
        points[3], record=ImageRecord(modality="US"), code=points[4].code, z=points[4].z
    )
    empty.upsert([changed])
    assert empty.count(ALL) == 20
    (found,) = empty.get([points[3].id], with_z=True)
    same(found, changed)  # nothing of the former payload is left
    assert np.allclose(found.z, points[4].z, atol=1e-3)
    assert empty.count(Filter(must=(Match("modality", ("US",)),))) == 1


def test_records_come_back_as_they_went(empty, make_points):
    full = ImageRecord(
        study="1.2.3",
        series="1.2.3.4",
        sop="1.2.3.4.5",
        frame=17,
        patient="f00d",
        modality="CT",
        body_part="BRUSTKORB – Größe 日本語 🩻",
        view="AP",
        laterality="L",
        manufacturer='A "quoted" \\ name\nof two lines',
        sex="O",
        age_band="60-69",
        study_year=-1,
        labels=("ü", "", "a,b", "x" * 5000),
        source="study=1",
        burned_in=False,
        tenant="Klinik №1",
    )
    plain = ImageRecord()
    points = [
        replace(point, record=record, indexed_at=at)
        for point, record, at in zip(
            make_points(2), (full, plain), ("2024-05-01T00:00:00Z", None), strict=True
        )
    ]
    empty.upsert(points)
    for found, expected in zip(empty.get(ids(points)), points, strict=True):
        same(found, expected)
    for value in ("ü", "a,b"):
        assert empty.count(Filter(must=(Match("labels", (value,)),))) == 1


def test_deleting_removes_what_takes_part_and_says_how_many(empty, make_points, passes):
    points = make_points(60)
    empty.upsert(points)
    where = Filter(must=(Match("modality", ("CT", "MR")),))
    gone = [point for point in points if passes(point, where)]
    assert empty.delete(where) == len(gone) > 0
    assert ids(empty.scroll(ALL)) == [p.id for p in points if p not in gone]
    assert empty.get(ids(gone)) == []
    assert empty.delete(where) == 0
    assert empty.delete(ALL) == 60 - len(gone)


@pytest.mark.parametrize("field", ["study", "patient"])
def test_a_study_or_a_patient_can_be_deleted(empty, make_points, field):
    points = [
        replace(point, record=replace(point.record, patient=f"Патиент-{number % 4}"))
        for number, point in enumerate(make_points(60))
    ]
    empty.upsert(points)
    value = getattr(points[9].record, field)
    where = Filter(must=(Match(field, (value,)),))
    gone = [point for point in points if getattr(point.record, field) == value]
    assert empty.delete(where) == len(gone) > 1
    assert empty.count(where) == 0
    assert ids(empty.scroll(ALL)) == [point.id for point in points if point not in gone]
    found = empty.query([Nearest(points[9].z, ALL, 60)])[0]
    assert not {*ids(found)} & {*ids(gone)}
    assert empty.delete(where) == 0


TEXTS = ("Größe", "日本語", "עברית", "a\u0301", "á", "🩻", "'; \" \\ %", "line\nend", "\u2028", " ")


def test_texts_of_every_script_are_found_and_counted(empty, make_points):
    points = [
        replace(point, record=replace(point.record, body_part=text, labels=(text, "all")))
        for point, text in zip(make_points(len(TEXTS)), TEXTS, strict=True)
    ]
    empty.upsert(points)
    for point, text in zip(points, TEXTS, strict=True):
        assert ids(empty.scroll(Filter((Match("body_part", (text,)),)))) == [point.id]
        assert ids(empty.scroll(Filter((Match("labels", (text,)),)))) == [point.id]
    counts = empty.facets(["body_part"], ALL, 50)["body_part"]
    assert {text: count for text, count in counts.items() if count} == dict.fromkeys(TEXTS, 1)
    assert next(iter(empty.facets(["labels"], ALL, 50)["labels"].items())) == ("all", len(TEXTS))


@pytest.mark.slow
def test_a_large_batch_arrives_whole(empty, make_points):
    points = make_points(5000)
    empty.upsert(points)
    empty.optimise()
    assert empty.count(ALL) == 5000
    assert ids(empty.scroll(ALL)) == ids(points)
    same(empty.get([points[4999].id])[0], points[4999])


def test_writing_nothing_is_fine(empty):
    empty.upsert([])
    assert empty.count(ALL) == 0


def test_a_point_without_vector_or_of_another_length_is_refused(empty, make_points):
    good, bad = make_points(2)
    for z in (None, np.ones(3, dtype=np.float32)):
        with pytest.raises(StoreError, match=bad.id):
            empty.upsert([good, replace(bad, z=z)])
    assert empty.count(ALL) == 0


def test_a_code_of_another_length_is_refused(empty, make_points):
    (point,) = make_points(1)
    with pytest.raises(StoreError, match=point.id):
        empty.upsert([replace(point, code=np.zeros(4, dtype=np.uint8))])


def test_a_vector_that_is_no_number_is_refused(empty, make_points):
    (point,) = make_points(1)
    with pytest.raises(StoreError, match=point.id):
        empty.upsert([replace(point, z=np.full(16, np.nan, dtype=np.float32))])


@pytest.mark.parametrize(
    "condition",
    [
        Match("study_year", (10**30,)),
        Range("study_year", 10**400, None),
        Match("study", ("\udc80",)),
        Ids(("no id at all",)),
    ],
    ids=lambda condition: type(condition).__name__,
)
def test_what_cannot_be_asked_is_a_store_error_or_matches_nothing(filled, condition):
    with contextlib.suppress(StoreError):
        assert filled.count(Filter(must=(condition,))) == 0


@pytest.mark.parametrize(
    "change",
    [
        {"id": "no id"},
        {"record": ImageRecord(study="\udc80")},
        {"record": ImageRecord(study_year=10**30)},
        {"record": ImageRecord(frame=2**63)},
    ],
    ids=lambda change: str(*change),
)
def test_what_cannot_be_stored_is_a_store_error(empty, make_points, change):
    with pytest.raises(StoreError):
        empty.upsert([replace(make_points(1)[0], **change)])


# Opening and closing


def test_points_outlive_closing(backend, store_root, collection, make_points):
    place, points = store_root / f"{backend.name}-reopened", make_points(50)
    store = backend.create(place, collection)
    store.upsert(points[:40])
    store.close()
    store = backend.create(place, collection)
    store.upsert(points[40:])
    store.flush()
    store.close()
    store = backend.open(place)
    try:
        assert store.collection == collection
        found = list(store.scroll(ALL))
        assert ids(found) == ids(points)
        for point, expected in zip(found, points, strict=True):
            same(point, expected)
    finally:
        store.close()


@pytest.mark.parametrize("change", [{"model": "fedcba9876543210"}, {"dim": 17}, {"bits": 32}])
def test_another_model_is_refused_and_nothing_lost(
    backend, store_root, collection, make_points, change
):
    place = store_root / f"{backend.name}-mismatch"
    store = backend.create(place, collection)
    store.upsert(make_points(3))
    store.close()
    other = Collection(**{"model": collection.model, "dim": 16, "bits": 64, **change})
    for reach in (backend.create, backend.open):
        with pytest.raises(FingerprintMismatch, match=r"(?s)0123456789abcdef.*--model"):
            reach(place, other)
    store = backend.open(place, collection)
    try:
        assert store.count(ALL) == 3
    finally:
        store.close()


def test_the_precision_of_an_index_is_kept_and_keeps_nobody_out(backend, store_root, collection):
    place = store_root / f"{backend.name}-precision"
    backend.create(place, replace(collection, precision="bf16")).close()
    for wanted in (replace(collection, precision="fp32"), collection, None):
        store = backend.open(place, wanted)
        try:
            assert store.collection.precision == "bf16"
        finally:
            store.close()


def test_opening_what_is_not_there_makes_nothing(backend, store_root):
    place = store_root / f"{backend.name}-nowhere" / "index"
    with pytest.raises(StoreNotFound, match="nowhere"):
        backend.open(place)
    assert not place.parent.exists()
