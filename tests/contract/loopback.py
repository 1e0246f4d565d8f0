"""A stand-in for a Qdrant server: its REST and gRPC faces on loopback, over local mode.

What is asked comes over the wire as a server would get it. It notes what local mode leaves
out (payload indexes, search parameters), refuses filters over fields without an index as a
server in strict mode does, drops conditions of "must_not" that stand in "must" or "should" beside
it as a real server does, and fails on demand.
"""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc as grpcio
from pydantic_core import to_json
from qdrant_client import QdrantClient, grpc, models
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc

from engine.store.payload import CELL_PREFIX

Fault = tuple[int, dict[str, str]] | None
"""What is answered instead: an HTTP status with headers, or with status 0 nothing, and the
connection is dropped; over gRPC, UNAVAILABLE. None = the request is worked on."""


class _ByName(dict[str, Any]):
    """Values of collections, which aliases find too."""

    def __init__(self, local: QdrantClient) -> None:
        self._local = local

    def __missing__(self, name: str) -> Any:
        for alias in self._local.get_aliases().aliases:
            if alias.alias_name == name:
                return self[alias.collection_name]
        raise KeyError(name)


class Loopback:
    """The collections of one server, and what it was asked.

    faults: of one request each, in order. lost: operations that are carried out, but whose
    answer is dropped, each once. asked: every request, by operation. status: of the
    collection, for one look each; green when there are none left. key: the API key wanted.
    unready: ports of REST faces that say that they cannot be asked yet.
    latency: seconds that each request takes longer over REST, however many come at once.
    """

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.lost: list[str] = []
        self.asked: list[str] = []
        self.version = "1.16.3"
        self.status: list[models.CollectionStatus] = []
        self.key: str | None = None
        self.updates: list[models.UpdateCollection] = []
        self.searches: list[models.QueryRequest] = []
        self.faceted: list[models.FacetRequest] = []
        self._local = QdrantClient(":memory:")
        self.made: dict[str, models.CreateCollection] = _ByName(self._local)
        self.indexes: dict[str, dict[str, models.PayloadSchemaParams]] = _ByName(self._local)
        self.latency = 0.0
        self.unready: set[int] = set()
        self._lock = threading.Lock()

    @contextmanager
    def working(self, operation: str) -> Iterator[None]:
        with self._lock:
            self.asked.append(operation)
            yield

    def exists(self, name: str) -> bool:
        return self._local.collection_exists(name)

    def create(self, name: str, wanted: models.CreateCollection) -> bool:
        made = self._local.create_collection(
            name, vectors_config=wanted.vectors, metadata=wanted.metadata
        )
        self.made[name] = wanted
        self.indexes[name] = {}
        return made

    def info(self, name: str) -> models.CollectionInfo:
        info = self._local.get_collection(name)
        info.payload_schema = {
            field: models.PayloadIndexInfo(data_type=params.type.value, params=params, points=0)
            for field, params in self.indexes[name].items()
        }
        if self.status:
            info.status = self.status.pop(0)
        return info

    def update(self, name: str, wanted: models.UpdateCollection) -> bool:
        self.updates.append(wanted)
        return self._local.update_collection(
            name, vectors_config=wanted.vectors, metadata=wanted.metadata
        )

    def drop(self, name: str) -> bool:
        return self._local.delete_collection(name)

    def names(self) -> models.CollectionsResponse:
        return self._local.get_collections()

    def aliases(self) -> models.CollectionsAliasesResponse:
        return self._local.get_aliases()

    def change_aliases(self, actions: list[models.AliasOperations]) -> bool:
        return self._local.update_collection_aliases(actions)

    def index(self, name: str, wanted: models.CreateFieldIndex) -> models.UpdateResult:
        # Those of cells alone are made later, and again.
        empty = self._local.get_collection(name).points_count == 0
        assert empty or wanted.field_name.startswith(CELL_PREFIX)
        self.indexes[name][wanted.field_name] = wanted.field_schema
        return models.UpdateResult(operation_id=0, status=models.UpdateStatus.COMPLETED)

    def unindex(self, name: str, field: str) -> models.UpdateResult:
        self.indexes[name].pop(field, None)
        return models.UpdateResult(operation_id=0, status=models.UpdateStatus.COMPLETED)

    def batch(self, name: str, operations: list[Any]) -> list[models.UpdateResult]:
        for one in operations:
            change = one.set_payload if hasattr(one, "set_payload") else one.delete_payload
            self._check(name, change.filter)
        return self._local.batch_update_points(name, operations)

    def upsert(self, name: str, points: list[models.PointStruct]) -> models.UpdateResult:
        return self._local.upsert(name, points)

    def delete(self, name: str, selector: models.PointsSelector) -> models.UpdateResult:
        selector = models.FilterSelector(filter=self._check(name, selector.filter))
        return self._local.delete(name, selector)

    def retrieve(self, name: str, wanted: models.PointRequest) -> list[models.Record]:
        return self._local.retrieve(
            name, wanted.ids, with_payload=wanted.with_payload, with_vectors=wanted.with_vector
        )

    def count(self, name: str, wanted: models.CountRequest) -> models.CountResult:
        return self._local.count(name, self._check(name, wanted.filter))

    def facet(self, name: str, wanted: models.FacetRequest) -> models.FacetResponse:
        passing = self._check(name, wanted.filter)
        self.faceted.append(wanted)
        if wanted.key not in self.indexes[name]:
            raise ValueError(f"no index for {wanted.key}")
        answer = self._local.facet(name, wanted.key, passing, limit=wanted.limit)
        answer.hits.append(models.FacetValueHit(value="of a point since deleted", count=0))
        return answer

    def scroll(self, name: str, wanted: models.ScrollRequest) -> models.ScrollResult:
        points, offset = self._local.scroll(
            name,
            self._check(name, wanted.filter),
            limit=wanted.limit,
            offset=wanted.offset,
            with_payload=wanted.with_payload,
            with_vectors=wanted.with_vector,
        )
        return models.ScrollResult(points=points, next_page_offset=offset)

    def query(self, name: str, wanted: list[models.QueryRequest]) -> list[models.QueryResponse]:
        for one in wanted:
            one.filter = self._check(name, one.filter)
            self.searches.append(one.model_copy())
            one.params = None
        return self._local.query_batch_points(name, wanted)

    def _check(self, name: str, where: models.Filter | None) -> models.Filter | None:
        """The filter as a server understands it.

        Strict mode: every field has an index, and no condition too many values.
        """
        if where is None:
            return None
        must = [self._checked(name, one) for one in where.must or []]
        should = [self._checked(name, one) for one in where.should or []]
        must_not = [self._checked(name, one) for one in where.must_not or []]
        # Of a condition that also includes, 1.18.3 forgets that it excludes.
        must_not = [one for one in must_not if one not in (*must, *should)]
        return models.Filter(must=must or None, should=should or None, must_not=must_not or None)

    def _checked(self, name: str, condition: models.Condition) -> models.Condition | None:
        if isinstance(condition, models.Filter):
            return self._check(name, condition)
        if isinstance(condition, models.HasIdCondition):
            assert len(condition.has_id) <= 256
            return condition
        is_empty = isinstance(condition, models.IsEmptyCondition)
        field = condition.is_empty.key if is_empty else condition.key
        if field not in self.indexes[name]:
            raise ValueError(f"no index for {field}")
        if not is_empty and isinstance(condition.match, models.MatchAny):
            assert len(condition.match.any) <= 256
        return condition

    @contextmanager
    def rest(self, port: int = 0) -> Iterator[int]:
        """Serves REST; the port."""
        face = type("Face", (_Rest,), {"engine": self})
        server = _Listening(("127.0.0.1", port), face)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    @contextmanager
    def grpc(self, port: int = 0) -> Iterator[int]:
        """Serves gRPC; the port."""
        server = grpcio.server(ThreadPoolExecutor(2))
        port = server.add_insecure_port(f"127.0.0.1:{port}")
        grpc.add_QdrantServicer_to_server(_Health(self), server)
        grpc.add_CollectionsServicer_to_server(_Collections(self), server)
        grpc.add_PointsServicer_to_server(_Points(self), server)
        server.start()
        try:
            yield port
        finally:
            server.stop(None).wait()


