"""How many round trips to a server one search takes, and that its answer is as without them."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
from loopback import Loopback

from engine.codes import hamming
from engine.errors import StoreError
from engine.records import Observations, Point
from engine.search import ladder, late_interaction
from engine.search.engine import SearchEngine
from engine.search.query import Query, parse_where
from engine.search.recommend import Examples, Wanted
from engine.settings import SearchSettings, StoreSettings
from engine.store import server_cells
from engine.store.ahead import asked_ahead
from engine.store.base import Filter, Match, Nearest, Profile, VectorStore
from engine.store.connection import Connection, connect
from engine.store.edge import EdgeStore
from engine.store.server import ServerStore
from engine.store.tenant import TenantStore

T = TypeVar("T")

COUNT = 220
QUIET = 0.1
"""Seconds without a further request, after which all that wait are answered; doubled each try."""
TRIES = 4
"""Where the machine is busy, a request of a round trip may come too late for it, and is counted as
one more; none is ever missed. So the least of some tries counts."""
NETWORK = 0.3
"""Seconds that a request takes longer."""
CELLS, CODES, WHOLE = "cells", "codes", "whole"


class Held(Loopback):
    """A server that answers nothing while further requests come: all that come before the first
    answer are one round trip.

    trips: of each round trip, what was asked.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trips: list[list[str]] = []
        self._waiting: list[str] = []
        self._came = 0.0
        self._turn = threading.Condition()
        self._holds, self._quiet = False, QUIET

    @contextmanager
    def working(self, operation: str) -> Iterator[None]:
        if self._holds:
            self._hold(operation)
        with super().working(operation):
            yield

    def _hold(self, operation: str) -> None:
        with self._turn:
            self._waiting.append(operation)
            self._came, mine = time.monotonic(), len(self.trips)
            while mine == len(self.trips):
                left = self._came + self._quiet - time.monotonic()
                if left <= 0:
                    self.trips.append(self._waiting)
                    self._waiting = []
                    self._turn.notify_all()
                else:
                    self._turn.wait(left)

    def trips_of(self, question: Callable[[], T], wanted: int) -> tuple[T, list[list[str]]]:
        """The answer to a question, and its round trips; asked again while these are too many."""
        for number in range(TRIES):
            self.trips, self._holds, self._quiet = [], True, QUIET * 2**number
            try:
                answer = question()
            finally:
                self._holds = False
            if len(self.trips) <= wanted:
                break
        return answer, self.trips


def engine(store: VectorStore, **settings: Any) -> SearchEngine:
    manifest = SimpleNamespace(fingerprint=store.collection.model)
    encoder: Any = SimpleNamespace(manifest=manifest, precision="fp32")
    return SearchEngine(encoder, store, SearchSettings(**settings))


def seen(point: Point) -> Observations:
    return Observations(point.z[None], point.code[None])


@pytest.fixture(scope="module")
def points(make_points) -> list[Point]:
    """Some patients have one study, and some have more than a page of images."""
    made = make_points(COUNT)
    return [
        replace(one, record=replace(one.record, patient=f"P{number // 40}"))
        for number, one in enumerate(made)
    ]


@pytest.fixture(scope="module")
def held() -> Iterator[Held]:
    made = Held()
    with made.rest() as port:
        made.port = port
        yield made


