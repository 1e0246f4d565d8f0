"""The HTTP service under many clients, beside the engine without it and beside a plain handler.

    python -m bench.api [--seconds 8]

The archive of ``precedent sample`` is served by ``precedent serve`` with an API key, the audit log
and the log of requests, as a hospital runs it. The clients are threads of another process, each
with a connection of its own that is kept. They ask by id, and by upload of a DICOM file, 1, 8 and
32 of them at a time. Beside it, over the same images:

- *engine*: ``SearchEngine`` in a process of its own, as many threads as there are clients, without
  any service; for an upload it reads and encodes the file as well.
- *plain*: what one would write in an afternoon, a FastAPI handler over ``qdrant-client`` with the
  same vectors and records, by id, without key, log, limits, tenants or evidence. Its index is
  qdrant-client's own, in the process.

A last run asks with four times as many clients as the service lets in and waits for: what it cannot
do at once has to be refused with 503, and everything else answered.

Prints requests a second, p50 and p99 in milliseconds, answers by status, and resident memory; then
the figures by which the service is judged. Writes bench/results/api.json.
"""

import argparse
import json
import os
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import requests
from rich.console import Console

from api.security.keys import Keys
from api.security.policy import Scope
from bench.machine import write_results
from bench.tables import show
from engine.errors import ImageRefused
from engine.search.query import Query
from engine.settings import load_settings
from engine.store.base import Filter
from indexer.archive import Archive, QueryReader
from indexer.datadir.layout import DataDir
from indexer.ledger.database import open_database

__all__ = ["main"]