_C = "/collections/([^/]+)"
_M = models
_ROUTES: list[tuple[str, str, str, Callable[..., Any]]] = [
    ("GET", "/?", "info", lambda e, b: None),
    ("GET", "/collections", "names", lambda e, b: e.names()),
    ("GET", "/aliases", "aliases", lambda e, b: e.aliases()),
    (
        "POST",
        "/collections/aliases",
        "change aliases",
        lambda e, b: e.change_aliases(_M.ChangeAliasesOperation(**b).actions),
    ),
    ("DELETE", _C, "drop", lambda e, b, n: e.drop(n)),
    ("GET", f"{_C}/exists", "exists", lambda e, b, n: {"exists": e.exists(n)}),
    ("PUT", _C, "create", lambda e, b, n: e.create(n, _M.CreateCollection(**b))),
    ("GET", _C, "get", lambda e, b, n: e.info(n)),
    ("PATCH", _C, "update", lambda e, b, n: e.update(n, _M.UpdateCollection(**b))),
    ("PUT", f"{_C}/index", "index", lambda e, b, n: e.index(n, _M.CreateFieldIndex(**b))),
    ("DELETE", f"{_C}/index/([^/]+)", "unindex", lambda e, b, n, field: e.unindex(n, field)),
    (
        "POST",
        f"{_C}/points/batch",
        "batch",
        lambda e, b, n: e.batch(n, _M.UpdateOperations(**b).operations),
    ),
    ("PUT", f"{_C}/points", "upsert", lambda e, b, n: e.upsert(n, _M.PointsList(**b).points)),
    ("POST", f"{_C}/points", "retrieve", lambda e, b, n: e.retrieve(n, _M.PointRequest(**b))),
    ("POST", f"{_C}/points/delete", "delete", lambda e, b, n: e.delete(n, _M.FilterSelector(**b))),
    ("POST", f"{_C}/points/count", "count", lambda e, b, n: e.count(n, _M.CountRequest(**b))),
    ("POST", f"{_C}/points/scroll", "scroll", lambda e, b, n: e.scroll(n, _M.ScrollRequest(**b))),
    (
        "POST",
        f"{_C}/points/query/batch",
        "query",
        lambda e, b, n: e.query(n, _M.QueryRequestBatch(**b).searches),
    ),
    ("POST", f"{_C}/facet", "facet", lambda e, b, n: e.facet(n, _M.FacetRequest(**b))),
]  # fmt: skip


