"""The served store and its server: what goes over the wire, and what happens when it fails."""

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from loopback import Loopback
from pydantic import SecretStr
from qdrant_client import models
from reached import Reached, reached

from engine.codes import bands, radius
from engine.errors import (
    FingerprintMismatch,
    PrecedentError,
    SettingsError,
    StoreError,
    StoreNotFound,
)
from engine.settings import Settings, StoreSettings
from engine.store.base import Coarse, Collection, Filter, Ids, Match, Nearest, Profile, Range
from engine.store.connection import Connection, connect
from engine.store.opening import open_store
from engine.store.payload import FACET_FIELDS, FieldKind, schema
from engine.store.server import ServerStore

ALL = Filter()
OTHER = Collection("fedcba9876543210", 16, 64)
PRECISE = Profile("precise", quantised=True)


@pytest.fixture(params=[pytest.param("rest", marks=pytest.mark.slow), "grpc"])
def server(request) -> Iterator[Reached]:
    """A server that is asked over each of its faces."""
    with reached(request.param) as made:
        yield made


@pytest.fixture
def rest() -> Iterator[Reached]:
    with reached("rest") as made:
        yield made


both_faces = pytest.mark.parametrize("server", ["rest", "grpc"], indirect=True)
"""For tests of what goes over the wire; the others are slow over REST."""


def ids(points) -> list[str]:
    return [point.id for point in points]


# Over the wire


@both_faces
def test_what_goes_over_the_wire_comes_back(server, collection, make_points, passes):
    points = make_points(300)
    store = server.create(collection)
    store.upsert(points)
    near = Coarse(code=points[7].code.tobytes(), radius=radius(4, 2))

    def looked_up(point):
        """Whether a band of its code is within two bits: all within the radius, and some more."""
        return (np.bitwise_count(bands(point.code) ^ bands(points[7].code)) <= 2).any()

    for where in (
        ALL,
        Filter(coarse=near),
        Filter((Match("modality", ("CT", "日本")), Match("burned_in", (True,)))),
        Filter((Range("study_year", 2015, None),), (Match("labels", ("a",)),)),
        Filter((Ids(tuple(ids(points[:280]))),), (Match("tenant", ("other",)),), near),
    ):
        able = [point for point in points if passes(point, replace(where, coarse=None))]
        expected = able if where.coarse is None else [p for p in able if looked_up(p)]
        assert ids(store.scroll(where, page=40)) == ids(expected)
        assert store.count(where) == len(expected) > 0
        modalities = Counter(p.record.modality for p in expected if p.record.modality)
        assert store.facets(["modality"], where, 10)["modality"] == dict(modalities)
        (found,) = store.query([Nearest(points[7].z, where, 5)])
        best = sorted((float(p.z @ points[7].z) for p in expected), reverse=True)[:5]
        assert [point.score for point in found] == pytest.approx(best, abs=1e-5)
    for point, expected in zip(store.scroll(ALL, with_z=True), points, strict=True):
        assert (point.record, point.indexed_at) == (expected.record, expected.indexed_at)
        assert point.code.tolist() == expected.code.tolist()
        assert np.allclose(point.z, expected.z, atol=1e-6)
    assert ids(store.get([points[9].id, "none", points[2].id])) == [points[9].id, points[2].id]
    assert store.delete(Filter((Match("study", ("1.2.1",)),))) == 7
    assert store.count(ALL) == 293
    assert server.pauses == []


def test_many_points_go_in_bounded_requests(server, collection, make_points):
    server.create(collection).upsert(make_points(700))
    assert server.engine.asked.count("upsert") == 3


def test_many_ids_are_read_in_bounded_requests(server, collection, make_points):
    store, points = server.create(collection), make_points(1500)
    store.upsert(points)
    backwards = ids(points)[::-1]
    assert ids(store.get(backwards)) == backwards
    assert server.engine.asked.count("retrieve") == 2


@both_faces
def test_several_questions_are_one_request(server, collection, make_points):
    store, points = server.create(collection), make_points(40)
    store.upsert(points)
    answers = store.query([Nearest(point.z, ALL, 1) for point in points])
    assert [ids(answer) for answer in answers] == [[point.id] for point in points]
    assert server.engine.asked.count("query") == 1
    assert store.query([]) == []
    assert server.engine.asked.count("query") == 1


