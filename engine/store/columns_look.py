"""The columns of an embedded index as they lie on the disk, looked at without opening them.

Opening would lock the index, repair what a killed process left and remove leftovers. This only
reads, so what it says holds while no process has the index open.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from engine.store.base import Collection
from engine.store.cells import Cells
from engine.store.columns import FORMAT, PENDING, STATE, Outdated, layout, read_cells

__all__ = ["ColumnsSeen", "look_at_columns"]

_HEADER_BYTES, _ID_BYTES = 48, 16


@dataclass(frozen=True, slots=True)
class ColumnsSeen:
    """What was seen.

    torn: why they will be made again from the shard; None = they are whole.
    pending: points that are noted as being written, which will be read from the shard again.
    rows: of which ``alive`` are points, and ``ordered`` lie sorted by cell. written: when.
    """

    torn: str | None = None
    pending: int = 0
    rows: int = 0
    alive: int = 0
    ordered: int = 0
    cells: Cells | None = None
    written: datetime | None = None


def look_at_columns(folder: Path, epoch: Path, collection: Collection) -> ColumnsSeen:
    """Looks at the columns in a folder.

    Args:
        epoch: the file that names the latest flush of the shard.
        collection: the kind of points that they must hold.
    """
    if not folder.is_dir():
        return ColumnsSeen("there are none")
    try:
        return _seen(folder, epoch, collection)
    except FileNotFoundError as error:
        return ColumnsSeen(f"{Path(str(error.filename)).name} is missing")
    except Outdated as error:
        return ColumnsSeen(str(error))
    except Exception as error:  # what JSON, NumPy and zipfile raise depends on the bytes
        return ColumnsSeen(f"they cannot be read ({type(error).__name__}: {error})")


def _seen(folder: Path, epoch: Path, collection: Collection) -> ColumnsSeen:
    state = json.loads((folder / STATE).read_bytes())
    made_for = tuple(state[name] for name in ("format", "dim", "bits", "model"))
    if made_for != (FORMAT, collection.dim, collection.bits, collection.model):
        raise Outdated("they are of another index")
    rows, generation = int(state["rows"]), folder / str(state["generation"])
    for name, (dtype, width) in layout(collection).items():
        row_bytes = np.dtype(dtype).itemsize * int(np.prod(width, dtype=np.int64))
        if (generation / name).stat().st_size < rows * row_bytes:
            raise Outdated(f"{name} is shorter than {rows:,} rows")
    if rows:
        ends = np.memmap(generation / "ends", np.uint64, "r", shape=(rows,))
        if (generation / "records").stat().st_size < int(ends[-1]):
            raise Outdated("records is shorter than its rows")
    (generation / "combinations.jsonl").stat()
    cells = read_cells(generation / "cells.npz", collection.model)
    pending = _pending(folder)
    if pending is None and (not epoch.is_file() or epoch.read_text() != state["epoch"]):
        raise Outdated("they are of another time than the shard")
    gone = np.memmap(generation / "gone", np.uint32, "r", shape=(rows,)) if rows else np.zeros(0)
    return ColumnsSeen(
        pending=pending or 0,
        rows=rows,
        alive=int((gone == 0).sum()),
        ordered=int(state["sorted"]),
        cells=cells,
        written=datetime.fromtimestamp((folder / STATE).stat().st_mtime, UTC),
    )


def _pending(folder: Path) -> int | None:
    """How many points are noted as being written; None = nothing is."""
    try:
        size = (folder / PENDING).stat().st_size
    except FileNotFoundError:
        return None
    return max(0, size - _HEADER_BYTES) // _ID_BYTES
