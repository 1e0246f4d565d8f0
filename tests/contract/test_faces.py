"""What a served store asks over gRPC and what over REST."""

from contextlib import ExitStack

import numpy as np
import pytest
from loopback import Loopback

from engine.settings import StoreSettings
from engine.store.base import Filter, Nearest
from engine.store.connection import Connection, connect
from engine.store.server import ServerStore

ALL = Filter()


@pytest.fixture
def faces(collection, make_points):
    """A store whose two faces are two servers with the same points, and what each was asked."""
    points = make_points(200)
    by_rest, by_grpc = Loopback(), Loopback()
    with ExitStack() as opened:
        for one in (by_rest, by_grpc):
            settings = StoreSettings(
                url=f"http://127.0.0.1:{opened.enter_context(one.rest())}", prefer_grpc=False
            )
            with ServerStore.create(Connection(connect(settings), settings), collection) as store:
                store.upsert(points)
            if one is by_rest:
                both = settings
        changed = {"prefer_grpc": True, "grpc_port": opened.enter_context(by_grpc.grpc())}
        both = both.model_copy(update=changed)
        store = opened.enter_context(ServerStore.open(Connection(connect(both), both)))
        by_rest.asked.clear()
        by_grpc.asked.clear()
        yield store, points, by_rest.asked, by_grpc.asked


def test_many_payloads_come_over_rest_and_all_else_over_grpc(faces):
    store, points, by_rest, by_grpc = faces
    z, ids = points[7].z, [point.id for point in points]
    store.count(ALL)
    store.facets(["modality"], ALL, 5)
    few = store.get(ids[:20])
    near = store.query([Nearest(z, ALL, 20)])[0]
    assert by_rest == []
    assert by_grpc == ["count", "facet", "retrieve", "query"]
    by_grpc.clear()
    many = store.get(ids)
    nearer = store.query([Nearest(z, ALL, 150)])[0]
    everything = list(store.scroll(ALL))
    assert by_rest == ["retrieve", "query", "scroll"]
    assert by_grpc == []
    by_rest.clear()
    whole = list(store.scroll(ALL, with_z=True))
    assert (by_rest, by_grpc) == ([], ["scroll"])
    # Whichever way it comes, it is the same.
    assert [one.record for one in few] == [one.record for one in many[:20]]
    assert [(one.id, one.score) for one in near] == [
        (one.id, pytest.approx(one.score, abs=1e-6)) for one in nearer[:20]
    ]
    assert [one.record for one in whole] == [one.record for one in everything]
    assert all(np.array_equal(a.code, b.code) for a, b in zip(whole, everything, strict=True))
