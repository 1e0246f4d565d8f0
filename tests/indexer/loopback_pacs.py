"""A stand-in for a DICOMweb server on loopback, which errs as real ones do, and as hostile ones.

It knows QIDO-RS with paging and filters, and WADO-RS of instances and series. What it is asked
it notes; what it shall do instead of answering is said by path.
"""

import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

__all__ = ["Asked", "LoopbackPacs", "Reply", "multipart"]

BOUNDARY = "a-boundary"
_TYPE = f'multipart/related; type="application/dicom"; boundary="{BOUNDARY}"'

Fault = Callable[["Reply"], None]
"""Answers in place of the server."""


class Asked:
    """A request. query: the first value of each name."""

    def __init__(self, path: str, query: dict[str, str], headers: dict[str, str]) -> None:
        self.path, self.query, self.headers = path, query, headers


class Instance:
    def __init__(
        self, study: str, series: str, sop: str, content: bytes, **tags: str | None
    ) -> None:
        self.study, self.series, self.sop, self.content = study, series, sop, content
        self.date = tags.get("date", "")
        self.modality = tags.get("modality") or "CT"


def multipart(*contents: bytes, end: bytes = b"--", kind: str = "application/dicom") -> bytes:
    """A body of these parts."""
    parts = b"".join(
        f"--{BOUNDARY}\r\nContent-Type: {kind}\r\n\r\n".encode() + content + b"\r\n"
        for content in contents
    )
    return parts + f"--{BOUNDARY}".encode() + end


class Reply:
    """How a request is answered."""

    def __init__(self, handler: BaseHTTPRequestHandler) -> None:
        self._handler = handler

    def send(
        self,
        status: int,
        body: bytes = b"",
        kind: str = "text/plain",
        *,
        length: int | None = -1,
        **headers: str,
    ) -> None:
        """length: -1 = that of the body; None = the end of the connection is that of the body."""
        handler = self._handler
        handler.send_response_only(status)
        handler.send_header("Content-Type", kind)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        if length is None:
            handler.close_connection = True
        else:
            handler.send_header("Content-Length", str(len(body) if length < 0 else length))
            handler.close_connection = handler.close_connection or length > len(body)
        handler.end_headers()
        handler.wfile.write(body)

    def parts(self, *contents: bytes, **how: Any) -> None:
        self.send(200, multipart(*contents), _TYPE, **how)

    def raw(self, data: bytes) -> None:
        self._handler.wfile.write(data)

    def drop(self) -> None:
        """Ends the connection without a word."""
        self._handler.close_connection = True
        with suppress(OSError):
            self._handler.connection.shutdown(socket.SHUT_RDWR)


