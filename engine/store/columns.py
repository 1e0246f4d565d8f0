"""The columns of an embedded index: what searches read, derived from the shard of Qdrant Edge.

A row is a point: its vector, code, cell, combination of field values, hashes of its UIDs and its
record as JSON. The files are mapped, so that a search touches only what it compares. Rows are added
at the end, and a row whose point was replaced or deleted is marked; :meth:`Columns.arranged` makes
a new generation, without those and sorted by cell.

The shard is the truth, and columns can be made from it at any time. ``state.json`` says how many
rows are complete on disk. Between two calls of :meth:`Columns.sync`, the ids of all points that are
written are noted in ``pending`` before they are: after a process was killed, these points are read
from the shard again. After a power cut, when files may have lost anything, all of them are.
"""

import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike, NDArray

from engine.errors import StoreError
from engine.files import write_atomically
from engine.records import Point
from engine.store.base import Collection, Filter
from engine.store.cells import LEAST_POINTS, Cells, measured_again, trained
from engine.store.column_file import ColumnFile
from engine.store.combinations import Combinations
from engine.store.rows import KEYS, Erasure, IdLookup, TextReader, View, keys_of

__all__ = [
    "FORMAT",
    "PENDING",
    "STATE",
    "Columns",
    "Outdated",
    "layout",
    "read_cells",
    "written",
]

FORMAT = 1
STATE, PENDING = "state.json", "pending"
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_ID_BYTES = 16
_HEADER_BYTES = 48
"""Of ``pending``, with the machine's boot id."""
_AT_ONCE = 4096
_TAIL = 0.25
"""Rows are sorted anew when this share of them was added since."""


class Outdated(Exception):
    """The columns do not fit the shard; they have to be made from it again."""


