"""What a search, its hits and its facets cost on a Qdrant server, beside the bare client.

    PRECEDENT_TEST_QDRANT_URL=http://127.0.0.1:6333 python -m bench.served [--count 100000]

``PRECEDENT_TEST_QDRANT_GRPC_PORT`` and ``PRECEDENT_TEST_QDRANT_API_KEY`` as for tests/contract.
Makes two collections of its own, and removes them again:

- ours, as ``ServerStore`` makes it: a payload field for each value, with its index, and cells;
- one that is *compact*: the record as one text, and no index.

All is asked one after another, and times are medians in milliseconds. The bare query is the one
that a search sends last, without all that stands around it. Searches are measured once more with
each request, of both, sent 20 ms later: as over a network, but for connections and bandwidth.
Writes bench/results/served.json.
"""

import argparse
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any, ParamSpec, TypeVar

import numpy as np
import psutil
from numpy.typing import NDArray
from pydantic import SecretStr
from qdrant_client import QdrantClient, models
from rich.console import Console

from bench.machine import write_results
from bench.stores import MODEL
from bench.tables import show
from bench.vectors import Vectors, points, prepared
from engine.records import Observations, Point
from engine.search.engine import SearchEngine
from engine.search.query import Query, parse_where
from engine.settings import SearchSettings, StoreSettings
from engine.store.arrangement import VECTOR
from engine.store.base import Collection
from engine.store.connection import Connection, connect
from engine.store.payload import FACET_FIELDS
from engine.store.server import ServerStore
from engine.store.server_filter import translated
from engine.store.text_record import to_text

__all__ = ["measured"]

_P = ParamSpec("_P")
_T = TypeVar("_T")

_AT_ONCE = 256
_TRANSPORTS = {"gRPC": True, "REST": False}
_HITS = (10, 100, 1000)
_DELAY_MS = 20
_A_TENTH = ("source=station 3",)
_MISSING = (
    "no Qdrant server is named; set PRECEDENT_TEST_QDRANT_URL as in http://127.0.0.1:6333, and "
    "PRECEDENT_TEST_QDRANT_GRPC_PORT if that is not 6334"
)


