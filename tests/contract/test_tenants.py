"""Each tenant of a shared store gets the answers that it would get alone."""

import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings as examples, strategies as st

from engine.errors import StoreError
from engine.records import Point
from engine.store.base import (
    Coarse,
    Collection,
    Condition,
    Filter,
    Ids,
    Match,
    Nearest,
    Part,
    Profile,
    Range,
    VectorStore,
)
from engine.store.edge import EdgeStore
from engine.store.tenant import TenantStore

TENANTS = ("default", "north")
COUNT = 120


@dataclass(frozen=True)
class Shared:
    """Two tenants in one store, and each in a store of its own. points: of both."""

    of: dict[str, TenantStore]
    alone: dict[str, VectorStore]
    points: list[Point]
    whole: VectorStore


@pytest.fixture(scope="module")
def shared(collection: Collection, make_points, store_root: Path) -> Iterator[Shared]:
    # Both have images of the same studies, instances and vectors, under ids of their own.
    points = [
        replace(
            point,
            id=str(uuid.UUID(int=2 * number + which + 1)),
            record=replace(point.record, tenant=tenant),
        )
        for number, point in enumerate(make_points(COUNT))
        for which, tenant in enumerate(TENANTS)
        if (number + which) % 3
    ]
    with ExitStack() as opened:
        stores = {
            name: opened.enter_context(EdgeStore.create(store_root / name, collection))
            for name in ("both", *TENANTS)
        }
        for name, store in stores.items():
            store.upsert([p for p in points if name in ("both", p.record.tenant)])
            store.flush()
        both = stores.pop("both")
        yield Shared({one: TenantStore(both, one) for one in TENANTS}, {**stores}, points, both)


def _conditions(points_count: int = 2 * COUNT) -> st.SearchStrategy[Condition]:
    return st.one_of(
        st.sampled_from(
            [
                Match("modality", ("CT",)),
                Match("modality", ("MR", "日本")),
                Match("body_part", ("CHEST",)),
                Match("study", ("1.2.3", "1.2.4")),
                Match("tenant", ("north",)),
                Match("tenant", ("default",)),
                Match("tenant", TENANTS),
                Range("study_year", 2012, None),
                Part(128),
            ]
        ),
        st.lists(st.integers(1, points_count), min_size=1, max_size=40).map(
            lambda numbers: Ids(tuple(str(uuid.UUID(int=n)) for n in numbers))
        ),
    )


FILTERS = st.builds(
    Filter,
    must=st.lists(_conditions(), max_size=2).map(tuple),
    must_not=st.lists(_conditions(), max_size=2).map(tuple),
    coarse=st.none()
    | st.builds(Coarse, code=st.binary(min_size=8, max_size=8), radius=st.integers(0, 40)),
)


def told(points: list[Point]) -> list[tuple[object, ...]]:
    return [
        (p.id, p.record, None if p.score is None else round(p.score, 5), p.code.tobytes())
        for p in points
    ]


@examples(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=FILTERS, tenant=st.sampled_from(TENANTS), number=st.integers(0, COUNT - 1))
def test_a_tenant_is_answered_as_if_it_were_alone(
    shared: Shared, where: Filter, tenant: str, number: int
) -> None:
    here, alone = shared.of[tenant], shared.alone[tenant]
    assert here.count(where) == alone.count(where)
    fields = ["modality", "study", "sop", "tenant", "patient"]
    assert here.facets(fields, where, 50) == alone.facets(fields, where, 50)
    assert told(list(here.scroll(where))) == told(list(alone.scroll(where)))
    z = shared.points[number % len(shared.points)].z
    assert z is not None
    nearest = Nearest(z, where, 12, exact=True)
    assert told(here.query([nearest])[0]) == told(alone.query([nearest])[0])
    ids = [point.id for point in shared.points[number : number + 20]]
    assert told(here.get(ids)) == told(alone.get(ids))


def test_a_tenant_neither_overwrites_nor_deletes_what_is_of_others(shared: Shared) -> None:
    here = shared.of["north"]
    others = [point for point in shared.points if point.record.tenant == "default"]
    with pytest.raises(StoreError, match="not of the tenant"):
        here.upsert(others[:1])
    taken = replace(others[0], record=replace(others[0].record, tenant="north"))
    with pytest.raises(StoreError, match="not of the tenant"):
        here.upsert([taken])
    before = shared.whole.count(Filter())
    assert here.delete(Filter(must=(Ids(tuple(point.id for point in others)),))) == 0
    assert shared.whole.count(Filter()) == before
    here.close()
    assert shared.whole.count(Filter()) == before
    assert np.isfinite(before)


def test_the_only_tenant_of_a_store_has_the_use_of_its_graph(
    collection, make_points, store_root: Path
) -> None:
    # A condition that all points pass leaves nothing out of what the graph finds.
    points = [
        replace(point, record=replace(point.record, tenant="default"))
        for point in make_points(COUNT)
    ]
    with EdgeStore.create(store_root / "graph", collection, Profile("precise")) as store:
        store.upsert(points)
        tenant = TenantStore(store, "default")
        assert tenant.approximates(Filter())
        assert not tenant.approximates(Filter((Match("modality", ("CT",)),)))
        assert points[0].z is not None
        other = replace(points[0].record, tenant="north")
        store.upsert([replace(points[0], id=str(uuid.UUID(int=10**6)), record=other)])
        assert not tenant.approximates(Filter())
        found = tenant.query([Nearest(points[0].z, Filter(), COUNT)])[0]
        assert {point.id for point in found} == {point.id for point in points}
        store.delete(Filter((Match("tenant", ("north",)),)))
        assert tenant.approximates(Filter())
