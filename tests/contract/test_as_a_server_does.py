"""The served store on a server that behaves as Qdrant 1.18.3 was seen to do."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from behaviours import AgreesLater, DropsEqualMustNot, FacetsByShard, GreyAfterRestart, StrictMode
from qdrant_client import models
from reached import Reached, reached
from troubles import NODE_AWAY, OF_CLUSTERS, Trouble

from engine.codes import radius
from engine.errors import StoreAway, StoreError, StoreLimited
from engine.store.base import Coarse, Collection, Filter, Ids, Match, Nearest, Profile
from engine.store.server import ServerStore
from engine.store.server_collection import beside, drop, in_force, put_in_force
from engine.store.server_filter import translated

ALL = Filter()
OTHER = Collection("fedcba9876543210", 16, 64)
OURS, THEIRS = "precedent-0123456789abcdef", "precedent-fedcba9876543210"


@pytest.fixture(params=[pytest.param("rest", marks=pytest.mark.slow), "grpc"])
def face(request) -> str:
    return request.param


both_faces = pytest.mark.parametrize("face", ["rest", "grpc"], indirect=True)
"""For tests of what the faces say in other words; the others are slow over REST."""


def ids(points) -> list[str]:
    return [point.id for point in points]


# What excludes


@pytest.fixture
def forgetful(face) -> Iterator[Reached]:
    with reached(face, DropsEqualMustNot()) as made:
        yield made


@both_faces
def test_the_stand_in_forgets_that_a_condition_excludes(forgetful, collection, make_points):
    forgetful.create(collection).upsert(make_points(60))
    connection = forgetful.connection()
    ct = models.FieldCondition(key="modality", match=models.MatchAny(any=["CT"]))
    mr = models.FieldCondition(key="modality", match=models.MatchAny(any=["MR"]))

    def count(**clauses) -> int:
        where = models.Filter(**clauses)
        return connection.ask(connection.client.count, "precedent", count_filter=where).count

    assert count(must=[ct], must_not=[ct]) == count(must=[ct]) > 0
    assert count(should=[ct, mr], must_not=[ct]) == count(should=[ct, mr]) > count(must=[mr])
    assert count(must=[ct, models.Filter(must_not=[ct])]) == 0
    # As it would be sent, were it not recognised before.
    both = Filter((Match("modality", ("CT",)),), (Match("modality", ("CT",)),))
    where = translated(both)
    assert connection.ask(connection.client.count, "precedent", count_filter=where).count == 0


@both_faces
def test_what_is_included_and_excluded_is_excluded(forgetful, collection, make_points):
    store, points = forgetful.create(collection), make_points(60)
    store.upsert(points)
    ct, labelled = Match("modality", ("CT",)), Match("labels", ("a", "b"))
    near = Coarse(code=points[3].code.tobytes(), radius=3)
    asked = len(forgetful.engine.asked)
    for where in (
        Filter((ct,), (ct,)),
        Filter((ct, labelled), (labelled,)),
        Filter((Ids((points[3].id,)),), (Ids((points[3].id,)),), near),
        # Whatever has one of the first values has one of the others.
        Filter((Match("labels", ("a",)),), (labelled, ct)),
    ):
        assert store.count(where) == 0
        assert list(store.scroll(where)) == []
        assert store.query([Nearest(points[3].z, where, 5)]) == [[]]
        assert store.facets(["modality"], where, 5) == {"modality": {}}
        assert store.delete(where) == 0
    # The server was not asked for any of it.
    assert len(forgetful.engine.asked) == asked
    assert store.count(ALL) == 60
    wider = Filter((labelled,), (Match("labels", ("a",)),))
    assert store.count(wider) == sum(
        "b" in point.record.labels and "a" not in point.record.labels for point in points
    )


# Counts by value


def _stations(make_points):
    """1,200 points of 40 scanners, none of which is frequent in one shard and rare in another one;
    in each shard, of two thirds of them there are a few more."""
    rng = np.random.default_rng(5)
    points = []
    for i, point in enumerate(make_points(1200)):
        station = int(rng.integers(0, 40)) if i % 3 else int(rng.integers(0, 14) * 3 % 40)
        points.append(replace(point, record=replace(point.record, source=f"CT-{station}")))
    return points


def test_counts_by_value_are_right_over_shards(face, collection, make_points):
    points = _stations(make_points)
    with reached(face, FacetsByShard(3)) as server:
        store = server.create(collection, shards=3)
        store.upsert(points)
        for where in (ALL, Filter((Match("burned_in", (True,)),))):
            counts = Counter(
                point.record.source
                for point in points
                if where is ALL or point.record.burned_in is True
            )
            found = store.facets(["source"], where, 10)["source"]
            best = sorted(counts.items(), key=lambda one: (-one[1], one[0]))[:10]
            assert sorted(found.values(), reverse=True) == [count for _, count in best]
            assert all(counts[value] == count for value, count in found.items())
        connection = server.connection()
        exact = connection.ask(
            connection.client.facet, "precedent", key="source", limit=10, exact=True
        ).hits
        right = Counter(point.record.source for point in points)
        # What the product would have named, had it asked for exact counts.
        assert any(hit.count < right[hit.value] for hit in exact)


# After a restart


@pytest.mark.parametrize("make", [True, False], ids=["filled", "searched"])
def test_a_server_goes_on_after_a_restart_once_it_is_used(face, collection, make_points, make):
    sleepy = GreyAfterRestart()
    with reached(face, sleepy) as server:
        with server.create(collection) as store:
            store.upsert(make_points(20))
        sleepy.restart()
        green, grey = models.CollectionStatus.GREEN, models.CollectionStatus.GREY
        assert server.engine.info("precedent").status == grey
        connection = server.connection()
        connection.ask(connection.client.count, "precedent")
        assert server.engine.info("precedent").status == grey
        updates = len(server.engine.updates)
        for _ in range(2):
            (server.create if make else server.open)(collection).close()
        assert server.engine.info("precedent").status == green
        assert len(server.engine.updates) == updates + 1


# Passing trouble


@both_faces
@pytest.mark.parametrize("trouble", OF_CLUSTERS.values(), ids=OF_CLUSTERS)
def test_a_cluster_in_trouble_is_asked_again(face, collection, make_points, trouble):
    with reached(face) as server:
        store, points = server.create(collection), make_points(5)
        for ask in (
            lambda: store.upsert(points),
            lambda: store.count(ALL),
            lambda: store.query([Nearest(points[0].z, ALL, 3)]),
            lambda: store.facets(["modality"], ALL, 3),
            lambda: store.get(ids(points)),
            lambda: list(store.scroll(ALL)),
            lambda: store.delete(Filter((Match("study", ("none",)),))),
        ):
            server.engine.faults = [trouble] * 4
            ask()
            assert server.engine.faults == []
        assert store.count(ALL) == 5


@both_faces
def test_it_is_said_which_node_is_away_and_what_would_have_helped(face, collection):
    with reached(face) as server:
        store = server.create(collection)
        server.engine.faults = [NODE_AWAY] * 10
        with pytest.raises(StoreAway) as caught:
            store.count(ALL)
        text = str(caught.value)
        assert "away or not ready: http://10.0.0.3:6335;" in text
        assert "if each shard has a copy elsewhere (PRECEDENT_STORE__REPLICATION_FACTOR)" in text
        assert server.settings.url in text
        assert "\n" not in text


@both_faces
def test_a_trouble_that_would_come_again_is_not_waited_for(face, collection):
    with reached(face) as server:
        store = server.create(collection)
        server.engine.faults = [Trouble(400, "Wrong input: Vector dimension error")]
        with pytest.raises(StoreError, match="Vector dimension error"):
            store.count(ALL)
        assert server.pauses == []


# What the nodes of a cluster have to agree on


class Parted:
    """A server of two nodes of which one is away, and comes back during the ``after``-th pause."""

    def __init__(self, server: Reached, agreeing: AgreesLater) -> None:
        self.server, self.agreeing = server, agreeing

    def connection(self, after: int | None = None):
        """One whose pauses let the node come back."""
        made = self.server.connection()
        waited = []

        def sleep(seconds: float) -> None:
            waited.append(seconds)
            if len(waited) == after:
                self.agreeing.come_together()

        made.sleep = sleep
        made.clock = lambda: sum(waited)
        return made

    def done(self, operation: str) -> int:
        return self.server.engine.asked.count(operation)


@pytest.fixture(params=[False, True], ids=["later", "lost"])
def parted(request, face, collection, make_points) -> Iterator[Parted]:
    """With a collection in force and one beside it. What fails happens later, or never."""
    agreeing = AgreesLater(lost=request.param)
    with reached(face, agreeing) as server:
        with server.create(collection) as store:
            store.upsert(make_points(9))
        ServerStore.create_beside(server.connection(), OTHER, Profile()).close()
        agreeing.parted = True
        yield Parted(server, agreeing)


def test_a_switch_that_failed_and_happened_is_not_made_again(parted):
    put_in_force(parted.connection(after=1), THEIRS)
    assert in_force(parted.server.connection()) == THEIRS
    # One that made the first collection, one that failed, and another one only if that got lost.
    assert parted.done("change aliases") == 2 + parted.agreeing.lost


def test_a_collection_that_was_made_after_all_is_used(parted, collection):
    with ServerStore.create_beside(parted.connection(after=1), collection, Profile()) as store:
        assert store.name == OURS + "-b"
        assert store.count(ALL) == 0


def test_a_collection_that_was_dropped_after_all_is_gone(parted):
    drop(parted.connection(after=1), THEIRS)
    assert beside(parted.server.connection()) == []
    assert in_force(parted.server.connection()) == OURS


def test_what_may_still_happen_is_said(parted):
    with pytest.raises(StoreAway) as caught:
        put_in_force(parted.connection(), THEIRS)
    for part in ("Waiting for consensus", f"putting '{THEIRS}' in force may still happen", "look"):
        assert part in str(caught.value)
    assert in_force(parted.server.connection()) == OURS
    parted.agreeing.come_together()
    lost = parted.agreeing.lost
    assert in_force(parted.server.connection()) == (OURS if lost else THEIRS)


def test_what_a_late_switch_would_put_in_force_is_not_dropped(face, collection, make_points):
    """Everything is carried out in order: the switch, and then the removal of what is in force."""
    agreeing = AgreesLater()
    with reached(face, agreeing) as server:
        with server.create(collection) as store:
            store.upsert(make_points(9))
        ServerStore.create_beside(server.connection(), OTHER, Profile()).close()
        parted = Parted(server, agreeing)
        agreeing.parted = True
        with pytest.raises(StoreAway, match="may still happen"):
            put_in_force(parted.connection(), THEIRS)
        # The other node is away all the time, or comes back meanwhile.
        with pytest.raises(StoreAway, match="could not be used"):
            drop(parted.connection(), THEIRS)
        with pytest.raises(StoreError, match="is in force"):
            drop(parted.connection(after=2), THEIRS)
        assert in_force(server.connection()) == THEIRS
        assert beside(server.connection()) == [OURS]


def test_somebody_elses_switch_is_not_undone(face, collection, make_points):
    third = Collection("00000000deadbeef", 16, 64)
    agreeing = AgreesLater(lost=True)
    with reached(face, agreeing) as server:
        server.create(collection).close()
        for one in (OTHER, third):
            ServerStore.create_beside(server.connection(), one, Profile()).close()
        agreeing.parted = True
        connection = server.connection()

        def sleep(_: float) -> None:
            if agreeing.parted:
                agreeing.parted = False
                put_in_force(server.connection(), "precedent-00000000deadbeef")

        connection.sleep = sleep
        with pytest.raises(StoreError, match=r"deadbeef.* put in force meanwhile"):
            put_in_force(connection, THEIRS)
        assert in_force(server.connection()) == "precedent-00000000deadbeef"


# A server in strict mode

NARROW = StrictMode(
    upsert_max_batchsize=100,
    max_query_limit=50,
    search_max_batchsize=4,
    condition_max_size=16,
    filter_max_conditions=24,
    search_max_hnsw_ef=64,
    search_max_oversampling=4.0,
)


@pytest.mark.parametrize("profile", [Profile(), Profile("precise", quantised=True)], ids=str)
def test_a_narrow_server_answers_as_any_other(face, collection, make_points, profile):
    points = make_points(300)
    near = Coarse(code=points[7].code.tobytes(), radius=radius(4, 2))
    wheres = (
        ALL,
        Filter((Ids(tuple(ids(points[:200]))),)),
        Filter((Match("modality", ("CT", "MR")),), (Match("labels", ("a",)),)),
    )
    answers = []
    for behaviours in ((), (NARROW,)):
        with reached(face, *behaviours) as server, server.create(collection, profile) as store:
            store.upsert(points)
            asked = [
                Nearest(points[i].z, where, 120, exact)
                for where in wheres
                for i, exact in ((7, True), (9, False))
            ]
            answers.append(
                (
                    [ids(found) for found in store.query(asked)],
                    [store.count(where) for where in wheres],
                    [store.facets(["modality"], where, 10) for where in wheres],
                    [ids(store.scroll(where, page=1000)) for where in wheres],
                    store.delete(wheres[1]),
                )
            )
            if behaviours:
                # Its coarse filter has more conditions than it may have: all points are candidates.
                assert store.count(Filter(coarse=near)) == 100
    assert answers[0] == answers[1]


def test_a_filter_that_is_too_long_is_said_to_be(face, collection, make_points):
    points = make_points(500)
    with reached(face, NARROW) as server:
        store = server.create(collection)
        with pytest.raises(StoreLimited, match=r"32 conditions.* allows 24 \(filter_max"):
            store.count(Filter((Ids(tuple(ids(points))),)))


def test_a_server_that_forbids_what_is_needed_is_refused_in_one_line(face, collection):
    for reach in ("create", "open"):
        with reached(face, StrictMode(search_allow_exact=False)) as server:
            server.engine.behaviours, strict = (), server.engine.behaviours
            if reach == "open":
                server.create(collection).close()
            server.engine.behaviours = strict
            with pytest.raises(StoreLimited, match="search_allow_exact") as caught:
                getattr(server, reach)(collection)
            text = str(caught.value)
            assert f"PATCH /collections/{OURS}" in text
            assert "\n" not in text


@both_faces
def test_a_limit_that_came_later_is_named(face, collection, make_points):
    with reached(face) as server:
        store = server.create(collection)
        server.engine.behaviours = (StrictMode(upsert_max_batchsize=10),)
        with pytest.raises(StoreLimited, match=r"strict mode.*") as caught:
            store.upsert(make_points(11))
        assert 'Limit exceeded 11 > 10 for "upsert limit"' in str(caught.value)
        assert server.pauses == []
        with server.open() as again:
            again.upsert(make_points(11))
            assert again.count(ALL) == 11


def test_cells_are_made_on_a_narrow_server(face, collection, make_points, monkeypatch):
    monkeypatch.setattr("engine.store.server_cells.LEAST_POINTS", 200)
    with reached(face, NARROW) as server, server.create(collection) as store:
        store.upsert(make_points(400))
        store.optimise()
        assert store.cells is not None
        assert store.count(ALL) == 400