class _Listening(ThreadingHTTPServer):
    request_queue_size = 128
    """A search opens a dozen connections in one moment; those that do not fit wait for a second."""


class _Rest(BaseHTTPRequestHandler):
    engine: Loopback

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        time.sleep(self.engine.latency)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.partition("?")[0]
        if path == "/readyz":
            self._send(503 if self.server.server_port in self.engine.unready else 200, None)
            return
        for method, pattern, operation, work in _ROUTES:
            if method == self.command and (found := re.fullmatch(pattern, path)):
                names = found.groups()
                with self.engine.working(operation):
                    self._answer(operation, partial(work, self.engine, _json(body), *names))
                return
        self._send(404, {"status": {"error": f"no route {self.command} {path}"}})

    do_PUT = do_POST = do_PATCH = do_DELETE = do_GET  # noqa: N815

    def _answer(self, operation: str, work: Callable[[], Any]) -> None:
        engine = self.engine
        if engine.faults and (fault := engine.faults.pop(0)):
            status, headers = fault
            if status:
                self._send(status, {"status": {"error": "as the test wants it"}}, headers)
            return
        if engine.key is not None and self.headers.get("api-key") != engine.key:
            self._send(401, {"status": {"error": "Must provide an API key"}})
            return
        try:
            answer = {"result": work(), "status": "ok", "time": 0.0}
        except ValueError as error:
            missing, there = "not found" in str(error), "already exists" in str(error)
            status = 404 if missing else 409 if there else 400
            self._send(status, {"status": {"error": str(error)}})
            return
        if operation in engine.lost:
            engine.lost.remove(operation)
        elif operation == "info":
            self._send(200, {"title": "stand-in", "version": engine.version})
        else:
            self._send(200, answer)

    def _send(self, status: int, answer: Any, headers: dict[str, str] | None = None) -> None:
        data = to_json(answer)
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _json(body: bytes) -> Any:
    return json.loads(body) if body else None