def layout(collection: Collection) -> dict[str, tuple[DTypeLike, tuple[int, ...]]]:
    """The files of fixed rows that columns have: of each the type of its values and their shape."""
    return {
        "z": (np.float32, (collection.dim,)),
        "ids": (np.uint8, (_ID_BYTES,)),
        "codes": (np.uint8, (collection.bits // 8,)),
        **dict.fromkeys(KEYS, (np.uint64, ())),
        "cell": (np.uint32, ()),
        "combination": (np.uint32, ()),
        "gone": (np.uint32, ()),
        "ends": (np.uint64, ()),
    }


class Columns:
    """The columns in a folder. One thread writes at a time, several may use :attr:`view`."""

    def __init__(self, folder: Path, collection: Collection) -> None:
        """Opens what :meth:`sync` left.

        Raises:
            Outdated: there is nothing, or it is damaged or of another collection.
        """
        self._folder = folder
        self._collection = collection
        try:
            state = json.loads((folder / STATE).read_bytes())
            if (state["format"], state["dim"], state["bits"], state["model"]) != (
                FORMAT,
                collection.dim,
                collection.bits,
                collection.model,
            ):
                raise Outdated("they are of another index")
            self._open(state["generation"], state["rows"], state["sorted"], state["combinations"])
            self.settled, self.epoch = int(state["settled"]), str(state["epoch"])
        except Outdated:
            raise
        except Exception as error:
            # What JSON, NumPy and zipfile raise depends on the bytes.
            raise Outdated(f"{type(error).__name__}: {error}") from None
        self._remove_leftovers()

    @classmethod
    def empty(cls, folder: Path, collection: Collection) -> "Columns":
        """New columns without rows; what is in the folder is deleted."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        made = cls.__new__(cls)
        made._folder, made._collection = folder, collection
        (folder / "0").mkdir()
        made._open(0, 0, 0, 0)
        return made

    settled: int = 0
    """How many rows there were when the shard was optimised."""
    epoch: str = ""
    """Names the state of the shard that they fit, for whoever opens them."""

    def _open(self, generation: int, rows: int, ordered: int, combinations: int) -> None:
        with ExitStack() as opened:
            self._open_files(opened, generation, combinations)
            self._read(rows, ordered, combinations)
            self._opened = opened.pop_all()

    def _open_files(self, opened: ExitStack, generation: int, combinations: int) -> None:
        collection, folder = self._collection, self._folder / str(generation)
        self._generation = generation
        self._files = {
            name: ColumnFile(folder / name, dtype, width)
            for name, (dtype, width) in layout(collection).items()
        }
        self._texts = ColumnFile(folder / "records", np.uint8)
        self._reader = TextReader(folder / "records")
        for file in (*self._files.values(), self._texts):
            opened.callback(file.close)
        self._combinations = Combinations(folder / "combinations.jsonl", combinations)
        opened.callback(self._combinations.close)

    def _read(self, rows: int, ordered: int, combinations: int) -> None:
        if any(len(file.rows) < rows for file in self._files.values()):
            raise Outdated("a file is too short")
        ends = self._files["ends"].rows
        self._text_end = int(ends[rows - 1]) if rows else 0
        if len(self._texts.rows) < self._text_end:
            raise Outdated("the records are too short")
        folder = self._folder / str(self._generation)
        cells = read_cells(folder / "cells.npz", self._collection.model)
        gone = self._files["gone"].rows[:rows]
        there = np.flatnonzero(gone == 0)
        self._lookup = IdLookup(self._files["ids"].rows, there)
        self._moment = int(gone.max(initial=0))
        self._erasure = Erasure()
        self._to_erase: list[NDArray[np.int64]] = []
        used = self._files["combination"].rows[there]
        if len(used) and used.max() >= combinations:
            raise Outdated("a row has no combination")
        self._combinations.count(np.zeros(0, np.int64), used)
        self._publish(rows, ordered, cells)

    def _remove_leftovers(self) -> None:
        """Removes other generations, and files that were being written when a process ended."""
        current = self._folder / str(self._generation)
        for entry in self._folder.iterdir():
            if entry.is_dir() and entry != current:
                shutil.rmtree(entry, ignore_errors=True)
        for entry in (*self._folder.glob(".*"), *current.glob(".*")):
            entry.unlink(missing_ok=True)

    def _publish(self, rows: int, ordered: int, cells: Cells | None) -> None:
        arrays = {name: file.rows for name, file in self._files.items()}
        before = getattr(self, "view", None)
        starts = before.starts if before is not None and before.ordered == ordered else None
        if starts is None and cells is not None:
            steps = np.arange(len(cells) + 1)
            starts = np.searchsorted(arrays["cell"][:ordered], steps)
        self.view = View(
            **arrays,
            texts=self._reader,
            rows=rows,
            moment=self._moment,
            ordered=ordered,
            cells=cells,
            starts=starts,
            combinations=self._combinations,
            combined=len(self._combinations),
            counts=self._combinations.counts,
            lookup=self._lookup,
            erasure=self._erasure,
        )
        """What searches use. It does not change, but what is gone is erased at some time."""

    # Writing

    def note(self, ids: Iterable[uuid.UUID]) -> None:
        """Writes down which points are about to be written or deleted."""
        path = self._folder / PENDING
        new = not path.exists()
        with written(path), path.open("ab") as file:
            if new:
                file.write(_boot())
            # Of a note that was cut short by a full disk nothing is left.
            file.truncate(file.tell() // _ID_BYTES * _ID_BYTES)
            file.write(b"".join(one.bytes for one in ids))
            file.flush()
            if new:
                os.fsync(file.fileno())
                _sync_folder(self._folder)

    def reserve(self, texts: Sequence[bytes]) -> None:
        """Makes room for points with these records. Raises StoreError: there is none."""
        for file in self._files.values():
            file.reserve(self.view.rows + len(texts))
        self._texts.reserve(self._text_end + sum(map(len, texts)))

    def append(
        self, points: Sequence[Point], ids: Sequence[uuid.UUID], texts: Sequence[bytes]
    ) -> None:
        """Adds points with z, in place of those with the same ids.

        Args:
            ids: of the points. texts: their records, as ``text_record`` writes them.
        """
        packed = [one.bytes for one in ids]
        last = {one: at for at, one in enumerate(packed)}
        points = [points[at] for at in last.values()]
        texts = [texts[at] for at in last.values()]
        if not points:
            return
        view = self.view
        start, end = view.rows, view.rows + len(points)
        self.reserve(texts)
        ends = self._text_end + np.cumsum([len(text) for text in texts], dtype=np.uint64)
        arrays = {name: file.rows for name, file in self._files.items()}
        self._texts.rows[self._text_end : int(ends[-1])] = np.frombuffer(b"".join(texts), np.uint8)
        z = np.stack([point.z for point in points if point.z is not None])
        new = slice(start, end)
        arrays["z"][new] = z
        arrays["ids"][new] = np.frombuffer(b"".join(last), np.uint8).reshape(-1, _ID_BYTES)
        arrays["codes"][new] = np.stack([point.code for point in points])
        keys = np.array([keys_of(point.record) for point in points], np.uint64)
        for at, name in enumerate(KEYS):
            arrays[name][new] = keys[:, at]
        arrays["cell"][new] = 0 if view.cells is None else view.cells.assigned(z)
        numbers = [self._combinations.number_of(point.record) for point in points]
        arrays["combination"][new] = numbers
        arrays["ends"][new] = ends
        arrays["gone"][new] = 0
        self._text_end = int(ends[-1])
        replaced = self._lookup.find(arrays["ids"][new], arrays["ids"], start)
        gone = self._mark_gone(replaced[replaced >= 0])
        self._combinations.count(gone, np.array(numbers))
        self._lookup = self._lookup.with_rows(arrays["ids"], arrays["gone"], start, end)
        self._publish(end, view.ordered, view.cells)

    def remove(self, rows: NDArray[np.int64]) -> None:
        """Takes rows out whose points were deleted. The next :meth:`sync` erases what they held."""
        self._combinations.count(self._mark_gone(rows), np.zeros(0, np.int64))
        self._publish(self.view.rows, self.view.ordered, self.view.cells)

    def _mark_gone(self, rows: NDArray[np.int64]) -> NDArray[np.uint32]:
        """The combinations of those that were not gone yet."""
        view = self.view
        rows = rows[view.gone[rows] == 0]
        if len(rows):
            self._moment += 1
            view.gone[rows] = self._moment
            self._to_erase.append(rows)
        return view.combination[rows]

    def erase_gone(self) -> None:
        """Erases what an earlier process left: at once what it wrote behind the last row, with the
        next :meth:`sync` what rows that are gone held."""
        self._to_erase = [np.flatnonzero(self.view.gone[: self.view.rows])]
        for file in self._files.values():
            file.rows[self.view.rows :] = 0
        self._texts.rows[self._text_end :] = 0

    def _erase(self) -> None:
        view, ends = self.view, self.view.ends
        self._erasure.moment = self._moment
        for rows in self._to_erase:
            for row in rows.tolist():
                start = int(ends[row - 1]) if row else 0
                self._texts.rows[start : int(ends[row])] = 0
            for name in ("z", "codes", "ids", *KEYS):
                getattr(view, name)[rows] = 0
        self._to_erase = []
        self._combinations.forget_unused()

    def sync(self) -> None:
        """On return, all rows survive a power cut, and nothing is left of what is gone. The shard
        must survive it already."""
        with written(self._folder):
            if self._to_erase:
                self._erase()
            for file in (*self._files.values(), self._texts):
                file.sync()
            self._combinations.sync()
            self._note_state()
            (self._folder / PENDING).unlink(missing_ok=True)

    def _note_state(self) -> None:
        state = {
            "format": FORMAT,
            "model": self._collection.model,
            "dim": self._collection.dim,
            "bits": self._collection.bits,
            "generation": self._generation,
            "rows": self.view.rows,
            "sorted": self.view.ordered,
            "combinations": len(self._combinations),
            "settled": self.settled,
            "epoch": self.epoch,
        }
        write_atomically(self._folder / STATE, json.dumps(state).encode())

    @property
    def is_written_to(self) -> bool:
        """Whether anything was noted since the last :meth:`sync`."""
        return (self._folder / PENDING).exists()

    def pending(self) -> list[str] | None:
        """Ids of the points that may differ from the shard; None = :meth:`sync` was the last call.

        Raises:
            Outdated: the machine was started again since.
        """
        try:
            noted = (self._folder / PENDING).read_bytes()
        except FileNotFoundError:
            return None
        boot = _boot()
        if not noted.startswith(boot):
            raise Outdated("the machine was started again while they were written")
        ids = noted[len(boot) :]
        whole = len(ids) // _ID_BYTES * _ID_BYTES
        return [str(uuid.UUID(bytes=ids[at : at + _ID_BYTES])) for at in range(0, whole, _ID_BYTES)]

    # Arranging

    def should_be_arranged(self) -> bool:
        """Whether so much has changed that a new generation makes searches faster."""
        view = self.view
        alive = view.count(Filter())
        if alive < LEAST_POINTS:
            return view.rows > 2 * max(alive, LEAST_POINTS)
        return (
            view.cells is None
            or view.cells.outgrown(alive)
            or view.rows - view.ordered > _TAIL * view.rows
            or view.rows - alive > _TAIL * view.rows
        )

    def arranged(self, *, anew: bool = False) -> "Columns":
        """A new generation of all rows that are not gone, sorted by cell, in force on return.

        The cells are kept, and measured again, unless the index has outgrown them or what came
        since is too different. :meth:`sync` has to be the last call before. This object is closed;
        its views stay valid.

        Args:
            anew: make new cells in any case.
        """
        view = self.view
        rows = np.flatnonzero(view.gone[: view.rows] == 0)
        cells, cell = view.cells, view.cell[rows]
        if len(rows) >= LEAST_POINTS and (anew or cells is None or cells.outgrown(len(rows))):
            cells, cell = trained(view.z, view.codes, rows, self._collection.model)
        elif cells is not None:
            now = measured_again(cells, view.z, view.codes, rows, cell)
            if len(rows) >= LEAST_POINTS and now.have_drifted:
                now, cell = trained(view.z, view.codes, rows, self._collection.model)
            cells = now
        made = self._renewed(self._folder, self._generation + 1, rows, cell, cells)
        self.close()
        made._remove_leftovers()
        return made

    def compacted(self, folder: Path, *, new_cells: bool = False) -> None:
        """Writes the rows that are not gone into another folder, with the cells as they are.
        :meth:`sync` has to be the last call before.

        Args:
            new_cells: make new cells in any case, rather than only where one of them is left
                without a row.
        """
        view = self.view
        rows = np.flatnonzero(view.gone[: view.rows] == 0)
        cells, cell = view.cells, view.cell[rows]
        if cells is not None and (new_cells or len(np.unique(cell)) < len(cells)):
            cells, cell = None, np.zeros_like(cell)
            if len(rows) >= LEAST_POINTS:
                cells, cell = trained(view.z, view.codes, rows, self._collection.model)
        folder.mkdir(parents=True, exist_ok=True)
        self._renewed(folder, 0, rows, cell, cells, settled=len(rows)).close()

    def _renewed(
        self,
        base: Path,
        generation: int,
        rows: NDArray[np.int64],
        cell: NDArray[np.uint32],
        cells: Cells | None,
        settled: int | None = None,
    ) -> "Columns":
        """Columns in the folder ``base`` with these rows, durable and sorted by cell."""
        view = self.view
        order = np.argsort(cell, kind="stable")
        folder = base / str(generation)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        made = Columns.__new__(Columns)
        made._folder, made._collection = base, self._collection
        with written(folder), ExitStack() as failed:
            failed.callback(shutil.rmtree, folder, ignore_errors=True)
            if cells is not None:
                _write_cells(folder / "cells.npz", cells)
            made._open(generation, 0, 0, 0)
            failed.callback(made.close)
            made._copy(view, rows[order], cell[order], cells)
            kept = max(0, self.settled - (view.rows - len(rows)))
            made.settled = kept if settled is None else settled
            made.epoch = self.epoch
            made.sync()
            failed.pop_all()
        return made

    def _copy(
        self,
        view: View,
        rows: NDArray[np.int64],
        cell: NDArray[np.uint32],
        cells: Cells | None,
    ) -> None:
        for file in self._files.values():
            file.reserve(len(rows))
        lengths = np.diff(view.ends[: view.rows], prepend=np.uint64(0))[rows]
        ends = np.cumsum(lengths, dtype=np.uint64)
        self._texts.reserve(int(ends[-1]) if len(ends) else 0)
        renumbered = np.full(len(view.combinations), -1, np.int64)
        for at in range(0, len(rows), _AT_ONCE):
            part, some = slice(at, min(at + _AT_ONCE, len(rows))), rows[at : at + _AT_ONCE]
            for name in ("z", "ids", "codes", *KEYS):
                self._files[name].rows[part] = getattr(view, name)[some]
            texts = b"".join(view.text(row) for row in some)
            end = int(ends[part.stop - 1])
            self._texts.rows[end - len(texts) : end] = np.frombuffer(texts, np.uint8)
            numbers = view.combination[some]
            for number in np.unique(numbers):
                if renumbered[number] < 0:
                    values = view.combinations.values_of(int(number))
                    renumbered[number] = self._combinations.number_for(values)
            self._files["combination"].rows[part] = renumbered[numbers]
        self._files["cell"].rows[: len(rows)] = cell
        self._files["gone"].rows[: len(rows)] = 0
        self._files["ends"].rows[: len(rows)] = ends
        self._text_end = int(ends[-1]) if len(ends) else 0
        new = self._files["combination"].rows[: len(rows)]
        self._combinations.count(np.zeros(0, np.int64), new)
        self._lookup = IdLookup(self._files["ids"].rows, np.arange(len(rows)))
        self._publish(len(rows), len(rows) if cells is not None else 0, cells)

    def close(self) -> None:
        """Closes the files; views stay valid."""
        self._opened.close()


def read_cells(path: Path, model: str) -> Cells | None:
    """The cells in a file; None = there is none.

    Raises:
        Outdated: they are of another model. Exception: the file is damaged.
    """
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as found:
        about = json.loads(str(found["about"]))
        if about["model"] != model:
            raise Outdated("the cells are of another model")
        return Cells(found["centroids"], **about)


def _write_cells(path: Path, cells: Cells) -> None:
    about = {
        "model": cells.model,
        "points": cells.points,
        "probes": cells.probes,
        "recall": cells.recall,
        "code_recall": cells.code_recall,
    }
    with path.open("wb") as file:
        np.savez(file, centroids=cells.centroids, about=np.array(json.dumps(about)))
        file.flush()
        os.fsync(file.fileno())


def _boot() -> bytes:
    """Names the time since the machine was started; as long on every machine."""
    try:
        return _BOOT.read_bytes().strip()[:_HEADER_BYTES].ljust(_HEADER_BYTES)
    except OSError:
        return b"?" * _HEADER_BYTES


@contextmanager
def written(path: Path) -> Iterator[None]:
    """A block that writes there. Raises StoreError instead of OSError."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written ({error.strerror}); make room, or see to its permissions, "
            "and run the same command again"
        ) from None


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
