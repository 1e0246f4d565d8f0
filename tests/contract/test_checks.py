"""What is found out about a Qdrant server or cluster, for ``precedent info`` and ``plan``."""

from collections.abc import Iterator
from contextlib import ExitStack

import grpc
import numpy as np
import pytest
from behaviours import GreyAfterRestart, StrictMode
from loopback import Loopback
from qdrant_client import models
from reached import Reached, reached
from troubles import Trouble

from engine.settings import StoreSettings
from engine.store.cells import Cells
from engine.store.check import check_cells
from engine.store.checks import Check, check_layout, check_plan, check_server, check_versions
from engine.store.connection import Connection, connect
from engine.store.server import ServerStore
from engine.store.server_version import RUN_ON


@pytest.fixture(params=["rest", "grpc"])
def server(request) -> Iterator[Reached]:
    with reached(request.param) as made:
        yield made


def by_name(settings: StoreSettings) -> dict[str, Check]:
    found = check_server(settings)
    assert len({one.name for one in found}) == len(found)
    for one in found:
        assert (one.state == "good") <= (one.way_out == "")
        assert (one.state == "good") or one.way_out
    return {one.name: one for one in found}


def test_an_embedded_index_has_no_server_to_check():
    assert check_server(StoreSettings()) == []


def test_a_server_that_is_well_is_good_in_all(server, collection, make_points):
    server.create(collection).upsert(make_points(3))
    found = by_name(server.settings)
    assert {name: one.state for name, one in found.items()} == dict.fromkeys(
        ("version", "status", "writes"), "good"
    )
    assert RUN_ON in found["version"].sentence


def test_checks_change_nothing(server, collection):
    server.create(collection).close()
    begun = len(server.engine.asked)
    check_server(server.settings)
    looks = {"info", "aliases", "get", "cluster", "shards", "count", "exists"}
    assert set(server.engine.asked[begun:]) <= looks


def test_a_server_without_an_index_is_checked_as_far_as_it_goes(server):
    assert list(by_name(server.settings)) == ["version"]


def test_a_server_that_is_away_is_bad_and_no_error(collection):
    with reached("rest") as server:
        settings = server.settings
    (found,) = check_server(settings)
    assert (found.name, found.state) == ("server", "bad")
    assert settings.url in found.sentence


def test_what_a_key_may_not_see_is_left_out(server, collection):
    server.engine.nodes = 3
    server.create(collection).close()
    assert "layout" in by_name(server.settings)

    def refuse(*_: object) -> None:
        raise Trouble(403, "Forbidden", grpc.StatusCode.PERMISSION_DENIED)

    server.engine.cluster = server.engine.shards = refuse
    found = by_name(server.settings)
    assert {name: one.state for name, one in found.items()} == dict.fromkeys(
        ("version", "status", "writes"), "good"
    )


@pytest.mark.parametrize(
    ("version", "client", "state", "said"),
    [
        (RUN_ON, "1.20.0", "good", "on which Precedent was run"),
        ("1.19.0", "1.20.0", "warning", f"has version 1.19.0, and Precedent was run on {RUN_ON}"),
        ("1.16.3", "1.20.0", "warning", "1.20.0 supports servers one minor version older"),
        ("1.22.0", "1.20.0", "warning", "1.20.0 supports servers one minor version older"),
        ("2.0.0", "1.20.0", "warning", "1.20.0 supports servers one minor version older"),
    ],
)
def test_another_version_is_a_warning(version, client, state, said):
    found = check_versions(version, client)
    assert found.state == state
    assert said in found.sentence
    if version == "1.19.0":
        assert "supports" not in found.sentence


def test_the_version_of_the_server_is_asked_for(server, collection):
    server.create(collection).close()
    server.engine.version = "1.16.3"
    assert by_name(server.settings)["version"].state == "warning"


def test_writes_that_may_stay_in_some_copies_are_bad(server, collection):
    server.create(collection).close()
    assert server.engine.made["precedent"].write_consistency_factor == 1
    server.engine.made["precedent"].write_consistency_factor = 2
    found = by_name(server.settings)["writes"]
    assert found.state == "bad"
    assert "write_consistency_factor 2" in found.sentence
    assert "PATCH /collections/precedent-0123456789abcdef" in found.way_out


@pytest.mark.parametrize(
    ("status", "state"), [("green", "good"), ("yellow", "good"), ("red", "bad")]
)
def test_the_status_is_told(server, collection, status, state):
    server.create(collection).close()
    server.engine.status = [models.CollectionStatus(status)]
    found = by_name(server.settings)["status"]
    assert found.state == state


def test_a_server_that_was_interrupted_is_a_warning(collection, make_points):
    sleepy = GreyAfterRestart()
    with reached("grpc", sleepy) as server:
        server.create(collection).upsert(make_points(3))
        sleepy.restart()
        found = by_name(server.settings)["status"]
        assert (found.state, "grey" in found.sentence) == ("warning", True)


def test_the_limits_of_strict_mode_are_told(collection):
    for limits, state, said in (
        (
            {"upsert_max_batchsize": 100},
            "good",
            "upsert_max_batchsize 100; requests keep to it",
        ),
        ({"search_allow_exact": False}, "bad", "search_allow_exact False; counts and searches"),
    ):
        with reached("grpc") as server:
            server.create(collection).close()
            assert "limits" not in by_name(server.settings)
            server.engine.behaviours = (StrictMode(**limits),)
            found = by_name(server.settings)["limits"]
            assert found.state == state
            assert said in found.sentence


