#!/usr/bin/env bash
# qdrant-edge-py 0.9.0: every payload index reads the whole payload of every point again.
#
# Guess: an index on one field costs what that field costs, whatever else the payload holds.
# Behaviour: to build an index, the JSON of the whole payload is parsed for each point and each index.
# With 60 fields beside it, an integer index takes several times as long as with one long text beside
# it that has as many bytes. Twenty indexes over the fields of a record took more time than the graph
# over its vectors.
# Output seen:
#   an index beside 60 fields takes at least twice as long as beside one text of as many bytes: True
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "qdrant-edge-py==0.9.0" "numpy==2.4.6"
"$work/venv/bin/python" - "$work" <<'PYTHON' | tee "$work/seen"
import json
import sys
import time
from pathlib import Path

import numpy as np
import qdrant_edge as qdrant

POINTS = 20_000


def indexing(name, payload, fields):
    """Processor seconds of building payload indexes over points that are there and optimised."""
    folder = Path(sys.argv[1]) / name
    folder.mkdir()
    space = qdrant.EdgeVectorParams(4, qdrant.Distance.Dot)
    shard = qdrant.EdgeShard.create(str(folder), qdrant.EdgeConfig(vectors={"z": space}))
    vectors = np.eye(4, dtype=np.float32)
    for start in range(0, POINTS, 500):
        rows = range(start, start + 500)
        points = [qdrant.Point(row, {"z": vectors[row % 4].tolist()}, payload(row)) for row in rows]
        shard.update(qdrant.UpdateOperation.upsert_points(points))
    shard.flush()
    shard.optimize()
    begun = time.process_time()
    for field in fields:
        kind = qdrant.IntegerIndexParams(lookup=True, range=False)
        shard.update(qdrant.UpdateOperation.create_field_index(field, kind))
    taken = time.process_time() - begun
    shard.close()
    return taken


def fields_of(row):
    texts = {f"text_{i}": f"value {row % 7} of {i}" for i in range(50)}
    return texts | {f"number_{i}": row % (i + 2) for i in range(10)}


def one_text(row):
    return {"number_0": row % 2, "record": json.dumps(fields_of(row))}


many = indexing("many", fields_of, ["number_0"])
text = indexing("text", one_text, ["number_0"])
print(
    "an index beside 60 fields takes at least twice as long as beside one text of as many bytes: "
    f"{many > 2 * text}"
)
print(f"{many:.2f} {text:.2f}", file=sys.stderr)
PYTHON
diff "$work/seen" - <<'SEEN'
an index beside 60 fields takes at least twice as long as beside one text of as many bytes: True
SEEN
