"""Indexes on Qdrant Edge in this process: plain Qdrant as a peer, and our search in its profiles.

Qdrant searches the segments of a shard with its own pool of threads. The indexes are kept in a
folder, so that building and searching can be measured in separate processes.
"""

import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import qdrant_edge as qdrant

from bench.ann import EF, EF_CONSTRUCT, LIBRARIES, LINKS, Code, Index, Measured, Rows, Z
from bench.vectors import Vectors, points, row_of
from engine.records import Answer, Observations
from engine.search.query import Query
from engine.store.base import Collection, Profile, VectorStore
from engine.store.edge import EdgeStore

__all__ = ["MODEL", "OURS", "PEERS", "Coarse", "Precedent", "Searcher"]

MODEL = "0" * 16
"""Fingerprint of the model that the vectors are said to be of."""

_WRITTEN_AT_ONCE, _WRITTEN_PER_SECOND = 32, 320
_UPSERT_AT_ONCE = 256  # as EdgeStore does

Coarse = Literal["auto", "codes", "cells"]
Searcher = Callable[[Observations, Query], Answer]


class PlainQdrant(Measured):
    """A plain Qdrant Edge shard: float32 vectors in an HNSW graph, ids, no payload."""

    knob, values = "hnsw_ef", EF
    kept = True

    def build(self, vectors: Vectors) -> None:
        graph = qdrant.HnswIndexConfig(LINKS, EF_CONSTRUCT, full_scan_threshold=10_000)
        space = qdrant.EdgeVectorParams(
            vectors.z.shape[1], qdrant.Distance.Cosine, hnsw_config=graph
        )
        config = qdrant.EdgeConfig(vectors={"z": space}, hnsw_config=graph)
        self._shard = qdrant.EdgeShard.create(str(self._folder / "shard"), config)
        with self._stage("upsert"):
            for start in range(0, len(vectors), _UPSERT_AT_ONCE):
                rows = enumerate(vectors.z[start : start + _UPSERT_AT_ONCE], start)
                chunk = [qdrant.Point(row, {"z": z.tolist()}) for row, z in rows]
                self._shard.update(qdrant.UpdateOperation.upsert_points(chunk))
            self._shard.flush()
        with self._stage("optimise"):
            self._shard.optimize()

    def open(self) -> None:
        self._shard = qdrant.EdgeShard.load(str(self._folder / "shard"))

    def search(self, z: Z, _code: Code, k: int) -> Rows:
        request = qdrant.QueryRequest(
            limit=k,
            query=qdrant.Query.Nearest(z.tolist(), using="z"),
            params=qdrant.SearchParams(hnsw_ef=self._value),
        )
        return np.array([found.id for found in self._shard.query(request)], np.int64)

    def bytes_on_disk(self) -> int:
        return allocated(self._folder)

    def facts(self) -> dict[str, Any]:
        info = self._shard.info()
        return {"segments": info.segments_count, "vectors_in_graph": info.indexed_vectors_count}

    def close(self) -> None:
        self._shard.close()


