"""Cells of a served store: no search misses anything, whoever knows which cells."""

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import qdrant_edge as qdrant
from backends import BACKENDS, Memory, Server
from qdrant_client import models
from reached import reached

from engine.codes import hamming
from engine.errors import StoreError
from engine.search import ladder
from engine.settings import SearchSettings
from engine.store import cells as made_cells, server_cells
from engine.store.base import Coarse, Collection, Filter, Match, Nearest
from engine.store.connection import Connection
from engine.store.payload import cell_field
from engine.store.server import ServerStore
from engine.store.server_collection import beside, drop

ALL = Filter()
LEAST, QUERIES = 120, made_cells._QUERIES
OTHER = Collection("fedcba9876543210", 16, 64)

pytestmark = [
    pytest.mark.filterwarnings("ignore:Payload indexes have no effect in the local:UserWarning"),
    pytest.mark.filterwarnings("ignore:Local mode performs exact .brute-force. search:UserWarning"),
]


class Place:
    """A collection on a server, and stores over it whose clock is set by hand."""

    def __init__(self, connected: Callable[[], Connection], collection: Collection) -> None:
        self._connected, self.collection = connected, collection
        self._clients: list[Any] = []
        self.now = 0.0

    def connection(self) -> Connection:
        made = self._connected()
        made.clock = lambda: self.now
        self._clients.append(made.client)
        return made

    def close(self) -> None:
        for client in self._clients:
            client.close()

    def store(self) -> ServerStore:
        return ServerStore.create(self.connection(), self.collection)

    def unnumbered(self, store: ServerStore) -> int:
        """How many points have no number of the cells in force."""
        field = models.PayloadField(key=cell_field(store.cells.key))
        empty = models.Filter(must=[models.IsEmptyCondition(is_empty=field)])
        return self.connection().client.count(store.name, empty).count

    def names(self) -> set[str]:
        return {one.name for one in self.connection().client.get_collections().collections}


FACES = ["grpc", *(one.name for one in BACKENDS if isinstance(one, Memory | Server))]
every_face = pytest.mark.parametrize("place", ["rest", *FACES], indirect=True)
"""For tests of all that goes over the wire; the others are slow over REST."""


@pytest.fixture(autouse=True)
def few_asked(monkeypatch) -> None:
    """Cells are measured by a few searches, where the recall is not what a test is about."""
    monkeypatch.setattr(made_cells, "_QUERIES", 32)


@pytest.fixture
def many_asked(few_asked, monkeypatch) -> None:
    """Cells are measured by as many searches as outside tests."""
    monkeypatch.setattr(made_cells, "_QUERIES", QUERIES)


@pytest.fixture(params=[pytest.param("rest", marks=pytest.mark.slow), *FACES])
def place(request, tmp_path, collection, monkeypatch) -> Iterator[Place]:
    """On the stand-in by each of its faces, on local mode, and on a server if there is one."""
    monkeypatch.setattr(server_cells, "LEAST_POINTS", LEAST)
    if request.param in ("rest", "grpc"):
        with reached(request.param) as server:
            yield Place(server.connection, collection)
    else:
        backend: Any = next(one for one in BACKENDS if one.name == request.param)
        made = Place(lambda: backend.connection(tmp_path), collection)
        yield made
        made.close()


@pytest.fixture
def memory(tmp_path, collection, monkeypatch) -> Place:
    """On local mode, for tests of many steps."""
    monkeypatch.setattr(server_cells, "LEAST_POINTS", LEAST)
    backend: Any = next(one for one in BACKENDS if isinstance(one, Memory))
    return Place(lambda: backend.connection(tmp_path), collection)


def ids(points) -> set[str]:
    return {point.id for point in points}


def in_cells(cells, points, numbers) -> set[str]:
    """Ids of the points that lie in these cells, by comparing with every centroid; without those
    that rounding to float16 might move to another cell."""
    z = np.stack([point.z for point in points])
    unsure = doubtful(cells, points)
    best = np.argsort(-(z @ cells.centroids.T), axis=1)[:, 0]
    return {
        point.id
        for point, cell in zip(points, best, strict=True)
        if cell in numbers and point.id not in unsure
    }


