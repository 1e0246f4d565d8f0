"""What the check of an API key adds to a request: ``python -m bench.access --data-dir DIR``.

It serves copies of the index in DIR twice, with keys and with the check taken out of the program,
and asks for one indexed image over connections that are kept, in turns. DIR is left as it is.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import requests

from api.security.keys import Keys
from api.security.policy import Scope
from engine.settings import load_settings
from engine.store.base import Filter
from engine.store.opening import open_store
from indexer.datadir.layout import DataDir
from indexer.ledger.database import open_database

__all__ = ["main"]

_UNCHECKED = """
import api.security.access as access
access.Access.caller = lambda *_: access.OPEN
from api.cli.main import main
main()
"""


def main() -> None:
    """Prints the median and the 99th percentile of both, in milliseconds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--requests", type=int, default=2000)
    asked = parser.parse_args()
    with ExitStack() as opened:
        root = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        clients = {}
        for name in ("unchecked", "key"):
            shutil.copytree(asked.data_dir, root / name, ignore=shutil.ignore_patterns("*.sock"))
            headers = {"Authorization": f"Bearer {_key(root / name)}"} if name == "key" else {}
            address = _served(opened, root / name, asked.model, checked=name == "key")
            session = opened.enter_context(requests.Session())
            session.headers.update(headers)
            clients[name] = (session, address)
        settings = load_settings(data_dir=asked.data_dir)
        with open_store(settings, DataDir(asked.data_dir).index, None, create=False) as store:
            image = next(iter(store.scroll(Filter(), page=1))).id
        for what, path in (("image", f"v1/images/{image}"), ("search", "v1/search")):
            took: dict[str, list[float]] = {name: [] for name in clients}
            for _ in range(asked.requests):
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
            added = statistics.median(took["key"][20:]) - statistics.median(took["unchecked"][20:])
            print(f"{what}: a key adds {added:.2f} ms at p50")


def _key(data_dir: Path) -> str:
    settings = load_settings(data_dir=data_dir)
    with open_database(settings, DataDir(data_dir).ledger) as database:
        return Keys(database).create("bench", [Scope.SEARCH])[1]


def _served(opened: ExitStack, data_dir: Path, model: Path | None, *, checked: bool) -> str:
    """The address of a service over this data folder."""
    start = ["-m", "api"] if checked else ["-c", _UNCHECKED]
    command = [sys.executable, *start, "serve", "--port", "0", "--data-dir", str(data_dir)]
    command += [] if model is None else ["--model", str(model)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
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
