"""The REST face of a stand-in for a Qdrant server."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import grpc
from pydantic_core import to_json
from qdrant_client import models
from troubles import Trouble

if TYPE_CHECKING:
    from loopback import Loopback

__all__ = ["rest_face"]


@contextmanager
def rest_face(loopback: "Loopback", port: int) -> Iterator[int]:
    """Serves REST on a loopback port, 0 for a free one; the port."""
    face = type("Face", (_Rest,), {"loopback": loopback})
    server = _Listening(("127.0.0.1", port), face)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


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
    ("GET", f"{_C}/cluster", "shards", lambda e, b, n: e.shards(n)),
    ("GET", "/cluster", "cluster", lambda e, b: e.cluster()),
    ("POST", f"{_C}/facet", "facet", lambda e, b, n: e.facet(n, _M.FacetRequest(**b))),
]  # fmt: skip


_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class _Listening(ThreadingHTTPServer):
    request_queue_size = 128
    """A search opens a dozen connections in one moment; those that do not fit wait for a second."""


class _Rest(BaseHTTPRequestHandler):
    loopback: "Loopback"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        loopback, port = self.loopback, self.server.server_port
        time.sleep(loopback.latency)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.partition("?")[0]
        if path == "/readyz":
            self._send(503 if port in loopback.unready else 200, None)
            return
        engine = loopback.seen_at(port)
        for method, pattern, operation, work in _ROUTES:
            if method == self.command and (found := re.fullmatch(pattern, path)):
                self._answer(operation, partial(work, engine, _json(body), *found.groups()))
                return
        self._send(404, {"status": {"error": f"no route {self.command} {path}"}})

    do_PUT = do_POST = do_PATCH = do_DELETE = do_GET  # noqa: N815

    def _answer(self, operation: str, work: Callable[[], Any]) -> None:
        engine = self.loopback.seen_at(self.server.server_port)
        try:
            with engine.answering(operation):
                if engine.key is not None and self.headers.get("api-key") != engine.key:
                    raise Trouble(401, "Must provide an API key", grpc.StatusCode.UNAUTHENTICATED)
                answer = {"result": work(), "status": "ok", "time": 0.0}
        except Trouble as trouble:
            if trouble.status:
                said = {"status": {"error": trouble.text}}
                self._send(trouble.status, said, trouble.headers)
            return
        if operation == "info":
            answer = {"title": "stand-in", "version": engine.version}
        self._send(200, answer)

    def _send(
        self, status: int, answer: Any, headers: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        data = to_json(answer)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _json(body: bytes) -> Any:
    return json.loads(body) if body else None