def doubtful(cells, points) -> frozenset[str]:
    """Ids of the points that are nearly as close to another cell."""
    likeness = np.sort(np.stack([point.z for point in points]) @ cells.centroids.T, axis=1)
    return frozenset(
        point.id for point, row in zip(points, likeness, strict=True) if row[-1] - row[-2] < 2e-3
    )


def near(cells, point, count: int | None = None) -> Filter:
    """The coarse filter of the cells nearest to a point."""
    numbers = cells.nearest(point.z, cells.probes if count is None else count)
    return Filter(coarse=Coarse(numbers, of=cells.key))


def right(store: ServerStore, points) -> None:
    """That whatever the cells in force are, no point of the cells asked for is missing."""
    assert store.count(ALL) == len(points)
    cells = store.cells
    for point in points[::97]:
        if cells is not None:
            where = near(cells, point, 2)
            expected = in_cells(cells, points, where.coarse.cells)
            assert expected <= ids(store.scroll(where))
            assert store.query([Nearest(point.z, where, 1, exact=True)])[0][0].id == point.id
            assert store.count(near(cells, point, len(cells))) == len(points)


def test_few_points_have_no_cells(place, make_points):
    store = place.store()
    store.upsert(make_points(LEAST - 1))
    store.optimise()
    assert store.cells is None
    assert not [name for name in place.names() if name.startswith(f"{store.name}-cells")]


@every_face
def test_a_search_looks_into_the_cells_that_are_asked_for(place, make_points):
    store, points = place.store(), make_points(300)
    store.upsert(points)
    assert store.cells is None
    store.optimise()
    cells = store.cells
    assert 20 < len(cells) < 50
    assert (cells.points, cells.model) == (300, place.collection.model)
    assert cells.recall >= 0.995
    assert 0 < cells.code_recall <= 1
    assert place.unnumbered(store) == 0
    for point in points[::60]:
        where = near(cells, point, 3)
        expected = in_cells(cells, points, where.coarse.cells)
        found = ids(store.scroll(where))
        assert expected <= found <= expected | doubtful(cells, points)
        assert store.count(where) == len(found) < 300
        labelled = replace(where, must=(Match("labels", ("a",)),))
        assert ids(store.scroll(labelled)) == {
            one.id for one in points if one.id in found and "a" in one.record.labels
        }
        assert store.query([Nearest(point.z, where, 1)])[0][0].id == point.id


@pytest.mark.usefixtures("many_asked")
def test_the_recall_is_that_of_the_whole_index(place, make_points):
    store, points = place.store(), make_points(300)
    store.upsert(points)
    store.optimise()
    cells, z = store.cells, np.stack([point.z for point in points])
    found = []
    for i, point in enumerate(points):
        likeness = z @ point.z
        likeness[i] = -9
        best = {points[j].id for j in np.argsort(-likeness)[:10]}
        probed = in_cells(cells, points, cells.nearest(point.z, cells.probes))
        found.append(len(best & probed) / 10)
    assert np.mean(found) == pytest.approx(cells.recall, abs=0.03)


@pytest.mark.usefixtures("many_asked")
@pytest.mark.parametrize("drifts", [False, True])
@pytest.mark.slow
def test_cells_are_measured_again_when_much_was_added(place, make_points, drifts):
    """What the collection says of its cells is true of it as it is now; where the images that came
    are so different that searches by them miss too much, there are others."""
    store, points = place.store(), make_points(320)
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((12, 16))
    for i, point in enumerate(points):
        z = centres[i % 12] + 0.02 * rng.standard_normal(16)
        if drifts and i >= 200:
            z = rng.standard_normal(16)
        points[i] = replace(point, z=(z / np.linalg.norm(z)).astype(np.float32))
    store.upsert(points[:200])
    store.optimise()
    before = store.cells
    store.upsert(points[200:240])
    store.optimise()
    assert store.cells.recall == before.recall, "a fifth more is not much"
    store.upsert(points[240:])
    store.optimise()
    now = store.cells
    assert (now.key != before.key) == drifts
    assert now.points == (320 if drifts else 200)
    z, found = np.stack([point.z for point in points]), []
    for i, point in enumerate(points):
        likeness = z @ point.z
        likeness[i] = -9
        best = np.argsort(-likeness)[:10]
        cell = np.argmax(z[best] @ now.centroids.T, axis=1)
        found.append(np.isin(cell, now.nearest(point.z, now.probes)).mean())
    assert now.recall == pytest.approx(np.mean(found), abs=0.02)
    another = place.store().cells
    assert (another.key, another.recall) == (now.key, now.recall)
    right(store, points)