@pytest.fixture(scope="module")
def stores(held, collection, points) -> Iterator[dict[str, ServerStore]]:
    """One with cells and one without."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server_cells, "LEAST_POINTS", 100)
        made = {}
        for name in (CELLS, WHOLE):
            settings = StoreSettings(
                url=f"http://127.0.0.1:{held.port}", prefer_grpc=False, collection=name
            )
            store = ServerStore.create(Connection(connect(settings), settings), collection)
            store.upsert(points)
            made[name] = store
        made[CELLS].optimise()
        assert made[CELLS].cells is not None
        yield made
        for store in made.values():
            store.close()


@pytest.fixture(scope="module")
def embedded(tmp_path_factory, collection, points) -> Iterator[EdgeStore]:
    with EdgeStore.create(tmp_path_factory.mktemp("edge") / "index", collection) as store:
        store.upsert(points)
        yield store


@pytest.fixture
def climbing(monkeypatch) -> None:
    """The ladder is climbed though there are few images."""
    monkeypatch.setattr(ladder, "_FEW", 10)
    monkeypatch.setattr(ladder, "_PASSING", 20)
    monkeypatch.setattr(ladder, "_LARGEST_SHARE", 1.0)
    monkeypatch.setattr(ladder, "_COST_OF_LOOKUP", 1)


FEW = {"min_candidates": 5, "candidates_per_hit": 1, "candidates_share": 0.0}
"""So that the first radius has enough candidates."""
QUERY = Query(5)
SEARCHES: dict[str, tuple[str, dict[str, Any], Query]] = {
    "all": (WHOLE, {}, QUERY),
    "exactly": (WHOLE, {}, Query(5, exact=True)),
    "estimated": (WHOLE, {"max_counted": 100, "max_faceted": 100}, QUERY),
    "filtered": (
        WHOLE,
        {},
        Query(5, parse_where(["modality=CT", "labels=a", "study_year=2010.."])),
    ),
    "sampled": (
        WHOLE,
        {"max_counted": 20, "max_faceted": 20},
        Query(5, parse_where(["modality=CT"])),
    ),
    "without its patient": (WHOLE, {}, Query(5, exclude="patient")),
    "one of each study": (WHOLE, {}, Query(5, group_by="study")),
    "by cells": (CELLS, {"coarse": "cells"}, QUERY),
    "by cells, filtered": (CELLS, {"coarse": "cells"}, Query(5, parse_where(["modality!=MR"]))),
    "by codes": (WHOLE, {"coarse": "codes", **FEW}, QUERY),
    "by codes, by Hamming": (WHOLE, {"coarse": "codes", **FEW}, Query(5, order="hamming")),
    "within a radius": (CELLS, {"coarse": "cells"}, Query(5, radius=3)),
    "without facets": (WHOLE, {}, Query(5, facets=False)),
}


_QUICK = ("filtered", "by cells", "without facets")
KINDS = [
    kind if kind in _QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in SEARCHES
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("by", ["vector", "id"])
def test_a_search_takes_two_round_trips(kind, by, held, stores, points, climbing):
    name, settings, query = SEARCHES[kind]
    search, one = engine(stores[name], **settings), points[7]
    # The centroids of the cells are read once.
    assert stores[WHOLE].cells is None
    assert stores[CELLS].cells is not None
    ways = {
        "id": lambda: search.search_like(one.id, query),
        "vector": lambda: search.answer(seen(one), query, one.record),
    }
    answer, trips = held.trips_of(ways[by], 2)
    assert answer.hits
    assert len(trips) <= 2, trips
    asked = [operation for trip in trips for operation in trip]
    assert asked.count("query") == 1
    # Without them nobody asks for any; those of the filter's labels and of patients are others.
    assert query.facets == ("facet" in asked)
    assert bool(answer.facets) == query.facets


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("by", ["vector", "id"])
def test_a_slow_network_is_waited_for_twice(by, held, stores, points):
    """With each request so much later, a whole search takes at most two of the bare query beside
    what it takes without a network: its own work, of which this stand-in's is most."""
    search, one = engine(stores[WHOLE]), points[7]
    bare = Nearest(one.z, Filter(), 5)
    ways = {
        "id": lambda: search.search_like(one.id, QUERY),
        "vector": lambda: search.answer(seen(one), QUERY, one.record),
    }

    def least(work: Callable[[], Any]) -> float:
        """Of some tries, in seconds: what else the machine does takes none off."""
        took = []
        for _ in range(3):
            started = time.perf_counter()
            work()
            took.append(time.perf_counter() - started)
        return min(took)

    assert ways[by]().facets
    own = least(ways[by])
    held.latency = NETWORK
    try:
        whole, query = least(ways[by]), least(lambda: stores[WHOLE].query([bare]))
    finally:
        held.latency = 0.0
    assert query >= NETWORK
    assert whole <= 2 * (query + own)


def test_a_recommendation_takes_two_round_trips(held, stores, points, climbing):
    liked = tuple(point.id for point in points[7:90:20])
    examples = Examples(liked=liked)
    every = Wanted(5, group_by=None, exclude=None)
    for wanted in (Wanted(5), every, replace(every, diversity=0.3)):
        found, trips = held.trips_of(
            lambda wanted=wanted: engine(stores[WHOLE]).recommend(examples, wanted), 2
        )
        assert len(found.hits) == 5
        assert len(trips) <= 2, trips


