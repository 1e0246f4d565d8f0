"""Whether the Qdrant server or cluster of an index is as it should be.

Each check asks only what reading needs and changes nothing. What cannot be found out, as with a key
that may not see the cluster, is left out or is a warning, and never an error.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version

from qdrant_client import QdrantClient, models

from engine.errors import StoreError
from engine.settings import StoreSettings
from engine.store.base import Collection
from engine.store.check import Check, check_cells
from engine.store.connection import Connection, connect
from engine.store.nodes import Nodes, is_ready
from engine.store.server_collection import in_force
from engine.store.server_layout import noted
from engine.store.server_limits import UNLIMITED, Limits
from engine.store.server_version import RUN_ON, minor_of

__all__ = [
    "Check",
    "check_layout",
    "check_plan",
    "check_server",
    "check_versions",
    "count_points",
]

_LOOKS = 3
"""How often each node is asked for the number of points: a node that reads from copies which differ
answers now this, now that."""
_SECONDS = 5.0
"""For one request of a check, which is sent once."""


def check_server(settings: StoreSettings, wanted: Collection | None = None) -> list[Check]:
    """All checks of the server or cluster that the settings name; [] = the index is embedded.

    Args:
        wanted: the kind of points that the index must hold, which is checked as well, and that
            there is one; None = any, or none.

    Raises:
        SettingsError: the settings name no usable server.
    """
    if settings.url is None:
        return []
    hasty = _hasty(settings)
    client = connect(hasty)
    try:
        return list(_checks(Connection(client, hasty), wanted))
    finally:
        client.close()


def _hasty(settings: StoreSettings) -> StoreSettings:
    seconds = min(_SECONDS, settings.timeout_seconds)
    return settings.model_copy(update={"attempts": 1, "timeout_seconds": seconds})


def _checks(connection: Connection, wanted: Collection | None) -> Iterator[Check]:
    client = connection.client
    nodes = client.each() if isinstance(client, Nodes) else []
    if nodes:
        yield _of_nodes([url for url, _ in nodes])
    try:
        yield check_versions(connection.ask(client.info).version)
        name = in_force(connection)
        if name is None:
            yield from _of_nothing(connection, wanted)
            return
        info = connection.ask(client.get_collection, name)
    except StoreError as error:
        yield Check("server", "bad", str(error))
        return
    yield from _of_model(name, info, wanted)
    yield _of_status(name, info)
    yield _of_writes(name, info)
    yield from _of_limits(name, info)
    yield from _of_copies(connection, name)
    params = info.config.params
    if (cells := _of_cells(name, info)) is not None:
        yield cells
    count = _count_nodes(connection) or len(nodes) or 1
    shards, copies = params.shard_number or 1, params.replication_factor or 1
    if (layout := check_layout(shards, copies, count, made=True)) is not None:
        yield layout
    if len(nodes) > 1:
        yield _of_counts(connection, name, nodes)


def check_plan(settings: StoreSettings, nodes: int) -> Check | None:
    """Whether an index that is made with these settings would use the nodes of the server that
    they name, and those that are planned; None = there is nothing to say.

    Args:
        nodes: planned.

    Raises:
        SettingsError: the settings name no usable server.
    """
    hasty = _hasty(settings)
    client = connect(hasty)
    try:
        there = _count_nodes(Connection(client, hasty)) or 0
    finally:
        client.close()
    count = max(nodes, there, len(settings.urls))
    return check_layout(settings.shards, settings.replication_factor, count, made=False)


def check_versions(server: str, client: str | None = None) -> Check:
    """Compares the version of the server with the one that this was run on, and with the client's.

    Args:
        client: of qdrant-client; None = the installed one.
    """
    client = client or version("qdrant-client")
    theirs, ours = minor_of(server), minor_of(client)
    if server == RUN_ON:
        return Check("version", "good", f"Qdrant {server}, on which Precedent was run")
    apart = ""
    if theirs is not None and ours is not None and not _supported(theirs, ours):
        apart = f"; qdrant-client {client} supports servers one minor version older or newer"
    return Check(
        "version",
        "warning",
        f"Qdrant has version {server}, and Precedent was run on {RUN_ON}{apart}",
        f"use {RUN_ON}, or run tests/contract on a server of that version first",
    )


def _supported(theirs: tuple[int, int], ours: tuple[int, int]) -> bool:
    return theirs[0] == ours[0] and abs(theirs[1] - ours[1]) <= 1


def check_layout(shards: int, copies: int, nodes: int, *, made: bool) -> Check | None:
    """Whether an index of so many shards and copies uses the nodes there are; None = there is
    nothing to say, as with one node.

    Args:
        made: the index is there already, and its shards cannot be changed any more.
    """
    if nodes < 2:
        return None
    wanted = (
        f"set PRECEDENT_STORE__SHARDS={max(nodes, shards)} and "
        f"PRECEDENT_STORE__REPLICATION_FACTOR={max(2, copies)}"
    )
    again = (
        "; they count when an index is made, so put it into another collection "
        "(`precedent snapshot`, PRECEDENT_STORE__COLLECTION, `precedent restore`)"
        if made
        else " before the index is made"
    )
    layout = f"{_so_many(shards, 'shard')} with {_so_many(copies, 'copy', 'copies')} each"
    if shards == copies == 1:
        return Check(
            "layout", "warning", f"one shard and one copy put everything on one of {nodes} nodes",
            wanted + again,
        )  # fmt: skip
    if copies == 1:
        return Check(
            "layout",
            "warning",
            f"{layout} on {nodes} nodes: while any of them is away nothing can be searched",
            wanted + again,
        )
    if nodes == 2:
        return Check(
            "layout",
            "warning",
            f"{layout} on two nodes: while one is away no collection, alias or index can change, "
            "and what was asked for meanwhile happens by itself when it is back",
            "use one node, or three",
        )
    return Check("layout", "good", f"{layout} on {nodes} nodes")


def _so_many(count: int, one: str, many: str = "") -> str:
    return f"{count} {one}" if count == 1 else f"{count} {many or one + 's'}"


def _of_nodes(urls: Sequence[str]) -> Check:
    away = [url for url in urls if not is_ready(url)]
    if not away:
        return Check("nodes", "good", f"all {len(urls)} nodes of store.urls are ready")
    return Check(
        "nodes",
        "bad" if len(away) == len(urls) else "warning",
        f"{len(away)} of {len(urls)} nodes of store.urls away or not ready: {', '.join(away)}",
        "start them, or look into their logs",
    )


def count_points(settings: StoreSettings) -> int | None:
    """How many points the index on the server has; None = that cannot be found out now."""
    hasty = _hasty(settings)
    client = connect(hasty)
    connection = Connection(client, hasty)
    try:
        name = in_force(connection)
        return None if name is None else connection.ask(client.count, name, exact=True).count
    except StoreError:
        return None
    finally:
        client.close()


def _of_nothing(connection: Connection, wanted: Collection | None) -> Iterator[Check]:
    if wanted is not None:
        yield Check(
            "index",
            "bad",
            f"{connection.server} has no index {connection.settings.collection!r}",
            "make one with `precedent index PATH…`, or name another collection with "
            "PRECEDENT_STORE__COLLECTION",
        )


def _of_model(name: str, info: models.CollectionInfo, wanted: Collection | None) -> Iterator[Check]:
    if wanted is None:
        return
    try:
        found = noted(info, f"collection {name!r}")
    except StoreError as error:
        yield Check("index", "bad", str(error))
        return
    if found is None:
        yield Check(
            "index",
            "bad",
            f"collection {name!r} was not made by Precedent",
            "name another collection with PRECEDENT_STORE__COLLECTION",
        )
    elif found.collection != wanted:
        yield Check(
            "model",
            "bad",
            f"the index was made by model {found.collection.model}, and the model is "
            f"{wanted.model}",
            "name the model of the index with PRECEDENT_MODEL, or bring the index to this one with "
            "`precedent reencode --model`",
        )
    else:
        yield Check("model", "good", f"collection {name!r} was made by model {wanted.model}")


def _of_cells(name: str, info: models.CollectionInfo) -> Check | None:
    try:
        found = noted(info, f"collection {name!r}")
    except StoreError:
        return None
    if found is None:
        return None
    return check_cells(found.cells, info.points_count or 0)


def _of_status(name: str, info: models.CollectionInfo) -> Check:
    status = models.CollectionStatus
    match info.status:
        case status.GREEN:
            return Check("status", "good", f"collection {name!r} is green")
        case status.YELLOW:
            return Check(
                "status", "good", f"collection {name!r} is yellow: it optimises its segments"
            )
        case status.GREY:
            return Check(
                "status",
                "warning",
                f"collection {name!r} is grey: a restart interrupted its optimising, and searches "
                "do not resume it",
                "open it with a key that may write, as `precedent index` or `precedent serve` do",
            )
    return Check(
        "status",
        "bad",
        f"collection {name!r} is damaged ({info.optimizer_status})",
        "look into the server's log, and restore a snapshot if need be",
    )


def _of_writes(name: str, info: models.CollectionInfo) -> Check:
    factor = info.config.params.write_consistency_factor or 1
    if factor == 1:
        return Check("writes", "good", f"collection {name!r} has write_consistency_factor 1")
    return Check(
        "writes",
        "bad",
        f"collection {name!r} has write_consistency_factor {factor}: a write that not so many "
        "copies could take stays in some of them, and the others lack it for good",
        f"set it to 1 (PATCH /collections/{name} with "
        '{"params": {"write_consistency_factor": 1}}), compare the counts of the nodes, and index '
        "again with `precedent index PATH… --again` where they differ",
    )


def _of_limits(name: str, info: models.CollectionInfo) -> Iterator[Check]:
    """What strict mode allows, where it sets limits that bear on what is asked."""
    limits = Limits.of(info)
    if limits == UNLIMITED:
        return
    told = ", ".join(
        f"{limit} {value}"
        for limit, value in asdict(limits).items()
        if value != getattr(UNLIMITED, limit)
    )
    said = f"the strict mode of collection {name!r} has {told}"
    if limits.search_allow_exact:
        yield Check("limits", "good", f"{said}; requests keep to it")
        return
    yield Check(
        "limits",
        "bad",
        f"{said}; counts and searches are exact, and so it cannot be opened",
        f'PATCH /collections/{name} with {{"strict_mode_config": {{"search_allow_exact": true}}}}',
    )


def _of_copies(connection: Connection, name: str) -> Iterator[Check]:
    """Copies of shards that are not up to date."""
    try:
        found = connection.ask(connection.client.collection_cluster_info, name)
    except StoreError:
        return  # the key may not see it, or the server is no cluster
    copies = [(one.shard_id, one.state, "this node") for one in found.local_shards]
    copies += [(one.shard_id, one.state, f"node {one.peer_id}") for one in found.remote_shards]
    behind = [
        f"shard {shard} on {node} is {state.value}"
        for shard, state, node in copies
        if state is not models.ReplicaState.ACTIVE
    ]
    if behind:
        yield Check(
            "copies",
            "warning",
            f"of collection {name!r}, {'; '.join(behind)}",
            "wait until they have caught up; start the nodes that are away",
        )


def _count_nodes(connection: Connection) -> int | None:
    """The nodes of the cluster; None = that cannot be seen."""
    try:
        found = connection.ask(connection.client.cluster_status)
    except StoreError:
        return None
    return len(getattr(found, "peers", ())) or None


def _of_counts(
    connection: Connection, name: str, nodes: Sequence[tuple[str, QdrantClient]]
) -> Check:
    """Compares how many points there are at each node."""
    counts: dict[str, list[int]] = {}
    for url, client in nodes:
        if not is_ready(url):
            continue  # it may answer from its state of before
        try:
            counts[url] = [
                connection.ask(client.count, name, exact=True).count for _ in range(_LOOKS)
            ]
        except StoreError:
            continue  # said already, as a node that is away
    if not counts:
        return Check("counts", "warning", "no node could be counted", "start the nodes")
    answers = {count for looks in counts.values() for count in looks}
    if len(answers) == 1:
        number = f"{answers.pop():,}"
        where = f"each of {len(counts)} nodes" if len(counts) > 1 else "the one node that is ready"
        return Check("counts", "good", f"{number} points at {where}")
    told = ", ".join(
        f"{' or '.join(f'{count:,}' for count in sorted(set(looks)))} at {url}"
        for url, looks in counts.items()
    )
    return Check(
        "counts",
        "bad",
        f"the nodes do not have the same points: {told}",
        "look again when nobody writes; if they still differ, write all points once more: "
        "`precedent index PATH… --again`, or restore a snapshot made at the node with the most",
    )
