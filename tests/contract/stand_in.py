"""Runs a stand-in for a Qdrant server until Ctrl-C:

    python tests/contract/stand_in.py 6333
    python tests/contract/stand_in.py 6333 --behave drops-equal-must-not facets-by-shard
    python tests/contract/stand_in.py 6343 --behind http://127.0.0.1:6333

It speaks REST, so workers need PRECEDENT_STORE__PREFER_GRPC=false with it. It keeps points in
memory, and has no payload indexes; what is measured with it (bench/indexing.py) says how workers
share a job, and nothing of Qdrant. ``--behave`` names what it does as version 1.18.3 does, see
behaviours.py. With ``--behind`` it is a node that has everything, readiness too, from another
stand-in: several of these, each a process that can be killed, are a cluster with a copy of
everything on every node.
"""

import argparse
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("port", type=int, nargs="?", default=0, help="0 takes a free one")
    parser.add_argument("--behave", nargs="*", default=[], metavar="NAME")
    parser.add_argument("--behind", metavar="URL", help="of another one")
    asked = parser.parse_args()
    served = _node(asked.port, asked.behind) if asked.behind else _server(asked.port, asked.behave)
    with served as port, suppress(KeyboardInterrupt):
        print(f"http://127.0.0.1:{port}", flush=True)
        threading.Event().wait()


def _server(port: int, names: list[str]) -> AbstractContextManager[int]:
    # Imported here: a node, which is started and killed by tests, needs none of the client.
    from behaviours import BEHAVIOURS
    from loopback import Loopback

    return Loopback(*(BEHAVIOURS[name]() for name in names)).rest(port)


@contextmanager
def _node(port: int, behind: str) -> Iterator[int]:
    face = type("Node", (_Node,), {"behind": urlsplit(behind).netloc})
    server = ThreadingHTTPServer(("127.0.0.1", port), face)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server.server_port


class _Node(BaseHTTPRequestHandler):
    """Hands each request on, and its answer back."""

    behind: str

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        onwards = HTTPConnection(self.behind, timeout=60)
        onwards.request(self.command, self.path, body, dict(self.headers))
        answer = onwards.getresponse()
        data = answer.read()
        self.send_response(answer.status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        onwards.close()

    do_PUT = do_POST = do_PATCH = do_DELETE = do_GET  # noqa: N815


if __name__ == "__main__":
    main()