class LoopbackPacs:
    """The server; use it as a context manager.

    seconds: that an answer takes. page_cap: entries of one page at most. ignores: parameters it
    does not know, of "limit", "offset", "filters". user: the Authorization that it wants.
    chunked: bodies of images are sent in chunks. counts: how many instances it says that a study of
    so many has; None = it says nothing. counts_when_asked: it says so only if it is asked to.
    flat: what it can be asked of the instances of whole studies, of "study" (one, by path) and
    "list" (several, by a filter); list_separator: of their UIDs.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.instances: list[Instance] = []
        self.asked: list[Asked] = []
        self.page_cap = 10_000
        self.seconds = 0.0
        self.ignores: set[str] = set()
        self.user: str | None = None
        self.chunked = False
        self.counts: Callable[[int], int | str] | None = None
        self.counts_when_asked = False
        self.flat: set[str] = {"study", "list"}
        self.list_separator = ","
        self.under_way = self.most_under_way = 0
        self._faults: list[tuple[str, list[Fault]]] = []
        self._always: list[tuple[str, Fault]] = []
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(
            ("127.0.0.1", 0), type("Face", (_Face,), {"pacs": self}), bind_and_activate=True
        )
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self._scheme = "http"
        if tls is not None:
            self._scheme = "https"
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)

    def __enter__(self) -> "LoopbackPacs":
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def port(self) -> int:
        return self._server.server_port

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self.port}/dicom-web"

    def add(self, study: str, series: str, sop: str, content: bytes, **tags: str | None) -> str:
        """Takes an instance in; its locator. With the date None, searches do not say the date."""
        self.instances.append(Instance(study, series, sop, content, **tags))
        return f"{self.url}/studies/{study}/series/{series}/instances/{sop}"

    def fail(self, path: str, *faults: Fault) -> None:
        """The next requests of paths that end so are answered by these, one after the other."""
        self._faults.append((path, list(faults)))

    def always(self, path: str, fault: Fault) -> None:
        """All requests of paths that end so are answered by this."""
        self._always.append((path, fault))

    def fault(self, path: str) -> Fault | None:
        with self._lock:
            for ending, faults in self._faults:
                if path.endswith(ending) and faults:
                    return faults.pop(0)
            for ending, fault in self._always:
                if path.endswith(ending):
                    return fault
            return None

    def enter(self, change: int) -> None:
        with self._lock:
            self.under_way += change
            self.most_under_way = max(self.most_under_way, self.under_way)

    def paths(self) -> list[str]:
        """Of all requests, below the root of the API."""
        return [asked.path.removeprefix("/dicom-web") for asked in self.asked]

    def entries(self, path: str, query: dict[str, str]) -> list[dict[str, Any]] | None:
        """What a search finds, each once; None = this is no search."""
        whole = re.fullmatch(r"(?:/studies/([^/]+))?/instances", path)
        if whole is not None:
            return self._flat(whole[1], query)
        found = re.fullmatch(r"/studies(?:/([^/]+)/series(?:/([^/]+)/instances)?)?", path)
        if found is None:
            return None
        study, series = found.groups()
        entries: dict[str, dict[str, Any]] = {}
        for one in self.instances:
            if study is None:
                modalities = {i.modality: None for i in self.instances if i.study == one.study}
                entries[one.study] = {
                    "0020000D": _element(one.study),
                    "00080061": _element(*modalities),
                }
                if one.date is not None:
                    entries[one.study]["00080020"] = _element(one.date)
                if self.counts is not None and (
                    not self.counts_when_asked or query.get("includefield") == "00201208"
                ):
                    count = self.counts(sum(i.study == one.study for i in self.instances))
                    entries[one.study]["00201208"] = {"vr": "IS", "Value": [count]}
            elif one.study == study and series is None:
                entries[one.series] = {
                    "0020000E": _element(one.series),
                    "00080060": _element(one.modality),
                }
            elif (one.study, one.series) == (study, series):
                entries[one.sop] = {"00080018": _element(one.sop)}
        return list(entries.values())

    def _flat(self, study: str | None, query: dict[str, str]) -> list[dict[str, Any]] | None:
        if ("list" if study is None else "study") not in self.flat:
            return None
        wanted = query.get("StudyInstanceUID", "").split(self.list_separator)
        if "filters" in self.ignores:
            wanted = []
        query.pop("StudyInstanceUID", None)
        return [
            {
                "0020000D": _element(one.study),
                "0020000E": _element(one.series),
                "00080018": _element(one.sop),
                "00080060": _element(one.modality),
            }
            for one in self.instances
            if (one.study == study if study is not None else not wanted or one.study in wanted)
        ]

    def search(self, entries: list[dict[str, Any]], query: dict[str, str]) -> bytes:
        if "filters" not in self.ignores:
            entries = [entry for entry in entries if _matches(entry, query)]
        offset = 0 if "offset" in self.ignores else int(query.get("offset", 0))
        limit = self.page_cap
        if "limit" not in self.ignores:
            limit = min(limit, int(query.get("limit", limit)))
        return json.dumps(entries[offset : offset + limit]).encode()

    def contents(self, path: str) -> list[bytes] | None:
        """What is retrieved under a path; None = nothing."""
        found = re.fullmatch(r"/studies/([^/]+)/series/([^/]+)(?:/instances/([^/]+))?", path)
        names = found.groups() if found else ()
        return [
            one.content
            for one in self.instances
            if (one.study, one.series, one.sop)[: 2 if names[-1:] == (None,) else 3]
            == tuple(name for name in names if name is not None)
        ] or None


def _element(*values: str) -> dict[str, Any]:
    return {"vr": "UI", "Value": list(values)} if any(values) else {"vr": "UI"}


def _matches(entry: dict[str, Any], query: dict[str, str]) -> bool:
    def values(tag: str) -> list[str]:
        return entry.get(tag, {}).get("Value", [])

    first, _, last = query.get("StudyDate", "-").partition("-")
    days = values("00080020")
    dated = "StudyDate" not in query or any((first or "0") <= day <= (last or "9") for day in days)
    wanted = {
        "ModalitiesInStudy": "00080061",
        "Modality": "00080060",
        "StudyInstanceUID": "0020000D",
        "SeriesInstanceUID": "0020000E",
    }
    return dated and all(
        query[name] in values(tag) for name, tag in wanted.items() if name in query
    )


class _Face(BaseHTTPRequestHandler):
    pacs: LoopbackPacs
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 20

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        pacs, parts = self.pacs, urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        pacs.asked.append(Asked(parts.path, query, dict(self.headers.items())))
        pacs.enter(1)
        try:
            self._answer(parts.path, query)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            pacs.enter(-1)

    def _answer(self, path: str, query: dict[str, str]) -> None:
        pacs, reply = self.pacs, Reply(self)
        time.sleep(pacs.seconds)
        if fault := pacs.fault(path):
            fault(reply)
            return
        if pacs.user is not None and self.headers.get("Authorization") != pacs.user:
            reply.send(401, b"who are you")
            return
        inner = path.removeprefix("/dicom-web")
        entries = pacs.entries(inner, query)
        if entries is not None:
            reply.send(200, pacs.search(entries, query), "application/dicom+json")
        elif (contents := pacs.contents(inner)) is None:
            reply.send(404, b"no such thing")
        elif pacs.chunked:
            self._send_chunked(multipart(*contents))
        else:
            reply.parts(*contents)

    def _send_chunked(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", _TYPE)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in _pieces(body, 100):
            self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")


def _pieces(body: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]
