"""Measures one system on one archive, in a process of its own.

python -m bench.searching JOB
"""

import ctypes
import gc
import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from bench.ann import THREADS, Index
from bench.machine import machine
from bench.stores import MODEL, OURS, PEERS, Coarse, Precedent, Searcher
from bench.vectors import Vectors, recall
from engine.files import write_atomically
from engine.search.engine import SearchEngine
from engine.search.ranking import ranked
from engine.settings import SearchSettings
from engine.store.base import Filter, Nearest, VectorStore

__all__ = ["Job", "make", "searcher"]

_VERSION = 4  # of what is measured: another number measures everything again
_RANKED = 126  # 100, one to see whether more follow, and a quarter for equal scores
_LIBRARIES = {"faiss": "faiss-cpu", "usearch": "usearch"}  # the rest is Qdrant Edge


@dataclass(frozen=True)
class Job:
    """A measurement of one system on one archive.

    vectors: the folder that ``prepared`` made. seconds: after this time a pass over the queries
    stops early.
    """

    kind: str
    count: int
    system: str
    vectors: str
    seconds: float
    place: str = ""

    @property
    def library(self) -> str:
        name = _LIBRARIES.get(self.system.split("-")[0], "qdrant-edge-py")
        try:
            return f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            return name

    @property
    def file(self) -> str:
        values = getattr(PEERS.get(self.system, Precedent), "values", ())
        decides = [_VERSION, self.system, self.library, values, self.seconds, THREADS]
        decides.append(Path(self.vectors).name)  # kind, count, queries, seed, and what they are of
        digest = hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:12]
        return f"{self.kind}-{self.count}-{self.system}-{digest}.json"


def searcher(store: VectorStore, coarse: Coarse) -> Searcher:
    """A function that searches with our engine for queries that are encoded already."""
    encoder: Any = SimpleNamespace(manifest=SimpleNamespace(fingerprint=MODEL), precision="fp32")
    return SearchEngine(encoder, store, SearchSettings(coarse=coarse)).answer


def measure(job: Job) -> dict[str, Any]:
    """Measures one system; must run in a process of its own."""
    if hasattr(os, "sched_setaffinity"):  # Qdrant takes as many threads as there are cores
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    vectors = Vectors.opened(Path(job.vectors))
    exact = np.load(Path(job.vectors) / "exact.npy")
    index = index_of(job)
    before = resident(job.vectors)
    if index.kept:
        # What building leaves behind in memory is no part of searching.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:
            index.seconds, index.cpu_seconds, busy = apart.submit(built, job).result()
        index.open()
    else:
        busy = fill(index, vectors)
    cores = {"building": busy}
    watch = _Cores()
    searches = []
    for value in index.values:
        index.turn(value)
        for k in (10, 100):
            asked(index, vectors, k, job.seconds)
            index.facts()
            found, taken = asked(index, vectors, k, job.seconds)
            searches.append(
                {
                    "knob": index.knob,
                    "value": value,
                    "k": k,
                    "queries": len(found),
                    "p50_ms": round(float(np.percentile(taken, 50)), 4),
                    "p99_ms": round(float(np.percentile(taken, 99)), 4),
                    "recall": round(recall(found, exact[: len(found)], k), 5),
                    **index.facts(),
                }
            )
    cores["searching"] = watch.busy()
    after = resident(job.vectors)
    figures = {
        "kind": job.kind,
        "count": job.count,
        "system": job.system,
        "library": job.library,
        "build": {
            "seconds": {stage: round(s, 3) for stage, s in index.seconds.items()},
            "total": round(sum(index.seconds.values()), 3),
            "cpu_seconds": {stage: round(s, 3) for stage, s in index.cpu_seconds.items()},
            "cpu_total": round(sum(index.cpu_seconds.values()), 3),
        },
        "cores": cores,
        "disk_bytes": index.bytes_on_disk(),
        "resident_bytes": after[0] - before[0],
        "anonymous_bytes": after[1] - before[1],
        "searches": searches,
    }
    if isinstance(index, Precedent) and job.system == "hash":
        index.turn(index.values[0])
        figures["ranking"] = ranking(index.store, vectors)
        figures["throughput"] = [
            index.throughput(vectors, threads, writing, min(job.seconds, 5))
            for writing in (False, True)
            for threads in (1, 4, 16)
        ]
    index.close()
    return {**figures, "machine": machine()}