@pytest.mark.parametrize(("limit", "asked"), [(3, 128), (40, 160)])
def test_counts_by_value_are_asked_for_as_shards_can_answer(
    server, collection, make_points, limit, asked
):
    store = server.create(collection)
    store.upsert(make_points(600))
    for where in (ALL, Filter((Match("burned_in", (True,)),))):
        assert len(store.facets(["study"], where, limit)["study"]) == limit
        # Each shard names its own most frequent values when it is to count exactly.
        assert server.engine.faceted[-1].exact is False
        assert server.engine.faceted[-1].limit == asked


# How the collection is laid out


@pytest.mark.parametrize(("profile", "links"), [(Profile(), 0), (PRECISE, 16)], ids=str)
def test_a_collection_is_made_as_the_settings_say(server, collection, profile, links):
    server.create(collection, profile, shards=3, replication_factor=2)
    made = server.engine.made["precedent"]
    assert (made.shard_number, made.replication_factor, made.on_disk_payload) == (3, 2, True)
    (vector,) = made.vectors.values()
    assert (vector.size, vector.distance, vector.datatype) == (16, "Cosine", "float16")
    assert vector.on_disk
    assert (vector.hnsw_config.m, vector.hnsw_config.ef_construct) == (links, 100)
    if profile.quantised:
        assert vector.quantization_config.scalar.type == "int8"
        assert vector.quantization_config.scalar.always_ram
    else:
        assert vector.quantization_config is None
    assert server.open().profile == profile
    assert server.create(collection, Profile("hash", True)).profile == profile


@both_faces
def test_every_filtered_field_is_indexed_before_the_first_point(server, collection, make_points):
    # The stand-in refuses to index a collection that holds points.
    server.create(collection).upsert(make_points(3))
    server.create(collection)
    indexes = server.engine.indexes["precedent"]
    assert set(indexes) == set(schema(64))
    assert server.engine.asked.count("index") == len(indexes)
    assert not any(params.enable_hnsw for params in indexes.values())
    assert [name for name, params in indexes.items() if getattr(params, "is_tenant", None)] == [
        "tenant"
    ]
    looked_up = {
        name for name, params in indexes.items() if getattr(params, "range", None) is False
    }
    assert looked_up == {name for name, kind in schema(64).items() if kind is FieldKind.LOOKUP}


def test_how_a_search_is_made_follows_from_the_profile(server, collection, make_points):
    (point,) = make_points(1)
    for profile in (Profile(), PRECISE):
        store = server.create(collection, profile, name=f"of-{profile.graph}")
        store.upsert([point])
        store.query([Nearest(point.z, ALL, 13), Nearest(point.z, ALL, 13, exact=True)])
    plain, exact, quantised, _ = (search.params for search in server.engine.searches)
    assert (plain.hnsw_ef, plain.quantization) == (128, None)
    assert exact.exact
    assert exact.quantization.ignore
    assert quantised.quantization.rescore
    assert quantised.quantization.oversampling == pytest.approx(512 / 13)  # so 512 are rescored


def test_a_profile_is_changed_in_one_step_and_noted(server, collection):
    store = server.create(collection)
    for profile, links in ((PRECISE, 16), (Profile(), 0)):
        store.arrange(profile)
        (change,) = server.engine.updates[-1].vectors.values()
        assert change.hnsw_config.m == links
        assert (change.quantization_config != models.Disabled.DISABLED) is profile.quantised
        assert store.profile == server.open().profile == profile


@pytest.mark.slow
def test_optimising_waits_for_the_server(rest, collection):
    store = rest.create(collection)
    status = models.CollectionStatus
    rest.engine.status = [status.GREEN, status.YELLOW, status.GREY, status.GREEN, status.GREEN]
    updates = len(rest.engine.updates)
    store.optimise()
    assert rest.engine.status == []
    assert len(rest.pauses) == 4
    assert len(rest.engine.updates) == updates + 1  # a grey server has to be told to go on
    rest.engine.status = [status.YELLOW] * 10_000
    rest.pauses.clear()
    store.optimise()  # it is not waited for without end
    assert 600 <= sum(rest.pauses) <= 700
    with pytest.raises(StoreError, match="still rearranging"):
        store.arrange(PRECISE)