@every_face
def test_every_process_has_the_same_cells_and_numbers_what_it_writes(place, make_points):
    first, points = place.store(), make_points(300)
    first.upsert(points[:200])
    first.optimise()
    second = place.store()
    assert second.cells.key == first.cells.key
    assert second.cells.centroids.tolist() == first.cells.centroids.tolist()
    second.upsert(points[200:])
    assert place.unnumbered(first) == 0
    right(first, points)
    right(second, points)


def test_the_radius_is_kept_beside_cells(place, make_points):
    store, points = place.store(), make_points(300)
    store.upsert(points)
    store.optimise()
    cells = store.cells
    for point in points[::50]:
        some = cells.nearest(point.z, 2)
        code = point.code.tobytes()
        where = Filter(coarse=Coarse(some, code, 7, cells.key))
        within = {one.id for one in points if hamming(one.code, point.code) <= 7}
        found = ids(store.scroll(where))
        assert within | in_cells(cells, points, some) <= found < ids(points)
        everything = replace(where, coarse=Coarse(some, code, 64, cells.key))
        assert store.count(everything) == 300


def test_what_a_writer_adds_that_does_not_know_the_cells_is_found(place, make_points):
    writer, reader, points = place.store(), place.store(), make_points(300)
    reader.upsert(points[:200])
    reader.optimise()
    assert writer.cells is None  # it looked less than a minute ago
    writer.upsert(points[200:])
    writer.upsert(points[:20])  # replaces what had numbers
    assert place.unnumbered(reader) == 120
    right(reader, points)
    reader.optimise()
    assert place.unnumbered(reader) == 0
    right(reader, points)
    place.now += 61
    assert writer.cells.key == reader.cells.key


def test_a_reader_that_knows_former_cells_misses_nothing(place, make_points):
    reader, writer, points = place.store(), place.store(), make_points(520)
    writer.upsert(points[:130])
    writer.optimise()
    place.now += 61
    former = reader.cells
    writer.upsert(points[130:])
    writer.optimise()
    assert writer.cells.outgrown(520) is False
    assert writer.cells.key != former.key == reader.cells.key
    right(reader, points)
    # While the former numbers are there, it does not compare everything.
    assert reader.count(near(former, points[0], 2)) < 520
    right(writer, points)
    place.now += 30
    writer.optimise()
    assert reader.count(near(former, points[0], 2)) < 520
    place.now += 31
    assert reader.cells.key == writer.cells.key
    right(reader, points)


@pytest.mark.parametrize("face", [pytest.param("rest", marks=pytest.mark.slow), "grpc"])
def test_numbers_of_former_cells_go_when_nobody_should_know_them(
    face, collection, make_points, monkeypatch
):
    monkeypatch.setattr(server_cells, "LEAST_POINTS", LEAST)
    with reached(face) as server:
        place, points = Place(server.connection, collection), make_points(520)
        store = place.store()
        store.upsert(points[:130])
        store.optimise()
        former = cell_field(store.cells.key)
        store.upsert(points[130:])
        store.optimise()
        fields = {former, cell_field(store.cells.key)}
        assert fields <= set(server.engine.indexes["precedent"])
        place.now += 601
        store.optimise()
        assert former not in server.engine.indexes["precedent"]
        records, _ = place.connection().client.scroll("precedent", limit=520)
        assert {key for one in records for key in one.payload if key in fields} == fields - {former}
        right(store, points)


def test_another_profile_makes_cells_anew(place, make_points):
    store, points = place.store(), make_points(300)
    store.upsert(points[:150])
    store.optimise()
    former = store.cells
    store.upsert(points[150:])
    store.optimise()
    assert store.cells.key == former.key
    store.arrange(store.profile)
    assert store.cells.key != former.key
    assert store.cells.points == 300
    assert place.unnumbered(store) == 0
    right(store, points)


@every_face
def test_centroids_that_are_others_are_not_used(place, make_points):
    store, points = place.store(), make_points(300)
    store.upsert(points)
    store.optimise()
    client = place.connection().client
    client.upsert(f"{store.name}-cells-a", [models.PointStruct(id=3, vector=points[0].z.tolist())])
    reader = place.store()
    assert reader.cells is None
    assert reader.count(ALL) == 300
    reader.optimise()
    assert reader.cells is not None
    right(reader, points)
    right(store, points)


