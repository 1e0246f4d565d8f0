"""Nodes of a cluster in which every node has a copy of everything.

    with Cluster(2) as cluster:
        first, second = cluster.nodes
        first.die()          # by kill -9
        first.come_back()    # as it was when it died, and not ready
        first.catch_up()     # ready

1.18.3 on three nodes: a node that comes back answers at once, with the state that it had when it
went (6,551 of 10,000 points for .6 s), and its /readyz is not 200 until it has caught up, 2 to 4 s
later.
"""

import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from behaviours import Behaviour
from loopback import Loopback
from services.server import free_ports

__all__ = ["Cluster", "Node"]

_STAND_IN = Path(__file__).with_name("stand_in.py")


class Node:
    """A process that answers for one node, over REST. Behind it is a face of the shared stand-in,
    so that the test can see and change what the cluster has."""

    def __init__(self, cluster: "Cluster", face: int) -> None:
        self._cluster, self._face = cluster, face
        (self.port,) = free_ports(1)
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def asked_before_it_was_ready(self) -> list[str]:
        """What it was asked since it came back, and could only answer from its old state."""
        old = self._cluster.engine.old.get(self._face)
        return [] if old is None else old.asked

    def start(self) -> None:
        """Returns when the process answers."""
        behind = f"http://127.0.0.1:{self._face}"
        self._process = subprocess.Popen(
            [sys.executable, _STAND_IN, str(self.port), "--behind", behind],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline().strip() == self.url

    def die(self) -> None:
        self._cluster.engine.old[self._face] = self._cluster.engine.remembered()
        self._end(signal.SIGKILL)

    def come_back(self) -> None:
        self._cluster.engine.unready.add(self._face)
        self.start()

    def catch_up(self) -> None:
        self._cluster.engine.unready.discard(self._face)

    def close(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(how)
            process.wait(30)
            assert process.stdout is not None
            process.stdout.close()


class Cluster:
    """Some nodes, each a process, over one stand-in with these behaviours."""

    def __init__(self, count: int, *behaviours: Behaviour) -> None:
        self.engine = Loopback(*behaviours)
        self.engine.nodes = count
        self.nodes: list[Node] = []
        self._count = count
        self._open = ExitStack()

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(node.url for node in self.nodes)

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            for _ in range(self._count):
                node = Node(self, opened.enter_context(self.engine.rest()))
                node.start()
                opened.callback(node.close)
                self.nodes.append(node)
            self._open = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()
