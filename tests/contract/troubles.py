"""What a Qdrant server answers instead of a result, as 1.18.3 was seen to do."""

from collections.abc import Mapping
from types import MappingProxyType

import grpc

__all__ = [
    "CLIENT_DEADLINE",
    "NODE_AWAY",
    "NO_CONSENSUS",
    "NO_LEADER",
    "OF_CLUSTERS",
    "PLEASE_RETRY",
    "REPLICA_BEHIND",
    "SERVER_TIMEOUT",
    "Trouble",
    "refused",
]

_CODES = {
    0: grpc.StatusCode.UNAVAILABLE,
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.ALREADY_EXISTS,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
}


class Trouble(Exception):
    """An answer that is an error.

    Args:
        status: over REST; 0 = the connection is dropped.
        text: of the message. code: over gRPC; None = the one that goes with ``status``.
        headers: over REST.
    """

    def __init__(
        self,
        status: int,
        text: str = "as the test wants it",
        code: grpc.StatusCode | None = None,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(text)
        self.status, self.text, self.headers = status, text, headers
        self.code = code or _CODES[status]


def refused(text: str) -> Trouble:
    """What is wrong with a request, which would fail again."""
    return Trouble(400, f"Wrong input: {text}")


def _internal(text: str) -> Trouble:
    return Trouble(500, f"Service internal error: {text}")


NODE_AWAY = _internal(
    "1 of 1 read operations failed:\n  Service internal error: Tonic status error: status: "
    'Unavailable, message: "Failed to connect to http://10.0.0.3:6335/, error: transport error", '
    "details: [], metadata: MetadataMap { headers: {} }"
)
"""1.18.3: the only copy of a shard is on a node that cannot be reached; after .35 to .5 s."""
SERVER_TIMEOUT = _internal(
    "1 of 1 read operations failed:\n  Timeout error: Operation 'Search' timed out after 1 seconds"
)
"""1.18.3: the server's own time for a request was up."""
CLIENT_DEADLINE = Trouble(500, "Timeout expired", grpc.StatusCode.CANCELLED)
"""1.18.3, over gRPC: the client's deadline passed; once in 1,500, otherwise DEADLINE_EXCEEDED."""
REPLICA_BEHIND = _internal("Local shard 2 not found")
"""1.18.3: through a node that is well, while another's replica was brought up to date; 2 of 774."""
PLEASE_RETRY = _internal(
    "Failed to apply update: replica deactivation timed out after 30s, please retry"
)
"""1.18.3: the first write to a shard of two nodes after one of them is away, after 30.4 s."""
NO_CONSENSUS = _internal(
    "Waiting for consensus operation commit failed. Timeout set at: 10 seconds"
)
"""1.18.3: too few nodes are there to agree, or the leader was lost; after 10 s. What was asked
for may happen later, by itself."""
NO_LEADER = _internal("Failed to propose operation: leader is not established within 10s")
"""1.18.3: no node leads; nothing was proposed, and nothing happens later."""

OF_CLUSTERS: Mapping[str, Trouble] = {
    "a node that is away": NODE_AWAY,
    "a timeout of the server's": SERVER_TIMEOUT,
    "a deadline of the client's": CLIENT_DEADLINE,
    "a replica that is not up to date": REPLICA_BEHIND,
    "a replica being given up": PLEASE_RETRY,
    "nodes that do not agree": NO_CONSENSUS,
    "nodes without a leader": NO_LEADER,
}
"""Passing ones, by what they come from."""
