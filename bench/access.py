"""What HTTP, keys and audit log add to a request: ``python -m bench.access --data-dir DIR``.

It serves copies of the index in DIR: with the check of keys taken out of the program and without an
audit log, with keys, and with both. It asks for one indexed image over connections that are kept,
in turns, and beside them the engine in this process, without any service. DIR is left as it is; the
copies, and so the audit log, lie on the disk of TMPDIR.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import requests

from api.security.keys import Keys
from api.security.policy import Scope
from engine.search.query import Query
from engine.settings import load_settings
from engine.store.base import Filter
from indexer.archive import Archive
from indexer.datadir.layout import DataDir
from indexer.ledger.database import open_database

__all__ = ["main"]

_UNCHECKED = """
import api.security.access as access
access.Access.identified = lambda *_: access.OPEN
from api.cli.main import main
main()
"""


def main() -> None:
    """Prints the median and the 99th percentile of each, in milliseconds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--requests", type=int, default=2000)
    asked = parser.parse_args()
    with ExitStack() as opened:
        root = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        clients = {}
        for name in ("unchecked", "key", "audit"):
            shutil.copytree(asked.data_dir, root / name, ignore=shutil.ignore_patterns("*.sock"))
            keys = {} if name == "unchecked" else _bearer(root / name)
            address = _served(opened, root / name, asked.model, name)
            session = opened.enter_context(requests.Session())
            session.headers.update(keys)
            clients[name] = (session, address)
        shutil.copytree(asked.data_dir, root / "engine", ignore=shutil.ignore_patterns("*.sock"))
        settings = load_settings(data_dir=root / "engine", model=asked.model)
        archive = opened.enter_context(Archive(settings))
        image = next(iter(archive.store.scroll(Filter(), page=1))).id
        query = Query(k=settings.search.k, facets=False)
        without: dict[str, Callable[[], object]] = {
            "image": lambda: archive.engine.image(image),
            "search": lambda: archive.engine.search_like(image, query),
        }
        for what, path in (("image", f"v1/images/{image}"), ("search", "v1/search")):
            took: dict[str, list[float]] = {name: [] for name in ("engine", *clients)}
            for _ in range(asked.requests):
                start = time.perf_counter()
                without[what]()
                took["engine"].append(1000 * (time.perf_counter() - start))
                for name, (session, address) in clients.items():
                    start = time.perf_counter()
                    if what == "search":
                        data = {"id": image, "facets": "false"}
                        answer = session.post(address + path, data=data, timeout=60)
                    else:
                        answer = session.get(address + path, timeout=60)
                    took[name].append(1000 * (time.perf_counter() - start))
                    answer.raise_for_status()
            for name, times in took.items():
                cuts = statistics.quantiles(times[20:], n=100)
                print(f"{what} {name}: p50 {cuts[49]:.2f} ms, p99 {cuts[98]:.2f} ms")
            middle = {name: statistics.median(times[20:]) for name, times in took.items()}
            print(f"{what}: a key adds {middle['key'] - middle['unchecked']:.2f} ms at p50")
            print(f"{what}: the audit log adds {middle['audit'] - middle['key']:.2f} ms at p50")
            print(f"{what}: all of it adds {middle['audit'] - middle['engine']:.2f} ms at p50")


def _bearer(data_dir: Path) -> dict[str, str]:
    settings = load_settings(data_dir=data_dir)
    with open_database(settings, DataDir(data_dir).ledger) as database:
        return {"Authorization": f"Bearer {Keys(database).create('bench', [Scope.SEARCH])[1]}"}


def _served(opened: ExitStack, data_dir: Path, model: Path | None, kind: str) -> str:
    """The address of a service over this data folder. kind: "unchecked", "key" or "audit"."""
    start = ["-c", _UNCHECKED] if kind == "unchecked" else ["-m", "api"]
    command = [sys.executable, *start, "serve", "--port", "0", "--data-dir", str(data_dir)]
    command += [] if model is None else ["--model", str(model)]
    environment = {
        **os.environ,
        "PRECEDENT_AUDIT__ENABLED": str(kind == "audit"),
        "PRECEDENT_SERVER__REQUESTS_PER_SECOND": "1000000",
        "PRECEDENT_SERVER__LOG_REQUESTS": "false",
    }
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    opened.callback(process.wait)
    opened.callback(process.terminate)
    if process.stdout is None:
        raise AssertionError("its output is a pipe")
    address = next(word for word in process.stdout.readline().split() if word.startswith("http"))
    until = time.monotonic() + 120
    while requests.get(f"{address}healthz", timeout=60).status_code != 200:
        if time.monotonic() > until:
            raise TimeoutError(f"{address} does not answer")
        time.sleep(0.1)
    return address


if __name__ == "__main__":
    main()
