"""Filters and facets: exactness and speed, beside Qdrant's filtered graph and FAISS.

    python -m bench.filtered [DATA] [--count 100000] [--kind synthetic]

All systems hold the same images and are asked one after another for each query, in one process. A
filter selects by the fields of records, about a tenth and about a hundredth of the images (bench/
vectors.py gives whole studies one value, as archives do), or the images of studies drawn at random.
Recall is against comparing all images that pass.

- ours: ``EdgeStore`` with the profile hash, through the engine, with records.
- Qdrant: a plain Qdrant Edge shard, vectors in a graph, the ten facet fields as payload with an
  index each; bare ids. Its facets are exact, a call for each field.
- FAISS: a graph with an ``IDSelectorBitmap`` of the rows that pass, made beforehand; bare rows.

Prints a table and writes bench/results/filtered.json.
"""

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import qdrant_edge as qdrant
from numpy.typing import NDArray
from rich.console import Console

from bench.ann import EF_CONSTRUCT, LINKS, THREADS
from bench.machine import write_results
from bench.searching import searcher
from bench.stores import MODEL
from bench.tables import show
from bench.vectors import KINDS, Vectors, points, prepared, row_of
from engine.records import ImageRecord, Observations
from engine.search.query import Query, parse_where
from engine.store.base import Collection, Filter, Match
from engine.store.edge import EdgeStore
from engine.store.payload import FACET_FIELDS

_K = 10
_AT_ONCE = 2048
_EF = 64
_FILTERS = {
    "a tenth": ("source=station 3",),
    "a hundredth": ("source=station 3", "age_band=30-39"),
}
_STUDIES = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, nargs="?", help="folder of the kind 'real'")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--kind", choices=KINDS, default="synthetic")
    parser.add_argument("--queries", type=int, default=200)
    arguments = parser.parse_args()
    folder = prepared(arguments.kind, arguments.count, arguments.queries, data=arguments.data)
    vectors = Vectors.opened(folder)
    with tempfile.TemporaryDirectory() as scratch:
        searches, facets = measured(vectors, Path(scratch))
    console = Console(width=150)
    title = f"{arguments.kind}, {arguments.count:,} images"
    show(console, f"{title}: ten nearest that pass a filter", searches, list(searches[0]))
    show(console, f"{title}: ten facets of the images that pass", facets, list(facets[0]))
    results = {"kind": arguments.kind, "count": arguments.count, "searches": searches}
    print(write_results("filtered", results | {"facets": facets}))