def test_whole_studies_take_one_batch_and_three_round_trips_more(
    held, stores, points, climbing, monkeypatch
):
    """One for how many images the studies have, one for what they are, one for their vectors."""
    monkeypatch.setattr(late_interaction, "_CASES", 10)
    examples = Examples(liked=tuple(point.id for point in points[7:90:20]))
    wanted = Wanted(2, group_by=None, exclude=None, rule="study")
    found, trips = held.trips_of(lambda: engine(stores[WHOLE]).recommend(examples, wanted), 5)
    assert len(found.hits) == 2
    assert len(trips) <= 5, trips
    assert [operation for trip in trips for operation in trip].count("query") == 1


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_asked_ahead_changes_no_answer(
    kind, stores, points, embedded, climbing, monkeypatch
):
    name, settings, query = SEARCHES[kind]
    store = stores[name]
    for one in points[7::200]:
        ahead = engine(store, **settings).answer(seen(one), query, one.record)
        like = engine(store, **settings).search_like(one.id, query)
        with monkeypatch.context() as patch:
            patch.setattr(ServerStore, "senders", None)
            plain = engine(store, **settings).answer(seen(one), query, one.record)
            plainly_like = engine(store, **settings).search_like(one.id, query)
        for found, expected in ((ahead, plain), (like, plainly_like)):
            found, expected = without_times(found), without_times(expected)
            assert found == expected
    if not settings:
        whole = engine(embedded).answer(seen(one), query, one.record)
        assert [hit.id for hit in ahead.hits] == [hit.id for hit in whole.hits]
        assert ahead.facets == whole.facets


def without_times(answer):
    return replace(answer, evidence=replace(answer.evidence, timings_ms={}))


def test_a_rung_with_too_few_candidates_takes_further_round_trips(held, stores, points, climbing):
    """By id the first radius is tried by a guess."""
    one = points[7]
    settings = {"coarse": "codes", "min_candidates": 60, "candidates_share": 0.0}
    search = engine(stores[WHOLE], **settings)
    answer, trips = held.trips_of(lambda: search.search_like(one.id, QUERY), 3)
    assert len(trips) == 3, trips
    radius = answer.evidence.radius
    near = [p for p in points if radius is None or hamming(p.code, one.code) <= radius]
    assert {hit.id for hit in answer.hits} <= {point.id for point in near} or radius is None


def test_labels_written_otherwise_take_one_more(held, stores, points):
    query = Query(5, parse_where(["labels=A"]))
    search = engine(stores[WHOLE])
    answer, trips = held.trips_of(lambda: search.answer(seen(points[7]), query), 3)
    assert {label for hit in answer.hits for label in hit.record.labels} >= {"a"}
    assert all("a" in hit.record.labels for hit in answer.hits)
    assert len(trips) == 3, trips


def test_a_tenant_is_asked_ahead_too_and_sees_its_own(held, stores, points):
    search = engine(TenantStore(stores[WHOLE], "other"))
    answer, trips = held.trips_of(lambda: search.answer(seen(points[7]), Query(50)), 2)
    assert len(trips) <= 2, trips
    assert {hit.record.tenant for hit in answer.hits} == {"other"}
    assert answer.evidence.matching == sum(p.record.tenant == "other" for p in points)


def test_an_embedded_index_is_asked_directly(embedded):
    """There a request takes less time than a thread."""
    with asked_ahead(embedded) as store:
        assert store is embedded


def test_an_error_that_nobody_waits_for_is_nobodys(stores):
    store = stores[WHOLE]
    with asked_ahead(store) as ahead:
        ahead.count_ahead(Filter((Match("no such field", ("x",)),)))
        assert ahead.count(Filter()) == COUNT


def test_through_the_store_of_a_question_nothing_is_written(stores, points):
    with asked_ahead(stores[WHOLE]) as store:
        for write in (
            lambda: store.upsert(points[:1]),
            lambda: store.delete(Filter()),
            lambda: store.arrange(Profile()),
            store.optimise,
            store.flush,
        ):
            with pytest.raises(StoreError, match="only reads"):
                write()
    assert stores[WHOLE].count(Filter()) == COUNT


def test_what_is_asked_twice_is_asked_once(held, stores):
    before = len(held.asked)
    with asked_ahead(stores[WHOLE]) as store:
        assert store.count(Filter()) == store.count(Filter()) == COUNT
        assert store.facets(["modality"], Filter(), 5) == store.facets(["modality"], Filter(), 5)
    assert held.asked[before:] == ["count", "facet"]