_CLIENTS = (1, 8, 32)
_COLUMNS = ("question", "system", "clients", "requests/s", "p50 ms", "p99 ms", "status", "MB")
_TIMEOUT_S = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=8, help="of each run")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--data-dir", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--address", default="", help=argparse.SUPPRESS)
    parser.add_argument("--key", default="", help=argparse.SUPPRESS)
    parser.add_argument("--clients", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--upload", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--image", default="", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.step is not None:
        _STEPS[asked.step](asked)
        return
    with tempfile.TemporaryDirectory() as scratch:
        rows = _measured(Path(scratch), asked.seconds)
    targets = judged(rows)
    console = Console(width=150)
    show(console, "the service, the engine and a plain handler", rows, _COLUMNS)
    show(console, "judged", targets, ("measure", "value", "may be"))
    print(write_results("api", {"rows": rows, "targets": targets}))


def judged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The figures by which the service is judged.

    Args:
        rows: as they are printed.
    """
    by = {(row["question"], row["system"], row["clients"]): row for row in rows}

    def of(question: str, system: str, clients: int, figure: str) -> float:
        return float(by[question, system, clients][figure])

    added = of("id", "service", 1, "p50 ms") - of("id", "engine", 1, "p50 ms")
    upload = of("upload", "service", 1, "p50 ms") / of("upload", "engine", 1, "p50 ms")
    rate = "requests/s"
    through = of("id", "service", 32, rate) / of("id", "engine", 32, rate)
    uploads = of("upload", "service", 32, rate) / of("upload", "engine", 32, rate)
    tail = of("id", "service", 32, "p99 ms") / of("id", "service", 32, "p50 ms")
    plain = of("id", "service", 1, "p50 ms") / of("id", "plain", 1, "p50 ms")
    return [
        {"measure": "by id, added to the engine's p50, ms", "value": added, "may be": "≤ 3"},
        {"measure": "by upload, times the engine's p50", "value": upload, "may be": "≤ 1.25"},
        {"measure": "32 clients by id, of the engine's rate", "value": through, "may be": "≥ .8"},
        {"measure": "32 clients by upload, of the same", "value": uploads, "may be": "≥ .8"},
        {"measure": "32 clients by id, p99 / p50", "value": tail, "may be": "≤ 4"},
        {"measure": "by id, times a plain handler's p50", "value": plain, "may be": "≤ 1"},
    ]


def _measured(scratch: Path, seconds: float) -> list[dict[str, Any]]:
    data_dir, files = scratch / "data", scratch / "files"
    _run("sample", str(files))
    _run("index", str(files), "--data-dir", str(data_dir))
    settings = load_settings(data_dir=data_dir)
    with open_database(settings, DataDir(data_dir).ledger) as database:
        key = Keys(database).create("bench", [Scope.SEARCH])[1]
    with Archive(settings) as archive:
        image = next(iter(archive.store.scroll(Filter(), page=1))).id
        upload = Path(archive.paths([image])[image])
    common = ["--image", image, "--upload", str(upload), "--seconds", str(seconds)]
    rows = []
    for question in ("id", "upload"):
        systems = ("service", "engine", "plain") if question == "id" else ("service", "engine")
        for clients in _CLIENTS:
            for system in systems:
                with _started(system, data_dir) as (address, process):
                    found = _asked(question, system, clients, address, key, data_dir, common)
                    found["MB"] = found.get("MB") or _megabytes(process)
                rows.append({"question": question, "system": system, "clients": clients, **found})
    with _started("service", data_dir) as (address, process):
        server = settings.server
        crowd = 4 * (server.max_at_once + server.max_waiting)
        found = _asked("id", "service", crowd, address, key, data_dir, common)
        rows.append(
            {"question": "overload", "system": "service", "clients": crowd, **found}
            | {"MB": _megabytes(process)}
        )
    return rows


def _run(*arguments: str) -> None:
    command = [sys.executable, "-m", "api", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _asked(
    question: str,
    system: str,
    clients: int,
    address: str,
    key: str,
    data_dir: Path,
    common: list[str],
) -> dict[str, Any]:
    step = "engine" if system == "engine" else "clients"
    arguments = ["--step", step, "--clients", str(clients), "--address", address, "--key", key]
    arguments += ["--data-dir", str(data_dir), *common]
    if question == "id":
        at = arguments.index("--upload")
        del arguments[at : at + 2]
    command = [sys.executable, "-m", "bench.api", *arguments]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, Any] = json.loads(told.splitlines()[-1])
    return found


def _megabytes(process: subprocess.Popen[str] | None) -> int | None:
    if process is None:
        return None
    return round(psutil.Process(process.pid).memory_info().rss / 1e6)


@contextmanager
def _started(system: str, data_dir: Path) -> Iterator[tuple[str, subprocess.Popen[str] | None]]:
    """The address of a system that is asked over HTTP, and its process."""
    if system == "engine":
        yield "", None
        return
    own = ["-m", "api", "serve", "--port", "0", "--data-dir", str(data_dir)]
    plain = ["-m", "bench.api", "--step", "plain", "--data-dir", str(data_dir)]
    with ExitStack() as opened:
        process = subprocess.Popen(
            [sys.executable, *(own if system == "service" else plain)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PRECEDENT_SERVER__REQUESTS_PER_SECOND": "1000000"},
        )
        opened.callback(process.wait)
        opened.callback(process.terminate)
        if process.stdout is None:
            raise AssertionError("its output is a pipe")
        line = process.stdout.readline()
        address = next(word for word in line.split() if word.startswith("http"))
        until = time.monotonic() + 120
        while requests.get(f"{address}healthz", timeout=_TIMEOUT_S).status_code != 200:
            if time.monotonic() > until:
                raise TimeoutError(f"{address} does not answer")
            time.sleep(0.1)
        yield address, process


# Each of these runs in a process of its own.


def _ask_over_http(asked: argparse.Namespace) -> None:
    if asked.upload is None:
        what: dict[str, Any] = {"json": {"id": asked.image, "facets": False}}
    else:
        what = {"files": {"file": asked.upload.read_bytes()}, "data": {"facets": "false"}}
    # Written once, and sent by the standard library: the clients share the processors with what
    # they ask, and requests takes longer over a question than many an answer.
    written = requests.Request("POST", f"{asked.address}v1/search", **what).prepare()
    headers = {**written.headers, "Authorization": f"Bearer {asked.key}", "Accept-Encoding": "gzip"}
    place = urlsplit(asked.address)
    local = threading.local()

    def once() -> int:
        if not hasattr(local, "connection"):
            local.connection = HTTPConnection(place.hostname or "", place.port, timeout=_TIMEOUT_S)
        connection: HTTPConnection = local.connection
        try:
            connection.request("POST", "/v1/search", written.body, headers)
            answer = connection.getresponse()
            answer.read()
        except (ConnectionError, HTTPException):
            # The service has closed it, as it may after any answer; the next one is new.
            connection.close()
            return 0
        return answer.status

    print(json.dumps(_timed(once, asked.clients, asked.seconds)))


def _ask_engine(asked: argparse.Namespace) -> None:
    settings = load_settings(data_dir=asked.data_dir)
    with Archive(settings) as archive, ExitStack() as opened:
        query = Query(k=settings.search.k, facets=False)
        readers: queue.SimpleQueue[QueryReader] = queue.SimpleQueue()
        for _ in range(settings.indexing.readers):
            readers.put(opened.enter_context(archive.query_reader()))

        def once() -> int:
            if asked.upload is None:
                archive.engine.search_like(asked.image, query)
            else:
                reader = readers.get()
                (image,) = reader.read([asked.upload])
                readers.put(reader)
                if isinstance(image, ImageRefused):
                    raise image
                archive.engine.search([image.canvas], query, [image.record])
            return 200

        found = _timed(once, asked.clients, asked.seconds)
    print(json.dumps({**found, "MB": round(psutil.Process().memory_info().rss / 1e6)}))


def _timed(once: Callable[[], int], clients: int, seconds: float) -> dict[str, Any]:
    """Asks from many threads for some seconds, after a second of warming up."""
    begin = time.perf_counter() + 1
    end = begin + seconds
    took: list[float] = []
    statuses: Counter[int] = Counter()

    def work() -> None:
        while (start := time.perf_counter()) < end:
            status = once()
            if start >= begin:
                took.append(1000 * (time.perf_counter() - start) if status == 200 else -1)
                statuses[status] += 1

    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    good = [one for one in took if one >= 0]
    cuts = statistics.quantiles(good, n=100) if len(good) > 1 else [float("nan")] * 99
    return {
        "requests/s": round(len(good) / seconds, 1),
        "p50 ms": round(cuts[49], 2),
        "p99 ms": round(cuts[98], 2),
        "status": " ".join(f"{status}: {count}" for status, count in sorted(statuses.items())),
    }


def _serve_plainly(asked: argparse.Namespace) -> None:
    import uvicorn
    from fastapi import FastAPI
    from qdrant_client import QdrantClient, models

    client = QdrantClient(":memory:")
    with Archive(load_settings(data_dir=asked.data_dir)) as archive:
        points = list(archive.store.scroll(Filter(), with_z=True))
        k = archive.settings.search.k
    distance = models.Distance.COSINE
    size = len(points[0].z) if points[0].z is not None else 0
    client.create_collection("images", models.VectorParams(size=size, distance=distance))
    client.upsert(
        "images",
        [
            models.PointStruct(id=one.id, vector=one.z.tolist(), payload=one.record.known())
            for one in points
            if one.z is not None
        ],
    )
    app = FastAPI()

    @app.get("/healthz")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/v1/search")
    def search(body: dict[str, Any]) -> list[dict[str, Any]]:
        found = client.query_points("images", query=body["id"], limit=k, with_payload=True)
        return [{"id": one.id, "score": one.score, **(one.payload or {})} for one in found.points]

    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning")
    server = uvicorn.Server(config)

    def tell() -> None:
        while not server.started:
            time.sleep(0.05)
        port = server.servers[0].sockets[0].getsockname()[1]
        print(f"http://127.0.0.1:{port}/", flush=True)

    threading.Thread(target=tell, daemon=True).start()
    server.run()


_STEPS: dict[str, Callable[[argparse.Namespace], None]] = {
    "clients": _ask_over_http,
    "engine": _ask_engine,
    "plain": _serve_plainly,
}

if __name__ == "__main__":
    main()
