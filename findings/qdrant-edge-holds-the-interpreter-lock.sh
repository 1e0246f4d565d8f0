#!/usr/bin/env bash
# qdrant-edge-py 0.9.0: other Python threads stand still while a shard is optimised.
#
# Guess: a call that computes in Rust for seconds releases Python's lock, as NumPy and PyTorch do, so
# that a service answers, and a worker renews its lease, while the graph of an index is built.
# Behaviour: the lock is held from the beginning to the end of optimize(). A thread that wants to run
# every millisecond does not run once in nine tenths of the time. The same holds for upserts and
# queries, which are shorter. Whoever serves and writes in one process has to optimise in another one.
# Output seen:
#   the other thread stood still for nine tenths of optimize() or more: True
#   and for as much of a NumPy product of the same length: False
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "qdrant-edge-py==0.9.0" "numpy==2.4.6"
mkdir "$work/shard"
"$work/venv/bin/python" - "$work/shard" <<'PYTHON' | tee "$work/seen"
import sys
import threading
import time

import numpy as np
import qdrant_edge as qdrant


def longest_pause(work):
    """Of a thread beside the work, as a share of the work's time."""
    pauses, ended = [0.0], threading.Event()

    def beat():
        last = time.perf_counter()
        while not ended.wait(0.001):
            now = time.perf_counter()
            pauses.append(now - last)
            last = now
        pauses.append(time.perf_counter() - last)

    thread = threading.Thread(target=beat)
    thread.start()
    time.sleep(0.05)
    begun = time.perf_counter()
    work()
    taken = time.perf_counter() - begun
    ended.set()
    thread.join()
    return max(pauses) / taken, taken


graph = qdrant.HnswIndexConfig(16, 100, full_scan_threshold=100)
space = qdrant.EdgeVectorParams(64, qdrant.Distance.Dot, hnsw_config=graph)
optimisers = qdrant.EdgeOptimizersConfig(indexing_threshold=100)
shard = qdrant.EdgeShard.create(
    sys.argv[1],
    qdrant.EdgeConfig(vectors={"z": space}, hnsw_config=graph, optimizers=optimisers),
)
vectors = np.random.default_rng(0).normal(size=(20_000, 64)).astype(np.float32)
for start in range(0, len(vectors), 500):
    rows = range(start, start + 500)
    points = [qdrant.Point(row, {"z": vectors[row].tolist()}) for row in rows]
    shard.update(qdrant.UpdateOperation.upsert_points(points))
share, taken = longest_pause(shard.optimize)
print(f"the other thread stood still for nine tenths of optimize() or more: {share > 0.9}")
square = np.random.default_rng(0).normal(size=(3000, 3000))


def multiply():
    until = time.perf_counter() + taken
    while time.perf_counter() < until:
        square @ square


share, _ = longest_pause(multiply)
print(f"and for as much of a NumPy product of the same length: {share > 0.9}")
PYTHON
diff "$work/seen" - <<'SEEN'
the other thread stood still for nine tenths of optimize() or more: True
and for as much of a NumPy product of the same length: False
SEEN