def test_without_the_centroids_searches_go_on(place, make_points, caplog):
    store, points = place.store(), make_points(300)
    store.upsert(points)
    store.optimise()
    place.connection().client.delete_collection(f"{store.name}-cells-a")
    reader = place.store()
    with caplog.at_level(logging.WARNING):
        assert reader.cells is None
    assert "cannot be read, searches do without" in caplog.text
    reader.upsert(points[:5])
    right(reader, points)


def test_a_foreign_collection_with_the_name_of_a_side_is_left_alone(place, make_points, caplog):
    store, client = place.store(), place.connection().client
    theirs = f"{store.name}-cells-a"
    client.create_collection(theirs, vectors_config=models.VectorParams(size=16, distance="Dot"))
    store.upsert(make_points(200))
    with caplog.at_level(logging.WARNING):
        store.optimise()
    assert f"{theirs!r}" in caplog.text
    assert "rename or delete it" in caplog.text
    assert store.cells is None
    assert client.count(theirs).count == 0
    with pytest.raises(StoreError, match="was made by something else"):
        store.arrange(store.profile)


def test_dropping_an_index_drops_the_centroids(place, make_points):
    first, points = place.store(), make_points(300)
    first.upsert(points)
    first.optimise()
    connection = place.connection()
    other = ServerStore.create_beside(place.connection(), OTHER, first.profile)
    other.upsert(points)
    other.optimise()
    assert f"{other.name}-cells-a" in place.names()
    assert beside(connection) == [other.name]
    other.put_in_force()
    assert beside(connection) == [first.name]
    drop(connection, first.name)
    left = {name for name in place.names() if name.startswith(first.name)}
    assert left == set()
    assert ServerStore.open(place.connection(), OTHER).cells.key == other.cells.key


# Interruptions


class Killed(BaseException):
    """What ends a process; nothing handles it."""


class Dying:
    """A client whose process ends instead of its request after so many."""

    def __init__(self, client: Any, requests: int) -> None:
        self._client, self.left = client, requests

    def __getattr__(self, name: str) -> Any:
        def asked(*args: Any, **kwargs: Any) -> Any:
            if self.left == 0:
                raise Killed
            self.left -= 1
            return getattr(self._client, name)(*args, **kwargs)

        return asked


def dying_store(place: Place, requests: int) -> tuple[ServerStore, Dying]:
    connection = place.connection()
    dying = Dying(connection.client, 10**9)
    connection.client = dying
    store = ServerStore.create(connection, place.collection)
    dying.left = requests
    return store, dying


@pytest.mark.slow
def test_killed_at_any_step_a_retraining_leaves_every_search_right(
    memory, make_points, monkeypatch
):
    monkeypatch.setattr(server_cells, "LEAST_POINTS", 40)
    monkeypatch.setattr(server_cells, "_READ_AT_ONCE", 100)
    monkeypatch.setattr(server_cells, "_UPDATED_AT_ONCE", 100)
    monkeypatch.setattr(server_cells, "_HELD", 100)
    points, step, seen = make_points(185), 0, set()
    while True:
        store = memory.store()
        store.delete(ALL)
        store.upsert(points[:45])
        store.arrange(store.profile)
        memory.now += 601
        store.upsert(points[45:])
        store, dying = dying_store(memory, step)
        try:
            store.optimise()
            memory.now += 601
            store.optimise()
        except Killed:
            pass
        memory.now += 61
        reader = memory.store()
        seen.add(reader.cells.points)
        right(reader, points)
        reader.upsert(points[:10])
        right(reader, points)
        reader.optimise()
        assert reader.cells.points == 185
        assert memory.unnumbered(reader) == 0
        right(reader, points)
        if dying.left:
            break
        step += 1
    assert step > 20
    assert seen == {45, 185}  # the former cells, or the new ones


