"""Snapshots: the backup of a store in one file, which can be restored into any store of its model.

The file is a ZIP archive. ``collection.json`` describes the collection and how many points follow.
The points are written in chunks of 4,096, ordered by id:

    points-00000.z.npy          vectors, float16 (N, D) if that is lossless, else float32
    points-00000.codes.npy      uint8 (N, B/8), packed codes
    points-00000.ids.npy        uint8 (N, 16), the bytes of the UUIDs
    points-00000.records.jsonl  N lines of JSON: {"record": {…}, "indexed_at": …, "rendering": …,
                                          "missing_frames": …}

``checksums.json`` is written last and holds the SHA-256 of every other member.
"""

import hashlib
import io
import json
import os
import tempfile
import uuid
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import FingerprintMismatch, PrecedentError, StoreError
from engine.records import BESIDE_RECORD, ImageRecord, Point
from engine.store.base import Collection, Filter, VectorStore
from engine.store.points import checked_vector

__all__ = ["described", "restore_snapshot", "write_snapshot"]

_FORMAT, _VERSION = "precedent-snapshot", 1
_ABOUT, _CHECKSUMS = "collection.json", "checksums.json"
_AT_ONCE = 4096
_LARGEST_MEMBER = 1024**3
"""Most bytes of a member, unpacked: a small file could unpack to more than fits in memory."""

Progress = Callable[[int, int], None]
"""Called with the number of points done so far and the number in all."""


def write_snapshot(
    store: VectorStore, path: Path, progress: Progress = lambda _done, _total: None
) -> int:
    """Writes all points of ``store`` to the file ``path`` and returns their number.

    An existing file is replaced once the new one is complete. Points written to the store meanwhile
    may be missing. The file holds pseudonyms, so only its owner can read it.

    Raises:
        StoreError: the file cannot be written, or the store cannot be read.
    """
    if store.collection.words is not None:
        raise StoreError(
            "a snapshot has no room for the vectors that searches by words compare; use `precedent "
            "backup`, which copies the files of an embedded index as they are, or the snapshots of "
            "the server"
        )
    total = store.count(Filter())
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        try:
            with os.fdopen(handle, "wb") as stream:
                with zipfile.ZipFile(stream, "w") as archive:
                    count = _write(store, archive, lambda done: progress(done, total))
                stream.flush()
                os.fsync(stream.fileno())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StoreError(
            f"snapshot {path} cannot be written ({error.strerror}); name a file in a folder "
            "that exists, that you may write to and that has room"
        ) from None
    return count


def _write(store: VectorStore, archive: zipfile.ZipFile, progress: Callable[[int], None]) -> int:
    checksums: dict[str, str] = {}

    def add(name: str, data: bytes) -> None:
        if len(data) > _LARGEST_MEMBER:
            raise StoreError(
                f"{name} of the snapshot would have {len(data)} bytes, and {_LARGEST_MEMBER} "
                "is the limit; the records of these images are too long to be read again"
            )
        # Without a timestamp, snapshots of the same points are equal byte for byte.
        member = zipfile.ZipInfo(name)
        # Vectors and codes do not compress.
        packed = not name.endswith(".npy")
        member.compress_type = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
        archive.writestr(member, data)
        checksums[name] = hashlib.sha256(data).hexdigest()

    points = store.scroll(Filter(), page=_AT_ONCE, with_z=True)
    count = chunks = 0
    while chunk := list(islice(points, _AT_ONCE)):
        names = _Chunk(chunks)
        z = np.stack([checked_vector(point, store.collection) for point in chunk])
        ids = b"".join(uuid.UUID(point.id).bytes for point in chunk)
        add(names.z, _npy(_halved(z)))
        add(names.codes, _npy(np.stack([point.code for point in chunk])))
        add(names.ids, _npy(np.frombuffer(ids, np.uint8).reshape(-1, 16)))
        add(names.records, "".join(map(_line, chunk)).encode("ascii"))
        count, chunks = count + len(chunk), chunks + 1
        progress(count)
    about = {
        "format": _FORMAT,
        "version": _VERSION,
        **store.collection.noted(),
        "profile": asdict(store.profile),
        "count": count,
        "chunks": chunks,
    }
    add(_ABOUT, json.dumps(about).encode())
    add(_CHECKSUMS, json.dumps(checksums).encode())
    return count


def _halved(z: NDArray[np.float32]) -> NDArray[np.floating[Any]]:
    with np.errstate(over="ignore"):  # too large a value becomes infinite, and so unequal
        half = z.astype(np.float16)
    return half if np.array_equal(half, z) else z


def _npy(array: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, allow_pickle=False)
    return stream.getvalue()


def _line(point: Point) -> str:
    beside = {name: getattr(point, name) for name in BESIDE_RECORD}
    # Escaped to ASCII, so that no character of a text can end the line.
    return json.dumps({"record": point.record.known(), **beside}) + "\n"


def described(path: Path) -> Collection:
    """The kind of points in a snapshot file. Raises StoreError: it is damaged or no snapshot."""
    with _Snapshot(path) as snapshot:
        return snapshot.collection


