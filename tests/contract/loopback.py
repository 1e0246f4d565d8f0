"""A stand-in for a Qdrant server: its REST and gRPC faces on loopback, over local mode.

What is asked comes over the wire as a server would get it. It notes what local mode leaves out
(payload indexes, search parameters), refuses filters over fields without an index as a server in
strict mode does, and fails on demand. In what else a real server differs it follows the behaviours
that it was made with (behaviours.py).
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from behaviours import Behaviour
from grpc_face import grpc_face
from qdrant_client import QdrantClient, models
from rest_face import rest_face
from troubles import Trouble, refused

from engine.store.payload import CELL_PREFIX

Fault = Trouble | tuple[int, dict[str, str]] | None
"""What is answered instead; a pair is the status and the headers of a Trouble. None = the request
is worked on."""


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
    """The collections of one server or cluster, and what it was asked.

    faults: of one request each, in order. lost: operations that are carried out, but whose
    answer is dropped, each once. asked: every request, by operation. status: of the
    collection, for one look each; green when there are none left. key: the API key wanted.
    unready: ports of REST faces that say that they cannot be asked yet; they answer all the same,
    from what ``old`` has for them.
    latency: seconds that each request takes longer over REST, however many come at once.
    nodes: how many the cluster says that it has; 0 = it is none. dead: their numbers, from 1 on, of
    which the copies of shards are not up to date.
    """

    def __init__(self, *behaviours: Behaviour) -> None:
        self.behaviours = behaviours
        self.faults: list[Fault] = []
        self.lost: list[str] = []
        self.asked: list[str] = []
        self.version = "1.18.3"
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
        self.old: dict[int, Loopback] = {}
        self.nodes = 0
        self.dead: set[int] = set()
        self._lock = threading.Lock()

    @contextmanager
    def working(self, operation: str) -> Iterator[None]:
        with self._lock:
            self.asked.append(operation)
            yield

    @contextmanager
    def answering(self, operation: str) -> Iterator[None]:
        """Within it, the operation is carried out. Raises Trouble if the answer is an error."""
        with self.working(operation):
            if self.faults and (fault := self.faults.pop(0)):
                if isinstance(fault, Trouble):
                    raise fault
                raise Trouble(fault[0], headers=fault[1])
            try:
                yield
            except ValueError as error:
                missing, there = "not found" in str(error), "already exists" in str(error)
                status = 404 if missing else 409 if there else 400
                raise Trouble(status, str(error)) from None
            if operation in self.lost:
                self.lost.remove(operation)
                raise Trouble(0)

    def seen_at(self, port: int) -> "Loopback":
        """What the node whose REST face has this port knows."""
        return self.old.get(port, self) if port in self.unready else self

    def remembered(self) -> "Loopback":
        """Another one, with the points, aliases and settings that this one has now."""
        made = Loopback(*self.behaviours)
        for found in self._local.get_collections().collections:
            name = found.name
            info = self._local.get_collection(name)
            made._local.create_collection(
                name, vectors_config=info.config.params.vectors, metadata=info.config.metadata
            )
            made.made[name], made.indexes[name] = self.made[name], dict(self.indexes[name])
            records, _ = self._local.scroll(name, limit=100_000, with_vectors=True)
            points = [
                models.PointStruct(id=one.id, vector=one.vector, payload=one.payload)
                for one in records
            ]
            if points:
                made._local.upsert(name, points)
        for alias in self._local.get_aliases().aliases:
            made._local.update_collection_aliases(
                [models.CreateAliasOperation(create_alias=models.CreateAlias(**alias.model_dump()))]
            )
        return made

    # What the nodes of a cluster have to agree on

    def _agreed(self, work: Callable[[], Any]) -> Any:
        for one in self.behaviours:
            one.agree(work)
        return work()

    def create(self, name: str, wanted: models.CreateCollection) -> bool:
        def work() -> bool:
            made = self._local.create_collection(
                name, vectors_config=wanted.vectors, metadata=wanted.metadata
            )
            self.made[name] = wanted
            self.indexes[name] = {}
            return made

        return self._agreed(work)

    def update(self, name: str, wanted: models.UpdateCollection) -> bool:
        def work() -> bool:
            self.updates.append(wanted)
            self._written(name)
            return self._local.update_collection(
                name, vectors_config=wanted.vectors, metadata=wanted.metadata
            )

        return self._agreed(work)

    def drop(self, name: str) -> bool:
        return self._agreed(lambda: self._local.delete_collection(name))

    def change_aliases(self, actions: list[models.AliasOperations]) -> bool:
        return self._agreed(lambda: self._local.update_collection_aliases(actions))

    def index(self, name: str, wanted: models.CreateFieldIndex) -> models.UpdateResult:
        # Those of cells alone are made later, and again.
        empty = self._local.get_collection(name).points_count == 0
        assert empty or wanted.field_name.startswith(CELL_PREFIX)

        def work() -> models.UpdateResult:
            self.indexes[name][wanted.field_name] = wanted.field_schema
            return models.UpdateResult(operation_id=0, status=models.UpdateStatus.COMPLETED)

        return self._agreed(work)

    def unindex(self, name: str, field: str) -> models.UpdateResult:
        def work() -> models.UpdateResult:
            self.indexes[name].pop(field, None)
            return models.UpdateResult(operation_id=0, status=models.UpdateStatus.COMPLETED)

        return self._agreed(work)

    # Looking

    def exists(self, name: str) -> bool:
        return self._local.collection_exists(name)

    def names(self) -> models.CollectionsResponse:
        return self._local.get_collections()

    def aliases(self) -> models.CollectionsAliasesResponse:
        return self._local.get_aliases()

    def info(self, name: str) -> models.CollectionInfo:
        info = self._local.get_collection(name)
        made, params = self.made[name], info.config.params
        params.shard_number = made.shard_number or 1
        params.replication_factor = made.replication_factor or 1
        params.write_consistency_factor = made.write_consistency_factor or 1
        info.payload_schema = {
            field: models.PayloadIndexInfo(data_type=params.type.value, params=params, points=0)
            for field, params in self.indexes[name].items()
        }
        if self.status:
            info.status = self.status.pop(0)
        for one in self.behaviours:
            one.describe(self._own_name(name), info)
        return info

    def has_graph(self, name: str) -> bool:
        vectors = self.made[name].vectors
        params = next(iter(vectors.values())) if isinstance(vectors, dict) else vectors
        return params is None or params.hnsw_config is None or params.hnsw_config.m != 0

    def cluster(self) -> dict[str, Any]:
        """As REST tells it: the client has no type for less than all of it."""
        if not self.nodes:
            return {"status": "disabled"}
        peers = {str(i + 1): {"uri": f"http://10.0.0.{i + 1}:6335/"} for i in range(self.nodes)}
        raft = {"term": 1, "commit": 1, "pending_operations": 0, "is_voter": True}
        return {
            "status": "enabled",
            "peer_id": 1,
            "peers": peers,
            "raft_info": raft | {"leader": 1, "role": "Leader"},
            "consensus_thread_status": {
                "consensus_thread_status": "working",
                "last_update": "2026-01-01T00:00:00Z",
            },
            "message_send_failures": {},
        }

    def shards(self, name: str) -> models.CollectionClusterInfo:
        """Where the copies of the shards are; the node asked is peer 1."""
        params, count = self.info(name).config.params, max(1, self.nodes)
        local, remote = [], []
        for shard in range(params.shard_number or 1):
            for copy in range(min(params.replication_factor or 1, count)):
                peer, states = 1 + (shard + copy) % count, models.ReplicaState
                of = {
                    "shard_id": shard,
                    "state": states.DEAD if peer in self.dead else states.ACTIVE,
                }
                if peer == 1:
                    local.append(models.LocalShardInfo(points_count=0, **of))
                else:
                    remote.append(models.RemoteShardInfo(peer_id=peer, **of))
        return models.CollectionClusterInfo(
            peer_id=1,
            shard_count=params.shard_number or 1,
            local_shards=local,
            remote_shards=remote,
            shard_transfers=[],
        )

    # Points

    def batch(self, name: str, operations: list[Any]) -> list[models.UpdateResult]:
        for one in operations:
            change = one.set_payload if hasattr(one, "set_payload") else one.delete_payload
            self._checked(name, "batch", change)
        self._written(name)
        return self._local.batch_update_points(name, operations)

    def upsert(self, name: str, points: list[models.PointStruct]) -> models.UpdateResult:
        self._allowed(name, "upsert", points)
        self._written(name)
        return self._local.upsert(name, points)

    def delete(self, name: str, selector: models.FilterSelector) -> models.UpdateResult:
        where = self._checked(name, "delete", selector)
        self._written(name)
        return self._local.delete(name, models.FilterSelector(filter=where))

    def retrieve(self, name: str, wanted: models.PointRequest) -> list[models.Record]:
        return self._local.retrieve(
            name, wanted.ids, with_payload=wanted.with_payload, with_vectors=wanted.with_vector
        )

    def count(self, name: str, wanted: models.CountRequest) -> models.CountResult:
        return self._local.count(name, self._checked(name, "count", wanted))

    def facet(self, name: str, wanted: models.FacetRequest) -> models.FacetResponse:
        passing = self._checked(name, "facet", wanted)
        self.faceted.append(wanted)
        if wanted.key not in self.indexes[name]:
            raise ValueError(f"No appropriate index for faceting: no index for {wanted.key}")
        for one in self.behaviours:
            if (found := one.facet(self, name, wanted)) is not None:
                return found
        answer = self._local.facet(name, wanted.key, passing, limit=wanted.limit)
        answer.hits.append(models.FacetValueHit(value="of a point since deleted", count=0))
        return answer

    def passing(self, name: str, where: models.Filter | None) -> list[models.Record]:
        """All points that pass a filter, by the server's understanding of it."""
        passing = self._understood(name, where)
        return self._local.scroll(name, passing, limit=100_000, with_payload=True)[0]

    def scroll(self, name: str, wanted: models.ScrollRequest) -> models.ScrollResult:
        points, offset = self._local.scroll(
            name,
            self._checked(name, "scroll", wanted),
            limit=wanted.limit,
            offset=wanted.offset,
            with_payload=wanted.with_payload,
            with_vectors=wanted.with_vector,
        )
        return models.ScrollResult(points=points, next_page_offset=offset)

    def query(self, name: str, wanted: list[models.QueryRequest]) -> list[models.QueryResponse]:
        self._allowed(name, "query", wanted)
        for one in wanted:
            one.filter = self._understood(name, one.filter)
            self.searches.append(one.model_copy())
            one.params = None
        return self._local.query_batch_points(name, wanted)

    # Filters, and what is allowed

    def _checked(self, name: str, operation: str, request: Any) -> models.Filter | None:
        self._allowed(name, operation, request)
        return self._understood(name, request.filter)

    def _allowed(self, name: str, operation: str, request: Any) -> None:
        for one in self.behaviours:
            one.check(self, name, operation, request)

    def _written(self, name: str) -> None:
        for one in self.behaviours:
            one.written(self._own_name(name))

    def _own_name(self, name: str) -> str:
        aliases = self._local.get_aliases().aliases
        return next((one.collection_name for one in aliases if one.alias_name == name), name)

    def _understood(self, name: str, where: models.Filter | None) -> models.Filter | None:
        """The filter as the server goes by it. Every field has to have an index."""
        if where is None:
            return None
        for one in self.behaviours:
            where = one.understood(where)
        return models.Filter(
            must=self._conditions(name, where.must),
            should=self._conditions(name, where.should),
            must_not=self._conditions(name, where.must_not),
        )

    def _conditions(self, name: str, conditions: Any) -> list[models.Condition] | None:
        return [self._condition(name, one) for one in conditions or []] or None

    def _condition(self, name: str, condition: models.Condition) -> models.Condition | None:
        if isinstance(condition, models.Filter):
            return self._understood(name, condition)
        if isinstance(condition, models.HasIdCondition):
            assert len(condition.has_id) <= 256
            return condition
        is_empty = isinstance(condition, models.IsEmptyCondition)
        field = condition.is_empty.key if is_empty else condition.key
        if field not in self.indexes[name]:
            raise refused(f"no index for {field}")
        if not is_empty and isinstance(condition.match, models.MatchAny):
            assert len(condition.match.any) <= 256
        return condition

    @contextmanager
    def rest(self, port: int = 0) -> Iterator[int]:
        """Serves REST; the port."""
        with rest_face(self, port) as taken:
            yield taken

    @contextmanager
    def grpc(self, port: int = 0) -> Iterator[int]:
        """Serves gRPC; the port."""
        with grpc_face(self, port) as taken:
            yield taken