class Watched:
    """A proxy for a VectorStore that sums up the time spent in its calls, in ``seconds``."""

    def __init__(self, store: VectorStore) -> None:
        self._store = store
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        there = getattr(self._store, name)
        if not callable(there):
            return there

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return there(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - started

        return timed


class Precedent(Measured):
    """Our search, from the query's vector and code to the answer with its evidence."""

    knob, values = "asked", ("plainly", "by cells", "by codes", "with facets", "exactly")
    kept = True

    def __init__(
        self, folder: Path, profile: Profile, searcher: Callable[[VectorStore, Coarse], Searcher]
    ) -> None:
        super().__init__(folder)
        self._profile, self._searcher = profile, searcher
        self._answers: list[Answer] = []
        self._total = 0.0

    def build(self, vectors: Vectors) -> None:
        collection = Collection(MODEL, vectors.z.shape[1], 8 * vectors.codes.shape[1])
        self.store = EdgeStore.create(self._folder / "index", collection, self._profile)
        for start in range(0, len(vectors), 2048):
            chunk = points(vectors, range(start, min(start + 2048, len(vectors))))
            with self._stage("upsert"):
                self.store.upsert(chunk)
        with self._stage("upsert"):
            self.store.flush()
        with self._stage("optimise"):
            self.store.optimise()

    def open(self) -> None:
        self.store = EdgeStore.open(self._folder / "index")
        self._watched = Watched(self.store)
        self.turn(self.values[0])

    def turn(self, value: str) -> None:
        super().turn(value)
        by: dict[str, Coarse] = {"by cells": "cells", "by codes": "codes"}
        self.ask = self._searcher(self._watched, by.get(value, "auto"))

    def search(self, z: Z, code: Code, k: int) -> Rows:
        started = time.perf_counter()
        query = Query(k=k, exact=self._value == "exactly", facets=self._value == "with facets")
        answer = self.ask(Observations(z[None], code[None]), query)
        self._total += time.perf_counter() - started
        self._answers.append(answer)
        return np.array([row_of(hit.record) for hit in answer.hits], np.int64)

    def bytes_on_disk(self) -> int:
        return allocated(self._folder)

    def facts(self) -> dict[str, Any]:
        """share_outside_store: of the search time. rungs: rung → number of searches on it.
        cells: what the index has measured of its cells."""
        answers, total = self._answers, self._total
        stored, self._watched.seconds = self._watched.seconds, 0.0
        self._answers, self._total = [], 0.0
        if not answers:
            return {}
        return {
            "share_outside_store": round(1 - stored / total, 4),
            "rungs": dict(Counter(answer.evidence.rung for answer in answers)),
            "median_candidates": median(answer.evidence.candidates for answer in answers),
            "cells": None
            if (cells := self.store.cells) is None
            else {
                "count": len(cells),
                "probes": cells.probes,
                "recall": round(cells.recall, 4),
                "code_recall": round(cells.code_recall, 4),
            },
        }

    def throughput(
        self, vectors: Vectors, threads: int, writing: bool, seconds: float
    ) -> dict[str, Any]:
        """Queries per second and milliseconds of each, through one engine.

        ``writing``: while another thread adds images, about as fast as a GPU encodes them.
        """
        until = time.perf_counter() + seconds
        written = 0

        def ask(first: int) -> list[float]:
            taken: list[float] = []
            while (started := time.perf_counter()) < until:
                row = (first + len(taken)) % len(vectors.query_z)
                seen = Observations(vectors.query_z[row][None], vectors.query_codes[row][None])
                self.ask(seen, Query(k=10, facets=False))
                taken.append(1000 * (time.perf_counter() - started))
            return taken

        def write() -> None:
            nonlocal written
            while time.perf_counter() < until:
                rows = [(written + i) % len(vectors) for i in range(_WRITTEN_AT_ONCE)]
                self.store.upsert(points(vectors, rows, copy=threads))
                written += len(rows)
                time.sleep(_WRITTEN_AT_ONCE / _WRITTEN_PER_SECOND)

        with ThreadPoolExecutor(threads + 1) as pool:
            writer = pool.submit(write) if writing else None
            taken = [one for each in pool.map(ask, range(0, 7 * threads, 7)) for one in each]
            if writer is not None:
                writer.result()
        return {
            "threads": threads,
            "writing": writing,
            "queries_per_second": round(len(taken) / seconds, 1),
            "p50_ms": round(float(np.percentile(taken, 50)), 4),
            "p99_ms": round(float(np.percentile(taken, 99)), 4),
            "upserts_per_second": round(written / seconds, 1),
        }

    def close(self) -> None:
        self.store.close()


def allocated(folder: Path) -> int:
    """Bytes allocated on disk for the files of a folder; stores reserve more than they write."""
    return sum(512 * path.stat().st_blocks for path in folder.rglob("*") if path.is_file())


PEERS: dict[str, Callable[[Path], Index]] = {**LIBRARIES, "qdrant-hnsw": PlainQdrant}

OURS: dict[str, Profile] = {
    "hash": Profile("hash"),
    "precise": Profile("precise"),
    "hash-quantised": Profile("hash", quantised=True),
}
