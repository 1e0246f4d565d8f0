"""The second vector, which searches by words compare, in every store that has one."""

import json
from dataclasses import replace

import numpy as np
import pytest
from backends import BACKENDS, STAND_IN

from engine.errors import FingerprintMismatch, StoreError
from engine.store import edge
from engine.store.base import Filter, Ids, Match, Nearest, Profile
from engine.store.edge import EdgeStore
from engine.store.edge_layout import COLLECTION
from engine.store.snapshot import write_snapshot
from engine.store.tenant import TenantStore

COUNT, LENGTH = 120, 24
ALL = Filter()
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
def with_words(collection):
    return replace(collection, words=LENGTH)


@pytest.fixture(scope="module")
def points(make_points):
    rng = np.random.default_rng(11)
    rows = rng.standard_normal((COUNT, LENGTH)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return [replace(one, words=row) for one, row in zip(make_points(COUNT), rows, strict=True)]


@pytest.fixture(scope="module")
def filled(backend, store_root, with_words, points):
    store = backend.create(store_root / f"{backend.name}-words", with_words)
    store.upsert(points)
    store.flush()
    yield store
    store.close()


def nearest(points, words, limit):
    """Ids and cosines, by the slow obvious way."""
    scored = sorted(((float(one.words @ words), one.id) for one in points), reverse=True)
    return scored[:limit]


FILTERS = {
    "all": (ALL, lambda one: True),
    "modality": (
        Filter(must=(Match("modality", ("CT",)),)),
        lambda one: one.record.modality == "CT",
    ),
    "tenant": (
        Filter(must=(Match("tenant", ("other",)),)),
        lambda one: one.record.tenant == "other",
    ),
    "none": (Filter(must=(Match("modality", ("none",)),)), lambda one: False),
}


@pytest.mark.parametrize("by_id", [True, False])
@pytest.mark.parametrize("name", FILTERS)
def test_those_nearest_in_the_second_vector_come_first(
    filled, points, monkeypatch, name, by_id
) -> None:
    if not by_id:
        monkeypatch.setattr(edge, "_FILTERED_BY_ID", 0)
    where, passes = FILTERS[name]
    words = points[7].words
    (found,) = filled.query([Nearest(words, where, 9, vector="words")])
    expected = nearest([one for one in points if passes(one)], words, 9)
    assert [one.id for one in found] == [point_id for _, point_id in expected]
    assert [one.score for one in found] == pytest.approx([at for at, _ in expected], abs=2e-3)
    records = {one.id: one.record for one in points}
    assert all(one.record == records[one.id] for one in found)


def test_both_vectors_are_asked_in_one_question(filled, points) -> None:
    one, other = points[3], points[5]
    asked = [
        Nearest(one.z, ALL, 1, exact=True),
        Nearest(other.words, Filter(must_not=(Ids((other.id,)),)), 1, vector="words"),
    ]
    by_z, by_words = filled.query(asked)
    assert by_z[0].id == one.id
    assert by_words[0].id == nearest([p for p in points if p is not other], other.words, 1)[0][1]


def test_a_tenant_finds_its_own_alone(filled, points) -> None:
    own = TenantStore(filled, "other")
    (found,) = own.query([Nearest(points[0].words, ALL, COUNT, vector="words")])
    assert {one.id for one in found} == {one.id for one in points if one.record.tenant == "other"}


def test_a_vector_of_another_length_is_refused(filled, points) -> None:
    with pytest.raises(StoreError, match=f"5 values for a search by words.* has {LENGTH}"):
        filled.query([Nearest(points[0].words[:5], ALL, 1, vector="words")])
    with pytest.raises(StoreError, match=f"no values for searches by words.* wants {LENGTH}"):
        filled.upsert([replace(points[0], words=None)])
    with pytest.raises(StoreError, match="all finite"):
        filled.upsert([replace(points[0], words=points[0].words * np.nan)])


def test_a_store_without_a_second_vector_says_so(
    backend, store_root, collection, with_words, points
) -> None:
    place = store_root / f"{backend.name}-wordless"
    with backend.create(place, collection) as store:
        store.upsert([replace(one, words=None) for one in points[:3]])
        with pytest.raises(StoreError, match="has no; bring it to a model that knows words"):
            store.query([Nearest(points[0].words, ALL, 1, vector="words")])
        with pytest.raises(StoreError, match="the index wants none"):
            store.upsert(points[:1])
    with pytest.raises(FingerprintMismatch):
        backend.open(place, with_words)


def test_what_is_written_anew_deleted_or_arranged_is_found(tmp_path, with_words, points) -> None:
    place = tmp_path / "index"
    with EdgeStore.create(place, with_words) as store:
        store.upsert(points)
        moved = replace(points[0], words=points[1].words)
        store.upsert([moved])
        store.delete(Filter(must=(Ids((points[1].id,)),)))
        left = [moved, *points[2:]]
        expected = [point_id for _, point_id in nearest(left, points[1].words, 5)]
        assert expected[0] == moved.id

        def found() -> list[str]:
            (some,) = store.query([Nearest(points[1].words, ALL, 5, vector="words")])
            return [one.id for one in some]

        assert found() == expected
        assert store.rewrite() == len(left)
        assert found() == expected
        store.arrange(Profile("precise", quantised=True))
        assert found() == expected
    with EdgeStore.open(place, with_words) as store:
        assert found() == expected
        with pytest.raises(StoreError, match="`precedent backup`"):
            write_snapshot(store, tmp_path / "snapshot")


def test_only_an_index_with_words_is_of_the_later_format(tmp_path, collection, with_words) -> None:
    for name, kind, number in (("plain", collection, 2), ("words", with_words, 3)):
        EdgeStore.create(tmp_path / name, kind).close()
        noted = json.loads((tmp_path / name / COLLECTION).read_bytes())
        assert (noted["format"], "words" in noted) == (number, number == 3)
