"""Indexes of FAISS and usearch to compare our search with, and the interface of an index.

All are built from the same vectors with at most ``THREADS`` threads, and searched with one query at
a time from one thread, as when a person searches. Those that select candidates by code re-rank them
by vectors read from a file, as our search does.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bench.vectors import Vectors

__all__ = [
    "EF",
    "EF_CONSTRUCT",
    "LIBRARIES",
    "LINKS",
    "THREADS",
    "Code",
    "Index",
    "Measured",
    "Rows",
    "Z",
]

THREADS = min(2, os.cpu_count() or 1)
LINKS, EF_CONSTRUCT = 16, 100  # of every graph, as in our profile ``precise``
EF = (16, 32, 64, 128, 256, 512)

_CANDIDATES = (100, 300, 1000, 3000, 10_000)
_MULTIHASH_CANDIDATES = 1000  # the nearest by code, among those that share a band

Z, Code, Rows = NDArray[np.float32], NDArray[np.uint8], NDArray[np.int64]


class Index(Protocol):
    """An index to measure.

    knob: name of its search parameter, or "". values: the values of it to measure with.
    seconds, cpu_seconds: of building, by stage; by the clock, and of all processors.
    kept: it was built in a folder by another process, and is only opened for searching.
    """

    knob: str
    values: Sequence[Any]
    seconds: dict[str, float]
    cpu_seconds: dict[str, float]
    kept: bool

    def build(self, vectors: Vectors) -> None: ...

    def open(self) -> None: ...

    def turn(self, value: Any) -> None: ...

    def search(self, z: Z, code: Code, k: int, /) -> Rows:
        """Rows of the archive, most similar first, at most k. z: (D,). code: (B/8,)."""
        ...

    def bytes_on_disk(self) -> int:
        """Size of all files that a search reads, including the vectors used for re-ranking."""
        ...

    def facts(self) -> dict[str, Any]:
        """Further figures of the searches since the last call, by name."""
        ...

    def close(self) -> None: ...


def _processor_seconds() -> float:
    """Of this process, all its threads, and of the processes that it started and that ended."""
    found = os.times()
    return found.user + found.system + found.children_user + found.children_system


class Measured:
    """Base of most indexes: built in one stage, stored in one file, without further figures."""

    knob = ""
    values: Sequence[Any] = (None,)
    kept = False

    def __init__(self, folder: Path) -> None:
        self.seconds: dict[str, float] = {}
        self.cpu_seconds: dict[str, float] = {}
        self._folder = folder
        self._value: Any = None
        self._z: Z = np.empty((0, 0), np.float32)

    def build(self, vectors: Vectors) -> None:
        with self._stage("build"):
            self._fill(vectors)

    def _fill(self, vectors: Vectors) -> None:
        raise NotImplementedError

    def open(self) -> None:
        pass

    def turn(self, value: Any) -> None:
        self._value = value

    def facts(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        pass

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        started, busy = time.perf_counter(), _processor_seconds()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
        self.cpu_seconds[name] = self.cpu_seconds.get(name, 0.0) + _processor_seconds() - busy

    def _nearest_of(self, rows: Rows, z: Z, k: int) -> Rows:
        """The k of these rows that are most similar to z; negative rows are ignored."""
        rows = rows[rows >= 0]
        similarity = self._z[rows] @ z
        best = np.argpartition(-similarity, k)[:k] if k < len(rows) else np.arange(len(rows))
        return rows[best[np.argsort(-similarity[best], kind="stable")]]


class _Faiss(Measured):
    """Base of FAISS indexes, over z or over the codes."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        import faiss  # of the extra "bench"

        self._faiss = faiss
        self._index: Any = None

    def build(self, vectors: Vectors) -> None:
        self._faiss.omp_set_num_threads(THREADS)
        super().build(vectors)
        self._faiss.omp_set_num_threads(1)

    def search(self, z: Z, _code: Code, k: int) -> Rows:
        rows = self._index.search(z[None], k)[1][0]
        return rows[rows >= 0]

    def bytes_on_disk(self) -> int:
        path = self._folder / "index"
        binary = isinstance(self._index, self._faiss.IndexBinary)
        write = self._faiss.write_index_binary if binary else self._faiss.write_index
        write(self._index, str(path))
        return path.stat().st_size + self._z.nbytes