def index_of(job: Job) -> Index:
    place = Path(job.place)
    if job.system in OURS:
        return Precedent(place, OURS[job.system], searcher)
    return PEERS[job.system](place)


def built(job: Job) -> tuple[dict[str, float], dict[str, float], float]:
    """Builds the index: seconds and processor seconds by stage, and cores kept busy."""
    index = index_of(job)
    busy = fill(index, Vectors.opened(Path(job.vectors)))
    index.close()
    return index.seconds, index.cpu_seconds, busy


def fill(index: Index, vectors: Vectors) -> float:
    """Builds the index and returns how many cores that kept busy."""
    watch = _Cores()
    index.build(vectors)
    return watch.busy()


class _Cores:
    """Processor seconds of this process, all threads, for a second of the clock."""

    def __init__(self) -> None:
        self._clock, self._processor = time.perf_counter(), time.process_time()

    def busy(self) -> float:
        clock, processor = time.perf_counter(), time.process_time()
        return round((processor - self._processor) / (clock - self._clock), 2)


def asked(
    index: Index, vectors: Vectors, k: int, seconds: float
) -> tuple[list[NDArray[np.int64]], list[float]]:
    """Searches with each query: the rows found, and the milliseconds taken."""
    found, taken = [], []
    begun = time.perf_counter()
    for z, code in zip(vectors.query_z, vectors.query_codes, strict=True):
        started = time.perf_counter()
        found.append(index.search(z, code, k))
        taken.append((time.perf_counter() - started) * 1000)
        if time.perf_counter() - begun > seconds:
            break
    return found, taken


def resident(vectors: str) -> tuple[int, int]:
    """Resident bytes of this process without the vectors' files, and anonymous bytes."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed, by imports too, is nobody's
    maps = [m for m in psutil.Process().memory_maps() if not m.path.startswith(vectors)]
    return sum(m.rss for m in maps), sum(m.anonymous for m in maps)


def ranking(store: VectorStore, vectors: Vectors) -> dict[str, Any]:
    """Times how long ranking the store's results for k = 100 in content order takes."""
    taken = []
    for z, code in zip(vectors.query_z, vectors.query_codes, strict=True):
        found = store.query([Nearest(z, Filter(), _RANKED)])[0]
        started = time.perf_counter()
        ranked(found, code, "content")
        taken.append((time.perf_counter() - started) * 1000)
    return {"points": len(found), "median_ms": round(median(taken), 4)}


def make(job: Job, results: Path, scratch: Path, timeout: float, fresh: bool) -> dict[str, Any]:
    """The figures of a job: measured now in a process of its own, or read from an earlier run.

    If the job fails they hold ``failed``, the reason, and it is tried again the next time.
    """
    path = results / job.file
    if path.exists() and not fresh:
        known: dict[str, Any] = json.loads(path.read_text())
        return known
    nothing = {"kind": job.kind, "count": job.count, "system": job.system}
    with tempfile.TemporaryDirectory(dir=scratch) as place:
        job = replace(job, place=place)
        command = [sys.executable, "-m", "bench.searching", json.dumps(asdict(job))]
        # NumPy and FAISS search in the calling thread; for building, FAISS is given more.
        environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        try:
            done = subprocess.run(
                command,
                cwd=Path(__file__).parents[1],
                env=environment,
                capture_output=True,
                text=True,
                timeout=timeout,
                check=True,
            )
        except subprocess.TimeoutExpired:
            return nothing | {"failed": f"took longer than {timeout:.0f} s"}
        except subprocess.CalledProcessError as error:
            said = error.stderr.strip().splitlines() or ["nothing said"]
            return nothing | {"failed": f"exit {error.returncode}: {said[-1]}"}
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    results.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(figures, indent=1) + "\n").encode())
    return figures


if __name__ == "__main__":
    print(json.dumps(measure(Job(**json.loads(sys.argv[1])))))
