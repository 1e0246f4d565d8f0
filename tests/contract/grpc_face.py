"""The gRPC face of a stand-in for a Qdrant server."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc as grpcio
from qdrant_client import grpc, models
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc
from troubles import Trouble

if TYPE_CHECKING:
    from loopback import Loopback

__all__ = ["grpc_face"]


@contextmanager
def grpc_face(loopback: "Loopback", port: int) -> Iterator[int]:
    """Serves gRPC on a loopback port, 0 for a free one; the port."""
    server = grpcio.server(ThreadPoolExecutor(2))
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    grpc.add_QdrantServicer_to_server(_Health(loopback), server)
    grpc.add_CollectionsServicer_to_server(_Collections(loopback), server)
    grpc.add_PointsServicer_to_server(_Points(loopback), server)
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()


class _Face:
    def __init__(self, loopback: "Loopback") -> None:
        self._loopback = loopback

    @contextmanager
    def _working(self, operation: str, context: Any) -> Iterator["Loopback"]:
        try:
            with self._loopback.answering(operation):
                yield self._loopback
        except Trouble as trouble:
            context.abort(trouble.code, trouble.text)


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
                write_consistency_factor=request.write_consistency_factor,
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

    def CollectionClusterInfo(self, request, context):  # noqa: N802
        with self._working("shards", context) as engine:
            found = engine.shards(request.collection_name)
            return _shards(found)

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


def _shards(found: models.CollectionClusterInfo) -> grpc.CollectionClusterInfoResponse:
    # The client converts this in one direction alone.
    states = {
        models.ReplicaState.ACTIVE: grpc.ReplicaState.Active,
        models.ReplicaState.DEAD: grpc.ReplicaState.Dead,
    }
    return grpc.CollectionClusterInfoResponse(
        peer_id=found.peer_id,
        shard_count=found.shard_count,
        local_shards=[
            grpc.LocalShardInfo(shard_id=one.shard_id, points_count=0, state=states[one.state])
            for one in found.local_shards
        ],
        remote_shards=[
            grpc.RemoteShardInfo(
                shard_id=one.shard_id, peer_id=one.peer_id, state=states[one.state]
            )
            for one in found.remote_shards
        ],
    )


def _record(record: models.Record) -> grpc.RetrievedPoint:
    return RestToGrpc.convert_record(record.model_copy(update={"payload": record.payload or {}}))


def _filter(request: Any) -> models.Filter | None:
    return GrpcToRest.convert_filter(request.filter) if request.HasField("filter") else None


def _done() -> grpc.PointsOperationResponse:
    return grpc.PointsOperationResponse(
        result=grpc.UpdateResult(operation_id=0, status=grpc.UpdateStatus.Completed)
    )