class FaissFlat(_Faiss):
    """Exact search: all vectors are compared. Recall is measured against its results."""

    def _fill(self, vectors: Vectors) -> None:
        self._index = self._faiss.IndexFlatIP(vectors.z.shape[1])
        self._index.add(vectors.z)


class FaissGraph(_Faiss):
    knob, values = "efSearch", EF

    def _fill(self, vectors: Vectors) -> None:
        self._index = self._faiss.IndexHNSWFlat(
            vectors.z.shape[1], LINKS, self._faiss.METRIC_INNER_PRODUCT
        )
        self._index.hnsw.efConstruction = EF_CONSTRUCT
        self._index.add(vectors.z)

    def turn(self, value: int) -> None:
        self._index.hnsw.efSearch = value


class FaissCodes(_Faiss):
    """All codes are compared; the nearest are re-ranked by z."""

    knob, values = "candidates", _CANDIDATES

    def _fill(self, vectors: Vectors) -> None:
        self._z = vectors.z
        self._index = self._faiss.IndexBinaryFlat(8 * vectors.codes.shape[1])
        self._index.add(vectors.codes)

    def search(self, z: Z, code: Code, k: int) -> Rows:
        candidates = min(max(k, self._value), self._index.ntotal)
        return self._nearest_of(self._index.search(code[None], candidates)[1][0], z, k)


class FaissMultiHash(_Faiss):
    """FAISS's multi-index hashing, on the same bands as ours; candidates are re-ranked by z."""

    knob, values = "nflip", (0, 1, 2)

    def _fill(self, vectors: Vectors) -> None:
        self._z = vectors.z
        bits = 8 * vectors.codes.shape[1]
        self._index = self._faiss.IndexBinaryMultiHash(bits, bits // 16, 16)
        self._index.add(vectors.codes)

    def turn(self, value: int) -> None:
        self._index.nflip = value

    def search(self, z: Z, code: Code, k: int) -> Rows:
        found = self._index.search(code[None], min(_MULTIHASH_CANDIDATES, self._index.ntotal))[1][0]
        return self._nearest_of(found, z, k)


class _Usearch(Measured):
    metric, scalar = "", ""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        import usearch.index  # of the extra "bench"

        self._made = usearch.index.Index
        self._index: Any = None

    def _graph(self, width: int, rows: NDArray[Any]) -> None:
        self._index = self._made(
            ndim=width,
            metric=self.metric,
            dtype=self.scalar,
            connectivity=LINKS,
            expansion_add=EF_CONSTRUCT,
        )
        self._index.add(np.arange(len(rows)), rows, threads=THREADS)

    def bytes_on_disk(self) -> int:
        path = self._folder / "index"
        self._index.save(path)
        return path.stat().st_size + self._z.nbytes

    def _asked(self, vector: Z | Code, count: int) -> Rows:
        return self._index.search(vector, count, threads=1).keys.astype(np.int64)


class UsearchGraph(_Usearch):
    knob, values = "expansion_search", EF
    metric, scalar = "ip", "f32"

    def _fill(self, vectors: Vectors) -> None:
        self._graph(vectors.z.shape[1], vectors.z)

    def turn(self, value: int) -> None:
        self._index.expansion_search = value

    def search(self, z: Z, _code: Code, k: int) -> Rows:
        return self._asked(z, k)


class UsearchCodes(_Usearch):
    """A graph over the codes; the nearest it finds are re-ranked by z."""

    knob, values = "candidates", _CANDIDATES
    metric, scalar = "hamming", "b1"

    def _fill(self, vectors: Vectors) -> None:
        self._z = vectors.z
        self._graph(8 * vectors.codes.shape[1], vectors.codes)

    def turn(self, value: int) -> None:
        super().turn(value)
        self._index.expansion_search = value

    def search(self, z: Z, code: Code, k: int) -> Rows:
        candidates = min(max(k, self._value), len(self._index))
        return self._nearest_of(self._asked(code, candidates), z, k)


LIBRARIES: dict[str, type[Measured]] = {
    "faiss-flat": FaissFlat,
    "faiss-hnsw": FaissGraph,
    "faiss-binary-flat": FaissCodes,
    "faiss-multihash": FaissMultiHash,
    "usearch-hnsw": UsearchGraph,
    "usearch-binary": UsearchCodes,
}