def restore_snapshot(
    path: Path, store: VectorStore, progress: Progress = lambda _done, _total: None
) -> int:
    """Adds all points of a snapshot file to ``store`` and returns their number.

    The whole file is read and checked before anything is written. Points of the store with the
    same ids are replaced and all others are kept, so restoring twice changes nothing. The store
    keeps its own profile.

    Raises:
        FingerprintMismatch: the snapshot is of another model than the store.
        StoreError: the file is no snapshot, is damaged or truncated, or has another version of the
            format; or the store cannot be written to.
    """
    with _Snapshot(path) as snapshot:
        snapshot.check_model(store.collection)
        for _ in snapshot.chunks():
            pass
        done = 0
        for chunk in snapshot.chunks():
            store.upsert(chunk)
            done += len(chunk)
            progress(done, snapshot.count)
    store.flush()
    store.optimise()
    return done


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Names of the ZIP members that hold one chunk of points."""

    number: int

    @property
    def z(self) -> str:
        return f"points-{self.number:05}.z.npy"

    @property
    def codes(self) -> str:
        return f"points-{self.number:05}.codes.npy"

    @property
    def ids(self) -> str:
        return f"points-{self.number:05}.ids.npy"

    @property
    def records(self) -> str:
        return f"points-{self.number:05}.records.jsonl"


class _Snapshot:
    """A snapshot file that is open for reading.

    Raises, from any method that reads:
        StoreError: the file is damaged, or no snapshot of this version of the format.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with _reading(path):
            self._archive = zipfile.ZipFile(path)
        try:
            with _reading(path):
                self._checksums: dict[str, str] = json.loads(self._bytes(_CHECKSUMS))
                about = json.loads(self._verified(_ABOUT))
                _check_format(path, about)
                self.collection = Collection(
                    about["model"], about["dim"], about["bits"], about.get("precision")
                )
                self._chunks = [_Chunk(number) for number in range(about["chunks"])]
                self.count: int = about["count"]
                self._check_members()
        except BaseException:
            self._archive.close()
            raise

    def __enter__(self) -> "_Snapshot":
        return self

    def __exit__(self, *_: object) -> None:
        self._archive.close()

    def _check_members(self) -> None:
        wanted = {_ABOUT, _CHECKSUMS}
        for names in self._chunks:
            wanted |= {names.z, names.codes, names.ids, names.records}
        there = self._archive.namelist()
        if {*there} != wanted or len(there) != len(wanted):
            raise ValueError("its parts are not those that it speaks of")

    def check_model(self, wanted: Collection) -> None:
        found = self.collection
        if found != wanted:
            raise FingerprintMismatch(
                f"snapshot {self._path} was made by model {found.model} ({found.bits} bits, "
                f"{found.dim} values), the index by {wanted.model} ({wanted.bits} bits, "
                f"{wanted.dim} values); restore it into an index of its model, with --model"
            )

    def chunks(self) -> Iterator[list[Point]]:
        """All points, chunk by chunk."""
        count = 0
        for names in self._chunks:
            with _reading(self._path):
                chunk = self._points(names)
            count += len(chunk)
            yield chunk
        with _reading(self._path):
            if count != self.count:
                raise ValueError(f"it holds {count} points instead of {self.count}")

    def _points(self, names: _Chunk) -> list[Point]:
        dim, width = self.collection.dim, self.collection.bits // 8
        z = self._array(names.z, dim, np.float16, np.float32).astype(np.float32)
        if not np.isfinite(z).all():
            raise ValueError(f"{names.z} holds values that are not finite")
        codes = self._array(names.codes, width, np.uint8)
        ids = self._array(names.ids, 16, np.uint8)
        lines = self._verified(names.records).decode("ascii").removesuffix("\n").split("\n")
        return [_point(*parts) for parts in zip(ids, z, codes, lines, strict=True)]

    def _array(self, name: str, width: int, *dtypes: type[np.generic]) -> NDArray[Any]:
        """The array in member ``name``, of shape (N, ``width``) and one of the types.

        Raises:
            ValueError: it has another shape or type.
        """
        stream = io.BytesIO(self._verified(name))
        array: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
        if array.dtype not in dtypes or array.ndim != 2 or array.shape[1] != width:
            shape = f"{array.dtype} {array.shape}"
            raise ValueError(f"{name} holds {shape} instead of (N, {width})")
        return array

    def _verified(self, name: str) -> bytes:
        data = self._bytes(name)
        if hashlib.sha256(data).hexdigest() != self._checksums[name]:
            raise ValueError(f"the checksum of {name} is wrong")
        return data

    def _bytes(self, name: str) -> bytes:
        if (size := self._archive.getinfo(name).file_size) > _LARGEST_MEMBER:
            raise ValueError(f"{name} has {size} bytes, and {_LARGEST_MEMBER} is the limit")
        return self._archive.read(name)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except PrecedentError:
        raise
    except OSError as error:
        raise StoreError(
            f"snapshot {path} cannot be read ({error.strerror or error}); name the file of a "
            "snapshot, and one that you may read"
        ) from None
    except Exception as error:  # zipfile, zlib, json and numpy each have errors of their own
        raise StoreError(
            f"snapshot {path} is damaged, or no snapshot ({type(error).__name__}: {error}); "
            "restore another copy of it"
        ) from None


def _check_format(path: Path, about: Any) -> None:
    if about["format"] != _FORMAT:
        raise ValueError(f"its format is {about['format']!r}")
    if about["version"] != _VERSION:
        raise StoreError(
            f"snapshot {path} has version {about['version']!r} of the format, and this program "
            f"reads version {_VERSION}; restore it with the program that wrote it"
        )


def _point(
    point_id: NDArray[np.uint8], z: NDArray[np.float32], code: NDArray[np.uint8], line: str
) -> Point:
    values = json.loads(line)
    record = {**values["record"], "labels": tuple(values["record"]["labels"])}
    return Point(
        id=str(uuid.UUID(bytes=point_id.tobytes())),
        record=ImageRecord(**record),
        code=code,
        z=z,
        indexed_at=values["indexed_at"],
        rendering=values.get("rendering"),
        missing_frames=values.get("missing_frames"),
    )