def measured(vectors: Vectors, place: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of the two tables."""
    records = _records(vectors)
    ours, shard, faiss = _ours(vectors, place), _qdrant(vectors, records, place), _faiss(vectors)
    rng = np.random.default_rng(0)
    studies = rng.permutation(list({record.study for record in records if record.study}))
    filters = {name: parse_where(terms) for name, terms in _FILTERS.items()}
    filters[f"{_STUDIES} studies"] = Filter((Match("study", tuple(studies[:_STUDIES].tolist())),))
    ask = searcher(ours, "auto")
    searches, facets = [], []
    for name, where in filters.items():
        passing = np.flatnonzero([_passes(record, where) for record in records])
        translated = _translated(where)
        selector = _selector(faiss, passing, len(records))
        asks: dict[str, Callable[[NDArray[np.float32], NDArray[np.uint8]], Any]] = {
            "ours": lambda z, code, where=where: [
                row_of(hit.record)
                for hit in ask(
                    Observations(z[None], code[None]), Query(k=_K, where=where, facets=False)
                ).hits
            ],
            "Qdrant, filtered graph": lambda z, _, chosen=translated: _asked(shard, z, chosen),
            "FAISS, graph with selector": lambda z, _, chosen=selector: faiss.search(
                z[None], _K, params=chosen
            )[1][0],
        }
        for system, (recall, p50, p99) in _timed(asks, vectors, passing).items():
            searches.append(
                {
                    "filter": name,
                    "images that pass": len(passing),
                    "system": system,
                    "recall": recall,
                    "p50_ms": p50,
                    "p99_ms": p99,
                }
            )
        facets += _facets(ours, shard, where, translated, name, records, passing)
    ours.close()
    shard.close()
    return searches, facets


def _records(vectors: Vectors) -> list[ImageRecord]:
    found: list[ImageRecord] = []
    for start in range(0, len(vectors), _AT_ONCE):
        rows = range(start, min(start + _AT_ONCE, len(vectors)))
        found += [point.record for point in points(vectors, rows)]
    return found


def _ours(vectors: Vectors, place: Path) -> EdgeStore:
    collection = Collection(MODEL, vectors.z.shape[1], 8 * vectors.codes.shape[1])
    store = EdgeStore.create(place / "ours", collection)
    for start in range(0, len(vectors), _AT_ONCE):
        store.upsert(points(vectors, range(start, min(start + _AT_ONCE, len(vectors)))))
    store.flush()
    store.optimise()
    return store


def _qdrant(vectors: Vectors, records: list[ImageRecord], place: Path) -> qdrant.EdgeShard:
    graph = qdrant.HnswIndexConfig(LINKS, EF_CONSTRUCT, full_scan_threshold=10_000)
    space = qdrant.EdgeVectorParams(vectors.z.shape[1], qdrant.Distance.Cosine, hnsw_config=graph)
    (place / "qdrant").mkdir()
    config = qdrant.EdgeConfig(vectors={"z": space}, hnsw_config=graph)
    shard = qdrant.EdgeShard.create(str(place / "qdrant"), config)
    for field in (*FACET_FIELDS, "study"):
        index: Any = qdrant.KeywordIndexParams()
        if field == "study_year":
            index = qdrant.IntegerIndexParams(lookup=True, range=True)
        shard.update(qdrant.UpdateOperation.create_field_index(field, index))
    for start in range(0, len(vectors), _AT_ONCE):
        chunk = []
        for row in range(start, min(start + _AT_ONCE, len(vectors))):
            payload = {name: getattr(records[row], name) for name in (*FACET_FIELDS, "study")}
            payload["labels"] = list(records[row].labels)
            there = {name: value for name, value in payload.items() if value is not None}
            chunk.append(qdrant.Point(row, {"z": vectors.z[row].tolist()}, there))
        shard.update(qdrant.UpdateOperation.upsert_points(chunk))
    shard.flush()
    shard.optimize()
    return shard


def _faiss(vectors: Vectors) -> Any:
    import faiss  # of the extra "bench"

    faiss.omp_set_num_threads(THREADS)
    index = faiss.IndexHNSWFlat(vectors.z.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = EF_CONSTRUCT
    index.add(vectors.z)
    faiss.omp_set_num_threads(1)
    return index


def _selector(index: Any, passing: NDArray[np.int64], count: int) -> Any:
    import faiss

    bits = np.zeros(-(-count // 8) * 8, bool)
    bits[passing] = True
    selector = faiss.IDSelectorBitmap(np.packbits(bits, bitorder="little"))
    assert index.ntotal == count
    return faiss.SearchParametersHNSW(efSearch=_EF, sel=selector)


def _passes(record: ImageRecord, where: Filter) -> bool:
    return all(
        isinstance(one, Match) and getattr(record, one.field) in one.values for one in where.must
    )


def _translated(where: Filter) -> qdrant.Filter:
    conditions: list[Any] = [
        qdrant.FieldCondition(one.field, match=qdrant.MatchAny(list(one.values)))
        for one in where.must
        if isinstance(one, Match)
    ]
    return qdrant.Filter(must=conditions)


def _asked(shard: qdrant.EdgeShard, z: NDArray[np.float32], chosen: qdrant.Filter) -> list[int]:
    request = qdrant.QueryRequest(
        limit=_K,
        query=qdrant.Query.Nearest(z.tolist(), using="z"),
        filter=chosen,
        params=qdrant.SearchParams(hnsw_ef=_EF),
    )
    return [int(found.id) for found in shard.query(request)]


def _timed(
    asks: dict[str, Callable[[NDArray[np.float32], NDArray[np.uint8]], Any]],
    vectors: Vectors,
    passing: NDArray[np.int64],
) -> dict[str, tuple[float, float, float]]:
    """Recall, median and 99th percentile in milliseconds, by system, asked in turn."""
    taken: dict[str, list[float]] = {name: [] for name in asks}
    right: Counter[str] = Counter()
    for number in (*range(10), *range(len(vectors.query_z))):
        z, code = vectors.query_z[number], vectors.query_codes[number]
        best = np.sort(vectors.z[passing] @ z)[-min(_K, len(passing))]
        for name, ask in asks.items():
            started = time.perf_counter()
            rows = np.asarray(ask(z, code), np.int64)
            taken[name].append((time.perf_counter() - started) * 1000)
            rows = rows[rows >= 0]
            right[name] += int((vectors.z[rows] @ z >= best - 1e-6).sum())
    whole = (10 + len(vectors.query_z)) * min(_K, len(passing))
    return {
        name: (
            round(right[name] / whole, 4),
            round(float(np.percentile(taken[name][10:], 50)), 3),
            round(float(np.percentile(taken[name][10:], 99)), 3),
        )
        for name in asks
    }


def _facets(
    store: EdgeStore,
    shard: qdrant.EdgeShard,
    where: Filter,
    translated: qdrant.Filter,
    name: str,
    records: list[ImageRecord],
    passing: NDArray[np.int64],
) -> list[dict[str, Any]]:
    wanted = Counter(records[row].modality for row in passing)

    def theirs() -> dict[str, dict[str, int]]:
        return {
            field: {
                str(hit.value): hit.count
                for hit in shard.facet(qdrant.FacetRequest(field, 50, True, translated))
            }
            for field in FACET_FIELDS
        }

    rows = []
    for system, ask in (
        ("ours", lambda: store.facets(FACET_FIELDS, where, 50)),
        ("Qdrant, a call for each field", theirs),
    ):
        taken = []
        for _ in range(20):
            started = time.perf_counter()
            found = ask()
            taken.append((time.perf_counter() - started) * 1000)
        exact = {value: count for value, count in found["modality"].items() if count}
        rows.append(
            {
                "filter": name,
                "system": system,
                "exact": exact == {str(value): count for value, count in wanted.items()},
                "p50_ms": round(float(np.percentile(taken, 50)), 3),
            }
        )
    return rows


if __name__ == "__main__":
    main()
