"""Several nodes of one cluster, of which some die and come back: each a process of its own."""

import time
from collections.abc import Iterator

import pytest
from nodes_of_loopback import Cluster

from engine.errors import StoreAway
from engine.settings import StoreSettings
from engine.store.base import Filter, Nearest
from engine.store.connection import Connection, connect
from engine.store.server import ServerStore

ALL = Filter()


class Searched:
    """A store on a cluster of two nodes, and how long its connection has waited."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.pauses: list[float] = []
        self._stores: list[ServerStore] = []

    def connection(self) -> Connection:
        settings = StoreSettings(urls=self.cluster.urls, prefer_grpc=False, attempts=3)
        return Connection(connect(settings), settings, sleep=self.pauses.append)

    def keep(self, store: ServerStore) -> ServerStore:
        self._stores.append(store)
        return store

    def close(self) -> None:
        for store in self._stores:
            store.close()


@pytest.fixture
def searched() -> Iterator[Searched]:
    with Cluster(2) as cluster:
        made = Searched(cluster)
        yield made
        made.close()


def test_searches_go_on_when_a_node_dies_and_leave_it_alone_until_it_is_ready(
    searched, collection, make_points
):
    first, second = searched.cluster.nodes
    store = searched.keep(ServerStore.create(searched.connection(), collection))
    points = make_points(40)
    store.upsert(points[:20])

    def found() -> int:
        (hits,) = store.query([Nearest(points[3].z, ALL, 40)])
        assert hits[0].id == points[3].id
        return len(hits)

    assert found() == 20
    first.die()
    begun = time.monotonic()
    assert found() == 20
    assert time.monotonic() - begun < 5
    assert searched.pauses in ([], [0.0])
    store.upsert(points[20:])

    # It is back, and would answer from what it had: 20 points.
    first.come_back()
    late = searched.keep(ServerStore.open(searched.connection(), collection))
    assert late.count(ALL) == found() == 40
    second.die()
    with pytest.raises(StoreAway) as caught:
        store.count(ALL)
    assert f"away or not ready: {first.url}, {second.url};" in str(caught.value)
    assert first.asked_before_it_was_ready == []

    first.catch_up()
    assert found() == 40
    # And the other way round.
    second.come_back()
    second.catch_up()
    first.die()
    assert [found() for _ in range(3)] == [40, 40, 40]


def test_a_node_that_is_not_ready_at_the_start_is_passed_over(searched, collection, make_points):
    first, _ = searched.cluster.nodes
    store = searched.keep(ServerStore.create(searched.connection(), collection))
    store.upsert(make_points(5))
    first.die()
    first.come_back()
    again = searched.keep(ServerStore.open(searched.connection(), collection))
    assert again.count(ALL) == 5
    assert first.asked_before_it_was_ready == []


def test_a_node_that_was_restarted_while_nobody_asked_is_passed_over(
    searched, collection, make_points, monkeypatch
):
    monkeypatch.setattr("engine.store.nodes._QUIET_SECONDS", 0.0)
    first, _ = searched.cluster.nodes
    store = searched.keep(ServerStore.create(searched.connection(), collection))
    points = make_points(9)
    store.upsert(points[:5])
    first.die()
    # Through the other node, in a process that knows of no death.
    other = searched.keep(ServerStore.open(searched.connection(), collection))
    other.upsert(points[5:])
    first.come_back()
    assert store.count(ALL) == 9
    assert first.asked_before_it_was_ready == []