# Shards and copies


def test_a_copy_that_lags_behind_is_named(server, collection):
    server.engine.nodes = 3
    server.create(collection, shards=3, replication_factor=2).close()
    assert by_name(server.settings)["layout"].state == "good"
    assert "copies" not in by_name(server.settings)
    server.engine.dead = {2}
    found = by_name(server.settings)["copies"]
    assert found.state == "warning"
    assert "shard 0 on node 2 is Dead; shard 1 on node 2 is Dead" in found.sentence


@pytest.mark.parametrize(
    ("shards", "copies", "nodes", "said"),
    [
        (1, 1, 1, None),
        (3, 2, 1, None),
        (1, 1, 3, "one shard and one copy put everything on one of 3 nodes"),
        (3, 1, 3, "3 shards with 1 copy each on 3 nodes: while any of them is away nothing"),
        (2, 2, 2, "2 shards with 2 copies each on two nodes: while one is away no collection"),
        (3, 2, 3, "3 shards with 2 copies each on 3 nodes"),
    ],
)
def test_how_an_index_lies_on_the_nodes(shards, copies, nodes, said):
    found = check_layout(shards, copies, nodes, made=True)
    if said is None:
        assert found is None
        return
    assert said in found.sentence
    assert found.state == ("good" if (shards, copies, nodes) == (3, 2, 3) else "warning")
    if copies == 1:
        for part in ("PRECEDENT_STORE__SHARDS=3", "PRECEDENT_STORE__REPLICATION_FACTOR=2"):
            assert part in found.way_out
        assert "precedent restore" in found.way_out
        assert "before the index is made" in check_layout(shards, copies, nodes, made=False).way_out


def test_the_defaults_on_three_nodes_are_a_warning_before_and_after(server, collection):
    server.engine.nodes = 3
    planned = check_plan(server.settings, 1)
    assert (planned.state, planned.name) == ("warning", "layout")
    server.create(collection).close()
    assert by_name(server.settings)["layout"].sentence == planned.sentence
    assert check_plan(server.settings.model_copy(update={"url": "http://127.0.0.1:1"}), 1) is None


# Several nodes


class Halves:
    """Two servers that are taken for the nodes of one cluster."""

    def __init__(self, urls: list[str], engines: list[Loopback]) -> None:
        self.urls, self.engines = urls, engines
        self.settings = StoreSettings(urls=tuple(urls), prefer_grpc=False)

    def store(self, node: int, collection) -> ServerStore:
        settings = StoreSettings(url=self.urls[node], prefer_grpc=False)
        return ServerStore.create(Connection(connect(settings), settings), collection)


@pytest.fixture
def halves() -> Iterator[Halves]:
    with ExitStack() as opened:
        engines = [Loopback(), Loopback()]
        ports = [opened.enter_context(engine.rest()) for engine in engines]
        yield Halves([f"http://127.0.0.1:{port}" for port in ports], engines)


def test_nodes_that_do_not_have_the_same_points_are_bad(halves, collection, make_points):
    for node, count in ((0, 30), (1, 21)):
        with halves.store(node, collection) as store:
            store.upsert(make_points(count))
    found = by_name(halves.settings)["counts"]
    assert found.state == "bad"
    assert f"30 at {halves.urls[0]}, 21 at {halves.urls[1]}" in found.sentence
    with halves.store(1, collection) as store:
        store.upsert(make_points(30))
    found = by_name(halves.settings)["counts"]
    assert (found.state, found.sentence) == ("good", "30 points at each of 2 nodes")


def test_a_node_that_is_away_is_named_and_not_counted(halves, collection, make_points):
    for node in (0, 1):
        with halves.store(node, collection) as store:
            store.upsert(make_points(4))
    halves.engines[1].unready = {int(halves.urls[1].rpartition(":")[2])}
    found = by_name(halves.settings)
    assert found["nodes"].state == "warning"
    assert halves.urls[1] in found["nodes"].sentence
    assert found["counts"].sentence == "4 points at the one node that is ready"
    halves.engines[1].unready = set()
    assert by_name(halves.settings)["nodes"].state == "good"


# Cells


def cells(points: int, recall: float) -> Cells:
    return Cells(np.eye(4, dtype=np.float32), "model", points, 2, recall, 0.9)


@pytest.mark.parametrize(
    ("found", "points", "state", "said"),
    [
        (None, 9_999, None, ""),
        (None, 10_000, "warning", "has no cells"),
        (cells(10_000, 0.997), 12_000, "good", "2 cells and find 99.7% of the most similar"),
        (cells(10_000, 0.985), 12_000, "good", "98.5% of the most similar (made for 99.5 %)"),
        (cells(10_000, 0.97), 12_000, "warning", "97.0% of the most similar, less than 98%"),
        (cells(10_000, 0.997), 40_000, "warning", "made for 10,000 images, and there are 40,000"),
    ],
)
def test_cells_are_told_that_find_too_little_or_are_outgrown(found, points, state, said):
    check = check_cells(found, points)
    assert (None if check is None else check.state) == state
    if check is not None:
        assert said in check.sentence
        assert (check.way_out == "") == (state == "good")