class Counted(Connection):
    """A connection that counts what is asked through it, and keeps the last query.

    delay: seconds by which each request is sent later, and the last query too.
    """

    asked = 0
    delay = 0.0
    query: Callable[[], Any] | None = None

    def ask(self, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        def sent() -> _T:
            time.sleep(self.delay)
            return call(*args, **kwargs)

        self.asked += 1
        if getattr(call, "__name__", "") == "query_batch_points":
            self.query = sent
        return super().ask(sent)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000, help="images")
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--pid", type=int, help="of the server, if it is on this machine")
    arguments = parser.parse_args()
    url = os.environ.get("PRECEDENT_TEST_QDRANT_URL")
    if not url:
        print(f"bench-served: {_MISSING}", file=sys.stderr)
        raise SystemExit(2)
    key = os.environ.get("PRECEDENT_TEST_QDRANT_API_KEY")
    settings = StoreSettings(
        url=url,
        api_key=None if key is None else SecretStr(key),
        grpc_port=int(os.environ.get("PRECEDENT_TEST_QDRANT_GRPC_PORT", "6334")),
        collection=f"bench-{uuid.uuid4().hex[:8]}",
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = prepared("synthetic", arguments.count, arguments.queries, scratch=Path(scratch))
        found = measured(settings, Vectors.opened(folder), arguments.pid)
    console = Console(width=150)
    for title, rows in found.items():
        show(console, f"{arguments.count:,} images: {title}", rows, list(rows[0]))
    print(write_results("served", {"count": arguments.count, **found}))


def measured(
    settings: StoreSettings, vectors: Vectors, pid: int | None = None
) -> dict[str, list[dict[str, Any]]]:
    """The rows of each table, by its title.

    Args:
        settings: name the server, and a collection that is made and removed.
        vectors: images and queries.
        pid: of the server's process, to read its processor time; None = that is left out.
    """
    stored = points(vectors, range(len(vectors)))
    with _clients(settings) as clients:
        try:
            collection = Collection(MODEL, vectors.z.shape[1], 8 * vectors.codes.shape[1])
            with ServerStore.create(Connection(connect(settings), settings), collection) as store:
                name, compact = store.name, f"{settings.collection}-compact"
                building = [
                    _built("ours", pid, *_ours(store, stored)),
                    _built("compact", pid, *_compact(clients["REST"], compact, stored)),
                ]
            return {
                "building": building,
                "a search": _searches(settings, vectors, stored),
                "hits with their payload": _hits(clients, name, compact, vectors),
                "facets": _facets(settings, clients["gRPC"], name),
            }
        finally:
            for one in clients["REST"].get_collections().collections:
                if one.name.startswith(settings.collection):
                    clients["REST"].delete_collection(one.name)


@contextmanager
def _clients(settings: StoreSettings) -> Iterator[dict[str, QdrantClient]]:
    """Bare clients, by transport."""
    key = None if settings.api_key is None else settings.api_key.get_secret_value()
    made = {
        name: QdrantClient(
            url=settings.url,
            api_key=key,
            grpc_port=settings.grpc_port,
            prefer_grpc=by_grpc,
            timeout=600,
            check_compatibility=False,
        )
        for name, by_grpc in _TRANSPORTS.items()
    }
    try:
        yield made
    finally:
        for one in made.values():
            one.close()


# Building


def _ours(
    store: ServerStore, stored: Sequence[Point]
) -> tuple[Callable[[], None], Callable[[], None]]:
    return lambda: store.upsert(stored), store.optimise


def _compact(
    client: QdrantClient, name: str, stored: Sequence[Point]
) -> tuple[Callable[[], None], Callable[[], None]]:
    """Vectors as ours, and each record as one text."""
    client.create_collection(
        name,
        vectors_config={
            VECTOR: models.VectorParams(
                size=len(stored[0].z),  # type: ignore[arg-type]
                distance=models.Distance.COSINE,
                datatype=models.Datatype.FLOAT16,
                on_disk=True,
                hnsw_config=models.HnswConfigDiff(m=0),
            )
        },
    )

    def upload() -> None:
        for start in range(0, len(stored), _AT_ONCE):
            some = [
                models.PointStruct(
                    id=one.id,
                    vector={VECTOR: one.z.tolist()},  # type: ignore[union-attr]
                    payload={"record": to_text(one), "code": one.code.tobytes().hex()},
                )
                for one in stored[start : start + _AT_ONCE]
            ]
            client.upsert(name, points=some, wait=True)

    def optimise() -> None:
        while client.get_collection(name).status != models.CollectionStatus.GREEN:
            time.sleep(0.2)

    return upload, optimise


def _built(
    what: str, pid: int | None, upload: Callable[[], None], optimise: Callable[[], None]
) -> dict[str, Any]:
    busy, started = _busy(pid), time.perf_counter()
    upload()
    uploaded = time.perf_counter()
    optimise()
    done = time.perf_counter()
    row: dict[str, Any] = {"what": what, "upload s": round(uploaded - started, 1)}
    row["optimise s"] = round(done - uploaded, 1)
    row["server CPU s"] = "" if pid is None else round(_busy(pid) - busy, 1)
    return row


def _busy(pid: int | None) -> float:
    """Processor seconds of the server so far."""
    if pid is None:
        return 0.0
    used = psutil.Process(pid).cpu_times()
    return float(used.user + used.system)


# Asking


def _searches(
    settings: StoreSettings, vectors: Vectors, stored: Sequence[Point]
) -> list[dict[str, Any]]:
    """A whole search, and the query that it sends by itself."""
    kinds = {
        "all": Query(10),
        "all, no facets": Query(10, facets=False),
        "a tenth": Query(10, parse_where(_A_TENTH)),
        "one of each study": Query(10, group_by="study"),
    }
    rows = []
    for transport, by_grpc in _TRANSPORTS.items():
        changed = settings.model_copy(update={"prefer_grpc": by_grpc})
        connection = Counted(connect(changed), changed)
        with ServerStore.open(connection) as store:
            encoder: Any = SimpleNamespace(
                manifest=SimpleNamespace(fingerprint=MODEL), precision="fp32"
            )
            engine = SearchEngine(encoder, store, SearchSettings())
            asks: dict[str, Callable[[int], Any]] = {
                name: _by_vector(engine, vectors, query) for name, query in kinds.items()
            }
            asks["by id"] = _by_id(engine, stored)
            for delay, names in ((0, tuple(asks)), (_DELAY_MS, ("all", "by id"))):
                connection.delay = delay / 1000
                rows += [
                    {"search": name, "transport": transport, "delay ms": delay}
                    | _beside(connection, vectors, asks[name])
                    for name in names
                ]
    return rows


def _by_vector(engine: SearchEngine, vectors: Vectors, query: Query) -> Callable[[int], Any]:
    def ask(at: int) -> Any:
        z, code = vectors.query_z[at], vectors.query_codes[at]
        return engine.answer(Observations(z[None], code[None]), query)

    return ask


def _by_id(engine: SearchEngine, stored: Sequence[Point]) -> Callable[[int], Any]:
    return lambda at: engine.search_like(stored[at].id, Query(10))


def _beside(connection: Counted, vectors: Vectors, ask: Callable[[int], Any]) -> dict[str, Any]:
    whole, bare, asked = [], [], []
    for at in range(len(vectors.query_z)):
        before = connection.asked
        whole.append(_milliseconds(lambda at=at: ask(at)))  # type: ignore[misc]
        asked.append(connection.asked - before)
        if connection.query is not None:
            bare.append(_milliseconds(connection.query))
    return {
        "requests": int(median(asked)),
        "ms": round(median(whole), 2),
        "bare query ms": round(median(bare), 2),
        "times": round(median(whole) / median(bare), 2),
    }


def _hits(
    clients: dict[str, QdrantClient], ours: str, compact: str, vectors: Vectors
) -> list[dict[str, Any]]:
    """How long so many hits take, with the payload as it is stored, and without."""
    rows = []
    for limit in _HITS:
        for transport, client in clients.items():
            row: dict[str, Any] = {"hits": limit, "transport": transport}
            for what, name, payload in (
                ("ours", ours, True),
                ("compact", compact, True),
                ("none", ours, False),
            ):
                row[f"{what}, ms"] = _median(_near(client, name, limit, payload), vectors.query_z)
            rows.append(row)
    return rows


def _near(
    client: QdrantClient, name: str, limit: int, payload: bool
) -> Callable[[NDArray[np.float32]], Any]:
    def ask(z: NDArray[np.float32]) -> Any:
        asked = models.QueryRequest(
            query=z.tolist(), using=VECTOR, limit=limit, with_payload=payload
        )
        return client.query_batch_points(name, [asked])

    return ask


def _facets(settings: StoreSettings, client: QdrantClient, name: str) -> list[dict[str, Any]]:
    """A facet by the bare client, and all of them as a search asks for them."""
    rows = []
    with ServerStore.open(Connection(connect(settings), settings)) as store:
        for label, terms in (("all", ()), ("a tenth", _A_TENTH)):
            where = parse_where(terms)
            passing = translated(where)
            row: dict[str, Any] = {"images": label}
            for exact in (False, True):
                row[f"one, exact={exact}, ms"] = _median(
                    lambda field, e=exact, p=passing: client.facet(  # type: ignore[misc]
                        name, key=field, facet_filter=p, limit=128, exact=e
                    ),
                    FACET_FIELDS,
                )
            row["ours, all ten, ms"] = _median(
                lambda _, w=where: store.facets(FACET_FIELDS, w, 50),  # type: ignore[misc]
                range(10),
            )
            rows.append(row)
    return rows


def _median(ask: Callable[[Any], Any], asked: Any) -> float:
    return round(median(_milliseconds(lambda one=one: ask(one)) for one in asked), 2)


def _milliseconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1000


if __name__ == "__main__":
    main()