def test_a_damaged_collection_is_named(rest, collection):
    store = rest.create(collection)
    rest.engine.status = [models.CollectionStatus.RED]
    with pytest.raises(StoreError, match=r"'precedent' on the Qdrant server at .* is damaged"):
        store.optimise()


# Making and finding the collection


@pytest.mark.slow
def test_a_creation_that_was_cut_short_is_completed(rest, collection, make_points):
    rest.create(collection, name="whole").close()
    # The last one only looks whether the server has to be woken.
    steps = len(rest.engine.asked) - 1
    for step in (*range(7), steps // 2, steps - 1):
        name = f"cut-{step}"
        rest.engine.faults = [None] * step + [(503, {})]
        with pytest.raises(StoreError, match="in one attempt"):
            rest.create(collection, PRECISE, name=name, attempts=1)
        with pytest.raises(StoreError, match="precedent index"):
            rest.open(name=name)
        store = rest.create(collection, PRECISE, name=name)
        store.upsert(make_points(2))
        assert store.profile == PRECISE
        assert set(rest.engine.indexes[name]) == set(schema(64))
        assert rest.open(name=name).count(ALL) == 2


@pytest.mark.parametrize("lost", ["create", "index", "update", "upsert", "delete"])
def test_an_answer_that_got_lost_does_no_harm(rest, collection, make_points, lost):
    rest.engine.lost = [lost]
    store = rest.create(collection)
    store.upsert(make_points(20))
    assert store.delete(Filter((Match("study", ("1.2.0",)),))) == 7
    assert store.count(ALL) == 13
    assert rest.engine.lost == []
    assert len(rest.pauses) == 1


def test_two_that_create_at_once_both_succeed(rest, collection, make_points):
    both, made = threading.Barrier(2), []

    def create() -> None:
        both.wait()
        made.append(rest.create(collection))

    threads = [threading.Thread(target=create) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    points = make_points(20)
    for store, some in zip(made, (points[:15], points[5:]), strict=True):
        store.upsert(some)
    assert [store.count(ALL) for store in made] == [20, 20]


def test_of_two_models_the_second_is_refused(server, collection, make_points):
    server.create(collection).upsert(make_points(3))
    for reach in (server.open, server.create):
        with pytest.raises(FingerprintMismatch, match=r"(?s)0123456789abcdef.*fedcba.*--model"):
            reach(OTHER)
    assert server.open(collection).count(ALL) == 3


@pytest.mark.parametrize("metadata", [None, {"owner": "somebody"}])
def test_a_foreign_collection_is_not_touched(rest, collection, metadata):
    theirs = {"blended": models.VectorParams(size=16, distance="Cosine")}
    photographs = {"": models.VectorParams(size=3, distance="Dot")}
    rest.engine.create("photos", models.CreateCollection(vectors=photographs, metadata=metadata))
    rest.engine.create("full", models.CreateCollection(vectors=theirs, metadata=metadata))
    rest.engine.upsert("full", [models.PointStruct(id=1, vector={"blended": [1.0] * 16})])
    for name in ("photos", "full"):
        for reach in (rest.open, lambda **changes: rest.create(collection, **changes)):
            with pytest.raises(StoreError, match=rf"{name}.*no index of precedent"):
                reach(name=name)
        assert rest.engine.info(name).config.metadata == metadata
        assert rest.engine.indexes[name] == {}


def test_an_empty_collection_that_fits_is_taken(rest, collection, make_points):
    vectors = {"blended": models.VectorParams(size=16, distance="Cosine")}
    rest.engine.create("empty", models.CreateCollection(vectors=vectors))
    store = rest.create(collection, name="empty")
    store.upsert(make_points(2))
    assert rest.open(collection, name="empty").count(ALL) == 2
    with pytest.raises(FingerprintMismatch):
        rest.open(OTHER, name="empty")


@pytest.mark.parametrize("noted", ["text", {"model": "m"}, {"complete": True, "profile": {}}])
def test_metadata_that_mean_nothing_are_named(rest, collection, noted):
    rest.create(collection)
    rest.engine.update("precedent", models.UpdateCollection(metadata={"precedent": None}))
    rest.engine.update("precedent", models.UpdateCollection(metadata={"precedent": noted}))
    if isinstance(noted, dict):
        noted = {**noted, "surplus": 1}
        rest.engine.update("precedent", models.UpdateCollection(metadata={"precedent": noted}))
    with pytest.raises(StoreError, match=r"metadata .* cannot be understood"):
        rest.open()


def test_a_collection_of_a_later_version_is_left_alone(rest, collection):
    rest.create(collection)
    info = rest.engine.info("precedent")
    noted = {**info.config.metadata["precedent"], "format": 2}
    rest.engine.update("precedent", models.UpdateCollection(metadata={"precedent": noted}))
    with pytest.raises(StoreError, match=r"later version .* format is 2, .* up to 1"):
        rest.open()


@both_faces
def test_a_collection_that_vanished_is_named(server, collection, make_points):
    store = server.create(collection)
    gone = server.connection(name="gone")
    with pytest.raises(StoreNotFound, match=r"'gone'.*precedent index"):
        gone.ask(gone.client.count, "gone")
    assert store.count(ALL) == 0


@pytest.mark.parametrize("version", ["1.15.5", "0.11.1", "", "unknown"])
def test_an_old_server_is_refused_by_its_version(server, collection, version):
    server.engine.version = version
    for reach in (server.open, lambda: server.create(collection)):
        with pytest.raises(StoreError, match=rf"has version '{version}', and 1\.16 is the oldest"):
            reach()
    assert server.engine.made == {}


@pytest.mark.parametrize("version", ["1.16.0", "1.17.0-dev", "1.20.1", "2.0.0"])
def test_newer_servers_will_do(rest, collection, version):
    rest.engine.version = version
    assert rest.create(collection).count(ALL) == 0


# A server that is busy, away or refuses


def test_a_busy_server_is_asked_again_as_it_wishes(rest, collection, make_points):
    store = rest.create(collection)
    before = len(rest.engine.asked)
    rest.engine.faults = [(429, {"Retry-After": "7"}), (503, {}), (0, {}), (500, {})]
    store.upsert(make_points(10))
    assert rest.engine.asked[before:] == ["upsert"] * 5
    assert store.count(ALL) == 10
    first, *others = rest.pauses
    assert 7 < first <= 8
    assert len(others) == 3
    for pause, longest in zip(others, (1, 2, 4), strict=True):
        assert longest / 2 <= pause <= longest


def test_a_date_to_come_back_at_is_taken_as_busy(rest, collection):
    store = rest.create(collection)
    rest.engine.faults = [
        (429, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
        (429, {}),
        (503, {"Retry-After": "3"}),
    ]
    assert store.count(ALL) == 0
    assert rest.pauses[2] > 3


def test_a_server_that_stays_busy_is_given_up(rest, collection):
    store = rest.create(collection, attempts=3)
    before = len(rest.engine.asked)
    rest.engine.faults = [(503, {})] * 10
    with pytest.raises(StoreError) as caught:
        store.count(ALL)
    assert len(rest.engine.asked) == before + 3
    text = str(caught.value)
    for part in (rest.settings.url, "3 attempts", "HTTP 503", "PRECEDENT_STORE__ATTEMPTS"):
        assert part in text
    assert "\n" not in text


def test_a_server_that_wants_to_be_left_alone_for_long_is_not_waited_for(rest, collection):
    store = rest.create(collection)
    rest.engine.faults = [(429, {"Retry-After": "86400"})]
    with pytest.raises(StoreError, match="86400 s"):
        store.count(ALL)
    assert rest.pauses == []


@pytest.mark.slow
def test_a_server_that_hangs_is_asked_again(rest, collection):
    store = rest.create(collection, timeout_seconds=0.5)
    with rest.engine.working("hang"):
        timer = threading.Timer(1.5, rest.engine.asked.append, ["over"])
        timer.start()
        with pytest.raises(StoreError, match="ReadTimeout"):
            ServerStore.open(rest.connection(timeout_seconds=0.5, attempts=1))
        timer.join()
    assert store.count(ALL) == 0


def test_grpc_is_asked_again_too(collection, make_points):
    with reached("grpc") as server:
        store = server.create(collection)
        server.engine.faults = [(503, {})] * 2
        store.upsert(make_points(5))
        assert store.count(ALL) == 5
        assert len(server.pauses) == 2
        server.engine.faults = [(503, {})] * 10
        with pytest.raises(StoreError, match=r"5 attempts.*gRPC UNAVAILABLE: as the test"):
            store.count(ALL)


@pytest.fixture
def cluster(collection, make_points):
    """A store with five points on a cluster of two nodes: their ports, what they hold, the pauses
    that the connection made, the store, and a stack that takes the first node away."""
    engine, pauses = Loopback(), []
    with engine.rest() as second, ExitStack() as there:
        first = there.enter_context(engine.rest())
        urls = [f"http://127.0.0.1:{port}" for port in (first, second)]
        settings = StoreSettings(urls=tuple(urls), prefer_grpc=False, attempts=2)
        connection = Connection(connect(settings), settings, sleep=pauses.append)
        with ServerStore.create(connection, collection) as store:
            store.upsert(make_points(5))
            yield first, second, engine, pauses, store, there


def test_another_node_is_asked_at_once_when_one_is_away(cluster):
    first, _, engine, pauses, store, there = cluster
    there.close()
    assert [store.count(ALL) for _ in range(3)] == [5, 5, 5]
    assert sum(pauses) == 0
    # The one that was away comes back, and the other one fails.
    with engine.rest(first):
        engine.faults = [(503, {})]
        assert store.count(ALL) == 5
    assert sum(pauses) == 0


def test_a_node_that_is_not_ready_is_not_asked(cluster):
    # It would answer from its state of before it was away.
    first, second, engine, pauses, store, there = cluster
    engine.unready = {second}
    there.close()
    with pytest.raises(StoreError, match=rf"127\.0\.0\.1:{first} could not be used"):
        store.count(ALL)
    assert len(pauses) == 1
    engine.unready = set()
    assert store.count(ALL) == 5


def test_one_of_several_nodes_is_none_of_them() -> None:
    with pytest.raises(ValueError, match=r"store\.url is none of store\.urls"):
        StoreSettings(url="http://a:6333", urls=("http://b:6333",))
    assert StoreSettings(urls=("http://b:6333", "http://c:6333")).url == "http://b:6333"


def test_facets_are_asked_for_at_the_same_time(rest, collection, make_points):
    store = rest.create(collection)
    store.upsert(make_points(20))
    expected = {field: store.facets([field], ALL, 10)[field] for field in FACET_FIELDS}
    rest.engine.latency = 0.2
    begun = time.monotonic()
    assert store.facets(FACET_FIELDS, ALL, 10) == expected
    assert time.monotonic() - begun < 0.2 * len(FACET_FIELDS) / 2


@pytest.mark.parametrize("face", ["rest", "grpc"])
def test_work_that_fills_an_index_waits_for_the_server(collection, make_points, caplog, face):
    with reached(face) as server:
        store = server.create(collection, patient=True)
        server.engine.faults = [(503, {})] * 20
        store.upsert(make_points(5))
        assert store.count(ALL) == 5
        assert 120 < sum(server.pauses) < 600
        told = [one.message for one in caplog.records if "is waited for" in one.message]
        assert sum(server.pauses) / 60 - 2 < len(told) <= sum(server.pauses) / 60
        assert server.settings.url in told[0]
        server.engine.faults = [(503, {})] * 200
        waited = sum(server.pauses)
        with pytest.raises(StoreError, match=r"600 seconds.*PRECEDENT_STORE__PATIENCE_SECONDS"):
            store.count(ALL)
        assert 600 <= sum(server.pauses) - waited < 640


def test_who_opens_an_index_says_whether_to_wait(rest, store_root, collection, make_points):
    hasty = Settings(store=rest.settings.model_copy(update={"attempts": 1}))
    place = store_root / "index"
    with open_store(hasty, place, collection, create=True) as store:
        store.upsert(make_points(3))
    for patient in (True, False):
        with open_store(hasty, place, collection, create=False, patient=patient) as store:
            rest.engine.faults = [(503, {})]
            if patient:
                assert len(list(store.scroll(ALL))) == 3
            else:
                with pytest.raises(StoreError, match="one attempt"):
                    list(store.scroll(ALL))


def test_a_server_that_never_answered_is_not_waited_for(collection):
    with reached("rest") as server:
        server.engine.faults = [(503, {})] * 200
        with pytest.raises(StoreError, match="5 attempts"):
            server.create(collection, patient=True)


@pytest.mark.parametrize("prefer_grpc", [False, True])
def test_where_no_server_is_the_error_says_so_soon(collection, prefer_grpc):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        port = taken.getsockname()[1]
        settings = StoreSettings(
            url=f"http://127.0.0.1:{port}", grpc_port=port, prefer_grpc=prefer_grpc, attempts=2
        )
        client, pauses = connect(settings), []
        begun = time.monotonic()
        with pytest.raises(StoreError, match=rf"at http://127\.0\.0\.1:{port} could not be used"):
            ServerStore.create(Connection(client, settings, sleep=pauses.append), collection)
        client.close()
    assert time.monotonic() - begun < 10
    assert len(pauses) == 1


def test_a_request_that_is_wrong_is_not_repeated(rest, collection):
    store = rest.create(collection)
    before = len(rest.engine.asked)
    with pytest.raises(StoreError, match="no index for hair_colour"):
        store.count(Filter((Match("hair_colour", ("red",)),)))
    assert len(rest.engine.asked) == before + 1


def test_a_closed_store_says_so(server, collection):
    store = server.create(collection)
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.count(ALL)


@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection:UserWarning")
def test_a_key_is_sent_and_never_shown(rest, collection):
    rest.engine.key = "correct horse"
    secret = SecretStr("battery-staple")
    with pytest.raises(StoreError, match="PRECEDENT_STORE__API_KEY") as caught:
        rest.create(collection, api_key=secret)
    assert "battery-staple" not in str(caught.value)
    assert rest.pauses == []
    rest.engine.key = "battery-staple"
    assert rest.create(collection, api_key=secret).count(ALL) == 0


@pytest.mark.parametrize(
    "key", ["secret\n", " secret", "sécret", "sec\0ret"], ids=["line end", "space", "é", "null"]
)
def test_a_key_that_cannot_be_sent_is_refused_without_being_shown(key):
    settings = StoreSettings(url="https://qdrant.example:6333", api_key=SecretStr(key))
    with pytest.raises(SettingsError, match="PRECEDENT_STORE__API_KEY") as caught:
        connect(settings)
    assert "cret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        None, "", "qdrant", "qdrant.example:6333", "ftp://qdrant.example", "http://", "http://:6333",
        "http://qdrant.example:99999", "http://qdrant.example:x", "http://[::1", "https://q.example/?a=b",
    ],
)  # fmt: skip
def test_an_address_that_names_no_server_is_refused(url):
    with pytest.raises(SettingsError, match=r"https://qdrant\.example:6333"):
        connect(StoreSettings(url=url))


def test_an_address_with_a_password_is_refused_without_being_shown():
    with pytest.raises(SettingsError, match="PRECEDENT_STORE__API_KEY") as caught:
        connect(StoreSettings(url="https://anna:hunter2@qdrant.example:6333"))
    assert "hunter2" not in str(caught.value)
    assert "anna" not in str(caught.value)


# Opening by the settings


def test_the_settings_say_which_store(rest, store_root, collection, make_points):
    served = Settings(store=rest.settings.model_copy(update={"profile": "precise"}))
    embedded = Settings(store=StoreSettings(quantised=True))
    for settings, profile, name in (
        (served, Profile("precise"), "served"),
        (embedded, Profile("hash", quantised=True), "embedded"),
    ):
        place = store_root / name / "index"
        with pytest.raises(StoreNotFound):
            open_store(settings, place, collection, create=False)
        with pytest.raises(StoreError, match="no model"):
            open_store(settings, place, None, create=True)
        with open_store(settings, place, collection, create=True) as store:
            store.upsert(make_points(3))
        with open_store(settings, place, None, create=False) as store:
            assert (store.collection, store.profile) == (collection, profile)
            assert store.count(ALL) == 3
        with pytest.raises(StoreError):
            store.count(ALL)  # it was closed
        with pytest.raises(FingerprintMismatch):
            open_store(settings, place, OTHER, create=False)
        assert place.exists() is (name == "embedded")


def test_errors_of_the_tree_alone_leave_the_store(rest, collection, make_points):
    store, (point,) = rest.create(collection), make_points(1)
    asks: list[Callable[[], Any]] = [
        lambda: store.query([Nearest(np.full(16, np.nan, np.float32), ALL, 1)]),
        lambda: store.upsert([replace(point, record=replace(point.record, study_year=10**30))]),
        lambda: store.facets(["code"], ALL, 3),
    ]
    for ask in asks:
        with pytest.raises(PrecedentError):
            ask()