_CODES = {
    499: grpcio.StatusCode.CANCELLED,
    500: grpcio.StatusCode.INTERNAL,
    503: grpcio.StatusCode.UNAVAILABLE,
}
"""Of a fault with this HTTP status, over gRPC."""


class _Face:
    def __init__(self, engine: Loopback) -> None:
        self._engine = engine

    @contextmanager
    def _working(self, operation: str, context: Any) -> Iterator[Loopback]:
        with self._engine.working(operation):
            if self._engine.faults and (fault := self._engine.faults.pop(0)):
                context.abort(_CODES[fault[0]], "as the test wants it")
            try:
                yield self._engine
            except ValueError as error:
                codes = grpcio.StatusCode
                code = codes.NOT_FOUND if "not found" in str(error) else codes.INVALID_ARGUMENT
                context.abort(code, str(error))


class _Health(_Face, grpc.QdrantServicer):
    def HealthCheck(self, request, context):  # noqa: N802
        with self._working("info", context) as engine:
            return grpc.HealthCheckReply(title="stand-in", version=engine.version)


class _Collections(_Face, grpc.CollectionsServicer):
    def CollectionExists(self, request, context):  # noqa: N802
        with self._working("exists", context) as engine:
            found = grpc.CollectionExists(exists=engine.exists(request.collection_name))
            return grpc.CollectionExistsResponse(result=found)

    def Create(self, request, context):  # noqa: N802
        with self._working("create", context) as engine:
            wanted = models.CreateCollection(
                vectors=GrpcToRest.convert_vectors_config(request.vectors_config),
                metadata=GrpcToRest.convert_payload(request.metadata),
                shard_number=request.shard_number,
                replication_factor=request.replication_factor,
                on_disk_payload=request.on_disk_payload,
            )
            made = engine.create(request.collection_name, wanted)
            return grpc.CollectionOperationResponse(result=made)

    def Get(self, request, context):  # noqa: N802
        with self._working("get", context) as engine:
            info = RestToGrpc.convert_collection_info(engine.info(request.collection_name))
            return grpc.GetCollectionInfoResponse(result=info)

    def Update(self, request, context):  # noqa: N802
        with self._working("update", context) as engine:
            vectors = metadata = None
            if request.HasField("vectors_config"):
                vectors = GrpcToRest.convert_vectors_config_diff(request.vectors_config)
            if request.metadata:
                metadata = GrpcToRest.convert_payload(request.metadata)
            wanted = models.UpdateCollection(vectors=vectors, metadata=metadata)
            done = engine.update(request.collection_name, wanted)
            return grpc.CollectionOperationResponse(result=done)

    def Delete(self, request, context):  # noqa: N802
        with self._working("drop", context) as engine:
            done = engine.drop(request.collection_name)
            return grpc.CollectionOperationResponse(result=done)

    def List(self, request, context):  # noqa: N802
        with self._working("names", context) as engine:
            found = [grpc.CollectionDescription(name=c.name) for c in engine.names().collections]
            return grpc.ListCollectionsResponse(collections=found)

    def ListAliases(self, request, context):  # noqa: N802
        with self._working("aliases", context) as engine:
            found = map(RestToGrpc.convert_alias_description, engine.aliases().aliases)
            return grpc.ListAliasesResponse(aliases=found)

    def UpdateAliases(self, request, context):  # noqa: N802
        with self._working("change aliases", context) as engine:
            done = engine.change_aliases(
                [GrpcToRest.convert_alias_operations(action) for action in request.actions]
            )
            return grpc.CollectionOperationResponse(result=done)


