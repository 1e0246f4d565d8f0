#!/usr/bin/env bash
# qdrant-edge-py 0.9.0: what was deleted stays in the files, also after flush, optimise and close.
#
# Guess: once a shard was flushed, optimised and closed, nothing in its folder has a deleted point
# any more; an archive from which a patient was removed may be handed on.
# Behaviour: payload and id are still in the write-ahead log, and the payload and the vector in the
# segment as well. A point is only marked as deleted, and one of three hundred is no reason to write
# a segment anew. To be rid of it, the points that stay have to go into another shard.
# Output seen:
#   points that can be found: 299
#   the payload of the deleted point is in a file: True
#   its vector is in a file: True
#   after the rest went into another shard: False False
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "qdrant-edge-py==0.9.0" "numpy==2.4.6"
"$work/venv/bin/python" - "$work" <<'PYTHON' | tee "$work/seen"
import sys
from pathlib import Path

import numpy as np
import qdrant_edge as qdrant

POINTS, GONE, DIM = 300, 17, 8
vectors = np.random.default_rng(0).normal(size=(POINTS, DIM)).astype(np.float32)
vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
texts = [f"pseudonym-{row:04}" for row in range(POINTS)]


def shard_of(folder, rows):
    folder.mkdir()
    space = qdrant.EdgeVectorParams(DIM, qdrant.Distance.Dot)
    shard = qdrant.EdgeShard.create(str(folder), qdrant.EdgeConfig(vectors={"z": space}))
    points = [qdrant.Point(row, {"z": vectors[row].tolist()}, {"who": texts[row]}) for row in rows]
    shard.update(qdrant.UpdateOperation.upsert_points(points))
    return shard


def closed(shard):
    shard.flush()
    shard.optimize()
    shard.flush()
    shard.close()


def in_a_file(folder, what):
    return any(what in path.read_bytes() for path in folder.rglob("*") if path.is_file())


first = Path(sys.argv[1]) / "first"
shard = shard_of(first, range(POINTS))
shard.flush()
shard.update(qdrant.UpdateOperation.delete_points([GONE]))
print(f"points that can be found: {shard.count(qdrant.CountRequest())}")
closed(shard)
print(f"the payload of the deleted point is in a file: {in_a_file(first, texts[GONE].encode())}")
print(f"its vector is in a file: {in_a_file(first, vectors[GONE].tobytes())}")

second = Path(sys.argv[1]) / "second"
closed(shard_of(second, [row for row in range(POINTS) if row != GONE]))
left = in_a_file(second, texts[GONE].encode()), in_a_file(second, vectors[GONE].tobytes())
print("after the rest went into another shard:", *left)
PYTHON
diff "$work/seen" - <<'SEEN'
points that can be found: 299
the payload of the deleted point is in a file: True
its vector is in a file: True
after the rest went into another shard: False False
SEEN
