"""A client of a cluster: it speaks to one of the cluster's nodes, and turns to another one."""

import time
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any

import httpx
from qdrant_client import QdrantClient

__all__ = ["Nodes", "NoneReady", "is_ready"]

_PROBE_SECONDS = 2.0
_QUIET_SECONDS = 1.0
"""A node that was not asked for so long may have been restarted meanwhile, and not be ready again;
a restart takes longer. Whoever asks more often meets an error."""


def is_ready(url: str) -> bool:
    """Whether the node at ``url`` says that it can be asked. One that comes back after it was away
    does not for some seconds, and would answer from its state of before."""
    try:
        # Reading the certificates takes longer than the answer.
        answer = httpx.get(
            f"{url.rstrip('/')}/readyz",
            timeout=_PROBE_SECONDS,
            verify=url.startswith("https:"),
        )
    except httpx.HTTPError:
        return False
    return answer.status_code == httpx.codes.OK


class NoneReady(Exception):
    """None of the nodes of a cluster can be asked now."""


class Nodes:
    """Clients of the nodes of one cluster, used as one client: each call goes to one node.

    Only nodes that are ready are spoken to: one is looked for before the first call, when none
    was called for a while, and whenever one has failed.

    Args:
        urls: of the nodes. clients: of each; closed with this one.
        ready: whether the node at a URL can be asked.
    """

    def __init__(
        self,
        urls: Sequence[str],
        clients: Sequence[QdrantClient],
        ready: Callable[[str], bool] = is_ready,
    ) -> None:
        self._urls = urls
        self._clients = clients
        self._ready = ready
        self._at = 0
        self._found = False
        self._spoken = time.monotonic()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._clients)

    @property
    def url(self) -> str:
        """Of the node that is spoken to."""
        return self._urls[self._at]

    def turn(self, away: str) -> bool:
        """Turns to the next node that is ready; whether there is one.

        Args:
            away: the node that failed, which is asked again only when it says that it is ready
                and no other one is. If another thread has turned from it, it stays at that.
        """
        with self._lock:
            if self._found and self.url != away:
                return True
            return self._look(1)

    def away(self) -> list[str]:
        """The URLs of the nodes that are not ready now."""
        return [url for url in self._urls if not self._ready(url)]

    def each(self) -> list[tuple[str, QdrantClient]]:
        """The URL of each node with its client, ready or not."""
        return list(zip(self._urls, self._clients, strict=True))

    def close(self) -> None:
        for client in self._clients:
            client.close()

    def _look(self, first: int) -> bool:
        """Turns to a node that is ready, from the ``first`` after this one on."""
        for step in range(first, first + len(self)):
            at = (self._at + step) % len(self)
            if self._ready(self._urls[at]):
                self._at, self._found = at, True
                return True
        self._found = False
        return False

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """The method of this name, of the client of whichever node is spoken to when called."""

        def call(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                quiet = time.monotonic() - self._spoken > _QUIET_SECONDS
                if (quiet or not self._found) and not self._look(0):
                    raise NoneReady("no node of the cluster is ready")
                self._spoken = time.monotonic()
                client = self._clients[self._at]
            answer = getattr(client, name)(*args, **kwargs)
            self._spoken = time.monotonic()
            return answer

        return call