@pytest.mark.slow
def test_two_that_make_cells_at_once_do_each_other_no_harm(place, make_points):
    points, first, second = make_points(400), place.store(), place.store()
    first.upsert(points)
    both, failed = threading.Barrier(2), []

    def optimise(store: ServerStore, more) -> None:
        try:
            both.wait()
            store.upsert(more)
            store.optimise()
        except BaseException as error:
            failed.append(error)

    shares = ((first, points[:200]), (second, points[200:]))
    threads = [threading.Thread(target=optimise, args=share) for share in shares]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    for store in (first, second):
        right(store, points)
    place.now += 61
    first.optimise()
    assert place.unnumbered(first) == 0
    for store in (first, second, place.store()):
        right(store, points)
        assert store.cells.key == first.cells.key


def test_one_that_cleans_up_while_another_makes_cells_costs_it_no_number(memory, make_points):
    points, first = make_points(600), memory.store()
    first.upsert(points[:130])
    first.optimise()
    first.upsert(points[130:])
    connection = memory.connection()
    cleaned = _CleanedUp(connection.client)
    connection.client = cleaned
    maker = ServerStore.create(connection, memory.collection)
    maker.optimise()
    assert cleaned.keys == [maker.cells.key]
    assert memory.unnumbered(maker) == 0
    memory.now += 61
    right(maker, points)
    right(first, points)


class _CleanedUp:
    """A client; just before cells come into force, somebody else removes their numbers."""

    def __init__(self, client: Any) -> None:
        self._client, self.keys = client, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def update_collection(self, name: str, *, metadata: dict[str, Any]) -> bool:
        key = metadata["precedent_cells"]["key"]
        self.keys.append(key)
        self._client.delete_payload(name, [cell_field(key)], models.Filter())
        return self._client.update_collection(name, metadata=metadata)


# What is relied on, in the engine of the server


def test_the_engine_finds_by_cell_and_by_none(tmp_path):
    shard = qdrant.EdgeShard.create(
        str(tmp_path),
        qdrant.EdgeConfig(vectors={"z": qdrant.EdgeVectorParams(2, qdrant.Distance.Dot)}),
    )
    index = qdrant.IntegerIndexParams(lookup=True, range=True, is_principal=True)
    shard.update(qdrant.UpdateOperation.create_field_index("cell_a", index))
    points = [
        qdrant.Point(i, {"z": [1.0, float(i)]}, {} if i % 5 == 0 else {"cell_a": i % 7})
        for i in range(200)
    ]
    shard.update(qdrant.UpdateOperation.upsert_points(points))
    shard.optimize()

    def found(**conditions: Any) -> set[int]:
        request = qdrant.ScrollRequest(limit=200, filter=qdrant.Filter(**conditions))
        return {record.id for record in shard.scroll(request)[0]}

    near = [
        qdrant.FieldCondition("cell_a", match=qdrant.MatchAny([2, 3])),
        qdrant.IsEmptyCondition("cell_a"),
    ]
    expected = {i for i in range(200) if i % 5 == 0 or i % 7 in (2, 3)}
    one = qdrant.HasIdCondition({5, 6, 9})
    assert found(should=near) == expected
    assert found(should=near, must=[one]) == {5, 9}
    assert found(should=near, must=[qdrant.Filter(must_not=[one])]) == expected - {5, 9}
    assert found(should=near, must=[one, qdrant.Filter(must_not=[one])]) == set()
    # Numbers of other cells are none of these.
    other = qdrant.IsEmptyCondition("cell_b")
    assert found(should=[other]) == set(range(200))
    shard.close()


# Through the ladder


def test_a_search_climbs_to_the_cells(place, make_points, monkeypatch):
    monkeypatch.setattr(ladder, "_FEW", 10)
    monkeypatch.setattr(ladder, "_PASSING", 20)
    store, points = place.store(), make_points(300)
    store.upsert(points)
    settings = SearchSettings(coarse="cells")

    def taken(point, **changes):
        return ladder.climb(store, point.z, point.code, ALL, 5, settings, **changes)

    assert taken(points[7]).rung.name != "cells"
    store.optimise()
    monkeypatch.setattr(ladder, "_LARGEST_SHARE", 1.0)
    found = taken(points[7])
    assert found.rung.name == "cells"
    assert found.size.count == store.count(near(store.cells, points[7], found.rung.cells)) < 300
    promised = taken(points[7], within=5)
    within = {one.id for one in points if hamming(one.code, points[7].code) <= 5}
    assert (promised.rung.radius, promised.rung.cells) == (5, store.cells.probes)
    assert within <= ids(store.scroll(promised.where))