class _Points(_Face, grpc.PointsServicer):
    def CreateFieldIndex(self, request, context):  # noqa: N802
        with self._working("index", context) as engine:
            params = request.field_index_params
            kind = params.WhichOneof("index_params")
            convert = getattr(GrpcToRest, f"convert_{kind}")
            wanted = models.CreateFieldIndex(
                field_name=request.field_name, field_schema=convert(getattr(params, kind))
            )
            engine.index(request.collection_name, wanted)
            return _done()

    def DeleteFieldIndex(self, request, context):  # noqa: N802
        with self._working("unindex", context) as engine:
            engine.unindex(request.collection_name, request.field_name)
            return _done()

    def UpdateBatch(self, request, context):  # noqa: N802
        with self._working("batch", context) as engine:
            operations = [GrpcToRest.convert_points_update_operation(o) for o in request.operations]
            engine.batch(request.collection_name, operations)
            done = grpc.UpdateResult(operation_id=0, status=grpc.UpdateStatus.Completed)
            return grpc.UpdateBatchResponse(result=[done] * len(operations))

    def Upsert(self, request, context):  # noqa: N802
        with self._working("upsert", context) as engine:
            points = [GrpcToRest.convert_point_struct(point) for point in request.points]
            engine.upsert(request.collection_name, points)
            return _done()

    def Delete(self, request, context):  # noqa: N802
        with self._working("delete", context) as engine:
            selector = GrpcToRest.convert_points_selector(request.points)
            engine.delete(request.collection_name, selector)
            return _done()

    def Get(self, request, context):  # noqa: N802
        with self._working("retrieve", context) as engine:
            wanted = models.PointRequest(
                ids=[GrpcToRest.convert_point_id(i) for i in request.ids],
                with_payload=GrpcToRest.convert_with_payload_interface(request.with_payload),
                with_vector=GrpcToRest.convert_with_vectors_selector(request.with_vectors),
            )
            records = engine.retrieve(request.collection_name, wanted)
            return grpc.GetResponse(result=map(_record, records))

    def Count(self, request, context):  # noqa: N802
        with self._working("count", context) as engine:
            wanted = models.CountRequest(filter=_filter(request), exact=request.exact)
            count = engine.count(request.collection_name, wanted).count
            return grpc.CountResponse(result=grpc.CountResult(count=count))

    def Facet(self, request, context):  # noqa: N802
        with self._working("facet", context) as engine:
            wanted = models.FacetRequest(
                key=request.key, limit=request.limit, filter=_filter(request), exact=request.exact
            )
            hits = engine.facet(request.collection_name, wanted).hits
            return grpc.FacetResponse(hits=map(RestToGrpc.convert_facet_value_hit, hits))

    def Scroll(self, request, context):  # noqa: N802
        with self._working("scroll", context) as engine:
            offset = request.offset if request.HasField("offset") else None
            wanted = models.ScrollRequest(
                filter=_filter(request),
                limit=request.limit,
                offset=None if offset is None else GrpcToRest.convert_point_id(offset),
                with_payload=GrpcToRest.convert_with_payload_interface(request.with_payload),
                with_vector=GrpcToRest.convert_with_vectors_selector(request.with_vectors),
            )
            found = engine.scroll(request.collection_name, wanted)
            following = found.next_page_offset
            return grpc.ScrollResponse(
                result=map(_record, found.points),
                next_page_offset=following and RestToGrpc.convert_extended_point_id(following),
            )

    def QueryBatch(self, request, context):  # noqa: N802
        with self._working("query", context) as engine:
            wanted = [GrpcToRest.convert_query_points(one) for one in request.query_points]
            answers = engine.query(request.collection_name, wanted)
            return grpc.QueryBatchResponse(
                result=[
                    grpc.BatchResult(result=map(RestToGrpc.convert_scored_point, answer.points))
                    for answer in answers
                ]
            )


def _record(record: models.Record) -> grpc.RetrievedPoint:
    return RestToGrpc.convert_record(record.model_copy(update={"payload": record.payload or {}}))


def _filter(request: Any) -> models.Filter | None:
    return GrpcToRest.convert_filter(request.filter) if request.HasField("filter") else None


def _done() -> grpc.PointsOperationResponse:
    return grpc.PointsOperationResponse(
        result=grpc.UpdateResult(operation_id=0, status=grpc.UpdateStatus.Completed)
    )
